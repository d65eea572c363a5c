"""What every command shares: the options --quiet, --verbose and --json, and where words, bars and answers go.

Answers go to standard output, everything said on the way to standard error, so `medseq … --json | jq` works.
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

__all__ = ["AsJson", "JsonLog", "Progress", "Quiet", "Verbose", "VERBOSE", "print_json", "progress_bar", "say", "table"]

VERBOSE = "medseq.verbose"
Progress = Callable[[int, int, str], None]


def _verbose(ctx: typer.Context, value: bool) -> bool:
    if value:
        # Kept for the handler in main, which outlives the command's own arguments.
        ctx.meta[VERBOSE] = True
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    return value


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors and the answer.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", callback=_verbose, help="Log what happens, and tracebacks of errors.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


def _json_log(ctx: typer.Context, value: bool) -> bool:
    if value:
        handler = logging.StreamHandler()
        handler.setFormatter(_JsonLine())
        # Ours only: what libraries log may hold names.
        ours = logging.getLogger("medseq")
        ours.setLevel(logging.INFO)
        ours.addHandler(handler)
        ours.propagate = False
    return value


class _JsonLine(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"ts": when, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        return json.dumps(line, ensure_ascii=False)


JsonLog = Annotated[
    bool,
    typer.Option("--json-log", callback=_json_log, help="Log to standard error, one JSON object a line, no names."),
]


def say(text: str, *, quiet: bool = False) -> None:
    """A line for the person watching, on standard error."""
    if not quiet:
        typer.echo(text, err=True)


def print_json(answer: Any) -> None:
    """The machine's answer, on standard output."""
    typer.echo(json.dumps(answer, indent=2, default=str, allow_nan=False))


def table(columns: list[str], rows: list[list[str]]) -> None:
    """A table on standard output; the last column takes the space that is left."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    # Piped output is not wrapped at the 80 columns that a missing terminal is given.
    # No markup: `medseq[dicom]` is a name, not a style.
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 200
    view = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        view.add_column(column, overflow="fold")
    for row in rows:
        view.add_row(*row)
    console.print(view)


@contextmanager
def progress_bar(title: str, *, quiet: bool = False) -> Iterator[Progress]:
    """A bar on standard error, driven by ``progress(done, total, label)``; silent when quiet."""
    if quiet:
        yield lambda done, total, label: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    # In a log file a bar is noise.
    with Bar(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def advance(done: int, total: int, label: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{title} {label}".strip())

        yield advance
