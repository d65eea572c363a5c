"""The parameters of a run: which words the task of a bundle knows, and their effective values. No torch."""

from collections.abc import Mapping
from typing import Any

from medseq.errors import BundleError, InputError
from medseq.inference.bundle_schema import BundleConfig
from medseq.inference.mil_params import MILParams
from medseq.inference.recon_params import ReconParams
from medseq.inference.restore_params import RestoreParams

__all__ = ["WORDS", "resolve_params"]

# Task -> the words of `predict_folder` that it understands, beside those about folders and runs.
WORDS: dict[str, tuple[str, ...]] = {
    "restore": ("strength", "tile", "overlap", "batch", "difference", "uncertainty", "resample", "modality"),
    "mil": ("attribution", "top", "mpp", "encoder", "format"),
    "recon": ("sens", "sens_maps", "fft", "virtual_coils", "orientations", "adapt"),
}


def resolve_params(config: BundleConfig, words: Mapping[str, Any]) -> dict[str, Any]:
    """Effective values of all parameters, ready for JSON.

    Args:
        config: The bundle's.
        words: What the caller said; None and False mean that nothing was said.

    Raises:
        InputError: A word of another task, or a value out of range.
        BundleError: The bundle cannot be run on folders.
    """
    if config.task not in WORDS:
        raise BundleError("bundles of this task cannot be run on folders", where=config.name, found=config.task)
    known = WORDS[config.task]
    for word, value in words.items():
        if word not in known and value not in (None, False):
            raise InputError(
                f"{word} means nothing for this bundle",
                where=config.name,
                found=f"{word} = {value!r}, task {config.task}",
                wanted=", ".join(known),
            )
    given = {word: value for word, value in words.items() if word in known and value is not None}
    if config.task == "recon":
        return ReconParams.resolve(config, **given).as_dict()
    if config.task == "mil":
        return MILParams.resolve(config, **given).as_dict()
    apart = {word: given.pop(word, default) for word, default in (("resample", False), ("modality", None))}
    return RestoreParams.resolve(config, **given).as_dict() | apart
