"""`medseq pacs`: archives and scanners over DICOMweb and DIMSE."""

from pathlib import Path
from typing import Annotated, Any

import typer

from medseq.cli.console import AsJson, Quiet, Verbose, print_json, progress_bar, say

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, help="Fetch from and send to archives; run a gateway between scanner and archive."
)

Address = Annotated[
    str,
    typer.Argument(
        metavar="ARCHIVE",
        help="https://host/dicom-web, dicom://AE@host:port or dicom+tls://AE@host:port; "
        "headers of HTTP requests: MEDSEQ_PACS_HEADERS.",
    ),
]
OwnTitle = Annotated[str, typer.Option("--ae", help="Our AE title.")]
Ca = Annotated[Path | None, typer.Option("--tls-ca", help="Certificates to trust instead of the system's.")]
Certificate = Annotated[Path | None, typer.Option("--tls-cert", help="Our certificate.")]
Key = Annotated[Path | None, typer.Option("--tls-key", help="Its key.")]
Parallel = Annotated[int, typer.Option("--parallel", min=1, max=32, help="Transfers at one time.")]
Bandwidth = Annotated[float | None, typer.Option("--mb-per-s", help="Most megabytes a second; default: no limit.")]


@app.command("echo")
def echo(
    archive: Address,
    ae: OwnTitle = "MEDSEQ",
    tls_ca: Ca = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
) -> None:
    """Ask an archive whether it is there and knows us."""
    _connect(archive, ae, tls_ca, tls_cert, tls_key).echo()
    say("it answers")


