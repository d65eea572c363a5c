"""The Triton kernels of the selective scan, interpreted on the CPU, against the definition."""

import pytest
import torch
from torch.nn import functional as F

from medseq.ops import selective_scan
from medseq.ops.selective_scan import naive
from tests.ops.triton_checks import assert_as_exact_as

NAMES = ("y", "last state", "u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def problem(normal, shape, groups=1, constant="", without="", softplus=True, reverse=False, strength=1.0):
    """The arguments of the internal call, and gradients of both results."""
    batch, dim, length, state = shape
    steps = normal(batch, dim, length)
    args = {
        "u": normal(batch, dim, length),
        "delta": steps if softplus else steps.abs() * 0.1,
        "A": -normal(dim, state).abs() * strength,
        "B": normal(dim, state) if "B" in constant else normal(batch, groups, state, length),
        "C": normal(dim, state) if "C" in constant else normal(batch, groups, state, length),
        "D": None if "D" in without else normal(dim),
        "z": None if "z" in without else normal(batch, dim, length),
        "delta_bias": None if "b" in without else normal(dim),
        "softplus": softplus,
        "initial_state": None if "h" in without else normal(batch, dim, state),
    }
    return list(args.values()), reverse, normal(batch, dim, length), normal(batch, dim, state)


def cast(args, dtype):
    return [x.to(dtype) if isinstance(x, torch.Tensor) else x for x in args]


def run(forward, backward, args, reverse, gy, glast):
    y, last, checkpoints = forward(*args, reverse)
    return [y, last, *backward(gy, glast, *args, checkpoints, reverse)]


def interpreted(interpreter, *problem):
    def call(name):
        return lambda *args: interpreter.call("selective_scan", name, *args)

    return run(call("forward"), call("backward"), *problem)


def compare(got, want, **tolerance):
    for name, a, b in zip(NAMES, got, want, strict=True):
        assert (a is None) == (b is None), name
        if b is not None:
            torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


CASES = {
    "everything": {"shape": (2, 6, 40, 3), "groups": 2},
    "everything reversed": {"shape": (2, 6, 40, 3), "groups": 2, "reverse": True},
    "one state": {"shape": (1, 5, 33, 1), "without": "h"},
    "one token": {"shape": (1, 3, 1, 2), "reverse": True},
    "whole chunks reversed": {"shape": (1, 2, 64, 2), "without": "zD", "reverse": True},
    "constant B": {"shape": (1, 3, 34, 2), "constant": "B", "without": "b"},
    "constant B and C": {"shape": (2, 3, 20, 2), "constant": "BC"},
    "constant C, bare": {"shape": (1, 3, 20, 2), "constant": "C", "without": "Dzbh", "softplus": False},
    "a group per channel": {"shape": (1, 3, 20, 2), "groups": 3},
    "strong decay": {"shape": (1, 3, 34, 2), "strength": 1e3},
}


@pytest.mark.parametrize("case", CASES)
def test_matches_the_definition(interpreter, normal, case):
    arguments = problem(normal, **CASES[case])
    # 1e-11: double precision; exp(delta A) of a strong decay and its gradients have a wide range.
    compare(
        interpreted(interpreter, *arguments), run(naive.forward, naive.backward, *arguments), rtol=1e-11, atol=1e-11
    )


def test_float32_is_as_exact_as_plain_torch(interpreter, normal):
    args, reverse, gy, glast = problem(normal, (1, 5, 70, 4))
    args, gy, glast = cast(args, torch.float32), gy.float(), glast.float()
    got = interpreted(interpreter, args, reverse, gy, glast)
    plain = run(naive.forward, naive.backward, args, reverse, gy, glast)
    args, gy, glast = cast(args, torch.float64), gy.double(), glast.double()
    exact = run(naive.forward, naive.backward, args, reverse, gy, glast)
    for a, b, c in zip(got, plain, exact, strict=True):
        assert_as_exact_as(a, b, c)


def test_softplus_is_exact_where_steps_are_small(interpreter, normal):
    # delta in 0.001..0.1, where the hardware's logarithm alone would lose four digits.
    args, *rest = problem(normal, (1, 4, 40, 2), without="Dzbh")
    args[1] = normal(1, 4, 40) - 5
    u, delta, A, B, C = cast(args[:5], torch.float32)
    y, _, _ = interpreter.call("selective_scan", "forward", u, delta, A, B, C, None, None, None, True, None)
    exact = naive.forward(*cast([u, delta, A, B, C], torch.float64), None, None, None, True, None)[0]
    plain = naive.forward(u, delta, A, B, C, None, None, None, True, None)[0]
    assert_as_exact_as(y, plain, exact)
    assert F.softplus(delta).median() < 0.02


def test_half_precision_tokens_are_read_as_they_are(interpreter, normal):
    args, reverse, gy, glast = problem(normal, (1, 4, 40, 2))
    half = [x.half() if i in (0, 1, 3, 4, 6) else x for i, x in enumerate(cast(args, torch.float32))]
    got = interpreted(interpreter, half, reverse, gy.half(), glast.float())
    assert [x.dtype for x in got[:4]] == [torch.float16, torch.float32, torch.float16, torch.float16]
    exact = run(naive.forward, naive.backward, cast(half, torch.float64), reverse, gy.half().double(), glast)
    for a, b in zip(got, exact, strict=True):
        rounding = 2**-10 if a.dtype == torch.float16 else 1e-5  # of the result only
        assert (a.double() - b).abs().max() <= rounding * b.abs().max()


def test_backward_makes_the_checkpoints_it_is_not_given(interpreter, normal):
    args, reverse, gy, glast = problem(normal, (1, 3, 40, 2), reverse=True)
    results = []
    for checkpoints in (interpreter.call("selective_scan", "forward", *args, reverse)[2], torch.empty(0)):
        results.append(interpreter.call("selective_scan", "backward", gy, None, *args, checkpoints, reverse))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_nan_stays_in_its_sequence(interpreter, normal):
    args, reverse, _, _ = problem(normal, (2, 3, 40, 2))
    args[0][0, 1, 5] = torch.nan
    y, last, _ = interpreter.call("selective_scan", "forward", *args, reverse)
    assert y[0, 1, 5:].isnan().all()
    assert last[0, 1].isnan().all()
    y[0, 1], last[0, 1] = 0, 0
    assert y.isfinite().all()
    assert last.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 48, 1000, 16), (8, 2048, 256, 1)], ids=["narrow tile", "wide tile"])
def test_on_a_gpu(normal, shape):
    args, _, gy, glast = problem(normal, shape)
    single = [x.float().cuda() if isinstance(x, torch.Tensor) else x for x in args]
    leaves = [x.requires_grad_() for x in single if isinstance(x, torch.Tensor)]
    *tensors, softplus, start = single
    y, last = selective_scan(*tensors, softplus, return_last_state=True, initial_state=start)
    loss = (y * gy.float().cuda()).sum() + (last * glast.float().cuda()).sum()
    got = [y, last, *torch.autograd.grad(loss, leaves)]
    exact = run(naive.forward, naive.backward, args, False, gy, glast)
    for name, a, b in zip(NAMES, got, exact, strict=True):
        assert (a.detach().cpu().double() - b).abs().max() <= 1e-4 * b.abs().max(), name
