"""Device functions that the Triton kernels of several operators share. Imported only by their `triton.py`."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl

__all__ = ["LOG2E", "affine", "sigmoid", "silu", "silu_slope", "softplus"]

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def affine(a1, b1, a2, b2):
    """The map h -> a1 h + b1 followed by h -> a2 h + b2: the associative step of every linear recurrence."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def silu(x):
    """X sigmoid(x)."""
    return x * sigmoid(x)


@triton.jit
def silu_slope(x):
    """Derivative of `silu`."""
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@triton.jit
def softplus(x):
    """log(1 + e^x), to a few units in the last place for every x.

    The hardware's logarithm is exact only to 2^-22 in absolute terms near 1, a large part of a small step size; the
    series of 2 atanh(e / (2 + e)) has no such trouble.
    """
    e = tl.exp2(-tl.abs(x) * LOG2E)
    if x.dtype == tl.float64:
        tail = tl.log(1.0 + e)
    else:
        s = e / (2.0 + e)
        q = s * s
        series = 1.0 / 13.0 + q * (1.0 / 15.0)
        series = 1.0 / 9.0 + q * (1.0 / 11.0 + q * series)
        series = 1.0 / 5.0 + q * (1.0 / 7.0 + q * series)
        tail = 2.0 * s * (1.0 + q * (1.0 / 3.0 + q * series))
    return tl.maximum(x, 0.0) + tail
