"""Clean image content for training: real slices at random position, angle and pixel size, and drawn phantoms."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from medseq.data.example import colin27, cranium_ct, mni152
from medseq.errors import InputError

__all__ = [
    "Content",
    "add_lesions",
    "head_ct_slices",
    "interpolate",
    "mr_slices",
    "photographs",
    "random_soft_tissue",
    "sample_phantom",
    "to_hounsfield",
    "vary_mr",
]

# Blocks of the head CT (108 axial slices of 1.5 mm), 3 slices apart so that no slice's neighbour is in another block.
HEAD_BLOCKS = {"train": ((0, 19), (43, 57), (71, 108)), "val": ((60, 68),), "test": ((22, 40),)}


@dataclass(frozen=True)
class Content:
    """A pool of slices to draw crops from.

    Attributes:
        slices: Images ``(row, col)`` float32.
        dither: Half-width of a uniform dither that hides the steps of 8-bit data; 0 for none.
    """

    slices: tuple[Tensor, ...]
    dither: float = 0.0

    def sample(
        self, crop: int, generator: torch.Generator, *, zoom: tuple[float, float], air: float = 0.0, body: float = 0.1
    ) -> Float[Tensor, "1 crop crop"]:
        """A square crop at random position, angle, flip and zoom (bicubic; > 1 magnifies).

        Crops that are almost only air teach little: where less than a fifth of the pixels exceeds `body`, another is
        drawn, up to three times. `air` fills what lies outside the slice.
        """
        for _ in range(4):
            image = self._draw(crop, generator, zoom, air)
            if (image > body).float().mean() > 0.2:
                break
        return image

    def _draw(self, crop: int, generator: torch.Generator, zoom: tuple[float, float], air: float) -> Tensor:
        image = self.slices[int(torch.randint(len(self.slices), (), generator=generator))]
        draws = torch.rand(6, generator=generator).tolist()
        low, high = np.log(zoom)
        scale = float(np.exp(low + (high - low) * draws[0]))
        angle = float((draws[1] - 0.5) * (2 * np.pi if draws[2] < 0.3 else 0.5))
        rows, cols = image.shape
        # Centre anywhere in the middle four fifths: the borders are mostly air.
        centre = torch.tensor([cols * (0.1 + 0.8 * draws[3]), rows * (0.1 + 0.8 * draws[4])])
        axis = (torch.arange(crop) - (crop - 1) / 2) / scale
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        x = x if draws[5] < 0.5 else -x
        cos, sin = np.cos(angle), np.sin(angle)
        grid = torch.stack([cos * x - sin * y + centre[0], sin * x + cos * y + centre[1]], dim=-1)
        grid = 2 * grid / torch.tensor([cols - 1.0, rows - 1.0]) - 1
        source = image[None, None] - air
        if self.dither:
            source = source + self.dither * (2 * torch.rand(image.shape, generator=generator) - 1) * (source != 0)
        return F.grid_sample(source, grid[None], mode="bicubic", align_corners=True)[0] + air


@cache
def head_ct_slices(split: str) -> Content:
    """Slices in HU of one block of the Cranium head CT: ``train``, ``val`` or ``test``."""
    if split not in HEAD_BLOCKS:
        raise InputError("unknown split", found=split, wanted=", ".join(HEAD_BLOCKS))
    volume = np.asarray(cranium_ct().array)
    return Content(
        tuple(torch.from_numpy(volume[i].astype(np.float32)) for lo, hi in HEAD_BLOCKS[split] for i in range(lo, hi))
    )


@cache
def mr_slices(split: str) -> Content:
    """Slices of two T1 head volumes in three orientations, scaled to their 99th percentile, split by slabs.

    Along each axis every 40 slices hold 28 for training, 6 for validation and 6 for testing, with nothing between:
    validation only steers the training. Scores are told on other subjects.
    """
    parts = {"train": (0, 26), "val": (29, 31), "test": (34, 37)}
    if split not in parts:
        raise InputError("unknown split", found=split, wanted=", ".join(parts))
    lo, hi = parts[split]
    slices: list[Tensor] = []
    step = 1.0
    for volume in (colin27(), mni152("t1")):
        array = np.asarray(volume.array, dtype=np.float32)
        scale = float(np.percentile(array[array > 0], 99))
        step = min(step, 0.5 / scale)
        for axis in range(3):
            for index in range(array.shape[axis]):
                image = np.take(array, index, axis) / scale
                if lo <= index % 40 < hi and (image > 0.15).mean() > 0.12:
                    slices.append(torch.from_numpy(np.ascontiguousarray(image)))
    return Content(tuple(slices), dither=step)


@cache
def photographs() -> Content:
    """Grey-level photographs that come with scikit-image, 0..1: edges and textures that no head has."""
    from skimage import color, data

    names = ("camera", "astronaut", "coffee", "chelsea", "brick", "grass", "gravel", "coins", "rocket", "retina")
    images = []
    for name in names:
        image = getattr(data, name)()
        grey = color.rgb2gray(image) if image.ndim == 3 else image / 255.0
        # Halving averages camera noise and JPEG blocks away: targets must be clean.
        grey = torch.from_numpy(np.ascontiguousarray(grey, dtype=np.float32))
        images.append(F.avg_pool2d(grey[None, None], 2)[0, 0])
    return Content(tuple(images))


def interpolate(x: Tensor, knots: Tensor, top: float = 1.3) -> Tensor:
    """Piecewise-linear curve through `knots`, evenly spaced over 0..top, extended by its last slope."""
    position = (x.clamp(min=0.0) / top) * (len(knots) - 1)
    lower = position.floor().long().clamp(max=len(knots) - 2)
    return torch.lerp(knots[lower], knots[lower + 1], position - lower).clamp(min=0.0)


def vary_mr(image: Float[Tensor, "1 row col"], generator: torch.Generator) -> Float[Tensor, "1 row col"]:
    """Half the time another contrast of the same anatomy (air stays dark), half the time receive-coil shading."""
    if torch.rand((), generator=generator) < 0.5:
        knots = torch.cat([torch.zeros(1), torch.rand(5, generator=generator)])
        weight = torch.rand((), generator=generator)
        image = (1 - weight) * image + weight * interpolate(image, knots)
    if torch.rand((), generator=generator) < 0.5:
        field = torch.randn((1, 1, 3, 3), generator=generator)
        field = F.interpolate(field, size=image.shape[-2:], mode="bicubic", align_corners=True)[0]
        image = image * torch.exp(0.25 * field)
    return image


def to_hounsfield(image: Tensor, generator: torch.Generator) -> Tensor:
    """Map an image in 0..1 to plausible HU by a random curve; sometimes the dark becomes air."""
    knots = 40.0 + 60.0 * torch.randn(6, generator=generator)
    if torch.rand((), generator=generator) < 0.5:
        knots = knots.sort().values
    knots = knots.clamp(-200.0, 400.0)
    if torch.rand((), generator=generator) < 0.5:
        knots[0] = -1000.0
    position = (image.clamp(0.0, 1.3) / 1.3) * 5
    lower = position.floor().long().clamp(max=4)
    return torch.lerp(knots[lower], knots[lower + 1], position - lower)


def random_soft_tissue(image_hu: Tensor, generator: torch.Generator) -> Tensor:
    """Vary contrast and level of soft tissue (-150..150 HU), so that HU values alone do not tell the tissue."""
    if torch.rand((), generator=generator) < 0.6:
        return image_hu
    gain = 0.5 + 1.5 * torch.rand((), generator=generator)
    shift = 40.0 * (torch.rand((), generator=generator) - 0.5)
    soft = torch.sigmoid((150 - (image_hu - 40).abs()) / 15)
    return image_hu + soft * ((gain - 1) * (image_hu - 40) + shift)


def add_lesions(image_hu: Tensor, generator: torch.Generator) -> Tensor:
    """Add one to four soft-edged ellipses of 3..60 HU contrast either way."""
    return image_hu + _ellipses(
        image_hu.shape[-1], 1 + int(torch.randint(4, (), generator=generator)), (3.0, 60.0), (0.02, 0.15), generator
    )


def sample_phantom(crop: int, generator: torch.Generator) -> Float[Tensor, "1 crop crop"]:
    """A drawn image in HU: a flat or sloping ground, ellipses of any contrast, and sometimes a bar pattern."""
    axis = torch.linspace(-1, 1, crop)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    level, slope_x, slope_y = torch.randn(3, generator=generator)
    image = (40 + 60 * level + 15 * slope_x * x + 15 * slope_y * y)[None]
    image = image + _ellipses(
        crop, int(torch.randint(8, (), generator=generator)), (3.0, 120.0), (0.05, 0.6), generator
    )
    choice = torch.rand((), generator=generator)
    if choice < 0.2:
        angle, period = (torch.rand(2, generator=generator) * torch.tensor([np.pi, 10.0])).tolist()
        wave = torch.sin(2 * np.pi / (3 + period) * crop / 2 * (np.cos(angle) * x + np.sin(angle) * y))
        image = image + (10 + 80 * torch.rand((), generator=generator)) * torch.sigmoid(8 * wave)[None]
    elif choice < 0.45:
        big = _ellipses(crop, 2, (500.0, 1200.0), (0.2, 0.9), generator)
        image = (image + big).clamp(-1000.0, 2000.0)
    return image.float()


def _ellipses(
    crop: int, count: int, contrast: tuple[float, float], radius: tuple[float, float], generator: torch.Generator
) -> Float[Tensor, "1 crop crop"]:
    axis = torch.linspace(-1, 1, crop)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    image = torch.zeros(1, crop, crop)
    for _ in range(count):
        cx, cy, rx, ry, strength, sign, angle = torch.rand(7, generator=generator).tolist()
        rx, ry = (2 * radius[0] + (radius[1] - radius[0]) * 2 * r * r for r in (rx, ry))
        cos, sin = np.cos(np.pi * angle), np.sin(np.pi * angle)
        dx, dy = x - (2 * cx - 1), y - (2 * cy - 1)
        distance = torch.sqrt(((cos * dx + sin * dy) / rx) ** 2 + ((cos * dy - sin * dx) / ry) ** 2 + 1e-12)
        inside = torch.sigmoid((1 - distance) * min(rx, ry) * crop)  # about a pixel wide
        value = contrast[0] * (contrast[1] / contrast[0]) ** strength
        image = image + (value if sign < 0.5 else -value) * inside
    return image
