"""The reports of a run: ``report.json``, ``report.html`` and one page an item, as the ledger has it. No torch."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseq.errors import MedseqError
from medseq.inference.bundle import Bundle
from medseq.inference.ledger import Ledger
from medseq.inference.report import render_report
from medseq.inference.report_json import build_report
from medseq.inference.run_folder import write_text

__all__ = ["RunReport"]

logger = logging.getLogger(__name__)


class RunReport:
    """Writes what people read.

    Args:
        ledger: The run's ledger.
        out: Its output folder.
        bundle: What computed it.
        environment: See `medseq.inference.environment`.
        show_identifiers: Tell names of input files.
    """

    def __init__(
        self, ledger: Ledger, out: Path, bundle: Bundle, environment: Mapping[str, Any], *, show_identifiers: bool
    ) -> None:
        self._ledger, self._out, self._environment, self._show = ledger, out, environment, show_identifiers
        config = bundle.config
        self._bundle = {
            "name": config.name,
            "version": config.version,
            "hash": bundle.hash,
            "task": config.task,
            "modality": list(config.input.modality),
            "units": config.input.units,
            "intended_use": str(bundle.metadata.get("intended_use", "")),
        }

    def write(self, *, finished_utc: str, interrupted: bool) -> Path | None:
        """Write report.json and report.html; None if they cannot be written (the ledger has everything)."""
        report = build_report(
            self._ledger,
            self._out,
            bundle=self._bundle,
            environment=self._environment,
            finished_utc=finished_utc,
            interrupted=interrupted,
            show_identifiers=self._show,
        )
        try:
            write_text(self._out / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))
            write_text(self._out / "report.html", render_report(report))
        except MedseqError as error:
            logger.error("the report could not be written: %s", error)
            return None
        return self._out / "report.html"

    def write_page(self, item_id: str) -> None:
        """Write the page of an item that reached its end."""
