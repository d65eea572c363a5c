"""The Triton kernels of the cross scan, interpreted on the CPU, against the definition."""

import pytest
import torch

from medseq.ops import cross_selective_scan
from medseq.ops.cross_scan import naive
from tests.ops.triton_checks import assert_as_exact_as

NAMES = ("y", "x", "delta", "A", "B", "C", "D", "delta_bias")


def problem(normal, shape, state, without="", softplus=True):
    """The arguments of the internal call, and a gradient of its result."""
    batch, channels, rows, cols = shape
    steps = normal(batch, 4, channels, rows, cols)
    args = [normal(*shape), steps if softplus else steps.abs() * 0.1, -normal(4 * channels, state).abs()]
    args += [normal(batch, 4, state, rows, cols), normal(batch, 4, state, rows, cols)]
    args += [None if "D" in without else normal(4 * channels), None if "b" in without else normal(4 * channels)]
    return [*args, softplus], normal(*shape)


def cast(args, dtype):
    return [x.to(dtype) if isinstance(x, torch.Tensor) else x for x in args]


def interpreted(interpreter, args, gy, directions="cross", **settings):
    def call(function, *values):
        return interpreter.call("cross_scan", function, *values, settings=settings)

    y, states = call("forward", *args, directions)
    return [y, *call("backward", gy, *args, states, directions)]


def reference(args, gy, directions="cross"):
    y, states = naive.forward(*args, directions)
    return [y, *naive.backward(gy, *args, states, directions)]


def compare(got, want):
    for name, a, b in zip(NAMES, got, want, strict=True):
        assert (a is None) == (b is None), name
        if b is not None:
            # 1e-11: double precision.
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("tokens", [4096, 0], ids=["in registers", "walked"])
@pytest.mark.parametrize(
    ("shape", "state", "options"),
    [
        ((2, 3, 5, 7), 2, {}),
        ((1, 2, 8, 4), 1, {"without": "Db", "softplus": False}),
        ((1, 1, 1, 9), 1, {}),
        ((1, 2, 6, 1), 3, {}),
    ],
    ids=["odd sizes", "bare", "a row", "a column"],
)
def test_matches_the_definition(interpreter, normal, tokens, shape, state, options):
    args, gy = problem(normal, shape, state, **options)
    compare(interpreted(interpreter, args, gy, TOKENS=tokens), reference(args, gy))


@pytest.mark.parametrize("tokens", [4096, 0], ids=["in registers", "walked"])
@pytest.mark.parametrize("directions", ["forward", "bidirectional"])
def test_other_directions(interpreter, normal, tokens, directions):
    args, gy = problem(normal, (1, 2, 4, 3), 2)
    compare(interpreted(interpreter, args, gy, directions, TOKENS=tokens), reference(args, gy, directions))


@pytest.mark.parametrize("tokens", [4096, 0], ids=["in registers", "walked"])
def test_float32_is_as_exact_as_plain_torch(interpreter, normal, tokens):
    args, gy = problem(normal, (1, 2, 6, 7), 3)
    args, gy = cast(args, torch.float32), gy.float()
    exact = reference(cast(args, torch.float64), gy.double())
    for a, b, c in zip(interpreted(interpreter, args, gy, TOKENS=tokens), reference(args, gy), exact, strict=True):
        assert_as_exact_as(a, b, c)


@pytest.mark.parametrize("tokens", [4096, 0], ids=["in registers", "walked"])
def test_half_precision_tokens_are_read_as_they_are(interpreter, normal, tokens):
    args, gy = problem(normal, (1, 2, 3, 4), 2)
    half = [x.half() if i in (0, 1, 3, 4) else x for i, x in enumerate(cast(args, torch.float32))]
    got = interpreted(interpreter, half, gy.half(), TOKENS=tokens)
    # The four directions of gx are added up in float32; the registration rounds the sum.
    assert [x.dtype for x in got[:4]] == [torch.float16, torch.float32, torch.float16, torch.float32]
    for a, b in zip(got, reference(cast(half, torch.float64), gy.half().double()), strict=True):
        rounding = 2**-10 if a.dtype == torch.float16 else 1e-5  # of the result only
        assert (a.double() - b).abs().max() <= rounding * b.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 24, 56, 56), (1, 8, 100, 90)], ids=["in registers", "walked"])
def test_on_a_gpu(normal, shape):
    args, gy = problem(normal, shape, 4)
    leaves = [x.float().cuda().requires_grad_() for x in args[:-1]]
    y = cross_selective_scan(*leaves, args[-1])
    got = [y, *torch.autograd.grad((y * gy.float().cuda()).sum(), leaves)]
    for name, a, b in zip(NAMES, got, reference(args, gy), strict=True):
        assert (a.detach().cpu().double() - b).abs().max() <= 1e-4 * b.abs().max(), name
