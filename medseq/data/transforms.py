"""Preprocessing that exists once: training and prediction both go through these, and a bundle carries their arguments.

A transform has three steps. `fit` looks at a few planes of a volume and returns numbers that hold for the whole of
it (a robust scale); `apply` makes what the model sees; `invert` brings the model's output back to native units. A
bundle's `preprocess` list is a chain: applied in order, inverted in reverse.

Images are ``(batch, channel, row, col)`` float32; `valid` masks are boolean, False where the scanner stored padding.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medseq.errors import InputError
from medseq.ops.quality import noise_sd

__all__ = [
    "HounsfieldChannels",
    "Identity",
    "LeaveAlone",
    "NoiseGate",
    "RobustScale",
    "Transform",
    "apply_chain",
    "fit_chain",
    "invert_chain",
]


Params = Mapping[str, float | Tensor]


class Transform(ABC):
    """What every preprocessing step offers."""

    @abstractmethod
    def fit(
        self, planes: np.ndarray, valid: np.ndarray | None = None, spacing_mm: tuple[float, float] | None = None
    ) -> dict[str, float]:
        """Numbers that hold for a whole volume, from a few planes ``(n, row, col)``; {} if there are none."""

    @abstractmethod
    def apply(self, image: Float[Tensor, "batch 1 row col"], params: Params) -> Float[Tensor, "batch channel row col"]:
        """What the model sees, from native units. In training a parameter may be a tensor ``(batch, 1, 1, 1)``."""

    @abstractmethod
    def invert(
        self, output: Float[Tensor, "batch out row col"], image: Float[Tensor, "batch 1 row col"], params: Params
    ) -> Float[Tensor, "batch 1 row col"]:
        """The model's output in native units; `image` is what `apply` received."""


def fit_chain(
    chain: Sequence[Transform],
    planes: np.ndarray,
    valid: np.ndarray | None = None,
    spacing_mm: tuple[float, float] | None = None,
) -> list[dict[str, float]]:
    """Fit every transform of a chain on the output of those before it.

    Args:
        chain: Transforms in the order of application.
        planes: Sampled planes ``(n, row, col)`` in native units.
        valid: Mask of the same shape, or None.
        spacing_mm: Distance of rows and of columns, for transforms that need a size.

    Returns:
        One parameter mapping a transform.
    """
    params: list[dict[str, float]] = []
    for transform in chain:
        params.append(transform.fit(planes, valid, spacing_mm))
        if transform is not chain[-1]:
            image = torch.from_numpy(np.ascontiguousarray(planes, dtype=np.float32))[:, None]
            planes = transform.apply(image, params[-1])[:, 0].numpy()
    return params


def apply_chain(chain: Sequence[Transform], image: Tensor, params: Sequence[Params]) -> list[Tensor]:
    """All stages of a chain, the native image first and what the model sees last."""
    stages = [image]
    for transform, numbers in zip(chain, params, strict=True):
        stages.append(transform.apply(stages[-1], numbers))
    return stages


def invert_chain(
    chain: Sequence[Transform], output: Tensor, stages: Sequence[Tensor], params: Sequence[Params]
) -> Tensor:
    """Undo a chain: `stages` is what `apply_chain` returned."""
    for transform, image, numbers in reversed(list(zip(chain, stages[:-1], params, strict=True))):
        output = transform.invert(output, image, numbers)
    return output


class Identity(Transform):
    """Changes nothing."""

    def fit(
        self, planes: np.ndarray, valid: np.ndarray | None = None, spacing_mm: tuple[float, float] | None = None
    ) -> dict[str, float]:
        """See `Transform.fit`."""
        return {}

    def apply(self, image: Tensor, params: Params) -> Tensor:
        """See `Transform.apply`."""
        return image

    def invert(self, output: Tensor, image: Tensor, params: Params) -> Tensor:
        """See `Transform.invert`."""
        return output


