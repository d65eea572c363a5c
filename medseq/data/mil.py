"""Batches of bags for multiple-instance learning."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["MILBatch"]


class MILBatch(NamedTuple):
    """Bags of one training or validation step, padded at their end.

    features: Patch features.
    lengths: Real instances of each bag.
    coords: Level-0 pixels (x, y) of each patch, or None; 0 on padding.
    label: Class index; of survival, the time bin.
    event: True where the event was seen, False where the case is censored; None unless survival.
    time: Follow-up in months; None unless survival.
    patient_id: Pseudonyms.
    """

    features: Float[Tensor, "batch n d"]
    lengths: Int[Tensor, " batch"]
    coords: Int[Tensor, "batch n 2"] | None
    label: Int[Tensor, " batch"]
    event: Tensor | None
    time: Tensor | None
    patient_id: list[str]
