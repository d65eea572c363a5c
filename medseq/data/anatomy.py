"""Brain images to simulate MR scans of: real slices in new contrasts, sizes and angles, on a grid finer than the scan.

Contrasts come three ways: the slice as it is, remapped by a random curve, or computed from tissue maps by the signal
equations of spin echo, gradient echo and inversion recovery with random tissue constants. All heads here are training
heads; scores are told on others.
"""

import math
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from medseq.data.coil_fields import smooth_field, uniform
from medseq.data.content import interpolate, photographs
from medseq.data.example import colin27, colin27_fine, mni152

__all__ = ["brain_image", "signal"]

Image = Float[Tensor, "row col"]

# T1 and T2 in ms and relative proton density of white and grey matter, CSF and fat, near 1.5-3 T (Stanisz et al., MRM
# 54, 2005; Rooney et al., MRM 57, 2007, rounded); every draw varies them by a sixth.
TISSUES = {
    "wm": (830.0, 72.0, 0.70),
    "gm": (1350.0, 95.0, 0.82),
    "csf": (4000.0, 1200.0, 1.0),
    "fat": (370.0, 70.0, 0.9),
}


def signal(t1: float, t2: float, density: float, sequence: str, tr: float, te: float, extra: float) -> float:
    """Signal of one tissue, arbitrary units.

    Args:
        t1: In ms.
        t2: In ms.
        density: Proton density.
        sequence: ``se`` spin echo, ``gre`` spoiled gradient echo, ``ir`` inversion recovery (magnitude).
        tr: Repetition time in ms.
        te: Echo time in ms.
        extra: Flip angle in degrees for ``gre``, inversion time in ms for ``ir``; unused for ``se``.

    Reference:
        Bernstein, King, Zhou, Handbook of MRI Pulse Sequences, 2004, chapters 14.1 and 14.2.
    """
    recovered = math.exp(-tr / t1)
    if sequence == "se":
        return density * (1 - recovered) * math.exp(-te / t2)
    if sequence == "ir":
        return abs(density * (1 - 2 * math.exp(-extra / t1) + recovered)) * math.exp(-te / t2)
    flip = math.radians(extra)
    return density * math.sin(flip) * (1 - recovered) / (1 - math.cos(flip) * recovered) * math.exp(-te / t2)


def brain_image(shape: tuple[int, int], generator: torch.Generator, fine: int = 2) -> Image:
    """A magnitude image of a head (sometimes a photograph) on ``fine * shape`` pixels, 0 in air, about 1 at its top.

    Args:
        shape: Matrix of the scan.
        generator: Source of randomness.
        fine: How much finer the grid is: the scan then cuts k-space off as a scanner does.
    """
    image, detail = _source(generator)
    if uniform((0, 1), generator) < 0.5:
        image = _sharpened(image, uniform((0, 2), generator))
    if uniform((0, 1), generator) < 0.3:
        image = image * (1 + uniform((0, 0.08), generator) * torch.randn(image.shape, generator=generator))
    image = _place(image, shape, fine, detail, generator)
    if uniform((0, 1), generator) < 0.5:
        grade = uniform((0, 0.4), generator)
        knots = 3 + int(torch.randint(3, (), generator=generator))
        image = image * torch.exp(grade * smooth_field((image.shape[0], image.shape[1]), knots, generator)[0])
    if uniform((0, 1), generator) < 0.3:
        image = _lesions(image, generator)
    return image.clamp_min(0)


def _source(generator: torch.Generator) -> tuple[Image, float]:
    """A slice at its own resolution, and how many of its pixels a scan's pixel must at least have to show detail."""
    kind = uniform((0, 1), generator)
    if kind < 0.12:
        return _pick(photographs().slices, generator), 1.2
    if kind < 0.32:
        return _tissue_contrast(generator), 1.0
    # The template has no scalp, and fat around the brain is what aliases most.
    name = "mni152" if kind < 0.42 else "colin27" if kind < 0.62 else "colin27_fine"
    image = _pick(_slices(name), generator).float() / _volume(name)[1]
    if uniform((0, 1), generator) < 0.6:
        image = _remap(image, generator)
    return image.clamp(max=1.6), {"colin27_fine": 2.2, "colin27": 1.4, "mni152": 1.1}[name]


