"""The runs under review: what they hold, page by page, and where the review of every item stands. No torch.

Ledgers are opened for reading only, and anew whenever their file changed: a run that is still going on is shown as it
is now. A ledger that is locked or damaged becomes a message beside its run; nothing is written to it. Decisions go to
``review.sqlite`` in the folder of the run.
"""

import hashlib
import hmac
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseq.errors import InputError, MedseqError
from medseq.inference.check import LEDGER, output_problem
from medseq.inference.ledger import Ledger
from medseq.inference.ledger_schema import FileRow, OutputRow
from medseq.inference.review import STORE, Event, ReviewStore
from medseq.inference.review_index import Filter, WorkIndex, WorkItem
from medseq.inference.review_key import derived
from medseq.inference.review_run import OutputFile, RunFolder, RunInfo, Study, find_runs, outputs_digest
from medseq.inference.review_schema import Record, ReviewState
from medseq.inference.review_source import candidate_roots, find_root

__all__ = ["OutputFile", "RunInfo", "Runs", "Study", "WorkItem", "find_runs"]


class Runs:
    """Several runs as one worklist; threads may share it.

    Args:
        folders: Output folders of runs, or folders that hold them.
        key: The audit key; see `medseq.inference.review_key`.
        inputs: Folders where the inputs may lie, besides the ones the runs noted.
        references: Folders with fully sampled images of reconstructed scans; see `review_recon.find_reference`.
        study: Show the cases as a reader study.
        read_only: Record nothing.

    Raises:
        OutputError: A folder holds no run.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        key: bytes,
        *,
        inputs: Sequence[Path] = (),
        references: Sequence[Path] = (),
        study: Study | None = None,
        read_only: bool = False,
    ) -> None:
        self._key, self._inputs, self.study, self.references = key, list(inputs), study, list(references)
        self._read_only = read_only
        self._token_key = derived(key, "medseq review tokens")
        self._runs = [RunFolder(number, folder) for number, folder in enumerate(find_runs(folders))]
        self._index, self._lock = WorkIndex(), threading.RLock()
        self._digests: dict[str, tuple[tuple[Any, ...], str]] = {}
        self.refresh()

    # --- the worklist

    def page(  # noqa: PLR0913  (what a worklist is narrowed by, all by keyword)
        self,
        search: str = "",
        *,
        state: str | None = None,
        task: str | None = None,
        decision: str | None = None,
        assignee: str | None = None,
        run: int | None = None,
        sort: str | None = None,
        offset: int = 0,
        limit: int = 50,
        reviewer: str = "",
    ) -> tuple[list[WorkItem], int]:
        """A page of the worklist and how many items fit in all; see `Filter` and `SORTS` for the words.

        Raises:
            InputError: An unknown order.
        """
        self.refresh()
        blinded = self.study is not None and self.study.blinded
        wanted = Filter(search, state, task, decision, assignee, run, reviewer, blinded, self._study_seed)
        order = sort or ("study" if self.study else "found")
        if blinded and order.removeprefix("-") in ("method", "key", "score", "flags"):
            raise InputError("this order would tell the methods", found=order, wanted="study, label or state")
        if blinded and run is not None:
            raise InputError("a blinded study does not tell its runs apart", remedy="leave out the run")
        items, total = self._index.page(wanted, order, offset, min(max(limit, 1), 500))
        return [self._shown(item) for item in items], total

    def item(self, token: str, reviewer: str = "") -> WorkItem:
        """One item by its token.

        Raises:
            InputError: An unknown token.
        """
        found = self._index.item(token, reviewer)
        if found is None:
            self.refresh()
            found = self._index.item(token, reviewer)
        if found is None:
            raise InputError("no such item", found="an unknown token", remedy="go back to the worklist")
        return self._shown(found)

    def neighbours(self, token: str, **words: Any) -> tuple[str | None, str | None]:
        """Tokens before and after an item in the order of a page; `words` are those of `page`."""
        items, total = self.page(**{**words, "offset": 0, "limit": 500})
        tokens = [item.token for item in items]
        while token not in tokens and len(tokens) < total:
            more, _ = self.page(**{**words, "offset": len(tokens), "limit": 500})
            tokens += [item.token for item in more]
            if not more:
                break
        if token not in tokens:
            return None, None
        at = tokens.index(token)
        return (tokens[at - 1] if at else None), (tokens[at + 1] if at + 1 < len(tokens) else None)

    def items_of(self, run: int) -> Iterator[WorkItem]:
        """All items of one run as they are, also in a blinded study: for exports."""
        self.refresh()
        offset, total = 0, 1
        while offset < total:
            items, total = self._index.page(Filter(run=run), "found", offset, 500)
            yield from items
            offset += 500

    def counts(self, column: str = "status", reviewer: str | None = None) -> dict[str, int]:
        """Items by ``state``, ``task``, ``status`` …; with a reviewer: finished items by their own decision."""
        return self._index.counts(column, reviewer)

    def runs(self) -> list[RunInfo]:
        """The runs and how they stand."""
        self.refresh()
        return [self._info(run) for run in self._runs]

    # --- one item

    def run_of(self, token: str) -> RunInfo:
        """The run of an item."""
        return self._info(self._runs[self._raw(token).run])

    def outputs(self, token: str, *, rehash: bool = True) -> list[OutputFile]:
        """Output files of an item, each compared with what the ledger recorded."""
        run = self._runs[self._raw(token).run]
        return [
            OutputFile(row.role, run.folder / row.relpath, row.sha256, output_problem(run.folder, row, rehash=rehash))
            for row in self._output_rows(token)
        ]

    def output_hash(self, token: str) -> str:
        """One hash over the recorded hashes of all outputs: what a decision is about."""
        stamp = self._runs[self._raw(token).run].stamp()
        known = self._digests.get(token)
        if known is None or known[0] != stamp:
            # Asked for with every picture: read again only if the ledger changed.
            known = self._digests[token] = (stamp, outputs_digest(self._output_rows(token)))
        return known[1]

    def input_files(self, token: str) -> tuple[Path, list[FileRow]]:
        """The input folder and the files of an item below it, as they were when the run read them.

        Raises:
            InputError: They are gone or changed.
        """
        item = self._raw(token)
        run = self._runs[item.run]
        with self._ledger(run) as ledger:
            files, noted = ledger.files(item.item_id), ledger.origin()
        return find_root(candidate_roots(run.folder, self._inputs, noted), files), files

    def folder(self, token: str) -> Path:
        """The output folder of an item's run."""
        return self._runs[self._raw(token).run].folder

    def params(self, token: str) -> dict[str, Any]:
        """Parameters of an item's run."""
        row = self._runs[self._raw(token).run].row
        return dict(row.params) if row else {}

    # --- the review

    def state(self, token: str) -> ReviewState:
        """Where the review of an item stands; verdicts about earlier outputs are stale."""
        return self.store(token).state(self._raw(token).item_id, self.output_hash(token))

    def record(
        self,
        token: str,
        reviewer: str,
        kind: Any,
        *,
        role: str = "reviewer",
        only_if: Callable[[list[Record]], bool] | None = None,
        **values: Any,
    ) -> int | None:
        """Append an event about an item; what was shown (outputs, model) is filled in. See `Event` for the words."""
        item = self._raw(token)
        event = Event(
            reviewer,
            item.item_id,
            kind,
            role=role,
            output_sha256=self.output_hash(token),
            bundle_hash=self.run_of(token).bundle_hash,
            **values,
        )
        number = self.store(token).append(event, only_if=only_if)
        self.refresh()
        return number

    def undo(self, token: str, reviewer: str, role: str = "reviewer") -> int | None:
        """Take back this reviewer's last act on an item; None if there is none."""
        number = self.store(token).undo(self._raw(token).item_id, reviewer, role)
        self.refresh()
        return number

    def add(self, folder: Path) -> int:
        """Take another run under review, one that was started from the page; returns its number."""
        folder = folder.resolve()
        with self._lock:
            known = next((run.number for run in self._runs if run.folder == folder), None)
            if known is None:
                known = len(self._runs)
                self._runs.append(RunFolder(known, folder))
                self.refresh()
        return known

    def number_of_items(self) -> int:
        """How many items there are in all runs."""
        return sum(self._index.counts("state").values())

    def store(self, token: str) -> ReviewStore:
        """The review store of an item's run.

        Raises:
            OutputError: It cannot be opened.
        """
        return self._store(self._runs[self._raw(token).run])

    def stores(self) -> list[tuple[RunInfo, ReviewStore]]:
        """The stores of all runs that can be opened."""
        return [(self._info(run), run.store) for run in self._runs if run.store is not None]

    def token(self, run: int, item_id: str) -> str:
        """Opaque id of an item: the same as long as key and run are the same."""
        row = self._runs[run].row
        parts = (row.bundle_hash, row.params_hash, row.created_utc) if row else ("", "", "")
        text = "\n".join([*parts, str(run), item_id])
        return hmac.new(self._token_key, text.encode(), hashlib.sha256).hexdigest()[:24]

    def refresh(self) -> None:
        """Bring the worklist up to date with ledgers and stores; quick if nothing changed."""
        with self._lock:
            for run in self._runs:
                self._refresh_ledger(run)
                self._refresh_review(run)

    def close(self) -> None:
        """Close the stores."""
        for run in self._runs:
            if run.store is not None:
                run.store.close()

    # --- inside

    @property
    def _study_seed(self) -> str:
        return self.study.name if self.study else ""

    def _shown(self, item: WorkItem) -> WorkItem:
        if self.study is None or not self.study.blinded:
            return item
        hidden: dict[str, Any] = dict.fromkeys(("method", "key_value", "key_text", "uncertainty", "seconds", "score"))
        quiet: dict[str, Any] = {"metrics": {}, "flags": [], "readers": 0, "push": None}
        return replace(item, **hidden, **quiet, status=item.mine or "unreviewed")

    def _raw(self, token: str) -> WorkItem:
        item = self._index.item(token)
        if item is None:
            raise InputError("no such item", found="an unknown token", remedy="go back to the worklist")
        return item

    def _output_rows(self, token: str) -> list[OutputRow]:
        item = self._raw(token)
        with self._ledger(self._runs[item.run]) as ledger:
            return ledger.outputs(item.item_id)

    @staticmethod
    def _ledger(run: RunFolder) -> Ledger:
        return Ledger(run.folder / LEDGER, read_only=True)

    def _store(self, run: RunFolder) -> ReviewStore:
        if run.store is None:
            run.store = ReviewStore(run.folder / STORE, self._key, read_only=self._read_only)
        return run.store

    def _refresh_ledger(self, run: RunFolder) -> None:
        seen = run.stamp()
        if seen == run.seen:
            return
        try:
            with self._ledger(run) as ledger:
                run.row = ledger.run()
                run.read_bundle()
                last = ledger.last_event()
                changed = None if run.event_row == 0 else ledger.changed_since(run.event_row)
                items = [(self.token(run.number, item.id), place, item) for place, item in ledger.placed(changed)]
        except MedseqError as error:
            # What was read before stays visible; the message says that it may be old.
            run.message = str(error)
            return
        info = self._info(run)
        self._index.put_items(run.number, items, method=info.method, modality=info.modality, hint=info.task)
        run.seen, run.event_row, run.message = seen, last, ""

    def _refresh_review(self, run: RunFolder) -> None:
        missing = not self._read_only and not (run.folder / STORE).exists()
        if run.store is None and (run.store_message or missing):
            return
        try:
            store = self._store(run)
            last = store.last_seq()
            if last == run.review_seq:
                return
            touched = {record.event.item_id for record in store.records(run.review_seq)}
            tokens = self._index.tokens(run.number)
            with closing(self._ledger(run)) as ledger:
                digests = {item_id: outputs_digest(ledger.outputs(item_id)) for item_id in touched}
            states = [
                (tokens[item_id], store.state(item_id, digests[item_id])) for item_id in touched if item_id in tokens
            ]
        except MedseqError as error:
            run.store_message = str(error)
            return
        self._index.put_states(states)
        run.review_seq, run.store_message = last, ""

    def _info(self, run: RunFolder) -> RunInfo:
        counts: dict[str, int] = self._index.counts_of(run.number)
        modalities = run.bundle.get("modality") or []
        row = run.row
        asked = row.params.get("modality") if row else None
        return RunInfo(
            run.number,
            run.folder.name,
            " ".join(str(run.bundle[word]) for word in ("name", "version") if word in run.bundle),
            str(run.bundle.get("task", "")),
            asked or (modalities[0] if len(modalities) == 1 else None),
            row.created_utc if row else "",
            counts,
            bool(counts.get("queued", 0) + counts.get("running", 0)),
            " ".join(text for text in (run.message, run.store_message) if text),
            not run.store_message,
            row.bundle_hash if row else "",
            run.bundle,
        )