@app.command("pull")
def pull(
    archive: Address,
    output: Annotated[Path, typer.Argument(help="Folder for OUT/<study>/<series>/<image>.dcm; run again to resume.")],
    study: Annotated[list[str] | None, typer.Option("--study", help="Study UID; repeatable.")] = None,
    query: Annotated[
        list[str] | None, typer.Option("--query", help="KEYWORD=VALUE, e.g. StudyDate=20260101-; repeatable.")
    ] = None,
    ae: OwnTitle = "MEDSEQ",
    port: Annotated[int, typer.Option("--port", help="Where C-MOVE sends to: our port, as the archive knows it.")] = 0,
    host: Annotated[str, typer.Option("--host", help="Address to listen on for C-MOVE.")] = "127.0.0.1",
    parallel: Parallel = 4,
    mb_per_s: Bandwidth = None,
    tls_ca: Ca = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fetch whole studies from an archive. Exit code 0: all there; 2: nothing found; 3: some images failed."""
    from medseq.errors import InputError

    remote = _connect(archive, ae, tls_ca, tls_cert, tls_key)
    pairs = [text.partition("=") for text in query or ()]
    if not (study or pairs) or not all(value for _, _, value in pairs):
        raise InputError("what shall be fetched", wanted="--study UID or --query KEYWORD=VALUE")
    from medseq.io.pacs_receiver import Receiver
    from medseq.io.pacs_transfer import Pace, pull, retried

    studies = list(study or ())
    if pairs:
        asked = {key: value for key, _, value in pairs}
        studies += [row["StudyInstanceUID"] for row in retried(lambda: remote.find(asked))]
    pace = Pace(None if mb_per_s is None else mb_per_s * 1e6)
    receiver = None
    if not archive.startswith("http"):
        if not port:
            raise InputError("C-MOVE needs a port to send to", remedy="pass --port as the archive knows it")
        receiver = Receiver(output, ae_title=ae, host=host, port=port, tls=_tls(tls_ca, tls_cert, tls_key)).start()
    try:
        with progress_bar("pull", quiet=quiet or as_json) as progress:
            summary = pull(remote, studies, output, parallel=parallel, pace=pace, receiver=receiver, progress=progress)
    finally:
        if receiver is not None:
            receiver.stop()
    _report(summary, len(studies), as_json, quiet)


@app.command("push")
def push(
    archive: Address,
    input: Annotated[Path, typer.Argument(help="DICOM file, or folder of them, such as a run's OUT.")],
    ae: OwnTitle = "MEDSEQ",
    parallel: Parallel = 2,
    mb_per_s: Bandwidth = None,
    resume: Annotated[bool, typer.Option(help="Leave out what the archive has.")] = True,
    tls_ca: Ca = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Send DICOM files to an archive. Exit code 0: all there; 2: nothing to send; 3: some files failed."""
    remote = _connect(archive, ae, tls_ca, tls_cert, tls_key)
    from medseq.io.pacs_transfer import Pace, push

    files = [input] if input.is_file() else [p for p in sorted(input.rglob("*.dcm")) if not _hidden(p, input)]
    with progress_bar("push", quiet=quiet or as_json) as progress:
        pace = Pace(None if mb_per_s is None else mb_per_s * 1e6)
        summary, _ = push(remote, files, parallel=parallel, pace=pace, resume=resume, progress=progress)
    _report(summary, None, as_json, quiet)


@app.command("listen")
def listen(
    spool: Annotated[Path, typer.Argument(help="Folder of the gateway: what arrives, what is done, what is dead.")],
    routes: Annotated[Path, typer.Option("--routes", help="routes.yaml, see docs/dicom_conformance.md.")],
    ae: OwnTitle = "MEDSEQ",
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.")] = 11112,
    allow: Annotated[list[str] | None, typer.Option("--allow", help="AE title that may send; repeatable.")] = None,
    quiet_s: Annotated[float, typer.Option("--quiet-seconds", help="A study is complete after this silence.")] = 60.0,
    attempts: Annotated[int, typer.Option("--attempts", min=1, help="Attempts before a study is given up.")] = 5,
    purge_after: Annotated[
        float | None, typer.Option("--purge-after", help="Delete finished studies after so many hours.")
    ] = None,
    min_free_gb: Annotated[float, typer.Option("--min-free-gb", help="Pause with less space on the disk.")] = 5.0,
    max_associations: Annotated[int, typer.Option("--max-associations", min=1, help="Senders at one time.")] = 10,
    metrics_port: Annotated[
        int, typer.Option("--metrics-port", help="/healthz and /metrics on 127.0.0.1; 0: none.")
    ] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 …")] = "cpu",
    tls_ca: Ca = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    verbose: Verbose = False,
) -> None:
    """Receive studies, run the models that routes.yaml names, send results on; until Ctrl-C or SIGTERM."""
    from contextlib import ExitStack

    from medseq.inference.gateway import Gateway
    from medseq.inference.gateway_status import StatusServer
    from medseq.inference.routes import load_routes
    from medseq.inference.spool import Spool
    from medseq.io.pacs_receiver import Receiver

    rules, folders = load_routes(routes), Spool(spool)
    tls = _tls(tls_ca, tls_cert, tls_key)
    free = int(min_free_gb * 1e9)
    receiver = Receiver(
        folders.incoming,
        ae_title=ae,
        host=host,
        port=port,
        callers=allow or (),
        max_associations=max_associations,
        min_free_bytes=free,
        tls=tls,
        lock=folders.lock,
    )
    gateway = Gateway(
        folders,
        rules,
        quiet_s=quiet_s,
        attempts=attempts,
        purge_after_s=None if purge_after is None else purge_after * 3600,
        min_free_bytes=free,
        device=device,
        local_ae=ae,
        tls=tls,
        receiver=receiver,
    )
    receiver.on_stored = gateway.received
    with ExitStack() as stack:
        stack.enter_context(receiver)
        if metrics_port:
            stack.enter_context(StatusServer(gateway, metrics_port))
        say(f"listening as {ae} on port {receiver.port}")
        gateway.run(_stop_signal())
    say(f"stopped: {gateway.counters.studies_done} studies done, {gateway.counters.studies_dead} given up")


@app.command("retry")
def retry(
    spool: Annotated[Path, typer.Argument(help="Folder of the gateway.")],
    jobs: Annotated[list[str] | None, typer.Argument(help="Names of dead jobs; default: all.")] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Only list dead jobs and why they are dead.")] = False,
) -> None:
    """Put studies that were given up back to work; a running gateway takes them at once."""
    from medseq.errors import InputError
    from medseq.inference.spool import Spool

    if not (spool / "dead").is_dir():
        raise InputError("not a gateway's folder", wanted="the SPOOL of medseq pacs listen")
    folders = Spool(spool)
    if list_only:
        for job in folders.jobs("dead"):
            typer.echo(f"{job.name}  {job.reason}")
        return
    names = folders.retry(list(jobs) if jobs else None)
    say(f"{len(names)} jobs put back to work")
    raise typer.Exit(0 if names else 2)


@app.command("route")
def route(
    routes: Annotated[Path, typer.Argument(help="routes.yaml.")],
    explain: Annotated[Path, typer.Option("--explain", help="Study: a file or a folder of DICOM files.")],
    show_identifiers: Annotated[
        bool, typer.Option("--show-identifiers", help="Print descriptions, too. Mind who reads it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what the gateway would do with a study, series by series, and why."""
    from medseq.inference.routes import load_routes
    from medseq.io.dicom import require_pydicom

    require_pydicom()
    from medseq.io.pacs_facts import series_facts

    rules = load_routes(routes)
    paths = [explain] if explain.is_file() else [path for path in explain.rglob("*") if path.is_file()]
    series, left = series_facts(paths)
    answers: list[dict[str, Any]] = []
    for facts in series:
        decision = rules.decide(facts.values, ours=facts.ours, unfit=facts.unfit)
        values = {k: v for k, v in facts.values.items() if show_identifiers or k != "SeriesDescription"}
        answers.append(
            {
                "series": facts.label,
                "images": len(facts.files),
                "facts": values,
                "route": decision.route.name if decision.route else None,
                "bundle": decision.route.bundle if decision.route else None,
                "destination": decision.route.destination if decision.route else None,
                "reason": decision.reason,
                "steps": [list(step) for step in decision.steps],
            }
        )
    if as_json:
        print_json({"series": answers, "not_dicom": len(left)})
    else:
        for answer in answers:
            typer.echo(f"{answer['series']} ({answer['images']} images): {answer['reason']}")
            typer.echo("  " + ", ".join(f"{key} {value or '-'}" for key, value in answer["facts"].items()))
            for name, step in answer["steps"]:
                typer.echo(f"  {name}: {step}")
            if answer["bundle"]:
                typer.echo(f"  -> {answer['bundle']} -> {answer['destination'] or 'kept in the spool'}")
    raise typer.Exit(0 if series else 2)


def _tls(ca: Path | None, certificate: Path | None, key: Path | None):
    from medseq.io.pacs import Tls

    return Tls(ca, certificate, key) if ca or certificate else None


def _connect(address: str, ae: str, ca: Path | None, certificate: Path | None, key: Path | None):
    from medseq.io.pacs import connect, parse_remote

    return connect(parse_remote(address, tls=_tls(ca, certificate, key)), local_ae=ae)


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") or part == "previous" for part in path.relative_to(root).parts)


def _stop_signal():
    """A function that says whether Ctrl-C or SIGTERM came."""
    import signal
    import threading

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop.is_set


def _report(summary, studies: int | None, as_json: bool, quiet: bool) -> None:
    if as_json:
        answer = {"done": summary.done, "already": summary.already, "failures": summary.failures}
        print_json({**answer, "studies": studies, "exit_code": summary.exit_code})
    else:
        for name, reason in summary.failures:
            say(f"{name}: {reason}")
        words = f"{summary.done} images transferred, {summary.already} already there, {len(summary.failures)} failed"
        say(words, quiet=quiet and summary.exit_code == 0)
    raise typer.Exit(summary.exit_code)
