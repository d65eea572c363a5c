"""Parameters of scoring bags, checked against the bundle. No torch."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from medseq.errors import BundleError, InputError
from medseq.inference.bundle_schema import BundleConfig

__all__ = ["AttributionName", "FormatName", "MILParams"]

# What heat maps show; `medseq.inference.mil_attribution` computes it.
AttributionName = Literal["attention", "gradient", "occlusion"]
FormatName = Literal["auto", "dicom"]


@dataclass(frozen=True)
class MILParams:
    """Effective parameters of a run.

    Attributes:
        attribution: What heat maps show: ``attention``, ``gradient`` or ``occlusion``.
        top: Patches on the contact sheet.
        mpp: Microns per pixel of slides that do not say.
        encoder: Encoder of slides: the bundle's name of it, or a file of its weights.
        format: ``auto`` (DICOM objects of DICOM slides) or ``dicom`` (of all).
        chunk: Instances in memory at a time, where the model can be run in pieces.
    """

    attribution: AttributionName = "attention"
    top: int = 12
    mpp: float | None = None
    encoder: str | None = None
    format: FormatName = "auto"
    chunk: int = 8192

    @classmethod
    def resolve(cls, config: BundleConfig, **words: Any) -> "MILParams":
        """The caller's words over the bundle's.

        Raises:
            BundleError: The bundle gives no scores, or does not say of what.
            InputError: Out of range.
        """
        if config.task != "mil" or config.output.kind != "scores":
            raise BundleError("the bundle gives no scores", where=config.name, found=config.task, wanted="task mil")
        if config.input.kind not in ("bag", "slide") or config.input.feature_dim is None:
            raise BundleError(
                "the bundle does not say which features it takes",
                where=config.name,
                found=f"input kind {config.input.kind}",
                wanted="kind bag or slide, and feature_dim",
            )
        given = {word: value for word, value in words.items() if value is not None}
        given.setdefault("encoder", config.input.encoder)
        params = cls(**given)
        if params.attribution not in get_args(AttributionName):
            raise InputError("unknown attribution", found=params.attribution, wanted="attention, gradient, occlusion")
        if params.format not in get_args(FormatName):
            raise InputError("unknown format", found=params.format, wanted="auto or dicom")
        if not 1 <= params.top <= 200 or params.chunk < 1 or (params.mpp is not None and not 0.01 <= params.mpp <= 100):
            raise InputError("an option out of range", found=f"top {params.top}, mpp {params.mpp}")
        return params

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)
