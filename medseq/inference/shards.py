"""A run in parts on several machines that share a disk, one writer a ledger, and the parts joined afterwards.

    medseq predict BUNDLE IN OUT --shard 3/8      one job of a SLURM array; works in OUT/shards/3-of-8
    medseq run merge OUT                          joins them to OUT/run.sqlite, OUT/<item_id>/…, OUT/report.html

Each shard is a complete output folder with its own ledger and lock, so that no file is written by two machines. Which
items are its own follows from their ids alone: no machine has to ask another.
"""

import json
import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseq.errors import InputError, OutputError
from medseq.inference.check import LEDGER
from medseq.inference.ledger import ItemRow, Ledger
from medseq.inference.run_folder import lock, remove_empty
from medseq.inference.run_report import RunReport
from medseq.io.atomic import clear, publish, written

__all__ = ["Merged", "Shard", "merge_shards"]

_FOLDER = "shards"


@dataclass(frozen=True)
class Shard:
    """One part of a run: number `index` (from 1) of `count`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From ``3/8``.

        Raises:
            InputError: Not a part of a whole.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError("not a shard", found=text, wanted="i/n with 1 <= i <= n, such as 3/8")
        return cls(int(match[1]), int(match[2]))

    def owns(self, item_id: str) -> bool:
        """Whether an item is this shard's."""
        return int(item_id, 16) % self.count == self.index - 1

    def folder(self, out: Path) -> Path:
        """Where it works."""
        return out / _FOLDER / f"{self.index}-of-{self.count}"


@dataclass(frozen=True)
class Merged:
    """What `merge_shards` did: number of shards, items by state, and the report's path (None if there is none)."""

    shards: int
    counts: dict[str, int]
    report_path: Path | None


def merge_shards(output: str | Path, *, finished_utc: str) -> Merged:
    """Join the shards of a run; a merge that is killed is finished by the next one.

    Items that no shard has finished are queued in the joined run: ``medseq predict`` without ``--shard`` does the rest.

    Raises:
        OutputError: A shard is missing, still working, or of another run.
    """
    out = Path(output)
    folders = _complete(out)
    facts: dict[str, Any] | None = None
    with ExitStack() as stack:
        stack.enter_context(lock(out))
        ledger = stack.enter_context(Ledger(out / LEDGER))
        for folder in folders:
            stack.enter_context(lock(folder))
            facts = _facts(folder) or facts
            with Ledger(folder / LEDGER) as part:
                run = part.run()
                if run is not None:
                    ledger.begin_run(run)
                for item in part.items():
                    _move(out, folder, part, ledger, item)
        for folder in folders:
            shutil.rmtree(folder)
        remove_empty(out, out / _FOLDER)
        report = None
        if facts is not None and ledger.run() is not None:
            writer = RunReport(ledger, out, facts["bundle"], facts["environment"], show_identifiers=False)
            report = writer.write(finished_utc=finished_utc, interrupted=False)
        return Merged(len(folders), ledger.counts(), report)


def _complete(out: Path) -> list[Path]:
    """Folders of all shards, in order."""
    found: dict[Shard, Path] = {}
    for path in sorted((out / _FOLDER).glob("*-of-*")):
        match = re.fullmatch(r"(\d+)-of-(\d+)", path.name)
        if match and (path / LEDGER).is_file():
            found[Shard(int(match[1]), int(match[2]))] = path
    if not found:
        raise OutputError("no shards to merge", wanted="OUT of medseq predict --shard i/n")
    counts = {shard.count for shard in found}
    missing = [number for number in range(1, max(counts) + 1) if Shard(number, max(counts)) not in found]
    # What an interrupted merge has joined already is gone, and known by the joined ledger.
    if len(counts) > 1 or (missing and not (out / LEDGER).exists()):
        raise OutputError(
            "the shards are not complete",
            found=f"{len(found)} of {' or '.join(map(str, sorted(counts)))}; missing: {', '.join(map(str, missing))}",
            wanted="all parts of one division",
            remedy="run the missing ones first",
        )
    return [found[shard] for shard in sorted(found, key=lambda shard: shard.index)]


def _move(out: Path, folder: Path, part: Ledger, ledger: Ledger, item: ItemRow) -> None:
    """One item and its results, files first: a kill in between leaves it to be moved again."""
    outputs = part.outputs(item.id) if item.state == "done" else []
    tops = {row.relpath.partition("/")[0] if row.relpath.startswith(f"{item.id}/") else row.relpath for row in outputs}
    for top in sorted(tops):
        if (folder / top).exists():
            clear(out / top)
            publish(folder / top, out / top)
    page = Path("report", f"{item.id}.html")
    if (folder / page).exists():
        with written("the report"):
            (out / page).parent.mkdir(exist_ok=True)
            (folder / page).replace(out / page)
    ledger.adopt(item, part.files(item.id), outputs, part.events(item.id))


def _facts(folder: Path) -> dict[str, Any] | None:
    """Bundle and environment, as the shard's own report tells them."""
    try:
        report = json.loads((folder / "report.json").read_text("utf-8"))
        environment = {**report["environment"], "operators": report["doctor"]["operators"]}
        return {"bundle": report["run"]["bundle"], "environment": environment}
    except (OSError, ValueError, KeyError):
        return None
