"""Receiver coils: the SENSE operator and its adjoint, root sum of squares, the calibration region, simple maps.

Axes are ``(batch, coil, row, col)`` for everything with coils and ``(batch, row, col)`` for combined images. A mask is
``(batch or 1, 1, row or 1, col)``, True (or non-zero) where k-space was measured.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from medseq.errors import InputError, ShapeError
from medseq.ops.fourier import Norm, Origin, fft2, ifft2, to_centre, to_corner

__all__ = [
    "SenseOperator",
    "acs_mask",
    "acs_sens_maps",
    "divide_or_zero",
    "extract_acs",
    "rss",
    "sens_expand",
    "sens_reduce",
]

CoilData = Complex[Tensor, "batch coil row col"]


def sens_expand(
    image: Complex[Tensor, "batch row col"],
    sens_maps: CoilData,
    *,
    origin: Origin = "centre",
    norm: Norm = "ortho",
) -> CoilData:
    """K-space that each coil would measure of an image: ``k_c = F(S_c x)``.

    Args:
        image: Complex image.
        sens_maps: Coil sensitivities.
        origin: Fourier convention, see `medseq.ops.fourier`.
        norm: Same.

    Returns:
        Fully sampled k-space of every coil.

    Raises:
        ShapeError: Image and maps do not fit.

    Reference:
        Pruessmann et al., SENSE: Sensitivity Encoding for Fast MRI, MRM 42, 1999.
    """
    if image.dim() != 3 or sens_maps.dim() != 4 or image.shape[-2:] != sens_maps.shape[-2:]:
        raise ShapeError(
            "image and sensitivity maps do not fit",
            found=f"image {tuple(image.shape)}, maps {tuple(sens_maps.shape)}",
            wanted="(batch, row, col) and (batch, coil, row, col)",
        )
    return fft2(image[:, None] * sens_maps, origin=origin, norm=norm)


def sens_reduce(
    kspace: CoilData, sens_maps: CoilData, *, origin: Origin = "centre", norm: Norm = "ortho"
) -> Complex[Tensor, "batch row col"]:
    """Combine coil k-space into one image: ``x = sum_c conj(S_c) F^-1(k_c)``, the adjoint of `sens_expand`.

    Args:
        kspace: Measured or predicted k-space, arbitrary scanner units.
        sens_maps: Coil sensitivities; where their root sum of squares is 1, this inverts `sens_expand`.
        origin: Fourier convention, see `medseq.ops.fourier`.
        norm: Same.

    Returns:
        Complex image in the units of `kspace`.

    Raises:
        ShapeError: The number of coils or the matrix differs.
    """
    _check_coils(kspace, sens_maps)
    return (sens_maps.conj() * ifft2(kspace, origin=origin, norm=norm)).sum(dim=1)


@dataclass(frozen=True)
class SenseOperator:
    """`sens_expand` and `sens_reduce` of one scan, for networks that apply them dozens of times.

    K-space of this operator has its zero frequency at the corner whatever the scan's convention: maps, mask and data
    are shifted once (`corner`), and each application shifts one image instead of every coil's.

    Attributes:
        sens_maps: Coil sensitivities in the image's own order.
        origin: Fourier convention of the scan.
        norm: Same.
    """

    sens_maps: CoilData
    origin: Origin = "centre"
    norm: Norm = "ortho"

    def __post_init__(self) -> None:
        shifted = self.corner(self.sens_maps)
        object.__setattr__(self, "_maps", shifted)
        object.__setattr__(self, "_conjugate", shifted.conj().resolve_conj())

    def corner(self, x: Tensor) -> Tensor:
        """A tensor of the scan in the operator's order; axes of size 1 stay."""
        return x if self.origin == "corner" else to_corner(x)

    def scan(self, x: Tensor) -> Tensor:
        """A tensor of the operator in the scan's order."""
        return x if self.origin == "corner" else to_centre(x)

    def expand(self, image: Complex[Tensor, "batch row col"]) -> CoilData:
        """Image -> k-space of every coil, zero frequency at the corner."""
        maps: Tensor = self._maps  # type: ignore[attr-defined]
        return fft2(self.corner(image)[:, None] * maps, origin="corner", norm=self.norm)

    def reduce(self, kspace: CoilData) -> Complex[Tensor, "batch row col"]:
        """K-space with the zero frequency at the corner -> image."""
        conjugate: Tensor = self._conjugate  # type: ignore[attr-defined]
        return self.scan((conjugate * ifft2(kspace, origin="corner", norm=self.norm)).sum(dim=1))

    def normal(self, image: Complex[Tensor, "batch row col"], mask: Tensor) -> Complex[Tensor, "batch row col"]:
        """``A^H A x`` with ``A = M F S``; a mask of whole columns costs one-dimensional transforms only.

        Args:
            image: In the image's own order.
            mask: In the operator's order.
        """
        maps: Tensor = self._maps  # type: ignore[attr-defined]
        conjugate: Tensor = self._conjugate  # type: ignore[attr-defined]
        axes = (-1,) if mask.shape[-2] == 1 else (-2, -1)
        kspace = torch.fft.fftn(self.corner(image)[:, None] * maps, dim=axes)
        coils = torch.fft.ifftn(torch.where(mask, kspace, 0), dim=axes)
        return self.scan((conjugate * coils).sum(dim=1))


def rss(images: Tensor, dim: int = 1) -> Float[Tensor, "..."]:
    """Root sum of squares over coils: ``sqrt(sum_c |x_c|^2)``.

    Args:
        images: Coil images, real or complex.
        dim: The coil axis.

    Reference:
        Roemer et al., The NMR phased array, MRM 16, 1990.
    """
    return torch.linalg.vector_norm(images, dim=dim)