@cache
def _volume(name: str) -> tuple[Tensor, float]:
    """A head volume as stored (8 bit), and its 99th percentile."""
    volume = {"colin27": colin27, "colin27_fine": colin27_fine, "mni152": lambda: mni152("t1")}[name]()
    array = np.asarray(volume.array)
    return torch.from_numpy(array.astype(np.uint8)), float(np.percentile(array[array > 0], 99))


@cache
def _slices(name: str) -> tuple[Tensor, ...]:
    """Slices of a volume along its three axes that show enough of the head, 8 bit."""
    volume, top = _volume(name)
    return tuple(volume.select(axis, index).contiguous() for axis, index in _useful(volume, 0.15 * top))


@cache
def _tissue_slices() -> tuple[Tensor, ...]:
    """Slices ``(5, row, col)``: white matter, grey matter, CSF, fat-like and the T1 image, of MNI152."""
    stored, top = _volume("mni152")
    t1 = (stored.float() / top).clamp(max=1.6)
    wm, gm = (torch.from_numpy(np.asarray(mni152(kind).array, dtype=np.float32) / 255.0) for kind in ("wm", "gm"))
    rest = (1 - wm - gm).clamp(0, 1) * (t1 > 0.05)
    # What is neither: dark in T1 is taken for fluid (bone is darker still), bright for fat of skin and marrow.
    bright = torch.sigmoid((t1 - 0.55) * 12)
    fluid = rest * (1 - bright) * torch.sigmoid((t1 - 0.12) * 40)
    stack = torch.stack([wm, gm, fluid, rest * bright, t1])
    return tuple(stack.select(axis + 1, index).contiguous() for axis, index in _useful(t1, 0.15))


def _useful(volume: Tensor, bright: float) -> list[tuple[int, int]]:
    """Axis and index of slices that show enough of the head, about one in 2 mm."""
    step = 2 if max(volume.shape) < 300 else 4
    return [
        (axis, index)
        for axis in range(3)
        for index in range(0, volume.shape[axis], step)
        if float((volume.select(axis, index) > bright).float().mean()) > 0.12
    ]


def _tissue_contrast(generator: torch.Generator) -> Image:
    """A contrast from tissue maps, textured by the real image."""
    *maps, t1 = _pick(_tissue_slices(), generator)
    sequence = ("se", "gre", "ir")[int(torch.randint(3, (), generator=generator))]
    log = lambda low, high: math.exp(uniform((math.log(low), math.log(high)), generator))  # noqa: E731
    timing = {
        "se": (log(400, 6000), log(8, 120), 0.0),
        "gre": (log(6, 60), log(2, 20), log(5, 40)),
        "ir": (log(3000, 9000), log(8, 120), log(300, 2600)),
    }[sequence]
    image = torch.zeros_like(t1)
    for tissue, amount in zip(TISSUES, maps, strict=True):
        t1_ms, t2_ms, density = (value * uniform((0.83, 1.17), generator) for value in TISSUES[tissue])
        image = image + amount * signal(t1_ms, t2_ms, density, sequence, *timing)
    texture = uniform((0.1, 0.7), generator)
    image = image * ((1 - texture) + texture * t1)
    return image / torch.quantile(image[image > 0], 0.99).clamp_min(1e-6) if bool((image > 0).any()) else t1


def _remap(image: Image, generator: torch.Generator) -> Image:
    """Another contrast of the same anatomy: a random curve through six knots, air stays dark."""
    values = torch.rand(5, generator=generator)
    if uniform((0, 1), generator) < 0.5:
        values = values.sort().values
    weight = uniform((0, 1), generator)
    return (1 - weight) * image + weight * interpolate(image, torch.cat([torch.zeros(1), values]))


