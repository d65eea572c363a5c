"""Re-verification of a finished run: every result is still there, byte for byte. No torch."""

from dataclasses import dataclass
from pathlib import Path

from medseq.inference.ledger import Ledger, OutputRow
from medseq.inference.outputs import file_sha256

__all__ = ["LEDGER", "CheckSummary", "Problem", "check_run", "output_problem"]

LEDGER = "run.sqlite"


@dataclass(frozen=True)
class Problem:
    """One thing wrong: `item_id`, role and what (`missing`, `changed`, `unreadable`, `not finished`)."""

    item_id: str
    role: str
    what: str


@dataclass(frozen=True)
class CheckSummary:
    """Result of `check_run`.

    Attributes:
        counts: Items by state.
        verified: Files whose content is as recorded.
        problems: What is not as recorded.
        exit_code: 0, or 3 if there are problems.
    """

    counts: dict[str, int]
    verified: int
    problems: tuple[Problem, ...]

    @property
    def exit_code(self) -> int:
        """0, or 3 if there are problems."""
        return 3 if self.problems else 0


def check_run(output: str | Path) -> CheckSummary:
    """Hash every result again and compare with the ledger; changes nothing.

    Args:
        output: Output folder of `predict_folder`.

    Raises:
        OutputError: No run was recorded there, or its ledger cannot be read.
    """
    out, problems, verified = Path(output), [], 0
    with Ledger(out / LEDGER, read_only=True) as ledger:
        for item in ledger.items("queued", "running", "done"):
            if item.state != "done":
                problems.append(Problem(item.id, "result", "not finished"))
                continue
            for row in ledger.outputs(item.id):
                what = output_problem(out, row, rehash=True)
                if what is None:
                    verified += 1
                else:
                    problems.append(Problem(item.id, row.role, what))
        return CheckSummary(ledger.counts(), verified, tuple(problems))


def output_problem(out: Path, row: OutputRow, *, rehash: bool) -> str | None:
    """What is wrong with one recorded file: ``missing``, ``changed``, ``unreadable``; None if nothing is."""
    path = out / row.relpath
    try:
        if not path.is_file():
            return "missing"
        if path.stat().st_size != row.bytes or (rehash and file_sha256(path) != row.sha256):
            return "changed"
    except OSError:
        return "unreadable"
    return None
