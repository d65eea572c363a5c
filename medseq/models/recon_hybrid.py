"""A network and compressed sensing, mixed by what each predicts of measured samples that neither was shown.

A network trained on a few heads is sharper than any classical method where it knows the anatomy, and worse where it
does not. Every scan says which it is: a share of its own samples is held out, both methods reconstruct from the rest,
and the weights that predict the held-out samples best are used on all samples. No reference is needed, and nothing is
trained: it is cross-validation, slice by slice.

Reference:
    Yaman et al., Self-supervised learning of physics-guided reconstruction neural networks without fully sampled
    reference data, MRM 84, 2020, for splitting a scan's own samples; Lustig et al., MRM 58, 2007, for the other half.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from medseq.errors import InputError
from medseq.models.recon_classical import L1Wavelet
from medseq.models.recon_modl import MoDL, OrientationAverage
from medseq.nn.recon import ReconOutput
from medseq.ops.coils import acs_mask, sens_expand
from medseq.ops.fourier import Norm, Origin

__all__ = ["Hybrid", "split_samples"]


class Hybrid(nn.Module):
    """``x = w net + (1 - w) compressed sensing``; the network alone in training mode.

    Args:
        net: The network; centred, unitary Fourier convention.
        orientations: How many of the eight orientations of the network are averaged, see `OrientationAverage`.
        penalties: Wavelet penalties of which the best is chosen, as L1Wavelet's `lam`.
        iterations: Of compressed sensing.
        held_out: Share of the samples outside the calibration region that are held out, of patterns of single points;
            patterns of lines have too few to tell, and take `line_share` and `line_penalty`.
        line_share: w for patterns of lines.
        line_penalty: Wavelet penalty for them.
    """

    image_kind = "complex"
    takes_noise_sd = True
    keeps_complete_data = True

    def __init__(
        self,
        net: MoDL,
        orientations: int = 8,
        penalties: Sequence[float] = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.012),
        iterations: int = 50,
        held_out: float = 0.08,
        line_share: float = 0.6,
        line_penalty: float = 0.005,
    ) -> None:
        super().__init__()
        if not penalties or min(*penalties, line_penalty) <= 0 or not 0 < held_out < 0.5 or not 0 <= line_share <= 1:
            raise InputError("the mixture's settings are out of range", found=(tuple(penalties), held_out, line_share))
        if net.fft_origin != "centre" or net.fft_norm != "ortho":
            raise InputError("the mixture needs the centred, unitary convention", found=(net.fft_origin, net.fft_norm))
        self.net = net
        self.orientations = orientations
        self.penalties, self.iterations = tuple(penalties), iterations
        self.held_out, self.line_share, self.line_penalty = held_out, line_share, line_penalty
        self.fft_origin: Origin = "centre"
        self.fft_norm: Norm = "ortho"

    def forward(
        self,
        masked_kspace: Complex[Tensor, "batch coil row col"],
        mask: Tensor,
        sens_maps: Complex[Tensor, "batch coil row col"] | None = None,
        **rest: Any,
    ) -> ReconOutput:
        """See `MoDL.forward`; intermediates are the network's, ``states`` the weight ``w`` of each item."""
        if self.training or sens_maps is None:
            return self.net(masked_kspace, mask, sens_maps, **rest)
        share, penalty = self.choose(masked_kspace, mask, sens_maps, rest.get("noise_sd"))
        average = OrientationAverage(self.net, self.orientations).eval()
        out = average(masked_kspace, mask, sens_maps, **rest)
        sparse = torch.cat(
            [
                L1Wavelet(lam, self.iterations)(
                    masked_kspace[i : i + 1], mask[i % len(mask)][None], sens_maps[i : i + 1]
                ).image
                for i, lam in enumerate(penalty)
            ]
        )
        w = share.view(-1, 1, 1)
        return out._replace(image=w * out.image + (1 - w) * sparse, states=[share])

    def choose(
        self, masked_kspace: Tensor, mask: Tensor, sens_maps: Tensor, noise_sd: Tensor | None
    ) -> tuple[Float[Tensor, " batch"], list[float]]:
        """Weight of the network and penalty of compressed sensing for each item, from held-out samples."""
        shares, penalties = [], []
        for i in range(len(masked_kspace)):
            kspace, maps, sampled = masked_kspace[i : i + 1], sens_maps[i : i + 1], mask[i % len(mask)][None].bool()
            shown, hidden = split_samples(sampled, self.held_out)
            if not bool(hidden.any()):
                shares.append(torch.full((), self.line_share, device=kspace.device))
                penalties.append(self.line_penalty)
                continue
            part = torch.where(shown, kspace, 0)
            sd = None if noise_sd is None else noise_sd[i : i + 1]
            first = _misses(self.net(part, shown, maps, noise_sd=sd).image, kspace, hidden, maps)
            others = [
                _misses(L1Wavelet(lam, self.iterations)(part, shown, maps).image, kspace, hidden, maps)
                for lam in self.penalties
            ]
            best = min(range(len(others)), key=lambda n: float(others[n].abs().square().sum()))
            apart = others[best] - first
            share = (others[best].conj() * apart).real.sum() / apart.abs().square().sum().clamp_min(1e-20)
            shares.append(share.clamp(0, 1))
            penalties.append(self.penalties[best])
        return torch.stack(shares), penalties


def split_samples(mask: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Split a sampling mask in two, at random but always alike: what is shown, and what is held out.

    Nothing is held out inside the calibration region, nor of masks of lines: one in ten lines is one or two, and points
    within a measured line say little about lines that were not measured.

    Args:
        mask: ``(1, 1, row or 1, col)`` bool, centred.
        share: Part of what lies outside the calibration region to hold out; fewer than 200 points spare none.
    """
    full = mask.expand(1, 1, max(mask.shape[-2], 2), mask.shape[-1])
    lines = bool((full.all(dim=-2) == full.any(dim=-2)).all()) or bool((full.all(dim=-1) == full.any(dim=-1)).all())
    outside = torch.zeros_like(mask) if lines else mask & ~acs_mask(mask)
    places = outside.flatten().nonzero().flatten()
    hidden = torch.zeros_like(mask)
    if places.numel() >= 200:
        count = round(share * places.numel())
        order = torch.randperm(places.numel(), generator=torch.Generator().manual_seed(0))[:count]
        hidden.view(-1)[places[order.to(places.device)]] = True
    return mask & ~hidden, hidden


def _misses(image: Tensor, kspace: Tensor, hidden: Tensor, maps: Tensor) -> Tensor:
    """Prediction minus measurement at the held-out samples."""
    return torch.where(hidden, sens_expand(image, maps) - kspace, 0)


def tiny() -> dict[str, nn.Module]:
    """A small instance, for tests."""
    return {"lines": Hybrid(MoDL(cascades=2, width=8, memory=2, iterations=3), orientations=2, iterations=5)}


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward` for the instance `name` of `tiny`."""
    from medseq.models import recon_modl

    return recon_modl.example_inputs(name)
