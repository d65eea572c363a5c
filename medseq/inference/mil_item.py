"""What a model of bags is given: the features of a slide, the slide itself, or both. No torch."""

from dataclasses import dataclass
from pathlib import Path

from medseq.io.features import Bag

__all__ = ["MILItem"]


@dataclass(frozen=True)
class MILItem:
    """One item of a run: features, or a slide to extract them from.

    Attributes:
        name: Pseudonym; names the bag that is made of a slide.
        bag: Features, if there are any.
        slide: The slide, if it is there: pictures show it, and without a bag its features are extracted.
        bags: Folder in which extracted bags stay, so that a killed run goes on where it stopped.
    """

    name: str
    bag: Bag | None
    slide: Path | None
    bags: Path
