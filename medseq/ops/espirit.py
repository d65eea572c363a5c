"""ESPIRiT: coil sensitivities as eigenvectors of the operator that reproduces every small window of k-space.

Windows of fully sampled k-space span a low-dimensional space. Projecting each window of a scan onto that space and
averaging the overlaps leaves true multi-coil k-space as it is; in the image domain the same operation is one
``coil x coil`` matrix per pixel, so the sensitivities are its eigenvectors to the eigenvalue 1. Nothing but measured
points is used, wherever they make full windows: a band of columns, a block, or the disc of a Poisson mask.

Reference:
    Uecker et al., ESPIRiT: an eigenvalue approach to autocalibrating parallel MRI, MRM 71, 2014.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from medseq.errors import InputError, ShapeError
from medseq.ops.coils import acs_sens_maps
from medseq.ops.fourier import Norm, Origin, to_centre, to_corner

__all__ = ["Espirit", "MapMethod", "espirit", "estimate_maps"]

MapMethod = Literal["acs", "espirit"]
_STRIP_BYTES = 2**23
_SQUARINGS = 5


class Espirit(NamedTuple):
    """What `espirit` finds.

    Attributes:
        maps: Coil sensitivities; root sum of squares 1 inside the support and 0 outside, or in between with soft
            weighting.
        eigenvalue: Largest eigenvalue of every pixel, about 1 where there is signal and small where there is none.
    """

    maps: Complex[Tensor, "batch coil row col"]
    eigenvalue: Float[Tensor, "batch row col"]


def espirit(
    kspace: Complex[Tensor, "batch coil row col"],
    mask: Tensor,
    *,
    kernel: tuple[int, int] = (6, 6),
    calibration: int = 24,
    threshold: float | Literal["auto"] = 0.02,
    crop: float = 0.8,
    soft: bool = False,
    origin: Origin = "centre",
) -> Espirit:
    """Sensitivity maps from the fully sampled windows around the centre of k-space.

    The phase is that of the first principal virtual coil of the calibration data, which makes it smooth and the maps
    independent of the order of the coils. Any norm of the Fourier transform gives the same maps.

    Args:
        kspace: Measured k-space; values where `mask` is False are never read.
        mask: ``(batch or 1, 1, row or 1, col)``, True or not zero where measured.
        kernel: Rows and columns of a window.
        calibration: Side of the central square in which windows are taken; a larger one costs time.
        threshold: Singular values below this part of the largest belong to the noise; ``auto`` finds it from the
            smallest singular values, see `_noise_threshold`.
        crop: Maps are 0 where the eigenvalue is smaller.
        soft: Fade maps out around `crop`, from 1 at eigenvalue 1 to 0 at ``2 crop - 1``, instead of cutting them.
        origin: Fourier convention, see `medseq.ops.fourier`.

    Returns:
        Maps in the dtype of `kspace`, and the eigenvalue they belong to.

    Raises:
        ShapeError: K-space and mask do not fit.
        InputError: The centre was not sampled, too few full windows, only zeros, numbers that are not finite, or
            options out of range.
    """
    _check(kspace, mask, kernel, threshold, crop, origin)
    centred = origin == "centre"
    data, sampled = (kspace, mask != 0) if centred else (to_centre(kspace), to_centre(mask != 0))
    sampled = sampled.expand(kspace.shape[0], 1, *kspace.shape[-2:])[:, 0]
    results = []
    for item, where in zip(data, sampled, strict=True):
        block, windows = _calibration(item, where, kernel, calibration)
        coefficients = _operator(block, windows, kernel, threshold)
        vectors, values = _eigenmaps(coefficients.to(kspace.dtype), item.shape[-2:], _principal(block))
        results.append((vectors * _weight(values, crop, soft), values))
    maps, eigenvalue = (torch.stack(parts) for parts in zip(*results, strict=True))
    return Espirit(maps, eigenvalue) if centred else Espirit(to_corner(maps), to_corner(eigenvalue))


def estimate_maps(
    kspace: Complex[Tensor, "batch coil row col"],
    mask: Tensor,
    method: MapMethod = "espirit",
    *,
    origin: Origin = "centre",
    norm: Norm = "ortho",
) -> Complex[Tensor, "batch coil row col"]:
    """Sensitivity maps by the name of a method, from measured points only.

    Args:
        kspace: Measured k-space.
        mask: ``(batch or 1, 1, row or 1, col)``.
        method: ``acs`` for low-resolution images over their root sum of squares, or ``espirit``.
        origin: Fourier convention, see `medseq.ops.fourier`.
        norm: Same.

    Raises:
        ShapeError: K-space and mask do not fit.
        InputError: Unknown method; the centre was not sampled; see `espirit`.
    """
    if method == "espirit":
        return espirit(kspace, mask, origin=origin).maps
    if method != "acs":
        raise InputError("unknown method for sensitivity maps", found=method, wanted="acs or espirit")
    if origin == "centre":
        return acs_sens_maps(kspace, mask, norm=norm)
    return to_corner(acs_sens_maps(to_centre(kspace), to_centre(mask), norm=norm))


def _calibration(
    kspace: Complex[Tensor, "coil row col"], sampled: Bool[Tensor, "row col"], kernel: tuple[int, int], side: int
) -> tuple[Complex[Tensor, "coil y x"], Bool[Tensor, "window_y window_x"]]:
    """The central square with zeros where nothing was measured, and which of its windows were measured in full."""
    start = [max(0, n // 2 - side // 2) for n in sampled.shape]
    box = tuple(slice(s, min(n, n // 2 - side // 2 + side)) for s, n in zip(start, sampled.shape, strict=True))
    if not sampled[sampled.shape[0] // 2, sampled.shape[1] // 2]:
        raise InputError(
            "the centre of k-space was not sampled",
            remedy="give sensitivity maps, or a mask whose zero frequency is where the Fourier convention has it",
        )
    sampled = sampled[box]
    count, windows = 0, torch.zeros(0, 0, dtype=torch.bool)
    if all(n >= k for n, k in zip(sampled.shape, kernel, strict=True)):
        windows = sampled.unfold(0, kernel[0], 1).unfold(1, kernel[1], 1).all(dim=-1).all(dim=-1)
        count = int(windows.sum())
    if count < kernel[0] * kernel[1]:
        raise InputError(
            "the calibration region is too small for ESPIRiT",
            found=f"{count} fully sampled windows of {kernel[0]} x {kernel[1]}",
            wanted=f"at least {kernel[0] * kernel[1]}",
            remedy="give a smaller kernel or sensitivity maps, use method 'acs', or sample more of the centre",
        )
    block = torch.where(sampled, kspace[(slice(None), *box)], 0).to(torch.complex128)
    if not torch.isfinite(torch.view_as_real(block)).all():
        raise InputError("measured k-space has numbers that are not finite", wanted="no NaN, no infinity")
    if not block.any():
        raise InputError("measured k-space is zero in every coil", remedy="leave the empty scan out")
    return block, windows


def _window_matrix(
    block: Complex[Tensor, "coil y x"], windows: Bool[Tensor, "window_y window_x"], kernel: tuple[int, int]
) -> Complex[Tensor, "window feature"]:
    """One row per full window; features run over coil, row and column."""
    patches = block.unfold(1, kernel[0], 1).unfold(2, kernel[1], 1)
    return patches[:, windows].transpose(0, 1).flatten(1)


def _operator(
    block: Complex[Tensor, "coil y x"],
    windows: Bool[Tensor, "window_y window_x"],
    kernel: tuple[int, int],
    threshold: float | Literal["auto"],
) -> Complex[Tensor, "offset_y offset_x coil coil"]:
    """Fourier coefficients of the matrix whose eigenvectors are the sensitivities.

    With P the projection onto the span of the windows, the averaged operator maps coil c to coil d by a convolution
    whose value at offset ``a - b`` is the sum of ``P[c a, d b]`` over the positions a, b in a window, over their
    number. So the kernels' autocorrelation stands for the kernels themselves, however many there are.
    """
    matrix = _window_matrix(block, windows, kernel)
    # The smaller of the two Gram matrices has the same singular values; double precision leaves 1e-8 of the largest.
    wide = matrix.shape[0] < matrix.shape[1]
    power, vectors = torch.linalg.eigh(matrix @ matrix.mH if wide else matrix.mH @ matrix)
    singular = power.clamp_min(0).sqrt()
    limit = _noise_threshold(singular, block, windows, kernel) if threshold == "auto" else threshold * singular[-1]
    signal = singular >= limit
    span = vectors[:, signal]
    if wide:
        span = matrix.mH @ span / singular[signal]
    rows, cols = kernel
    coils = block.shape[0]
    # The windows' row space: conjugates, because k-space stands in rows.
    projection = (span.conj() @ span.T).conj().view(coils, rows, cols, coils, rows, cols)
    result = block.new_zeros(2 * rows - 1, 2 * cols - 1, coils, coils)
    for y in range(rows):
        for x in range(cols):
            part = projection[:, :, :, :, y, x].permute(1, 2, 3, 0)
            result[rows - 1 - y : 2 * rows - 1 - y, cols - 1 - x : 2 * cols - 1 - x] += part
    return result / (rows * cols)


def _noise_threshold(
    singular: Float[Tensor, " n"],
    block: Complex[Tensor, "coil y x"],
    windows: Bool[Tensor, "window_y window_x"],
    kernel: tuple[int, int],
) -> Tensor:
    """The largest singular value that noise alone would have.

    White noise in the same windows, scaled so that the lower quarters of both spectra have the same median; simulated,
    because overlapping windows repeat the same noise and textbook limits are for independent entries. Scans almost
    without noise have no such limit: half a per cent of the largest value is the least.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(block.shape, dtype=block.dtype, generator=generator).to(block.device)
    matrix = _window_matrix(noise, windows, kernel)
    gram = matrix @ matrix.mH if matrix.shape[0] < matrix.shape[1] else matrix.mH @ matrix
    spectrum = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    quarter = max(1, len(spectrum) // 4)
    return torch.maximum(spectrum[-1] * singular[:quarter].median() / spectrum[:quarter].median(), 5e-3 * singular[-1])


def _eigenmaps(
    coefficients: Complex[Tensor, "offset_y offset_x coil coil"],
    size: torch.Size,
    reference: Complex[Tensor, " coil"],
) -> tuple[Complex[Tensor, "coil row col"], Float[Tensor, "row col"]]:
    """The eigenvector of every pixel's matrix to its largest eigenvalue, and that eigenvalue; by strips of rows."""
    coils = coefficients.shape[-1]
    down, across = (_waves(n, m // 2, coefficients) for n, m in zip(size, coefficients.shape[:2], strict=True))
    maps = coefficients.new_empty(coils, *size)
    values = maps.real.new_empty(size)
    flat = coefficients.flatten(2)
    height = max(1, _STRIP_BYTES // (coils**2 * size[1] * flat.element_size()))
    reference = reference.to(flat.dtype)
    for top in range(0, size[0], height):
        strip = down[top : top + height]
        mixed = (strip @ flat.flatten(1)).unflatten(1, flat.shape[1:])
        matrices = (across @ mixed).flatten(0, 1).unflatten(1, (coils, coils))
        vectors, largest = _principal_vectors(matrices)
        inner = vectors @ reference.conj()
        vectors = vectors * torch.where(inner == 0, 1, inner.sgn()).conj()[:, None]
        maps[:, top : top + height] = vectors.T.unflatten(1, (len(strip), size[1]))
        values[top : top + height] = largest.view(len(strip), size[1])
    return maps, values


def _waves(size: int, reach: int, like: Tensor) -> Complex[Tensor, "n offset"]:
    """``exp(-2 pi i d r)`` for positions r from the centre ``n // 2``, in units of the field of view."""
    position = (torch.arange(size, dtype=torch.float64, device=like.device) - size // 2) / size
    offset = torch.arange(-reach, reach + 1, dtype=torch.float64, device=like.device)
    angle = -2 * torch.pi * position[:, None] * offset
    return torch.polar(torch.ones_like(angle), angle).to(like.dtype)


def _principal_vectors(
    matrices: Complex[Tensor, "n coil coil"],
) -> tuple[Complex[Tensor, "n coil"], Float[Tensor, " n"]]:
    """Largest eigenpair of positive semi-definite Hermitian matrices, by squaring.

    The 32nd power, four times applied to its own heaviest column, leaves 0.95^160 = 3e-4 of a second eigenvector whose
    eigenvalue is 5 % smaller. For many coils this takes a fraction of the time of a full eigendecomposition.
    """
    power = matrices
    for _ in range(_SQUARINGS):
        power = power @ power
        trace = power.diagonal(dim1=1, dim2=2).real.sum(1)
        power = power / trace.clamp_min(torch.finfo(trace.dtype).tiny)[:, None, None]
    heaviest = power.diagonal(dim1=1, dim2=2).real.argmax(1)
    vectors = power.gather(2, heaviest[:, None, None].expand(-1, power.shape[1], 1))
    for _ in range(4):
        vectors = power @ vectors
        norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        vectors = vectors / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    return vectors[..., 0], (vectors.conj() * (matrices @ vectors)).real.sum(1)[:, 0]


def _principal(block: Complex[Tensor, "coil y x"]) -> Complex[Tensor, " coil"]:
    """Weights of the first principal virtual coil, its largest entry real."""
    data = block.flatten(1)
    first = torch.linalg.eigh(data @ data.mH)[1][:, -1]
    return first * first[first.abs().argmax()].sgn().conj()


def _weight(eigenvalue: Tensor, crop: float, soft: bool) -> Tensor:
    if not soft:
        return (eigenvalue >= crop).to(eigenvalue.dtype)
    position = ((eigenvalue - 2 * crop + 1) / (2 - 2 * crop)).clamp(0, 1)
    return position**2 * (3 - 2 * position)


def _check(
    kspace: Tensor, mask: Tensor, kernel: tuple[int, int], threshold: float | str, crop: float, origin: str
) -> None:
    if kspace.dim() != 4 or not kspace.is_complex():
        raise ShapeError(
            "k-space has the wrong form",
            found=f"{kspace.dtype} {tuple(kspace.shape)}",
            wanted="complex (batch, coil, row, col)",
        )
    batch, _, rows, cols = kspace.shape
    fits = mask.dim() == 4 and mask.shape[0] in (1, batch) and mask.shape[1] == 1
    if not fits or mask.shape[2] not in (1, rows) or mask.shape[3] != cols:
        raise ShapeError(
            "mask and k-space disagree",
            found=f"mask {tuple(mask.shape)}, k-space {tuple(kspace.shape)}",
            wanted="(batch or 1, 1, row or 1, col)",
        )
    if min(kernel) < 1 or (threshold != "auto" and not (isinstance(threshold, float) and 0 <= threshold < 1)):
        raise InputError("ESPIRiT needs a kernel >= 1 and a threshold from 0 to 1", found=(kernel, threshold))
    if not 0 <= crop < 1:
        raise InputError("the crop value is out of range", found=crop, wanted="0 <= crop < 1")
    if origin not in ("centre", "corner"):
        raise InputError("unknown origin of the Fourier transform", found=origin, wanted="centre or corner")
