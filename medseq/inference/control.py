"""What a person asks of a run from outside: pause, resume, try failed items again, explain one. No torch.

Pausing is a file in the output folder, so that it works on every file system and also before a run begins.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from medseq.errors import InputError
from medseq.inference.check import LEDGER, output_problem
from medseq.inference.ledger import ItemRow, Ledger
from medseq.inference.ledger_schema import EventRow, OutputRow
from medseq.inference.retry import LATER_CODES
from medseq.inference.run_folder import PAUSED
from medseq.io.atomic import written

__all__ = ["Explanation", "explain_item", "pause_run", "resume_run", "retry_failed_items"]


def pause_run(output: str | Path) -> None:
    """Begin no further item; those in work are finished.

    Raises:
        OutputError: No run was recorded there.
    """
    out = _run_folder(output)
    with written("the output folder"):
        (out / PAUSED).touch()


def resume_run(output: str | Path) -> bool:
    """End a pause; False if there was none.

    Raises:
        OutputError: No run was recorded there.
    """
    out = _run_folder(output)
    was = (out / PAUSED).exists()
    with written("the output folder"):
        (out / PAUSED).unlink(missing_ok=True)
    return was


def retry_failed_items(output: str | Path) -> int:
    """Queue every failed item again, for the run that is working or the next one; returns how many.

    Raises:
        OutputError: No run was recorded there, or its ledger cannot be written now.
    """
    with Ledger(_run_folder(output) / LEDGER) as ledger:
        return ledger.requeue(states=["failed"])


@dataclass(frozen=True)
class Explanation:
    """All that is known of an item.

    Attributes:
        item: Its row.
        files: Number of its input files, and their names relative to the input; names only if asked for.
        outputs: Its results, each with what is wrong with the file (None: nothing).
        events: Its history.
        next: What will happen to it, in one sentence.
    """

    item: ItemRow
    files: tuple[int, list[str]]
    outputs: list[tuple[OutputRow, str | None]]
    events: list[EventRow]
    next: str

    def lines(self) -> list[str]:
        """The same as text."""
        item = self.item
        lines = [f"item      {item.id} ({item.kind}, {item.label}, {self.files[0]} files)"]
        lines += [f"          {name}" for name in self.files[1]]
        lines.append(f"state     {item.state}, {item.attempts} attempts")
        if item.reason:
            lines.append(f"reason    {item.reason_code}: {item.reason}")
        for event in self.events:
            when = datetime.fromtimestamp(event.ts, UTC).strftime("%Y-%m-%d %H:%M:%S")
            why = f" ({event.code})" if event.code else ""
            lines.append(f"history   {when} UTC  {event.state}{why}{f' by {event.worker}' if event.worker else ''}")
        lines += [f"flag      {flag['level']} {flag['code']}: {flag['message']}" for flag in item.flags]
        lines += [f"metric    {name} {value:.6g}" for name, value in sorted(item.metrics.items())]
        for row, problem in self.outputs:
            lines.append(f"output    {row.role}, {row.bytes} bytes, {problem or 'as recorded'}")
        return [*lines, f"next      {self.next}"]


def explain_item(item_id: str, output: str | Path, *, show_identifiers: bool = False) -> Explanation:
    """What became of an item, why, and what comes next.

    Args:
        item_id: Its id, or the beginning of it.
        output: Output folder of a run.
        show_identifiers: Tell the names of its input files.

    Raises:
        InputError: No item of this id, or several.
        OutputError: No run was recorded there.
    """
    out = Path(output)
    with Ledger(out / LEDGER, read_only=True) as ledger:
        ids = ledger.ids(item_id)
        if len(ids) != 1:
            raise InputError(
                "no such item" if not ids else "several items begin like this",
                found=item_id,
                wanted="an id as in the report" if not ids else ", ".join(ids[:5]),
            )
        item = ledger.item(ids[0])
        assert item is not None
        files = ledger.files(item.id)
        names = [row.relpath for row in files] if show_identifiers else []
        checked = [(row, output_problem(out, row, rehash=True)) for row in ledger.outputs(item.id)]
        outputs = checked if item.state == "done" else []
        return Explanation(item, (len(files), names), outputs, ledger.events(item.id), _next(item, outputs))


def _next(item: ItemRow, outputs: list[tuple[OutputRow, str | None]]) -> str:
    if item.state == "done":
        lost = any(problem for _, problem in outputs)
        return "a result is lost: the next run makes it again" if lost else "nothing: its results are in place"
    if item.state == "failed" and item.attempts == 0:
        return "nothing, as long as its files stay as they are: discovery refuses them"
    if item.state == "failed" and item.reason_code in LATER_CODES:
        return "the next run tries it again by itself"
    if item.state == "failed":
        return "nothing, unless asked for: medseq run retry-failed OUT, then medseq predict as before"
    if item.state == "skipped":
        return "nothing: it is no input"
    return "it is computed by the run that is working, or by the next"


def _run_folder(output: str | Path) -> Path:
    """The folder of a recorded run."""
    out = Path(output)
    Ledger(out / LEDGER, read_only=True).close()
    return out
