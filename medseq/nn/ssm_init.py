"""How state space layers start: time steps between 0.001 and 0.1, real poles -1, -2, ….

Drawn any other way (Xavier, zero bias) the step starts near softplus(0) = 0.69, and a layer forgets all but the last
few tokens before training begins. Model-wide initialisation must therefore leave these tensors alone.

Reference:
    Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, arXiv:2312.00752, section 3.6.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from medseq.errors import InputError

__all__ = ["at_least_float32", "poles_log", "resolve_dt_rank", "step_bias", "step_weight"]


def step_bias(
    size: int, *, dt_min: float = 0.001, dt_max: float = 0.1, dt_init_floor: float = 1e-4
) -> Float[Tensor, " size"]:
    """Bias whose softplus, the time step, is log-uniform in ``[dt_min, dt_max]``.

    Raises:
        InputError: The limits are not positive and ordered.
    """
    if not 0 < dt_min <= dt_max:
        raise InputError("time steps need 0 < dt_min <= dt_max", found=(dt_min, dt_max))
    low, high = math.log(dt_min), math.log(dt_max)
    step = torch.exp(torch.rand(size) * (high - low) + low).clamp(min=dt_init_floor)
    # The inverse of softplus, without overflow for large steps and without cancellation for small ones.
    return step + torch.log(-torch.expm1(-step))


def step_weight(size: int, rank: int, *, dt_scale: float = 1.0) -> Float[Tensor, "size rank"]:
    """Weight from `rank` inputs to the time step; uniform, and keeps the variance of its input."""
    bound = rank**-0.5 * dt_scale
    return torch.empty(size, rank).uniform_(-bound, bound)


def poles_log(size: int, d_state: int) -> Float[Tensor, "size state"]:
    """Logarithm of ``-A``: every channel has the poles -1, …, -d_state."""
    return torch.arange(1, d_state + 1, dtype=torch.float32).log().expand(size, d_state).contiguous()


def at_least_float32(x: Tensor) -> Tensor:
    """`x` itself, or in float32 if it is stored in half precision: rates and steps are exponents."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def resolve_dt_rank(dt_rank: int | str, d_model: int) -> int:
    """`dt_rank` itself, or a sixteenth of the width, rounded up, for ``auto``.

    Raises:
        InputError: Neither a positive number nor ``auto``.
    """
    if dt_rank == "auto":
        return math.ceil(d_model / 16)
    if not isinstance(dt_rank, int) or dt_rank < 1:
        raise InputError("dt_rank", found=dt_rank, wanted="auto or a number >= 1")
    return dt_rank
