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

__all__ = [
    "HounsfieldChannels",
    "Identity",
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
    def fit(self, planes: np.ndarray, valid: np.ndarray | None = None) -> dict[str, float]:
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
    chain: Sequence[Transform], planes: np.ndarray, valid: np.ndarray | None = None
) -> list[dict[str, float]]:
    """Fit every transform of a chain on the output of those before it.

    Args:
        chain: Transforms in the order of application.
        planes: Sampled planes ``(n, row, col)`` in native units.
        valid: Mask of the same shape, or None.

    Returns:
        One parameter mapping a transform.
    """
    params: list[dict[str, float]] = []
    for transform in chain:
        params.append(transform.fit(planes, valid))
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

    def fit(self, planes: np.ndarray, valid: np.ndarray | None = None) -> dict[str, float]:
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

    def fit(self, planes: np.ndarray, valid: np.ndarray | None = None) -> dict[str, float]:
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
    """Leaves images alone whose noise is no more than that of a full-dose scan; first in a chain, so undone last.

    The root mean square of the model's own change in soft tissue says how noisy the plane is. Up to `low` only the
    share `least` of the change is applied, from `high` on all of it, in between a linear ramp. A network cannot tell
    a low-dose scan of a head from a full-dose scan of a pelvis by the noise of a patch; this keeps it from smoothing
    images that are as good as they are meant to be.

    Args:
        low: Change in native units up to which a plane counts as good.
        high: Change from which on it is restored in full.
        least: Share of the change that is always applied.
        tissue: Range of pixel values that are looked at.
        limit: Single changes count at most this much, so that an edge or metal cannot open the gate.
    """

    def __init__(
        self,
        low: float = 10.0,
        high: float = 14.0,
        least: float = 0.2,
        tissue: tuple[float, float] = (-200.0, 300.0),
        limit: float = 80.0,
    ) -> None:
        if not (0 <= low < high and 0 <= least <= 1 and tissue[0] < tissue[1] and limit > 0):
            raise InputError("gate limits must be increasing, and least a share", found=(low, high, least, tissue))
        self.low, self.high, self.least = float(low), float(high), float(least)
        self.tissue, self.limit = tuple(tissue), float(limit)

    def fit(self, planes: np.ndarray, valid: np.ndarray | None = None) -> dict[str, float]:
        """Nothing to fit: the gate looks at each plane's own change."""
        return {}

    def apply(self, image: Tensor, params: Params) -> Tensor:
        """See `Transform.apply`; nothing changes."""
        return image

    def invert(self, output: Tensor, image: Tensor, params: Params) -> Tensor:
        """See `Transform.invert`: the part of the change that the gate lets through."""
        change = output - image
        inside = ((image > self.tissue[0]) & (image < self.tissue[1])).to(change.dtype)
        power = (inside * change.abs().clamp(max=self.limit).square()).sum(dim=(1, 2, 3), keepdim=True)
        level = (power / inside.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)).sqrt()
        open_share = ((level - self.low) / (self.high - self.low)).clamp(0, 1)
        return image + (self.least + (1 - self.least) * open_share) * change


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

    def fit(self, planes: np.ndarray, valid: np.ndarray | None = None) -> dict[str, float]:
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
        return torch.maximum(restored, image.clamp(max=0.0)) if self.nonnegative else restored
