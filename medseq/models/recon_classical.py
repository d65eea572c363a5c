"""Reconstruction without learning, behind the interface of the networks: what every network is compared with.

None has parameters; all keep sampled data as they are or weigh them explicitly. Regularised methods scale the data so
that the largest pixel of the zero-filled image is 1 and undo it after: their weights mean the same for every scanner.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Complex
from torch import Tensor, nn

from medseq.errors import InputError
from medseq.nn.recon import Acquisition, ReconOutput, prepare
from medseq.ops.coils import SenseOperator, acs_mask, divide_or_zero, rss
from medseq.ops.fourier import Norm, Origin, fft2, ifft2, to_centre, to_corner
from medseq.ops.grappa import grappa
from medseq.ops.sparse import TotalVariationProx, WaveletProx, fista

__all__ = ["CGSense", "GRAPPA", "L1Wavelet", "POCS", "TotalVariation", "ZeroFilled"]

ImageKind = Literal["complex", "rss"]


class _Classical(nn.Module, ABC):
    """What the methods share: the call of the networks, and combining coils at the end.

    Args:
        image: ``complex`` combines coils with the maps, ``rss`` by root sum of squares and needs none.
        fft_origin: Fourier convention, see `medseq.ops.fourier`.
        fft_norm: Same.
    """

    def __init__(self, image: ImageKind = "complex", fft_origin: Origin = "centre", fft_norm: Norm = "ortho") -> None:
        super().__init__()
        if image not in ("complex", "rss"):
            raise InputError("unknown kind of image", found=image, wanted="complex or rss")
        self.image_kind, self.fft_origin, self.fft_norm = image, fft_origin, fft_norm

    def forward(
        self,
        masked_kspace: Complex[Tensor, "batch coil row col"],
        mask: Tensor,
        sens_maps: Complex[Tensor, "batch coil row col"] | None = None,
        initial_image: Complex[Tensor, "batch row col"] | None = None,
        return_states: bool = False,
    ) -> ReconOutput:
        """Reconstruct a batch; see `medseq.nn.recon.ReconOutput`.

        Args:
            masked_kspace: Measured k-space, zero elsewhere.
            mask: ``(batch or 1, 1, row or 1, col)``, any dtype, not zero where measured.
            sens_maps: Sensitivity maps; may be None with ``image="rss"``.
            initial_image: Not used.
            return_states: Not used.

        Raises:
            ShapeError: Sizes or dtypes do not fit.
            InputError: No maps although the method needs them.
        """
        needless = self.image_kind == "rss" and sens_maps is None
        maps = torch.ones_like(masked_kspace) if needless else sens_maps
        scan = prepare(masked_kspace, mask, maps, None, origin=self.fft_origin, norm=self.fft_norm)
        return self._reconstruct(scan)

    @abstractmethod
    def _reconstruct(self, scan: Acquisition) -> ReconOutput:
        """What the method makes of one acquisition."""

    def _combine(self, scan: Acquisition, kspace: Tensor) -> ReconOutput:
        """From k-space in the operator's order."""
        if self.image_kind == "complex":
            image = scan.operator.reduce(kspace)
        else:
            image = scan.operator.scan(rss(ifft2(kspace, origin="corner", norm=self.fft_norm)))
        return ReconOutput(image, scan.operator.scan(kspace))


class ZeroFilled(_Classical):
    """The inverse Fourier transform of what was measured, zeros elsewhere, coils combined."""

    def _reconstruct(self, scan: Acquisition) -> ReconOutput:
        return self._combine(scan, torch.where(scan.mask, scan.kspace, 0))


class CGSense(_Classical):
    """Least squares on the data by conjugate gradients: ``min ||M F S x - y||^2 + lam ||x||^2``.

    Args:
        iterations: At most; an image stops when its residual is below `tolerance` of the first.
        lam: Tikhonov weight.
        tolerance: See above.
        fft_origin: Fourier convention, see `medseq.ops.fourier`.
        fft_norm: Same.

    Reference:
        Pruessmann et al., Advances in sensitivity encoding with arbitrary k-space trajectories, MRM 46, 2001.
    """

    def __init__(
        self,
        iterations: int = 30,
        lam: float = 0.0,
        tolerance: float = 1e-6,
        fft_origin: Origin = "centre",
        fft_norm: Norm = "ortho",
    ) -> None:
        super().__init__("complex", fft_origin, fft_norm)
        if iterations < 1 or lam < 0:
            raise InputError("CG-SENSE needs iterations >= 1 and lam >= 0", found=(iterations, lam))
        self.iterations, self.lam, self.tolerance = iterations, lam, tolerance

    def _reconstruct(self, scan: Acquisition) -> ReconOutput:
        operator = scan.operator

        def normal(x: Tensor) -> Tensor:
            return operator.normal(x, scan.mask) + self.lam * x

        right = operator.reduce(torch.where(scan.mask, scan.kspace, 0))
        return ReconOutput(_conjugate_gradients(normal, right, self.iterations, self.tolerance))


