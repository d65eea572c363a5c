"""Tissue and QC of many slides without features: one picture a slide, and a table."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medseq.errors import BackendError, InputError, MedseqError
from medseq.inference.extract_folder import Names, bag_names
from medseq.inference.run_folder import lock, prepared, require_apart, write_text
from medseq.inference.worker import describe_failure
from medseq.io.privacy import path_label
from medseq.io.slide_find import find_slides
from medseq.io.slide_open import open_slide
from medseq.io.tissue import TissueRules, find_tissue, read_overview
from medseq.io.tissue_qc import qc_picture, tissue_qc, write_png

__all__ = ["tissue_folder"]

Progress = Callable[[int, int, str], None]


def tissue_folder(
    input: str | Path,
    output: str | Path,
    rules: TissueRules | None = None,
    *,
    mpp: float | None = None,
    icc: bool = True,
    names: Names = "source",
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Write ``OUT/<name>.png`` for every slide and ``OUT/tissue.json`` over all; returns the rows of that table.

    A slide without tissue has failed, and its picture shows it.

    Args:
        input: A slide, or a folder of slides.
        output: Folder; never inside `input`.
        rules: What counts as tissue.
        mpp: Microns per pixel of level 0, for slides that do not say it rightly.
        icc: Apply colour profiles.
        names: ``source`` names pictures like their slides, ``id`` by a hash.
        progress: Called with (finished slides, all slides, "").

    Raises:
        InputError: No such input.
        OutputError: `output` cannot be written or lies inside `input`.
        BackendError: A library is missing.
    """
    source, out = Path(input), Path(output)
    slides = find_slides(source)
    root = source if source.is_dir() else source.parent
    if source.is_dir():
        require_apart(source, out)
    if not slides:
        return []
    outcomes = []
    called = bag_names(slides, root, names)
    with prepared(out), lock(out):
        for number, (path, name) in enumerate(zip(slides, called, strict=True)):
            if progress is not None:
                progress(number, len(slides), "")
            outcome: dict[str, Any] = {
                "label": path_label(path),
                "name": name,
                "state": "failed",
                "reason": None,
                "qc": None,
            }
            try:
                if called.count(name) > 1:
                    raise InputError("several slides have the same name", remedy="use --names id")
                outcome["qc"] = _one(path, out / f"{name}.png", rules or TissueRules(), mpp, icc)
                empty = outcome["qc"]["tissue_mm2"] == 0
                outcome.update(state="failed" if empty else "done", reason="no tissue was found" if empty else None)
            except BackendError:
                raise
            except (MedseqError, OSError, MemoryError) as error:
                outcome["reason"] = describe_failure(error)[1].removeprefix(f"{path_label(path)}: ")
            outcomes.append(outcome)
        write_text(
            out / "tissue.json",
            json.dumps({"schema": 1, "rules": asdict(rules or TissueRules()), "slides": outcomes}, indent=1),
        )
    return outcomes


def _one(path: Path, picture: Path, rules: TissueRules, mpp: float | None, icc: bool) -> dict[str, Any]:
    with open_slide(path, mpp, icc=icc) as slide:
        tissue = find_tissue(read_overview(slide, rules), rules)
        write_png(picture, qc_picture(tissue))
        return asdict(tissue_qc(slide, tissue))
