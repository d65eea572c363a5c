"""How a slide becomes a bag: every choice that decides the features, and the hash that a bag carries of them."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from medseq.errors import InputError
from medseq.inference.encoders import EncoderInfo
from medseq.io.slide_file import SlideFile
from medseq.io.tissue import TissueRules

__all__ = ["ExtractSettings", "StainMethod", "settings_hash"]

StainMethod = Literal["macenko", "reinhard"]
# A slide is recognised by its size and its ends: hashing gigabytes would take longer than reading the tissue.
_END_BYTES = 1 << 16


@dataclass(frozen=True)
class ExtractSettings:
    """The choices of an extraction.

    Attributes:
        mpp_target: Microns per pixel of the tiles.
        tile: Side of a tile in pixels.
        overlap: Share of a tile that the next one covers too.
        min_tissue: Least share of tissue in a tile.
        stain: Stain normalisation, or None.
        slide_mpp: Microns per pixel of the slides, for those that do not say or say it wrongly.
        icc: Bring colours to sRGB where a slide has a profile.
        batch: Tiles encoded at once.
        max_bad_share: A slide of which more tiles cannot be read fails.
        tissue: What counts as tissue.
    """

    mpp_target: float = 0.5
    tile: int = 256
    overlap: float = 0.0
    min_tissue: float = 0.25
    stain: StainMethod | None = None
    slide_mpp: float | None = None
    icc: bool = True
    batch: int = 32
    max_bad_share: float = 0.05
    tissue: TissueRules = field(default_factory=TissueRules)

    def __post_init__(self) -> None:
        if self.stain is not None and self.stain not in get_args(StainMethod):
            raise InputError("no such stain normalisation", found=self.stain, wanted="macenko or reinhard")
        if self.batch < 1 or not 0 <= self.max_bad_share < 1:
            raise InputError("an option out of range", found=f"batch {self.batch}, share {self.max_bad_share:g}")

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def settings_hash(slide: SlideFile, encoder: EncoderInfo, settings: ExtractSettings) -> str:
    """Sixteen hex digits over all that decides the features of a slide; a bag of others is never continued.

    The batch counts: a network may round differently in batches of another size.
    """
    about = {
        "format": 1,
        "slide": _file_hash(slide.path),
        "dims": slide.dims,
        "mpp": slide.mpp,
        "icc": slide.icc,
        "encoder": encoder.identity,
        "settings": settings.as_dict(),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _file_hash(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        digest.update(stream.read(_END_BYTES))
        stream.seek(max(size - _END_BYTES, 0))
        digest.update(stream.read(_END_BYTES))
    return digest.hexdigest()