def _conjugate_gradients(normal: Any, right: Tensor, iterations: int, tolerance: float) -> Tensor:
    """Solve ``normal(x) = right`` for each image of a batch; a finished image is left alone."""

    def power(x: Tensor) -> Tensor:
        return x.abs().square().sum(dim=(1, 2), keepdim=True)

    x, residual = torch.zeros_like(right), right
    direction, energy = right, power(right)
    goal = tolerance**2 * energy
    for _ in range(iterations):
        going = energy > goal
        if not going.any():
            break
        image = normal(direction)
        curvature = (direction.conj() * image).real.sum(dim=(1, 2), keepdim=True)
        step = torch.where(going, divide_or_zero(energy, curvature), 0)
        x = x + step * direction
        residual = residual - step * image
        new = power(residual)
        direction = residual + torch.where(going, divide_or_zero(new, energy), 0) * direction
        energy = torch.where(going, new, energy)
    return x


class POCS(_Classical):
    """Partial Fourier: projections onto the data and onto images with the phase of the symmetric centre.

    For scans that leave out one side of k-space. Other gaps are filled as well as a smooth phase allows.

    Args:
        iterations: Number of pairs of projections.
        image: ``complex`` combines coils with the maps, ``rss`` by root sum of squares and needs none.
        fft_origin: Fourier convention, see `medseq.ops.fourier`.
        fft_norm: Same.

    Reference:
        Haacke et al., A fast, iterative, partial-Fourier technique capable of local phase recovery, JMR 92, 1991.
    """

    def __init__(
        self,
        iterations: int = 10,
        image: ImageKind = "complex",
        fft_origin: Origin = "centre",
        fft_norm: Norm = "ortho",
    ) -> None:
        super().__init__(image, fft_origin, fft_norm)
        if iterations < 1:
            raise InputError("POCS needs at least one iteration", found=iterations)
        self.iterations = iterations

    def _reconstruct(self, scan: Acquisition) -> ReconOutput:
        measured = torch.where(scan.mask, scan.kspace, 0)
        smooth = self._images(measured * to_corner(self._window(to_centre(scan.mask), measured)))
        phase = divide_or_zero(smooth, smooth.abs())
        kspace = measured
        for _ in range(self.iterations):
            images = self._images(kspace).abs() * phase
            kspace = torch.where(scan.mask, scan.kspace, fft2(images, origin="corner", norm=self.fft_norm))
        return self._combine(scan, kspace)

    def _images(self, kspace: Tensor) -> Tensor:
        return ifft2(kspace, origin="corner", norm=self.fft_norm)

    @staticmethod
    def _window(mask: Tensor, like: Tensor) -> Tensor:
        """A Hann window over the largest symmetric block of measured points, centred."""
        region = acs_mask(mask)
        window = torch.zeros(region.shape, dtype=like.real.dtype, device=like.device)
        for block, out in zip(region[:, 0], window[:, 0], strict=True):
            sides = [_hann(block.any(dim=1)), _hann(block.any(dim=0))]
            # A mask of one row says nothing about rows: all of them were measured.
            out.copy_(sides[0][:, None] * sides[1] if block.shape[0] > 1 else sides[1][None])
        return window


def _hann(line: Tensor) -> Tensor:
    """A Hann window on the part of a run of True that is symmetric about ``n // 2``; 1 everywhere on a full line."""
    centre = line.numel() // 2
    if bool(line.all()):
        return torch.ones(line.numel(), device=line.device)
    positions = line.nonzero().flatten() - centre
    reach = int(torch.minimum(-positions.min(), positions.max())) if positions.numel() else -1
    distance = (torch.arange(line.numel(), device=line.device) - centre).abs()
    return torch.where(distance <= reach, 0.5 + 0.5 * torch.cos(torch.pi * distance / (reach + 1)), 0)


class GRAPPA(_Classical):
    """Missing k-space from its neighbours in all coils, calibrated on the sampled centre; measured points stay.

    Args:
        kernel: Rows and columns of the window, odd; None fits it to the gaps of the mask.
        regularisation: Tikhonov weight in units of the mean power of the calibration data.
        image: ``complex`` combines coils with the maps, ``rss`` by root sum of squares and needs none.
        fft_origin: Fourier convention, see `medseq.ops.fourier`.
        fft_norm: Same.
    """

    def __init__(
        self,
        kernel: tuple[int, int] | None = None,
        regularisation: float = 1e-6,
        image: ImageKind = "rss",
        fft_origin: Origin = "centre",
        fft_norm: Norm = "ortho",
    ) -> None:
        super().__init__(image, fft_origin, fft_norm)
        self.kernel, self.regularisation = kernel, regularisation

    def _reconstruct(self, scan: Acquisition) -> ReconOutput:
        rows, cols = scan.kspace.shape[-2:]
        mask = to_centre(scan.mask).expand(scan.kspace.shape[0], 1, rows, cols)
        region = acs_mask(mask)
        measured = to_centre(torch.where(scan.mask, scan.kspace, 0))
        filled = [
            grappa(k, m[0], r[0], kernel=self.kernel, regularisation=self.regularisation)
            for k, m, r in zip(measured, mask, region, strict=True)
        ]
        return self._combine(scan, to_corner(torch.stack(filled)))


