"""The Triton kernels of the causal convolution, interpreted on the CPU, against the definition."""

import pytest
import torch

from medseq.ops import causal_conv1d
from medseq.ops.causal_conv1d import naive
from tests.ops.triton_checks import assert_as_exact_as


def problem(normal, shape, width, bias=True, state=True):
    batch, dim, _ = shape
    args = [normal(*shape), normal(dim, width), normal(dim) if bias else None]
    return [*args, normal(batch, dim, width - 1) if state else None], normal(*shape)


def interpreted(interpreter, args, gy, silu):
    y = interpreter.call("causal_conv1d", "forward", *args, silu)
    return [y, *interpreter.call("causal_conv1d", "backward", gy, *args, silu)]


def reference(args, gy, silu):
    return [naive.forward(*args, silu), *naive.backward(gy, *args, silu)]


@pytest.mark.parametrize(
    ("shape", "width", "bias", "state", "silu"),
    [
        ((1, 2, 260), 4, True, True, True),
        ((1, 2, 2), 4, False, True, True),
        ((1, 2, 9), 3, True, False, False),
        ((1, 2, 5), 1, True, False, True),
    ],
    ids=["two tiles", "shorter than the state", "no state", "one tap"],
)
def test_matches_the_definition(interpreter, normal, shape, width, bias, state, silu):
    args, gy = problem(normal, shape, width, bias, state)
    want = reference(args, gy, silu)
    for got, truth, given in zip(interpreted(interpreter, args, gy, silu), want, [gy, *args], strict=True):
        if given is not None:
            # 1e-12: double precision, a sum of a few hundred products.
            torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-12)


def test_float32_is_as_exact_as_plain_torch(interpreter, normal):
    args, gy = problem(normal, (1, 2, 270), 4)
    single = [x.float() for x in args]
    exact = reference([x.double() for x in single], gy.float().double(), True)
    plain = reference(single, gy.float(), True)
    for got, want, truth in zip(interpreted(interpreter, single, gy.float(), True), plain, exact, strict=True):
        assert_as_exact_as(got, want, truth)


def test_half_precision_tokens_are_read_as_they_are(interpreter, normal):
    args, gy = problem(normal, (1, 2, 40), 4, state=False)
    half, weight, bias = args[0].half(), args[1].float(), args[2].float()
    y = interpreter.call("causal_conv1d", "forward", half, weight, bias, None, True)
    exact = naive.forward(half.double(), weight.double(), bias.double(), None, True)
    assert y.dtype == torch.float16
    assert (y.double() - exact).abs().max() <= 2**-10 * exact.abs().max()  # the result's rounding


@pytest.mark.gpu
def test_on_a_gpu(normal):
    args, gy = problem(normal, (2, 70, 1000), 4)
    leaves = [x.float().cuda().requires_grad_() for x in args]
    y = causal_conv1d(*leaves[:3], activation="silu", initial_state=leaves[3])
    got = [y, *torch.autograd.grad((y * gy.float().cuda()).sum(), leaves)]
    for a, b in zip(got, reference(args, gy, True), strict=True):
        assert (a.detach().cpu().double() - b).abs().max() <= 1e-5 * b.abs().max()