class HounsfieldChannels(Transform):
    """CT in Hounsfield units -> two channels: the wide range, and a soft-tissue window.

    Channel 0 is HU / `scale`, limited to `wide`; channel 1 is the window mapped to -1..1. The model's output is
    channel 0 of a clean image. `invert` adds only the *change* to the input, so values beyond `wide` (metal, or
    padding left in) keep their distance from the limit instead of being cut.

    Args:
        scale: HU per model unit.
        wide: Limits of channel 0 in HU.
        window: Limits of the soft-tissue channel in HU.
    """

    def __init__(
        self,
        scale: float = 1000.0,
        wide: tuple[float, float] = (-1024.0, 3072.0),
        window: tuple[float, float] = (-160.0, 240.0),
    ) -> None:
        if scale <= 0 or wide[0] >= wide[1] or window[0] >= window[1]:
            raise InputError("scale and limits must be increasing", found=(scale, wide, window))
        self.scale, self.wide, self.window = float(scale), tuple(wide), tuple(window)

    def fit(
        self, planes: np.ndarray, valid: np.ndarray | None = None, spacing_mm: tuple[float, float] | None = None
    ) -> dict[str, float]:
        """Nothing to fit: Hounsfield units are absolute."""
        return {}

    def apply(self, image: Tensor, params: Params) -> Tensor:
        """See `Transform.apply`; two channels."""
        low, high = self.window
        soft = (image.clamp(low, high) - low) * (2.0 / (high - low)) - 1.0
        return torch.cat([image.clamp(*self.wide) / self.scale, soft], dim=1)

    def invert(self, output: Tensor, image: Tensor, params: Params) -> Tensor:
        """See `Transform.invert`; HU."""
        return image + (output * self.scale - image.clamp(*self.wide))


class NoiseGate(Transform):
    """Applies a denoiser's change as far as the plane is noisier than a full-dose scan; first in a chain, undone last.

    A network cannot tell a low-dose scan of a head from a full-dose scan of a pelvis by the noise of a patch; the size
    of the object tells them apart. At a fixed technique the noise grows with the water-equivalent diameter d as
    exp(mu d / 2), so that ``reference = noise exp(mu (d - diameter) / 2)`` is what a good scan of this size has. The
    root mean square of the model's own change in soft tissue is what the plane has (`level`). The best linear mix of
    the noisy and the denoised image, for a reference that is itself that noisy, applies ``1 - (reference / level)^2``
    of the change: nothing up to the reference.

    A model whose targets carry noise of their own leaves some of it. What it leaves is `shortfall`; the change is
    extrapolated by ``1 + shortfall / level`` to make up for it, a factor that validation images tell.

    Args:
        noise: Noise of a good scan at `diameter`, in HU. The default pair is the training head's validation block.
        diameter: Water-equivalent diameter in cm.
        attenuation: mu, linear attenuation of water per cm; the default is that at 70 keV.
        shortfall: Noise in HU that the model leaves.
        tissue: Range of pixel values whose change is looked at.
        limit: Single changes count at most this much, so that an edge or metal cannot open the gate.

    Reference:
        Water-equivalent diameter: AAPM Report 220 (2014), equation 3.
    """

    def __init__(
        self,
        noise: float = 4.4,
        diameter: float = 19.1,
        attenuation: float = 0.193,
        shortfall: float = 0.0,
        tissue: tuple[float, float] = (-200.0, 300.0),
        limit: float = 80.0,
    ) -> None:
        if not (min(noise, diameter, limit) > 0 and min(attenuation, shortfall) >= 0 and tissue[0] < tissue[1]):
            found = (noise, diameter, attenuation, shortfall, tissue, limit)
            raise InputError("gate limits must be positive, the tissue range increasing", found=found)
        self.noise, self.diameter, self.attenuation = float(noise), float(diameter), float(attenuation)
        self.shortfall = float(shortfall)
        self.tissue, self.limit = tuple(tissue), float(limit)

    def fit(
        self, planes: np.ndarray, valid: np.ndarray | None = None, spacing_mm: tuple[float, float] | None = None
    ) -> dict[str, float]:
        """The area of a pixel in cm²."""
        if spacing_mm is None:
            raise InputError("the gate needs the pixel size", where="NoiseGate", remedy="pass spacing_mm to fit_chain")
        return {"pixel_cm2": spacing_mm[0] * spacing_mm[1] / 100.0}

    def apply(self, image: Tensor, params: Params) -> Tensor:
        """See `Transform.apply`; nothing changes."""
        return image

    def invert(self, output: Tensor, image: Tensor, params: Params) -> Tensor:
        """See `Transform.invert`: the part of the change that the gate lets through, plane by plane."""
        change = output - image
        inside = ((image > self.tissue[0]) & (image < self.tissue[1])).to(change.dtype)
        power = (inside * change.abs().clamp(max=self.limit).square()).sum(dim=(1, 2, 3), keepdim=True)
        level = (power / inside.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)).sqrt().clamp(min=1e-6)
        growth = 0.5 * self.attenuation * (self._water_equivalent(image, params["pixel_cm2"]) - self.diameter)
        ratio = self.noise * growth.exp() / level
        share = (1 - ratio.square()).clamp(min=0) * (1 + self.shortfall / level)
        return image + share * change

    def _water_equivalent(self, image: Tensor, pixel_cm2: float | Tensor) -> Tensor:
        """Diameter in cm of the water cylinder that attenuates as much, ``(batch, 1, 1, 1)``; 8 to 45 cm."""
        water = (image.clamp(-1000.0, 3000.0) / 1000.0 + 1.0).sum(dim=(1, 2, 3), keepdim=True)
        return (2.0 * (water * pixel_cm2 / np.pi).sqrt()).clamp(8.0, 45.0)


