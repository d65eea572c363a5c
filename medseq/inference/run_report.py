"""The reports of a run: ``report.json``, ``report.html`` and one page an item, as the ledger has it. No torch."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseq.errors import MedseqError
from medseq.inference.bundle import Bundle
from medseq.inference.ledger import Ledger
from medseq.inference.report import report_parts
from medseq.inference.report_item import PAGES, render_item
from medseq.inference.report_json import Report, item_entry, item_preview
from medseq.inference.run_folder import write_parts

__all__ = ["RunReport", "bundle_facts"]

logger = logging.getLogger(__name__)


class RunReport:
    """Writes what people read.

    Args:
        ledger: The run's ledger.
        out: Its output folder.
        bundle: What computed it; see `bundle_facts`.
        environment: See `medseq.inference.environment`.
        show_identifiers: Tell names of input files.
    """

    def __init__(
        self,
        ledger: Ledger,
        out: Path,
        bundle: Mapping[str, Any],
        environment: Mapping[str, Any],
        *,
        show_identifiers: bool,
    ) -> None:
        self._ledger, self._out, self._bundle = ledger, out, bundle
        self._environment, self._show = environment, show_identifiers

    def write(self, *, finished_utc: str, interrupted: bool) -> Path | None:
        """Write report.json and report.html; None if they cannot be written (the ledger has everything)."""
        report = Report(
            self._ledger,
            self._out,
            bundle=self._bundle,
            environment=self._environment,
            finished_utc=finished_utc,
            interrupted=interrupted,
            show_identifiers=self._show,
        )
        try:
            write_parts(self._out / "report.json", report.json())
            write_parts(self._out / "report.html", report_parts(report.facts, report.items))
        except MedseqError as error:
            logger.error("the report could not be written: %s", error)
            return None
        for item in self._ledger.items("done", "failed"):
            if not (self._out / PAGES / f"{item.id}.html").exists():
                self.write_page(item.id)
        return self._out / "report.html"

    def write_page(self, item_id: str) -> None:
        """Write the page of an item that reached its end; without one, the run and its report are as good."""
        run, item = self._ledger.run(), self._ledger.item(item_id)
        if run is None or item is None:
            return
        entry = item_entry(self._ledger, item, by_id=run.params.get("names") != "source", show=self._show)
        entry["preview"] = item_preview(self._ledger, self._out, item_id)
        page = render_item(entry, self._ledger.events(item_id), f"{self._bundle['name']} {self._bundle['version']}")
        target = self._out / PAGES / f"{item_id}.html"
        try:
            target.parent.mkdir(exist_ok=True)
            # Not fsynced: what a power cut takes is written again by the next report.
            partial = target.with_suffix(".partial")
            partial.write_text(page, "utf-8")
            partial.replace(target)
        except OSError as error:
            logger.warning("the page of item %s could not be written (%s)", item_id, type(error).__name__)


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """What a report says of a bundle."""
    config = bundle.config
    return {
        "name": config.name,
        "version": config.version,
        "hash": bundle.hash,
        "task": config.task,
        "modality": list(config.input.modality),
        "units": config.input.units,
        "intended_use": str(bundle.metadata.get("intended_use", "")),
        "calibration": _calibration(bundle.metadata),
    }


def _calibration(metadata: Mapping[str, Any]) -> list[Any]:
    """Points of the calibration plot, from the validation cases of the training; none where nothing is known."""
    found: Any = metadata
    for key in ("training", "validation", "calibration"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, list) else []
