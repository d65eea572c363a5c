"""`medseq review OUT …`: look at what runs produced, decide, and sign. Also: verify, export, agreement."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from medseq.cli.console import AsJson, Quiet, print_json, say
from medseq.errors import BackendError, InputError

__all__ = ["app"]

Runs = Annotated[list[Path], typer.Argument(help="Output folders of runs, or folders that hold them.")]


class ReviewGroup(TyperGroup):
    """`medseq review OUT` opens the page: what is no command is its first folder."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of this name, else ``open`` with all words."""
        if args and args[0] not in self.commands:
            args = ["open", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options may stand before the first folder."""
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["open", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=ReviewGroup,
    no_args_is_help=True,
    help="Review results in a browser: medseq review OUT. Also: verify, export and agreement of the record.",
)


@app.command("open")
def open_page(
    out: Annotated[list[Path] | None, typer.Argument(help="Output folders of runs, or folders that hold them.")] = None,
    port: Annotated[int, typer.Option("--port", help="Port of the page.")] = 8501,
    address: Annotated[
        str, typer.Option("--address", help="Where it listens; others than 127.0.0.1 need --auth.")
    ] = "127.0.0.1",
    auth: Annotated[
        Path | None, typer.Option("--auth", help="TOML file of the sign-in service (OpenID Connect).")
    ] = None,
    input: Annotated[
        list[Path] | None, typer.Option("--input", help="Where inputs lie now, if they moved since the run.")
    ] = None,
    reference: Annotated[
        list[Path] | None, typer.Option("--reference", help="Folders with fully sampled images of reconstructed scans.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="Your name in the record, without sign-in.")] = None,
    study: Annotated[
        str | None, typer.Option("--study", help="Blinded reader study of this name: random order, no methods.")
    ] = None,
    push_on_accept: Annotated[
        str | None,
        typer.Option("--push-on-accept", help="Archive for accepted series: dicom://AE@host:port or https://…"),
    ] = None,
    root: Annotated[
        list[Path] | None, typer.Option("--root", help="Folders that runs started from the page may read.")
    ] = None,
    workspace: Annotated[
        Path | None, typer.Option("--workspace", help="Where runs started from the page go; without it there are none.")
    ] = None,
    session_minutes: Annotated[
        float, typer.Option("--session-minutes", min=1, help="A session ends unused after so long.")
    ] = 30,
    memory: Annotated[int, typer.Option("--memory", min=64, help="Megabytes for pictures.")] = 1024,
    https: Annotated[bool, typer.Option("--https", help="The page is reached by TLS (of a proxy in front).")] = False,
    access_log: Annotated[
        Path | None, typer.Option("--access-log", help="File for who opened what; default: beside the first run.")
    ] = None,
    theme: Annotated[Literal["dark", "light"], typer.Option("--theme", help="Colours of the page.")] = "dark",
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = False,
    quiet: Quiet = False,
) -> None:
    """Open the review in a browser: a worklist of what the runs produced, with its record of decisions."""
    from medseq.inference.review_access import AccessLog
    from medseq.inference.review_config import VARIABLE, ReviewConfig, load_auth, require_address
    from medseq.inference.review_key import audit_key
    from medseq.inference.review_run import find_runs

    if not out and workspace is None:
        raise InputError("nothing to review", wanted="output folders of runs, or --workspace FOLDER to start some")
    folders = tuple(find_runs(out or []))
    signed = load_auth(auth) if auth else None
    require_address(address, signed)
    config = ReviewConfig(
        folders=folders,
        inputs=tuple(path.resolve() for path in input or ()),
        references=tuple(path.resolve() for path in reference or ()),
        address=address,
        port=port,
        user=user or _account(),
        study=study,
        auth=signed,
        push_to=push_on_accept,
        roots=tuple(path.resolve() for path in root or ()),
        workspace=workspace.resolve() if workspace else None,
        memory_mb=memory,
        session_minutes=session_minutes,
        https=https,
        once=True,
        access_log=(access_log or (workspace or folders[0]) / "access.jsonl").resolve(),
    )
    # Says at once if the key or the log cannot be used.
    notice = audit_key(folders[0] if folders else workspace).notice
    if workspace is not None:
        workspace.mkdir(parents=True, exist_ok=True, mode=0o700)
    AccessLog(config.access_log).write(config.user, "start")
    if notice:
        say(notice, quiet=quiet)
    say(f"http://{address}:{port}  (stop with Ctrl-C). Research use only.", quiet=quiet)
    handle, name = tempfile.mkstemp(prefix="medseq-review-", suffix=".json")
    with os.fdopen(handle, "w") as stream:
        stream.write(config.model_dump_json())
    try:
        _serve(config, {**os.environ, VARIABLE: name}, theme, browser)
    finally:
        # Only reached if the server could not be started: it removes the file itself.
        Path(name).unlink(missing_ok=True)


@app.command()
def verify(
    out: Runs,
    head: Annotated[
        str | None, typer.Option("--head", help="Head that an earlier export printed, <number>:<code>; for one run.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check the chain of every record: exit code 0 if it is whole, 3 if it was tampered with, 2 if there is none."""
    from dataclasses import asdict

    from medseq.inference.review import STORE, ReviewStore
    from medseq.inference.review_key import audit_key
    from medseq.inference.review_run import find_runs

    folders = [folder for folder in find_runs(out) if (folder / STORE).exists()]
    if not folders:
        raise InputError("nothing was reviewed here", wanted="a run with a review.sqlite")
    if head is not None and len(folders) != 1:
        raise InputError("a head is of one record", where="--head", found=f"{len(folders)} runs", wanted="one run")
    found = {}
    for folder in folders:
        with ReviewStore(folder / STORE, audit_key(folder).secret, read_only=True) as store:
            found[folder.name] = store.verify(head)
    if as_json:
        print_json({name: {**asdict(result), "ok": result.ok} for name, result in found.items()})
    for name, result in found.items():
        verdict = "whole" if result.ok else "TAMPERED WITH"
        say(f"{name}: {result.rows} rows, {verdict}, head {result.head}", quiet=quiet and result.ok)
        for problem in result.problems:
            say(f"  {problem}")
    raise typer.Exit(0 if all(result.ok for result in found.values()) else 3)


@app.command()
def export(
    out: Runs,
    to: Annotated[
        Literal["csv", "json", "decisions", "mrmc", "sr"],
        typer.Option("--to", help="csv, json: every event; decisions: what counts; mrmc: for ROC; sr: DICOM reports."),
    ] = "csv",
    file: Annotated[
        Path | None, typer.Option("--file", "-o", help="File, or folder for sr; default: standard output.")
    ] = None,
    truth: Annotated[Path | None, typer.Option("--truth", help="Table case,truth for mrmc.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write the record of a review; the head of its chain stands in it."""
    from medseq.inference.review_dicom import export_reports
    from medseq.inference.review_export import decisions_csv, mrmc_csv, read_truth
    from medseq.inference.run_folder import write_text

    runs = _runs(out)
    try:
        if to == "sr":
            if file is None:
                raise InputError("reports need a folder", where="--file")
            written = export_reports(runs, file)
            say(f"{written} reports", quiet=quiet)
            return
        if to in ("csv", "json"):
            stores = runs.stores()
            if len(stores) != 1:
                raise InputError("every record has a chain of its own", found=f"{len(stores)} runs", wanted="one run")
            text = stores[0][1].export(to)
        elif to == "mrmc":
            text = mrmc_csv(runs, read_truth(truth.read_text("utf-8")) if truth else None)
        else:
            text = decisions_csv(runs)
    finally:
        runs.close()
    if file is None:
        typer.echo(text, nl=False)
    else:
        write_text(file, text)
        say(f"written: {file}", quiet=quiet)


@app.command()
def agreement(out: Runs, as_json: AsJson = False) -> None:
    """How far the readers of each run agree beyond chance, with a 95 % interval by resampling cases."""
    from dataclasses import asdict

    from medseq.inference.review_export import readers_agree

    runs = _runs(out)
    try:
        found = readers_agree(runs)
    finally:
        runs.close()
    if as_json:
        print_json({name: [asdict(kappa) for kappa in kappas] for name, kappas in found.items()})
        return
    for name, kappas in found.items():
        for kappa in kappas:
            value = "undefined (all said the same)" if kappa.value is None else f"{kappa.value:.3f}"
            span = "" if kappa.low is None else f", 95 % interval {kappa.low:.3f} to {kappa.high:.3f} ({kappa.method})"
            say(f"{name}: {kappa.name} kappa {value}{span}; {kappa.readers} readers, {kappa.cases} cases")
        if not kappas:
            say(f"{name}: no case that two readers have decided")


def _runs(out: list[Path]) -> Any:
    from medseq.inference.review import STORE
    from medseq.inference.review_key import audit_key
    from medseq.inference.review_run import find_runs
    from medseq.inference.review_runs import Runs

    folders = find_runs(out)
    reviewed = [folder for folder in folders if (folder / STORE).exists()]
    return Runs(reviewed or folders, audit_key(folders[0]).secret, read_only=True)


def _serve(config: Any, environment: dict[str, str], theme: str, browser: bool) -> None:
    """Become the server: whoever stops this process, however, stops it. Does not return."""
    import importlib.util

    from medseq.cli.share import share_folder

    if importlib.util.find_spec("streamlit") is None:
        raise BackendError("Streamlit is not installed", remedy="pip install 'medseq[review]'")
    flags = {
        "server.address": config.address,
        "server.port": config.port,
        "server.headless": str(not browser).lower(),
        "server.fileWatcherType": "none",
        "server.maxUploadSize": 1024,
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "theme.base": str(share_folder("apps") / "review" / "themes" / f"{theme}.toml"),
    }
    application = share_folder("apps") / "review" / "app.py"
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    # The server's greeting names addresses that nobody may use.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.execve(sys.executable, [sys.executable, "-m", "streamlit", "run", str(application), *words], environment)


def _account() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "reviewer"
