"""Colours of a scanner brought to sRGB by the ICC profile in the slide."""

import io
import logging
from typing import Literal

import numpy as np
from PIL import Image, ImageCms

__all__ = ["ICC_STATES", "ColourTransform", "IccState"]

logger = logging.getLogger(__name__)

IccState = Literal["applied", "absent", "off", "unreadable"]
ICC_STATES = ("applied", "absent", "off", "unreadable")


class ColourTransform:
    """From the colours that a file stores to sRGB; does nothing where there is no profile.

    Args:
        profile: ICC profile as stored in the file, or None.
        wanted: False leaves the colours as stored.

    Attributes:
        state: ``applied``, ``absent`` (the file has no profile), ``off`` (not wanted), ``unreadable``.
    """

    def __init__(self, profile: bytes | None, wanted: bool = True) -> None:
        self._transform: ImageCms.ImageCmsTransform | None = None
        self.state: IccState = "off" if profile else "absent"
        if not (profile and wanted):
            return
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            # Perceptual, the intent of the scanners' own viewers.
            self._transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB")
            self.state = "applied"
        except (ImageCms.PyCMSError, OSError):
            # The pixels are still good; `wsi check` and the record of an extraction tell of it.
            self.state = "unreadable"
            logger.warning("a slide's ICC profile cannot be read; its colours are used as stored")

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """``(row, col, 3)`` uint8 in sRGB."""
        if self._transform is None or not rgb.size:
            return rgb
        return np.asarray(ImageCms.applyTransform(Image.fromarray(rgb), self._transform))
