"""`medseq check OUT`: whether every result of a run is still what the ledger says it is."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medseq.cli.console import AsJson, Quiet, Verbose, print_json, say

__all__ = ["check"]


def check(
    out: Annotated[Path, typer.Argument(help="Output folder of a run.")],
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Hash every output of a run again: exit code 0 if all are as recorded, 3 if not, 2 if there are none."""
    from medseq.inference.check import check_run

    summary = check_run(out)
    if as_json:
        problems = [asdict(problem) for problem in summary.problems]
        print_json({"counts": summary.counts, "verified": summary.verified, "problems": problems})
    else:
        for problem in summary.problems:
            say(f"{problem.what}: {problem.role} of {problem.item_id}")
        words = ", ".join(f"{count} items {state}" for state, count in summary.counts.items() if count)
        say(
            f"{summary.verified} files as recorded, {len(summary.problems)} not; {words or 'no items'}",
            quiet=quiet and not summary.problems,
        )
    raise typer.Exit(summary.exit_code if summary.counts and any(summary.counts.values()) else 2)