class _CompressedSensing(_Classical):
    """Compressed sensing: ``min 1/2 ||M F S x - y||^2 + lam R(x)``, by accelerated proximal gradient descent.

    Args:
        lam: Weight of the regulariser, for data whose zero-filled image has the maximum 1.
        iterations: Of the descent.
        fft_origin: Fourier convention, see `medseq.ops.fourier`.
        fft_norm: Same.
    """

    def __init__(
        self,
        lam: float = 2e-3,
        iterations: int = 50,
        fft_origin: Origin = "centre",
        fft_norm: Norm = "ortho",
    ) -> None:
        super().__init__("complex", fft_origin, fft_norm)
        if iterations < 1 or lam < 0:
            raise InputError("compressed sensing needs iterations >= 1 and lam >= 0", found=(iterations, lam))
        self.lam, self.iterations = lam, iterations

    def _reconstruct(self, scan: Acquisition) -> ReconOutput:
        # Neighbours in the image are neighbours in memory only where the image's middle is in the middle.
        centred = self.fft_origin == "centre"
        operator = scan.operator if centred else SenseOperator(to_centre(scan.operator.sens_maps), norm=self.fft_norm)
        right = operator.reduce(torch.where(scan.mask, scan.kspace, 0))
        peak = right.abs().amax(dim=(1, 2), keepdim=True)
        weight = self.lam * torch.where(peak > 0, peak, 1)
        prox = self._prox(weight, (right.shape[1], right.shape[2])) if self.lam else _identity
        # A bound on the largest eigenvalue of A^H A.
        bound = max(float(operator.sens_maps.abs().square().sum(dim=1).max()), torch.finfo(peak.dtype).tiny)
        image = fista(
            lambda x: operator.normal(x, scan.mask) - right, prox, right, bound=bound, iterations=self.iterations
        )
        return ReconOutput(image if centred else to_corner(image))

    @abstractmethod
    def _prox(self, weight: Tensor, size: tuple[int, int]) -> Callable[[Tensor, float], Tensor]:
        """The proximal map of the weighted regulariser."""


def _identity(x: Tensor, step: float) -> Tensor:
    return x


class L1Wavelet(_CompressedSensing):
    """Compressed sensing with a wavelet penalty: ``R(x) = ||W x||_1``, Daubechies-2, all shifts averaged.

    Reference:
        Lustig et al., Sparse MRI, MRM 58, 2007.
    """

    def _prox(self, weight: Tensor, size: tuple[int, int]) -> Callable[[Tensor, float], Tensor]:
        return WaveletProx(weight, size)


class TotalVariation(_CompressedSensing):
    """Compressed sensing with isotropic total variation: ``R(x) = ||grad x||_1``.

    Reference:
        Block et al., Undersampled radial MRI with multiple coils: iterative image reconstruction using a total
        variation constraint, MRM 57, 2007.
    """

    def __init__(
        self,
        lam: float = 1e-3,
        iterations: int = 50,
        fft_origin: Origin = "centre",
        fft_norm: Norm = "ortho",
    ) -> None:
        super().__init__(lam, iterations, fft_origin, fft_norm)

    def _prox(self, weight: Tensor, size: tuple[int, int]) -> Callable[[Tensor, float], Tensor]:
        return TotalVariationProx(weight)


def tiny() -> dict[str, nn.Module]:
    """One of each, for tests."""
    return {
        "zero_filled": ZeroFilled(),
        "rss": ZeroFilled(image="rss", fft_origin="corner"),
        "cg_sense": CGSense(lam=1e-2),
        "pocs": POCS(4),
        "grappa": GRAPPA((3, 7), regularisation=1e-2),
        "l1_wavelet": L1Wavelet(iterations=5),
        "tv": TotalVariation(iterations=5),
    }


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward` for the instance `name` of `tiny`."""
    mask = torch.zeros(2, 1, 1, 20, dtype=torch.bool)
    mask[..., ::3], mask[..., 6:15] = True, True
    maps = torch.randn(2, 3, 18, 20, dtype=torch.complex64)
    maps /= torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    kspace = fft2(torch.randn(2, 1, 18, 20, dtype=torch.complex64) * maps) * mask
    return {"masked_kspace": kspace, "mask": mask, "sens_maps": maps}
