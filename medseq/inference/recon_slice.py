"""One slice of raw data through a reconstruction network: maps, scale, noise, and how well the data are met."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseq.data.recon_scale import KSpaceScale, SenseScale
from medseq.errors import BackendError, InputError
from medseq.inference.recon_net import ask_network, keeps_complete_data
from medseq.inference.recon_params import SensMethod
from medseq.io.kspace import KSpaceSlice
from medseq.ops.coils import divide_or_zero, rss, sens_expand, sens_reduce
from medseq.ops.espirit import estimate_maps
from medseq.ops.kspace_noise import kspace_noise_sd
from medseq.ops.recon_quality import data_residual

__all__ = ["Prepared", "SliceResult", "prepare_slice", "reconstruct_slice"]


@dataclass(frozen=True)
class Prepared:
    """A slice ready for networks: centred, unitary, in the units of the file.

    Attributes:
        kspace: ``(1, coil, row, col)``.
        mask: ``(1, 1, row or 1, col)``.
        maps: ``(1, coil, row, col)``, root sum of squares 1 or 0.
        noise_sd: ``sqrt(E |n|^2)`` of a sample, ``(1,)``.
        maps_from: ``given``, ``espirit``, ``estimate`` or ``one coil``.
    """

    kspace: Tensor
    mask: Tensor
    maps: Tensor
    noise_sd: Tensor
    maps_from: str = "given"


@dataclass(frozen=True)
class SliceResult:
    """What one slice gave.

    Attributes:
        image: ``(row, col)`` complex64, in the units of the file.
        zero_filled: The same from zeros where nothing was measured.
        metrics: Values of `medseq.inference.recon_params.METRICS` for this slice.
        complete: Everything was measured.
        maps_from: See `Prepared`.
    """

    image: np.ndarray
    zero_filled: np.ndarray
    metrics: dict[str, float]
    complete: bool = False
    maps_from: str = "given"


def prepare_slice(part: KSpaceSlice, sens: SensMethod, norm: str, device: torch.device) -> Prepared:
    """Bring a slice to the networks' convention and find its maps.

    Args:
        part: The slice, in the convention ``centre``; with a noise covariance it must be white.
        sens: Where maps come from.
        norm: Norm of the file's Fourier transform.
        device: Where the networks are.

    Raises:
        InputError: Maps are missing, or cannot be estimated from what was measured.
    """
    kspace = _tensor(part.kspace, np.complex64)[None].to(device)
    # Images are the same numbers whatever the norm: the file's inverse transform already divided, or will not.
    factor = float(kspace.shape[-2] * kspace.shape[-1]) ** (-0.5 if norm == "backward" else 0.0)
    mask = _tensor(part.mask, np.bool_)[None].to(device)
    kspace = torch.where(mask, kspace * factor, 0)
    if not bool((kspace != 0).any()):
        raise InputError("the slice holds no signal", found="k-space is all zero")
    maps, how = _maps(part, kspace, mask, sens)
    noise = kspace_noise_sd(kspace, mask) if part.noise_cov is None else torch.full((1,), factor, device=device)
    return Prepared(kspace, mask, maps, noise, how)


def _maps(part: KSpaceSlice, kspace: Tensor, mask: Tensor, sens: SensMethod) -> tuple[Tensor, str]:
    """Maps, and where they came from."""
    if sens == "given" and part.sens_maps is None:
        raise InputError(
            "the file holds no sensitivity maps", remedy="name them with --sens-maps, or --sens espirit estimates them"
        )
    if sens in ("auto", "given") and part.sens_maps is not None:
        stored = _tensor(part.sens_maps, np.complex64)[None].to(kspace.device)
        return _normalised(stored), "given"
    if kspace.shape[1] == 1:
        # One coil sees the image as it is.
        return torch.ones_like(kspace), "one coil"
    if sens != "estimate":
        try:
            return _normalised(estimate_maps(kspace, mask, "espirit")), "espirit"
        except InputError:
            # Too few central samples for ESPIRiT's kernels can still show the coils at low resolution.
            if sens == "espirit":
                raise
    return _normalised(estimate_maps(kspace, mask, "acs")), "estimate"


def _tensor(array: np.ndarray, dtype: type) -> Tensor:
    """Readers hand out views that cannot be written; torch takes them with a warning only."""
    return torch.from_numpy(np.require(array, dtype, ["C", "W"]))


def _normalised(maps: Tensor) -> Tensor:
    return divide_or_zero(maps, rss(maps)[:, None])


@torch.inference_mode()
def reconstruct_slice(
    net: nn.Module, part: Prepared, *, own_maps: bool = True, scaling: KSpaceScale | None = None, **options: Any
) -> SliceResult:
    """Run a network on a slice.

    Fully sampled data are combined by the maps and otherwise left alone where the network agrees
    (`keeps_complete_data`): there is nothing to reconstruct. Of other networks the change is a metric.

    Args:
        net: Under the reconstruction contract; those that take `noise_sd` are told it.
        part: The slice.
        own_maps: Let a network with a `sens_net` make its maps, unless maps are given with the data.
        scaling: Rule for the scale at which the network is asked; None for `SenseScale`.
        options: Further keywords of the network's forward.

    Raises:
        BackendError: The network returned values that are not finite.
    """
    zero_filled = sens_reduce(part.kspace, part.maps)
    complete = bool(part.mask.all())
    if complete and keeps_complete_data(net):
        image, predicted = zero_filled, sens_expand(zero_filled, part.maps)
    else:
        rule = scaling or SenseScale()
        params = rule.fit(part.kspace, part.mask, part.maps)
        if getattr(net, "takes_noise_sd", False):
            options = {**options, "noise_sd": part.noise_sd / params["scale"], "initial_image": params.get("start")}
        own = own_maps and part.maps_from != "given"
        fed = rule.apply(part.kspace, params)
        image, predicted = ask_network(net, fed, part.mask, part.maps, own_maps=own, options=options)
        image, predicted = rule.invert(image, params), rule.invert(predicted, params)
    if not bool(torch.isfinite(torch.view_as_real(image)).all()):
        raise BackendError("the model returned values that are not finite")
    metrics = _metrics(part, predicted, image)
    if complete and not keeps_complete_data(net):
        change = torch.linalg.vector_norm(image.abs() - zero_filled.abs()) / torch.linalg.vector_norm(zero_filled)
        metrics["change_when_full"] = float(change)
    return SliceResult(image[0].cpu().numpy(), zero_filled[0].cpu().numpy(), metrics, complete, part.maps_from)


def _metrics(part: Prepared, predicted: Tensor, image: Tensor) -> dict[str, float]:
    measured = part.mask.expand_as(part.kspace[:, :1])
    residual = torch.where(part.mask, predicted - part.kspace, 0)
    count = int(measured.sum()) * part.kspace.shape[1]
    spread = float(residual.abs().square().sum() / count) ** 0.5
    noise, bright = float(part.noise_sd), float(torch.quantile(image.abs().flatten(), 0.95))
    return {
        "data_residual": data_residual(predicted.cpu().numpy(), part.kspace.cpu().numpy(), part.mask.cpu().numpy()),
        "residual_over_noise": spread / noise if noise > 0 else 0.0,
        "acceleration": measured.numel() / int(measured.sum()),
        "noise_to_signal": noise / bright if bright > 0 else 0.0,
    }
