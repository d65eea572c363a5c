"""Discrete-time survival: hazards of time bins, the survival curve, the risk, and their likelihood.

Time is cut into K bins. A model gives one logit a bin; the hazard ``h_k = sigmoid(logit_k)`` is the probability that
the event falls in bin k, given that it did not fall in an earlier one, and ``S_k = prod_{j <= k} (1 - h_j)`` the
probability to come through bin k. The concordance index is in `medseq.ops.case_scores`.

Reference:
    Zadeh and Schmid, Bias in cross-entropy-based training of deep survival networks, IEEE TPAMI 43(9), 2021; the form
    with alpha is that of Chen et al., arXiv:2107.13048, and of MambaMIL, arXiv:2403.06800.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from medseq.errors import InputError, ShapeError

__all__ = ["hazards", "nll_survival", "risk", "survival_curve"]

# The original takes no logarithm of less than this.
_LOG_FLOOR = math.log(1e-7)


def hazards(logits: Float[Tensor, "batch bins"]) -> Float[Tensor, "batch bins"]:
    """Probability of the event in each bin, if it did not happen before: the sigmoid of the logits."""
    return logits.sigmoid()


def survival_curve(logits: Float[Tensor, "batch bins"]) -> Float[Tensor, "batch bins"]:
    """Probability to come through each bin: ``S_k = prod_{j <= k} (1 - h_j)``; it never rises."""
    return _log_survival(logits).exp()


def risk(logits: Float[Tensor, "batch bins"]) -> Float[Tensor, " batch"]:
    """One number a case, larger for a shorter expected life: ``-sum_k S_k``, from -K to 0."""
    return -survival_curve(logits).sum(-1)


def nll_survival(
    logits: Float[Tensor, "batch bins"],
    time_bin: Int[Tensor, " batch"],
    event: Bool[Tensor, " batch"],
    alpha: float = 0.0,
) -> Float[Tensor, " batch"]:
    """Negative log-likelihood of each case.

    An event in bin y costs ``-log S_{y-1} - log h_y``; a case that was censored in bin y has come through it, which
    costs ``-log S_y``. With alpha, censored cases weigh ``1 - alpha``. A logarithm is never less than that of 1e-7.

    Args:
        logits: A model's output, before the sigmoid.
        time_bin: Bin of the event or of the last visit, 0 .. K-1.
        event: True where the event was seen, False where the case is censored.
        alpha: Share of the weight that is taken from censored cases, 0 to 1.

    Raises:
        ShapeError: Sizes that do not fit together.
        InputError: A bin that the model does not have, or alpha outside 0..1.
    """
    batch, bins = logits.shape
    if time_bin.shape != (batch,) or event.shape != (batch,):
        raise ShapeError(
            "labels do not fit the logits", found=(tuple(time_bin.shape), tuple(event.shape)), wanted=(batch,)
        )
    if not 0 <= alpha <= 1:
        raise InputError("alpha is no share", found=alpha, wanted="0 to 1")
    if batch and not 0 <= int(time_bin.min()) <= int(time_bin.max()) < bins:
        found = f"{int(time_bin.min())} to {int(time_bin.max())}"
        raise InputError("time bins do not fit the model", found=found, wanted=f"0 to {bins - 1}")
    # log S with S of "before the first bin" = 1 in front: padded[y] is log S_{y-1}, padded[y + 1] is log S_y.
    padded = F.pad(_log_survival(logits), (1, 0)).clamp_min(_LOG_FLOOR)
    y = time_bin.long()[:, None]
    log_hazard = F.logsigmoid(logits).gather(1, y)[:, 0].clamp_min(_LOG_FLOOR)
    seen = -(padded.gather(1, y)[:, 0] + log_hazard)
    censored = -(1 - alpha) * padded.gather(1, y + 1)[:, 0]
    return torch.where(event.bool(), seen, censored)


def _log_survival(logits: Tensor) -> Tensor:
    # log(1 - sigmoid(x)) = logsigmoid(-x), which loses no digits where the hazard is close to 1.
    return F.logsigmoid(-logits).cumsum(-1)
