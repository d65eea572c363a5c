"""`medseq review OUT …`: look at what runs produced, decide, and sign. Also: verify, export, agreement."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from medseq.cli.console import Quiet, say
from medseq.errors import BackendError

__all__ = ["review"]


def review(
    out: Annotated[list[Path], typer.Argument(help="Output folders of runs, or folders that hold them.")],
    port: Annotated[int, typer.Option("--port", help="Port of the page.")] = 8501,
    address: Annotated[str, typer.Option("--address", help="Who may connect; others than 127.0.0.1 need --auth.")] = (
        "127.0.0.1"
    ),
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
    session_minutes: Annotated[
        float, typer.Option("--session-minutes", help="A session ends unused after so long.")
    ] = 30,
    memory: Annotated[int, typer.Option("--memory", help="Megabytes for pictures.")] = 1024,
    https: Annotated[bool, typer.Option("--https", help="The page is reached by TLS (of a proxy in front).")] = False,
    access_log: Annotated[
        Path | None, typer.Option("--access-log", help="File for who opened what; default: beside the first run.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = False,
    quiet: Quiet = False,
) -> None:
    """Open the review in a browser: a worklist of what the runs produced, with its record of decisions."""
    from medseq.inference.review_config import VARIABLE, ReviewConfig, load_auth, require_address
    from medseq.inference.review_key import audit_key
    from medseq.inference.review_runs import find_runs

    folders = tuple(find_runs(out))
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
        memory_mb=memory,
        session_minutes=session_minutes,
        https=https,
        access_log=(access_log or folders[0] / "access.jsonl").resolve(),
    )
    notice = audit_key(folders[0]).notice
    if notice:
        say(notice, quiet=quiet)
    say(f"http://{address}:{port}  (stop with Ctrl-C). Research use only.", quiet=quiet)
    handle, name = tempfile.mkstemp(prefix="medseq-review-", suffix=".json")
    with os.fdopen(handle, "w") as stream:
        stream.write(config.model_dump_json())
    try:
        raise typer.Exit(_serve(config, {**os.environ, VARIABLE: name}, browser))
    finally:
        Path(name).unlink(missing_ok=True)


def _serve(config: Any, environment: dict[str, str], browser: bool) -> int:
    """Run the server until it is stopped; returns its exit code."""
    import importlib.util
    import subprocess

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
        "theme.base": "dark",
    }
    app = share_folder("apps") / "review" / "app.py"
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", str(app), *words],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return 0


def _account() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "reviewer"
