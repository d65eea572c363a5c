"""Receive sensitivities of simulated coil arrays, from the field of their wire loops (law of Biot and Savart).

By reciprocity a coil receives what it would send: the component of its field across the main field, ``Bx - i By``. The
loops stand on a cylinder or a helmet around the head at random size, number and angle. Lengths are in units of half
the field of view. Simulated: no real coil is modelled, and tissue changes the fields only by a smooth random factor.

Reference:
    Hoult, The principle of reciprocity in signal strength calculations, Concepts Magn. Reson. 12, 2000.
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["coil_maps", "loop_field", "smooth_field", "uniform"]

_SEGMENTS = 24
_GRID = 28


def loop_field(
    points: Float[Tensor, "point 3"], centre: Float[Tensor, " 3"], normal: Float[Tensor, " 3"], radius: float
) -> Float[Tensor, "point 3"]:
    """Field of a circular current loop by Biot and Savart over straight segments, in units of ``mu0 I / 4 pi``.

    Args:
        points: Where.
        centre: Middle of the loop.
        normal: Axis of the loop, of length 1.
        radius: Of the loop, same unit as the points.

    Returns:
        ``B = sum dl x r / |r|^3`` with r from the middle of each segment to the point.
    """
    helper = torch.eye(3, dtype=points.dtype)[int(normal.abs().argmin())]
    first = torch.linalg.cross(normal, helper)
    first = first / first.norm()
    second = torch.linalg.cross(normal, first)
    # As many segments again as are needed on loops that are large beside their distance: 24 give 1 % there.
    angle = 2 * math.pi * torch.arange(_SEGMENTS + 1, dtype=points.dtype) / _SEGMENTS
    wire = centre + radius * (torch.cos(angle)[:, None] * first + torch.sin(angle)[:, None] * second)
    step, middle = wire[1:] - wire[:-1], 0.5 * (wire[1:] + wire[:-1])
    away = points[:, None] - middle
    cubed = away.square().sum(-1, keepdim=True).clamp_min(1e-4) ** 1.5
    return (torch.linalg.cross(step.expand_as(away), away, dim=-1) / cubed).sum(dim=1)


def coil_maps(
    shape: tuple[int, int], coils: int, generator: torch.Generator, fov: tuple[float, float] = (1.0, 1.0)
) -> Complex[Tensor, "coil row col"]:
    """Sensitivities of a random array in a random slice plane, each coil of random gain and phase.

    Args:
        shape: Rows and columns.
        coils: Number of receivers.
        generator: Source of randomness.
        fov: Half the field of view along rows and columns, in units of the longer one.

    Returns:
        Maps complex64; their root sum of squares is 1 on average over the image.
    """
    frame = _slice_frame(generator)
    points = _slice_points(fov, frame, uniform((-0.35, 0.35), generator))
    places = _array(coils, generator)
    across = frame[2] if uniform((0, 1), generator) < 0.6 else frame[0]
    horizontal = torch.linalg.cross(across, frame[1] if abs(float(across @ frame[1])) < 0.5 else frame[0])
    horizontal = horizontal / horizontal.norm()
    vertical = torch.linalg.cross(across, horizontal)
    maps = []
    for centre, normal, radius in places:
        field = loop_field(points, centre, normal, radius)
        coil = torch.complex(field @ horizontal, -(field @ vertical)).view(1, _GRID, _GRID)
        gain = uniform((0.7, 1.3), generator)
        phase = uniform((-math.pi, math.pi), generator)
        maps.append(resize(coil, shape)[0] * torch.polar(torch.tensor(gain), torch.tensor(phase)))
    stack = torch.stack(maps)
    load = uniform((0, 0.2), generator)
    stack = stack * (1 + load * smooth_field(shape, 4, generator, coils, complex_values=True))
    return (stack / stack.abs().square().sum(0).mean().sqrt()).to(torch.complex64)


def _slice_frame(generator: torch.Generator) -> Float[Tensor, "3 3"]:
    """Directions of columns, rows and normal of the slice: axial, coronal or sagittal, tilted by up to 15 degrees."""
    frame = torch.eye(3)[[(0, 1, 2), (0, 2, 1), (1, 2, 0)][int(uniform((0, 2.999), generator))], :]
    tilt = 0.26 * (2 * torch.rand(3, generator=generator) - 1)
    skew = torch.tensor([[0.0, -tilt[2], tilt[1]], [tilt[2], 0.0, -tilt[0]], [-tilt[1], tilt[0], 0.0]])
    return frame @ torch.linalg.matrix_exp(skew)


def _slice_points(fov: tuple[float, float], frame: Tensor, height: float) -> Float[Tensor, "point 3"]:
    """A coarse grid over the slice: the fields are smooth, so it is interpolated afterwards."""
    rows = torch.linspace(-fov[0], fov[0], _GRID)
    cols = torch.linspace(-fov[1], fov[1], _GRID)
    y, x = torch.meshgrid(rows, cols, indexing="ij")
    return x.reshape(-1, 1) * frame[0] + y.reshape(-1, 1) * frame[1] + height * frame[2]


def _array(coils: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor, float]]:
    """Middle, axis and radius of every loop, on one to three rings around the z axis; helmets narrow upwards."""
    rings = 1 if coils <= 8 else 2 if coils <= 16 else 3
    cylinder = uniform((1.1, 1.6), generator)
    flat = uniform((0.85, 1.1), generator)
    helmet = uniform((0, 1), generator) < 0.5
    overlap = uniform((0.8, 1.3), generator)
    spacing = uniform((0.5, 0.8), generator)
    places = []
    for ring in range(rings):
        count = coils // rings + (ring < coils % rings)
        z = (ring - (rings - 1) / 2) * spacing * cylinder
        wide = cylinder * (1 - 0.3 * max(0.0, z / cylinder) if helmet else 1.0)
        radius = overlap * wide * math.sin(math.pi / max(count, 4)) if count else 0.0
        start = uniform((0, 2 * math.pi), generator)
        for index in range(count):
            angle = start + 2 * math.pi * index / count + 0.12 * (2 * uniform((0, 1), generator) - 1)
            out = torch.tensor([math.cos(angle), math.sin(angle), 0.0])
            centre = torch.tensor([wide * math.cos(angle), flat * wide * math.sin(angle), z])
            tilt = torch.tensor([0.0, 0.0, uniform((-0.3, 0.3), generator) + (0.4 if helmet and z > 0 else 0.0)])
            normal = -(out + tilt)
            places.append((centre * uniform((0.97, 1.05), generator), normal / normal.norm(), radius))
    return places


def smooth_field(
    shape: tuple[int, int], knots: int, generator: torch.Generator, count: int = 1, *, complex_values: bool = False
) -> Tensor:
    """Smooth random fields ``(count, row, col)``: normal numbers on knots x knots, interpolated by cubics."""
    draws = torch.randn((count, 2 if complex_values else 1, knots, knots), generator=generator)
    grown = F.interpolate(draws, size=shape, mode="bicubic", align_corners=True)
    return torch.complex(grown[:, 0], grown[:, 1]) if complex_values else grown[:, 0]


def resize(maps: Complex[Tensor, "coil r c"], shape: tuple[int, int]) -> Complex[Tensor, "coil row col"]:
    """Complex maps on another grid over the same area, by cubics."""
    parts = torch.stack([maps.real, maps.imag], dim=1)
    grown = F.interpolate(parts, size=shape, mode="bicubic", align_corners=True)
    return torch.complex(grown[:, 0], grown[:, 1])


def uniform(limits: tuple[float, float], generator: torch.Generator) -> float:
    """A number drawn evenly between two limits."""
    low, high = limits
    return low + (high - low) * float(torch.rand((), generator=generator))
