"""The product's own ways in, one a format: what a run does with a file, from discovery to the last pixel.

Each returns ``result`` (something was read), ``refused`` (an item failed with a reason) or ``skipped`` (nobody's
input); a `MedseqError` is a refusal, too. Everything else that is raised is a crash.
"""

import json
import shutil
from pathlib import Path

__all__ = ["ENTRIES", "NEEDS_TORCH"]

_PLANES = 48  # of a file that claims many: read one after the other, the first ones are as good as all


def _volume(folder: Path) -> str:
    from medseq.inference.discover import discover, open_input, walk

    assert list(walk(folder))
    fates = set()
    for item in discover(folder):
        fates.add(_fate(item))
        if item.state == "queued":
            names = [file.relpath for file in item.files]
            reader = open_input(folder, item.item_id, item.kind, names, modality="MR", units="1")
            for plane in range(min(reader.header.planes, _PLANES)):
                reader.read(plane, plane + 1)
                reader.valid(plane, plane + 1)
    return _worst(fates)


def _kspace(folder: Path) -> str:
    from medseq.inference.discover import discover
    from medseq.inference.discover_kspace import open_kspace_item

    fates = set()
    for item in discover(folder, "kspace"):
        fates.add(_fate(item))
        if item.state == "queued":
            reader = open_kspace_item(folder, item.item_id, [file.relpath for file in item.files])
            for number in range(min(reader.n, _PLANES)):
                reader.read(number)
    return _worst(fates)


def _pathology(folder: Path) -> str:
    from medseq.inference.discover import discover
    from medseq.inference.discover_mil import open_mil_item
    from medseq.io.features import read_chunks
    from medseq.io.slide_open import open_slide

    fates = set()
    for item in discover(folder, "bag"):
        fates.add(_fate(item))
        if item.state != "queued":
            continue
        opened = open_mil_item(folder, item.item_id, item.kind, [file.relpath for file in item.files], folder / "bags")
        if opened.bag is not None:
            for number, _ in enumerate(read_chunks(opened.bag, 4096)):
                if number > _PLANES:
                    break
        if opened.slide is not None:
            with open_slide(opened.slide) as slide:
                for level in range(slide.levels):
                    width, height = (min(256, size) for size in slide.dims[level])
                    slide.region(0, 0, level, width, height)
    return _worst(fates)


def _slide(folder: Path) -> str:
    from medseq.io.slide_check import check_slide

    fate = _pathology(folder)
    for path in sorted(folder.glob("*.svs")):
        check_slide(path)
    return fate


def _archive(folder: Path) -> str:
    from medseq.inference.unpack import is_archive, unpacked

    fates = set()
    for path in sorted(folder.iterdir()):
        if is_archive(path):
            with unpacked(path, folder.parent) as inside:
                fates.add(_volume(inside))
    return _worst(fates)


def _manifest(folder: Path) -> str:
    from medseq.io.manifest import read_manifest

    for path in sorted(folder.glob("*.yaml")):
        read_manifest(path)
    return "result"


def _routes(folder: Path) -> str:
    from medseq.inference.routes import load_routes

    routes = load_routes(folder / "routes.yaml")
    for description in ("low dose chest", "a" * 60, ""):
        values = {"Modality": "CT", "BodyPart": "CHEST", "SeriesDescription": description, "AETitle": "CT1"}
        routes.decide(values)
    return "result"


def _bundle(folder: Path) -> str:
    from medseq.inference.bundle import load_bundle

    bundle = load_bundle(folder)
    bundle.transforms()
    bundle.build_model()
    return "result"


def _predict(bundle: str, **words: object):
    def entry(folder: Path) -> str:
        from medseq.inference.run import predict_folder

        out = folder.parent / "out"
        shutil.rmtree(out, ignore_errors=True)
        given = {"workers": 0, "created_utc": "2026-01-02T03:04:05Z", **words}
        predict_folder(folder.parents[1] / "bundles" / bundle, folder, out, **given)
        report = json.loads((out / "report.json").read_text("utf-8"))
        codes = [item["reason_code"] for item in report["items"] if item["state"] == "failed"]
        reasons = [item["reason"] for item in report["items"] if item["reason_code"] == "bug"]
        if reasons:
            raise AssertionError(f"an item ended by {reasons[0]}")
        return "refused" if codes else "result"

    return entry


def _fate(item) -> str:
    assert item.state == "queued" or item.reason, "every item that is left out has a reason"
    return {"queued": "result", "failed": "refused"}.get(item.state, "skipped")


def _worst(fates: set[str]) -> str:
    return next((fate for fate in ("result", "refused", "skipped") if fate in fates), "skipped")


ENTRIES = {
    "dicom": _volume,
    "nifti": _volume,
    "kspace-h5": _kspace,
    "mrd": _kspace,
    "npy": _kspace,
    "cfl": _kspace,
    "bag": _pathology,
    "bag-array": _pathology,
    "svs": _slide,
    "archive": _archive,
    "manifest": _manifest,
    "routes": _routes,
    "bundle": _bundle,
    "predict-dicom": _predict("mr", modality="MR"),
    "predict-nifti": _predict("mr", modality="MR"),
    "predict-kspace": _predict("recon"),
    "predict-bag": _predict("mil"),
}
NEEDS_TORCH = frozenset({"bundle", "predict-dicom", "predict-nifti", "predict-kspace", "predict-bag"})
