"""`medseq run`: steer a run from outside, look at one item of it, join the parts of a job array."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from medseq.cli.console import AsJson, Quiet, Verbose, print_json, say

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Pause, resume, retry, explain and merge runs of medseq predict.")

Out = Annotated[Path, typer.Argument(help="Output folder of medseq predict.")]


@app.command()
def pause(out: Out, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Begin no further item until medseq run resume; those in work are finished."""
    from medseq.inference.control import pause_run

    pause_run(out)
    say("paused; medseq run resume goes on", quiet=quiet)


@app.command()
def resume(out: Out, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Go on after medseq run pause."""
    from medseq.inference.control import resume_run

    say("goes on" if resume_run(out) else "was not paused", quiet=quiet)


@app.command("retry-failed")
def retry_failed(out: Out, as_json: AsJson = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Queue every failed item again, for the run that is working or for the next medseq predict."""
    from medseq.inference.control import retry_failed_items

    count = retry_failed_items(out)
    if as_json:
        print_json({"queued": count})
    else:
        say(f"{count} items queued; medseq predict as before computes them", quiet=quiet)


@app.command()
def explain(
    item: Annotated[str, typer.Argument(help="Id of an item as in the report, or its beginning.")],
    out: Out,
    show_identifiers: Annotated[
        bool, typer.Option("--show-identifiers", help="Print names of input files. Mind who reads it.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Everything that is known of one item: what became of it, why, and what happens next."""
    from medseq.inference.control import explain_item

    told = explain_item(item, out, show_identifiers=show_identifiers)
    if as_json:
        print_json(asdict(told))
    else:
        typer.echo("\n".join(told.lines()))


@app.command()
def merge(out: Out, as_json: AsJson = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Join what medseq predict --shard i/n left below OUT/shards: one ledger, one report."""
    from medseq.inference.shards import merge_shards

    merged = merge_shards(out, finished_utc=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    words = ", ".join(f"{count} {state}" for state, count in merged.counts.items() if count)
    if as_json:
        print_json({"shards": merged.shards, "counts": merged.counts, "report": merged.report_path})
    else:
        say(f"{merged.shards} shards joined: {words}", quiet=quiet)
    raise typer.Exit(3 if merged.counts["failed"] else 0)
