"""From an item of a run to what is looked at: opens inputs and outputs through `medseq.io`. No torch."""

from collections.abc import Callable
from typing import Any, cast

from medseq.errors import InputError, MedseqError
from medseq.inference.discover import open_input
from medseq.inference.review_cache import ByteCache
from medseq.inference.review_index import WorkItem
from medseq.inference.review_layer import Layer
from medseq.inference.review_recon import ReconView, find_reference
from medseq.inference.review_runs import OutputFile, Runs
from medseq.inference.review_source import input_path
from medseq.inference.review_volume import SeriesView
from medseq.inference.review_zero_filled import ZeroFilledReader
from medseq.io.volume import Modality, Units, VolumeReader

__all__ = ["open_recon", "open_series"]

_OUTPUT_ROLES = {"result": "after", "difference": "difference", "uncertainty": "uncertainty"}


def open_series(runs: Runs, token: str, cache: "ByteCache[Any]", pseudonym: Callable[[str], str]) -> SeriesView:
    """The volumes of an item; what cannot be opened is missing, with the reason in words.

    Args:
        runs: The runs under review.
        token: The item.
        cache: For planes and volumes.
        pseudonym: Stand-in for a patient.

    Raises:
        InputError: There is nothing to see of this item.
    """
    item = runs.item(token)
    modality, units = _meaning(runs, token)
    layers: dict[str, Layer] = {}
    missing: dict[str, str] = {}
    openers: dict[str, Callable[[], VolumeReader]] = {"before": lambda: _before(runs, token, item, modality, units)}
    outputs = runs.outputs(token, rehash=False)
    for role, name in _OUTPUT_ROLES.items():
        files = [file for file in outputs if file.role == role]
        if role == "result" or files:
            openers[name] = _opener(files, modality, units)
    # Pixels of what was computed before are not those of now.
    digest = runs.output_hash(token)
    for name, opener in openers.items():
        try:
            layers[name] = Layer(name, opener(), cache, f"{token}/{name}/{digest}")
        except MedseqError as error:
            missing[name] = str(error)
    return SeriesView(layers, missing, _header(layers, item, pseudonym))


def open_recon(runs: Runs, token: str, series: SeriesView) -> ReconView:
    """The raw data of an item beside what was made of it.

    Raises:
        InputError: The item is no raw data, or they are gone or changed.
    """
    item = runs.item(token)
    if item.kind != "kspace":
        raise InputError("this item is no raw data", found=item.kind)
    root, files = runs.input_files(token)
    relpaths = [row.relpath for row in files]
    for relpath in relpaths:
        input_path(root, relpath)
    raw = ZeroFilledReader(root, item.item_id, relpaths, runs.params(token))
    # `medseq demo` and studies with a truth keep it beside the input.
    folders = [*runs.references, root, root.parent.parent / "truth" / root.name, root.parent / "truth"]
    return ReconView(raw, series, find_reference(folders, relpaths[0], raw.header.shape))


def _opener(files: list[OutputFile], modality: Modality, units: Units) -> Callable[[], VolumeReader]:
    def opened() -> VolumeReader:
        volumes = [file for file in files if file.path.name.lower().endswith((".dcm", ".nii", ".nii.gz"))]
        gone = [file.problem for file in volumes if file.problem in ("missing", "unreadable")]
        if not volumes or gone:
            found = f"{len(gone)} of {len(volumes)} files {gone[0]}" if gone else "no volume was written"
            raise InputError("the result cannot be shown", found=found, remedy="run the item again")
        nifti = next((file.path for file in volumes if not file.path.name.lower().endswith(".dcm")), None)
        if nifti is not None:
            from medseq.io.nifti import open_nifti

            return open_nifti(nifti, modality=modality, units=units)
        from medseq.io.dicom import group_dicom, open_dicom

        stacks, _, broken = group_dicom([file.path for file in volumes])
        if len(stacks) != 1:
            raise broken[0].error if broken else InputError("the result is not one series", found=len(stacks))
        return open_dicom(stacks[0])

    return opened


def _before(runs: Runs, token: str, item: WorkItem, modality: Modality, units: Units) -> VolumeReader:
    root, files = runs.input_files(token)
    relpaths = [row.relpath for row in files]
    for relpath in relpaths:
        input_path(root, relpath)
    if item.kind == "kspace":
        return ZeroFilledReader(root, item.item_id, relpaths, runs.params(token))
    if item.kind not in ("dicom", "nifti"):
        raise InputError("this input is no volume", found=item.kind)
    asked = runs.params(token).get("modality")
    return open_input(root, item.item_id, item.kind, relpaths, modality=asked or modality, units=units)


def _meaning(runs: Runs, token: str) -> tuple[Modality, Units]:
    """What the values of a run are, where a file does not say."""
    run = runs.run_of(token)
    modality = run.modality if run.modality in ("CT", "MR", "PT", "NM") else "OT"
    units = run.bundle.get("units", "1")
    return cast(Modality, modality), cast(Units, units if units in ("HU", "SUVbw", "Bq/ml") else "1")


def _header(layers: dict[str, Layer], item: WorkItem, pseudonym: Callable[[str], str]) -> dict[str, str | None]:
    """What stands above the picture. No name, number or date of a patient."""
    facts: dict[str, str | None] = {"pseudonym": None, "series": item.label, "laterality": None, "body_part": None}
    dicom = [layer for layer in layers.values() if layer.header.source.kind == "dicom"]
    if dicom:
        from medseq.io.dicom_facts import series_facts

        found = series_facts(dicom[0].header)
        facts |= {"laterality": found.laterality, "body_part": found.body_part}
        facts["pseudonym"] = pseudonym(found.patient_key) if found.patient_key else None
    return facts
