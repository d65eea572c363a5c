"""What an item leaves in DICOM beside images: maps of real numbers, heat maps as pictures, scores as reports. No torch.

A difference or an uncertainty of a DICOM series is written twice: as a series of images, which every viewer shows, in
the source's units; and as a Parametric Map, which keeps every value as it was computed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseq.errors import OutputError
from medseq.inference.predictor import Output, Sink
from medseq.io.volume import VolumeHeader

__all__ = ["SeriesWithMap", "is_dicom", "write_mil_objects"]


class SeriesWithMap:
    """A `VolumeWriter` for a series and, on the source's own grid, for a map of the same values.

    Args:
        series: Writes the images.
        exact: Writes the map.
    """

    def __init__(self, series: Any, exact: Any) -> None:
        self._series, self._exact = series, exact
        self._mapped = False

    def begin(self, header: VolumeHeader) -> None:
        """See `VolumeWriter.begin`."""
        from medseq.io.dicom_regrid import same_grid

        # On another grid the map would have to refer to places that no source image has.
        self._mapped = same_grid(header, header.source.header)
        for writer in self._writers:
            writer.begin(header)

    def write(self, lo: int, planes: np.ndarray) -> None:
        """See `VolumeWriter.write`."""
        for writer in self._writers:
            writer.write(lo, planes)

    def commit(self) -> Sequence[Path]:
        """See `VolumeWriter.commit`; the images, then the map."""
        return [path for writer in self._writers for path in writer.commit()]

    def abort(self) -> None:
        """See `VolumeWriter.abort`."""
        for writer in self._writers:
            writer.abort()

    @property
    def _writers(self) -> list[Any]:
        return [self._series, self._exact] if self._mapped else [self._series]


def is_dicom(path: Path | None) -> bool:
    """Whether a file says that it is DICOM."""
    if path is None:
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def write_mil_objects(
    sink: Sink, item: str, slide: Path | None, scores: Mapping[str, float], picture: Path | None
) -> list[Output]:
    """Scores and the heat map of a slide as DICOM: a report of TID 1500, a Secondary Capture.

    Args:
        sink: Of the item.
        item: Its pseudonym, from which UIDs follow where there is no DICOM slide.
        slide: A DICOM file of the slide, whose patient and study they are given; else None.
        scores: Name -> value.
        picture: PNG of the heat map; None where nothing is known of places.

    Raises:
        OutputError: There is nothing that a report could refer to.
    """
    from medseq.io.dicom_objects import write_picture, write_scores

    reference = slide if is_dicom(slide) else None
    outputs = []
    if picture is not None:
        path = sink.object("overlay")
        write_picture(path, _rgb(picture), sink.provenance("overlay"), reference=reference, source_id=item)
        outputs.append(Output("overlay", "dicom", (path,)))
    evidence = reference or (outputs[0].paths[0] if outputs else None)
    if evidence is None:
        raise OutputError(
            "scores as DICOM need an image to refer to",
            found="features without places, and no DICOM slide",
            remedy="leave out --format dicom",
        )
    path = write_scores(sink.object("scores"), scores, [evidence], sink.provenance("scores"))
    return [*outputs, Output("scores", "dicom", (path,))]


def _rgb(png: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(png) as image:
        return np.asarray(image.convert("RGB"))