def _sharpened(image: Image, amount: float) -> Image:
    """More fine detail than averaged heads have: an unsharp mask of one pixel."""
    blurred = F.avg_pool2d(F.pad(image[None, None], (1, 1, 1, 1), mode="replicate"), 3, stride=1)[0, 0]
    return (image + amount * (image - blurred)).clamp_min(0)


def _place(image: Image, shape: tuple[int, int], fine: int, detail: float, generator: torch.Generator) -> Image:
    """Rotate, shear, zoom and shift onto the fine grid; either the head fits the field of view or a part fills it.

    A scan's pixel is never smaller than `detail` source pixels: real scans have structure up to their resolution, and
    a magnified image would teach the network that high frequencies are empty.
    """
    rows, cols = fine * shape[0], fine * shape[1]
    fitting = uniform((0, 1), generator) < 0.55
    if fitting:
        # Source pixels per scan pixel, so that the head fills three quarters to all of the field of view.
        step = max(image.shape[0] / shape[0], image.shape[1] / shape[1]) * uniform((0.8, 1.15), generator)
        step = min(max(step, detail), 2.2 * detail)
    else:
        step = detail * uniform((1.0, 2.0), generator)
    angle = uniform((-0.2, 0.2), generator) if uniform((0, 1), generator) < 0.85 else uniform((0, 6.28), generator)
    stretch, shear = uniform((0.93, 1.07), generator), uniform((-0.05, 0.05), generator)
    mirror = -1.0 if uniform((0, 1), generator) < 0.5 else 1.0
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ torch.tensor([[mirror * stretch, shear], [0.0, 1 / stretch]]) * (step / fine)
    shift = 0.06 * (2 * torch.rand(2, generator=generator) - 1) * torch.tensor(image.shape[::-1])
    y, x = torch.meshgrid(torch.arange(rows) - (rows - 1) / 2, torch.arange(cols) - (cols - 1) / 2, indexing="ij")
    source = torch.stack([x, y], dim=-1) @ matrix.T + shift
    size = torch.tensor([image.shape[1] - 1.0, image.shape[0] - 1.0])
    placed = F.grid_sample(image[None, None], (2 * source / size)[None], mode="bicubic", align_corners=True)[0, 0]
    if not fitting and uniform((0, 1), generator) < 0.85:
        placed = placed * _window((rows, cols), generator)
    return placed.clamp_min(0)


def _window(shape: tuple[int, int], generator: torch.Generator) -> Image:
    """A soft super-ellipse: a slab's profile, and an end of the object where a crop has none."""
    power, radius = uniform((2.5, 6), generator), uniform((0.8, 0.97), generator)
    slope = uniform((25, 80), generator)
    y, x = (torch.linspace(-1, 1, size).abs() for size in shape)
    distance = (y[:, None] ** power + x**power) ** (1 / power)
    return torch.sigmoid(slope * (radius - distance))


def _lesions(image: Image, generator: torch.Generator) -> Image:
    """One to five ellipses, brighter or darker than what they cover."""
    rows, cols = image.shape
    for _ in range(1 + int(torch.randint(5, (), generator=generator))):
        y = torch.arange(rows) - uniform((0.2, 0.8), generator) * rows
        x = torch.arange(cols) - uniform((0.2, 0.8), generator) * cols
        high, wide = (uniform((2, 16), generator) for _ in range(2))
        distance = torch.sqrt((y[:, None] / high) ** 2 + (x / wide) ** 2)
        image = image * (1 + uniform((-0.7, 0.9), generator) * torch.sigmoid((1 - distance) * min(high, wide)))
    return image


def _pick(pool: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
    return pool[int(torch.randint(len(pool), (), generator=generator))]
