"""GRAPPA: missing k-space as a linear combination of its measured neighbours in all coils.

One correlation matrix of the calibration region serves every sampling pattern: the weights for a point are solved from
the rows and columns of that matrix which belong to its measured neighbours. So one-dimensional, two-dimensional and
random masks are all the same case.

Reference:
    Griswold et al., Generalized autocalibrating partially parallel acquisitions (GRAPPA), MRM 47, 2002.
"""

import torch
from jaxtyping import Bool, Complex
from torch import Tensor
from torch.nn import functional as F

from medseq.errors import InputError

__all__ = ["default_kernel", "grappa"]


def default_kernel(mask: Bool[Tensor, "row col"], region: Bool[Tensor, "row col"]) -> tuple[int, int]:
    """A window that reaches the measured neighbours on both sides of every gap, at least 5, at most the region."""

    def size(axis: int) -> int:
        sampled = mask.any(dim=1 - axis).nonzero().flatten()
        gap = int(sampled.diff().max()) if sampled.numel() > 1 else 1
        inside = int(region.any(dim=1 - axis).sum())
        return min(max(5, 2 * gap - 1), inside - 1 + inside % 2)

    return size(0), size(1)


def grappa(
    kspace: Complex[Tensor, "coil row col"],
    mask: Bool[Tensor, "row col"],
    region: Bool[Tensor, "row col"],
    *,
    kernel: tuple[int, int] | None = None,
    regularisation: float = 1e-6,
) -> Complex[Tensor, "coil row col"]:
    """Fill what was not measured; measured points stay as they are.

    Args:
        kspace: Measured k-space, zero elsewhere.
        mask: True where measured.
        region: Calibration region, a filled rectangle of measured points.
        kernel: Rows and columns of the window, odd; None for `default_kernel`.
        regularisation: Tikhonov weight in units of the mean power of the calibration data.

    Returns:
        K-space; points without any measured neighbour in their window stay zero.

    Raises:
        InputError: The calibration region is smaller than the window, or the window is even.
    """
    rows, cols = kernel if kernel is not None else default_kernel(mask, region)
    if kernel is not None and not (rows % 2 and cols % 2):
        raise InputError("the GRAPPA window must be odd", found=(rows, cols))
    coils = kspace.shape[0]
    inside = region.nonzero()
    height, width = (int(n) for n in inside.max(0).values - inside.min(0).values + 1) if inside.numel() else (0, 0)
    if height < max(rows, 3) or width < max(cols, 3):
        raise InputError(
            "the calibration region is smaller than the GRAPPA window",
            found=f"{height} x {width}",
            wanted=f"{max(rows, 3)} x {max(cols, 3)}",
            remedy="give a smaller kernel, or sample more of the centre",
        )
    top, left = (int(n) for n in inside.min(0).values)
    correlation = _correlation(kspace[:, top : top + height, left : left + width], rows, cols)
    power = correlation.diagonal().real.mean()
    middle = (rows // 2) * cols + cols // 2
    filled = kspace.clone()
    padded = F.pad(kspace, (cols // 2, cols // 2, rows // 2, rows // 2))
    for pattern, points in _patterns(mask, rows, cols):
        source = pattern.nonzero().flatten()
        if not source.numel():
            continue
        # Window positions of coil c are c * rows * cols + position.
        steps = torch.arange(coils, device=kspace.device)[:, None] * (rows * cols)
        index, target = (steps + source).flatten(), steps.flatten() + middle
        matrix = correlation[index[:, None], index] + regularisation * power * torch.eye(
            len(index), device=kspace.device
        )
        weights = torch.linalg.solve(matrix, correlation[index[:, None], target])
        y, x = points[:, :1] + source // cols, points[:, 1:] + source % cols
        neighbours = padded[:, y, x].movedim(1, 0).reshape(len(points), -1).to(weights.dtype)
        filled[:, points[:, 0], points[:, 1]] = (neighbours @ weights).T.to(filled.dtype)
    return filled


def _correlation(calibration: Complex[Tensor, "coil row col"], rows: int, cols: int) -> Complex[Tensor, "n n"]:
    """``A^H A`` of all windows of the calibration data, in double precision."""
    data = calibration.to(torch.complex128)
    windows = data.unfold(1, rows, 1).unfold(2, cols, 1)
    matrix = windows.permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(1)
    return matrix.mH @ matrix


def _patterns(mask: Bool[Tensor, "row col"], rows: int, cols: int) -> list[tuple[Tensor, Tensor]]:
    """Every arrangement of measured neighbours around missing points, and the points that have it."""
    padded = F.pad(mask, (cols // 2, cols // 2, rows // 2, rows // 2))
    windows = padded.unfold(0, rows, 1).unfold(1, cols, 1)
    points = (~mask).nonzero()
    if not points.numel():
        return []
    around = windows[points[:, 0], points[:, 1]].flatten(1)
    patterns, which = torch.unique(around, dim=0, return_inverse=True)
    order = torch.argsort(which, stable=True)
    parts = torch.split(points[order], torch.bincount(which).tolist())
    return list(zip(patterns, parts, strict=True))