def acs_mask(mask: Tensor) -> Bool[Tensor, "batch 1 row_or_1 col"]:
    """The auto-calibration region: the largest fully sampled block around the centre of k-space.

    Columns (or rows) sampled on their whole length form a band; a mask that is sparse in both directions gives a
    rectangle grown evenly from the centre. Nothing but the mask is used, so it works for prospective scans.

    Args:
        mask: ``(batch or 1, 1, row or 1, col)``, zero frequency at ``n // 2``.

    Returns:
        Mask of the same shape, True inside the region; all False where the centre itself was not sampled.

    Raises:
        ShapeError: Not a mask of four axes.
    """
    if mask.dim() != 4 or mask.shape[1] != 1:
        raise ShapeError("not a sampling mask", found=tuple(mask.shape), wanted="(batch, 1, row or 1, col)")
    region = torch.zeros_like(mask, dtype=torch.bool)
    for item, out in zip(mask[:, 0].bool(), region[:, 0], strict=True):
        rows, cols = item.shape
        up, down, left, right = _grow(item)
        out[rows // 2 - up : rows // 2 + down, cols // 2 - left : cols // 2 + right] = True
    return region


def _grow(sampled: Tensor) -> tuple[int, int, int, int]:
    """Reach of a rectangle of True from the centre ``n // 2``: up, down, left, right; down and right include it."""
    rows, cols = sampled.shape
    row, col = rows // 2, cols // 2
    full_cols, full_rows = sampled.all(dim=0), sampled.all(dim=1)
    if full_cols[col]:
        return (row, rows - row, *_run(full_cols, col))
    if full_rows[row]:
        return (*_run(full_rows, row), col, cols - col)
    if not sampled[row, col]:
        return 0, 0, 0, 0
    reach, open_sides = [0, 1, 0, 1], [True] * 4
    limits = [row, rows - row, col, cols - col]
    while any(open_sides):
        for side in range(4):
            if not open_sides[side]:
                continue
            wider = list(reach)
            wider[side] += 1
            up, down, left, right = wider
            if wider[side] <= limits[side] and sampled[row - up : row + down, col - left : col + right].all():
                reach = wider
            else:
                open_sides[side] = False
    return reach[0], reach[1], reach[2], reach[3]


def _run(line: Tensor, centre: int) -> tuple[int, int]:
    """Length of the run of True before `centre`, and from it on."""
    before, after = (~line[:centre]).nonzero().flatten(), (~line[centre:]).nonzero().flatten()
    start = int(before[-1]) + 1 if before.numel() else 0
    stop = centre + int(after[0]) if after.numel() else line.shape[0]
    return centre - start, stop - centre


def extract_acs(kspace: CoilData, mask: Tensor) -> tuple[CoilData, Bool[Tensor, "batch 1 row_or_1 col"]]:
    """Measured k-space inside the calibration region, zero elsewhere, and the region itself.

    Raises:
        InputError: The centre of k-space was not sampled.
    """
    region = acs_mask(mask)
    if not region.flatten(1).any(dim=1).all():
        raise InputError(
            "the centre of k-space was not sampled",
            remedy="give sensitivity maps, or a mask whose zero frequency is at row // 2, col // 2",
        )
    return torch.where(region, kspace, 0), region


def acs_sens_maps(
    kspace: CoilData,
    mask: Tensor,
    *,
    sigma: float | None = None,
    region: Bool[Tensor, "batch 1 row_or_1 col"] | None = None,
    norm: Norm = "ortho",
) -> CoilData:
    """Sensitivity maps from the calibration region: low-resolution coil images over their root sum of squares.

    Args:
        kspace: Measured k-space, centred; only its calibration region is used.
        mask: Sampling mask.
        sigma: Width of a Gaussian over the columns, ``exp(-(c / sigma)^2)`` with c from -1 to 1; None for none.
        region: Calibration region, where it is known better than `acs_mask` can tell.
        norm: Fourier convention.

    Returns:
        Maps whose root sum of squares is 1 wherever there is signal and 0 elsewhere.

    Raises:
        InputError: The centre of k-space was not sampled.
    """
    calibration = extract_acs(kspace, mask)[0] if region is None else torch.where(region, kspace, 0)
    if sigma is not None:
        position = torch.linspace(-1, 1, kspace.shape[-1], dtype=kspace.real.dtype, device=kspace.device)
        calibration = calibration * torch.exp(-((position / sigma) ** 2))
    images = ifft2(calibration, norm=norm)
    return divide_or_zero(images, rss(images)[:, None])


def divide_or_zero(a: Tensor, b: Tensor) -> Tensor:
    """``a / b``, 0 where b is 0; so is the gradient."""
    zero = b == 0
    return torch.where(zero, 0, a / torch.where(zero, 1, b))


def _check_coils(kspace: Tensor, sens_maps: Tensor) -> None:
    if kspace.dim() != 4 or kspace.shape[1:] != sens_maps.shape[1:]:
        raise ShapeError(
            f"k-space has {kspace.shape[1] if kspace.dim() == 4 else '?'} coils, sensitivity maps have "
            f"{sens_maps.shape[1] if sens_maps.dim() == 4 else '?'}",
            found=f"{tuple(kspace.shape)} and {tuple(sens_maps.shape)}",
            remedy="re-estimate the maps or pass sens_maps=None",
        )