class LeaveAlone(Transform):
    """Keeps a plane as it is where the model hardly changes it; first in a chain, undone last.

    What a model does to an image that needs no denoising is no noise: it follows edges. Where the root mean square of
    the change is at most `low` of the plane's own noise, nothing is applied; from `high` on all of it, in between a
    linear ramp. The own noise is `medseq.ops.quality.noise_sd`.

    Args:
        low: Change over noise up to which the plane is kept.
        high: Change over noise from which on it is restored in full.
    """

    def __init__(self, low: float = 0.2, high: float = 0.4) -> None:
        if not 0 <= low < high:
            raise InputError("gate limits must be increasing", found=(low, high), wanted="0 <= low < high")
        self.low, self.high = float(low), float(high)

    def fit(
        self, planes: np.ndarray, valid: np.ndarray | None = None, spacing_mm: tuple[float, float] | None = None
    ) -> dict[str, float]:
        """Nothing to fit: every plane is judged by itself."""
        return {}

    def apply(self, image: Tensor, params: Params) -> Tensor:
        """See `Transform.apply`; nothing changes."""
        return image

    def invert(self, output: Tensor, image: Tensor, params: Params) -> Tensor:
        """See `Transform.invert`: the part of the change that is applied, plane by plane."""
        planes = image[:, 0].detach().cpu().numpy()
        noise = image.new_tensor([noise_sd(plane) for plane in planes])[:, None, None, None]
        change = output - image
        level = change.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        share = (level - self.low * noise) / ((self.high - self.low) * noise).clamp(min=1e-12)
        return image + share.clamp(0, 1) * change


class RobustScale(Transform):
    """Divides by a percentile of the volume: for modalities without absolute units (MR).

    Args:
        percentile: Which percentile of the valid, non-zero magnitudes becomes 1.
        nonnegative: Limit the output below at 0, as magnitudes are. Inputs below 0 (already filtered data) keep
            their value.
    """

    def __init__(self, percentile: float = 99.0, nonnegative: bool = True) -> None:
        if not 0 < percentile <= 100:
            raise InputError("percentile is out of range", found=percentile, wanted="0 < percentile <= 100")
        self.percentile, self.nonnegative = float(percentile), bool(nonnegative)

    def fit(
        self, planes: np.ndarray, valid: np.ndarray | None = None, spacing_mm: tuple[float, float] | None = None
    ) -> dict[str, float]:
        """The scale, 1.0 for an empty or constant-zero volume."""
        values = np.abs(planes if valid is None else planes[valid]).ravel()
        values = values[values > 0]
        scale = float(np.percentile(values, self.percentile)) if values.size else 1.0
        return {"scale": scale if np.isfinite(scale) and scale > 0 else 1.0}

    def apply(self, image: Tensor, params: Params) -> Tensor:
        """See `Transform.apply`; one channel."""
        return image / params["scale"]

    def invert(self, output: Tensor, image: Tensor, params: Params) -> Tensor:
        """See `Transform.invert`; native units."""
        restored = output * params["scale"]
        if not self.nonnegative:
            return restored
        # The gradient passes the limit: a network whose outputs all fell below 0 would otherwise never learn again.
        return restored + (torch.maximum(restored, image.clamp(max=0.0)) - restored).detach()
