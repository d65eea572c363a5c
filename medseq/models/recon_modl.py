"""MoDL: a network and data consistency in turn, each cascade with its own weights; the shipped reconstruction model.

Each cascade proposes ``z = x + U(x, gradient, memory, noise)`` and then solves the normal equations with z as prior by
a few conjugate gradients, so measured samples keep a weight that follows the noise. Beyond the original: the network
sees the gradient of the data term and a memory carried from cascade to cascade (as recurrent inference machines do),
the noise level steers the weight of the data, and `orientation` runs the networks on turned images.

Reference:
    Aggarwal, Mani, Jacob, MoDL: model-based deep learning architecture for inverse problems, IEEE TMI 38(2), 2019.
    Lonning et al., Recurrent inference machines for reconstructing heterogeneous MRI data, MedIA 53, 2019.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from medseq.errors import InputError, ShapeError
from medseq.nn.conjugate_gradient import cg_sense, data_consistency
from medseq.nn.recon import Acquisition, ReconOutput, as_channels, as_complex, prepare, recomputed
from medseq.nn.shuffle_unet import ShuffleUNet
from medseq.ops.fourier import Norm, Origin
from medseq.ops.kspace_noise import kspace_noise_sd

__all__ = ["MoDL", "OrientationAverage"]


class Cascade(nn.Module):
    """One proposal and its data consistency.

    Args:
        width: Channels of the network, see `ShuffleUNet`.
        memory: Channels handed from cascade to cascade.
        iterations: Conjugate gradients.
        mixer: See `ShuffleUNet`.
    """

    def __init__(self, width: int, memory: int, iterations: int, mixer: Callable[[int], nn.Module] | None) -> None:
        super().__init__()
        self.net = ShuffleUNet(6 + memory, 2 + memory, width, mixer)
        self.log_weight = nn.Parameter(torch.tensor(-2.5))
        self.iterations = iterations

    def forward(
        self, x: Tensor, memory: Tensor, scan: Acquisition, projected: Tensor, noise_sd: Tensor, orientation: int
    ) -> tuple[Tensor, Tensor]:
        """Image ``(batch, row, col)`` and memory ``(batch, channel, row, col)`` after this cascade."""

        def normal(v: Tensor) -> Tensor:
            return scan.operator.normal(v, scan.mask)

        gradient = normal(x) - projected
        noise = (20 * noise_sd)[:, None, None, None].expand(-1, 1, *x.shape[-2:])
        support = _support(scan)[:, None].to(x.real.dtype)
        seen = torch.cat([as_channels(x), 4 * as_channels(gradient), memory, noise, support], dim=1)
        change = _turned(self.net, seen, orientation)
        weight = self.log_weight.exp() * ((noise_sd.square() + 1e-4) / 1e-3).clamp(0.05, 8.0)
        z = x + as_complex(change[:, :2])
        x = data_consistency(normal, projected, z, weight[:, None, None], self.iterations)
        return x, memory + change[:, 2:]


class MoDL(nn.Module):
    """Unrolled reconstruction with conjugate-gradient data consistency.

    Args:
        cascades: Alternations of network and data consistency.
        width: Channels of the networks at half the resolution.
        memory: Channels handed from cascade to cascade.
        iterations: Conjugate gradients in each cascade.
        mixer: Makes a block that mixes the whole image inside the networks, see `ShuffleUNet`.
        sens_net: Makes sensitivity maps where none are given. It is not trained: no gradient reaches it.
        checkpoint_cascades: Keep only what passes between cascades and compute the rest again for the gradient.
        fft_origin: Fourier convention, see `medseq.ops.fourier`.
        fft_norm: Same.

    Note:
        Images are expected at a scale where the 95th percentile of their magnitude is about 1
        (`medseq.data.recon_scale`).
    """

    image_kind = "complex"
    takes_noise_sd = True
    keeps_complete_data = True

    def __init__(
        self,
        cascades: int = 6,
        width: int = 32,
        memory: int = 4,
        iterations: int = 4,
        mixer: Callable[[int], nn.Module] | None = None,
        sens_net: nn.Module | None = None,
        checkpoint_cascades: bool = False,
        fft_origin: Origin = "centre",
        fft_norm: Norm = "ortho",
    ) -> None:
        super().__init__()
        if min(cascades, width, memory, iterations) < 1:
            raise InputError("MoDL needs positive sizes", found=(cascades, width, memory, iterations))
        self.fft_origin, self.fft_norm, self.memory = fft_origin, fft_norm, memory
        self.cascades = nn.ModuleList(Cascade(width, memory, iterations, mixer) for _ in range(cascades))
        self.sens_net, self.checkpoint_cascades = sens_net, checkpoint_cascades

    def forward(
        self,
        masked_kspace: Complex[Tensor, "batch coil row col"],
        mask: Tensor,
        sens_maps: Complex[Tensor, "batch coil row col"] | None = None,
        initial_image: Complex[Tensor, "batch row col"] | None = None,
        return_states: bool = False,
        noise_sd: Float[Tensor, " batch"] | None = None,
        orientation: int = 0,
    ) -> ReconOutput:
        """Reconstruct a batch.

        Args:
            masked_kspace: Measured k-space, zero elsewhere.
            mask: ``(batch or 1, 1, row or 1, col)``, any dtype, not zero where measured.
            sens_maps: Sensitivity maps; None for those of `sens_net`.
            initial_image: Where to start; None for regularised SENSE (`cg_sense`).
            return_states: Return the memory after each cascade.
            noise_sd: Noise of an image pixel of one coil, ``sqrt(E |n|^2)``; None reads it off the outer k-space.
            orientation: 0 to 7: the networks (not the physics) see the image turned and mirrored.

        Returns:
            Complex image, zero where all maps are zero; ``intermediates[cascade][0]`` is an image.

        Raises:
            ShapeError: Sizes or dtypes do not fit.
            InputError: No maps and no `sens_net`; gradients are asked for through data or maps.
        """
        if torch.is_grad_enabled() and (masked_kspace.requires_grad or getattr(sens_maps, "requires_grad", False)):
            raise InputError(
                "MoDL passes no gradient to k-space or sensitivity maps",
                remedy="detach them, or train the maps with another network",
            )
        with torch.no_grad():
            scan = prepare(masked_kspace, mask, sens_maps, self.sens_net, origin=self.fft_origin, norm=self.fft_norm)
        projected = scan.operator.reduce(scan.kspace)
        x = cg_sense(scan.kspace, scan.mask, scan.operator) if initial_image is None else initial_image
        if x.shape != projected.shape:
            raise ShapeError("the initial image does not fit", found=tuple(x.shape), wanted=tuple(projected.shape))
        if noise_sd is None:
            noise_sd = self._pixel_noise(kspace_noise_sd(scan.kspace, scan.mask, origin="corner"), x)
        memory = x.real.new_zeros(len(x), self.memory, *x.shape[-2:])
        images, states = [], []
        for cascade in self.cascades:
            inputs = (x, memory, scan, projected, noise_sd, orientation)
            x, memory = recomputed(self.checkpoint_cascades, cascade, *inputs)
            images.append([x])
            states.append(memory)
        return ReconOutput(x * _support(scan), None, images, states if return_states else None)

    def _pixel_noise(self, sample_sd: Tensor, image: Tensor) -> Tensor:
        """Noise of a pixel from that of a sample, in this Fourier convention."""
        power = {"ortho": 0.0, "backward": -0.5, "forward": 0.5}[self.fft_norm]
        return sample_sd * float(image.shape[-2] * image.shape[-1]) ** power


class OrientationAverage(nn.Module):
    """A `MoDL` whose answer in eval mode is the mean over turned and mirrored runs of its networks.

    What a network invents depends on the orientation and averages out; data consistency holds in every run.

    Args:
        net: The network.
        orientations: How many of the eight are averaged, 1 to 8.
    """

    takes_noise_sd = True
    keeps_complete_data = True

    def __init__(self, net: MoDL, orientations: int = 8) -> None:
        super().__init__()
        if not 1 <= orientations <= 8:
            raise InputError("there are eight orientations", found=orientations, wanted="1 to 8")
        self.net, self.orientations = net, orientations
        self.image_kind = net.image_kind
        self.fft_origin, self.fft_norm = net.fft_origin, net.fft_norm

    def forward(self, masked_kspace: Tensor, mask: Tensor, sens_maps: Tensor | None = None, **rest: Any) -> ReconOutput:
        """See `MoDL.forward`; intermediates and states are those of the first orientation."""
        first = self.net(masked_kspace, mask, sens_maps, **rest)
        if self.training or self.orientations == 1:
            return first
        total = first.image
        for orientation in range(1, self.orientations):
            total = total + self.net(masked_kspace, mask, sens_maps, **rest, orientation=orientation).image
        return first._replace(image=total / self.orientations)


def _support(scan: Acquisition) -> Tensor:
    """True where any map is not zero, ``(batch, row, col)``."""
    return (scan.operator.sens_maps != 0).any(dim=1)


def _turned(net: nn.Module, x: Tensor, orientation: int) -> Tensor:
    """Run a network on the turned image and turn the result back; 4 to 7 are mirrored as well."""
    if orientation == 0:
        return net(x)
    turned = torch.rot90(x, orientation % 4, (-2, -1))
    if orientation >= 4:
        turned = turned.flip(-1)
    y = net(turned.contiguous())
    if orientation >= 4:
        y = y.flip(-1)
    return torch.rot90(y, -(orientation % 4), (-2, -1))


def tiny() -> dict[str, nn.Module]:
    """Small instances, for tests."""
    small: dict[str, Any] = {"cascades": 2, "width": 8, "memory": 2, "iterations": 3}
    from medseq.nn.ss2d import SS2DMixer

    return {
        "convolutions": MoDL(**small),
        "ss2d": MoDL(mixer=lambda channels: SS2DMixer(channels, d_state=1), **small),
        "corner": MoDL(fft_origin="corner", fft_norm="backward", **small),
        "orientations": OrientationAverage(MoDL(**small)),
    }


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward` for the instance `name` of `tiny`."""
    mask = torch.zeros(2, 1, 1, 20, dtype=torch.bool)
    mask[..., ::3], mask[..., 8:13] = True, True
    maps = torch.randn(2, 3, 18, 20, dtype=torch.complex64)
    return {
        "masked_kspace": torch.randn(2, 3, 18, 20, dtype=torch.complex64) * mask,
        "mask": mask,
        "sens_maps": maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True),
    }
