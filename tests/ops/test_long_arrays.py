"""Tensors of more than 2^31 elements, which 32-bit indices do not reach, through the compiled kernels.

Most of what is read and written is the same few megabytes (long_arrays.py), so nothing here needs memory. The last
channels, or the last sequence, have inputs of their own; what they give must be what they give alone.
"""

import pytest
import torch
from torch import Tensor

from medseq.ops import bi_wkv, causal_conv1d, cross_selective_scan, selective_scan
from tests.ops.long_arrays import long_arrays

BEYOND = 1 << 31


@pytest.fixture(autouse=True)
def kernels(monkeypatch, poison):
    """The compiled kernels; without filling new tensors, which would take longer than the kernels."""
    monkeypatch.setenv("MEDSEQ_BACKEND", "cpu")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)


@pytest.fixture
def arrays():
    with long_arrays() as made:
        yield made


@pytest.fixture(params=["forward", pytest.param("backward", marks=pytest.mark.slow)])
def backward(request) -> bool:
    return request.param == "backward"


def run(function, inputs: list[Tensor], gy: Tensor | None) -> list[Tensor]:
    """The result, or the gradients of the inputs for `gy`."""
    if gy is None:
        with torch.no_grad():
            return [function(*inputs)]
    needing = [x.detach().requires_grad_() for x in inputs]
    return list(torch.autograd.grad(function(*needing), needing, gy))


def assert_same(got: Tensor, want: Tensor) -> None:
    # The same kernel on the same numbers; which channels share a vector may change a rounding of a sum.
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert want.abs().max() > 0.1


def test_cross_scan(arrays, normal, backward):
    side, few = 64, 16
    channels = BEYOND // (4 * side * side) + few
    x, delta = arrays.make(1, channels, side, side, fill=0.5), arrays.make(1, 4, channels, side, side, fill=0.1)
    assert delta.numel() > BEYOND
    B, C = (normal(1, 4, 1, side, side).float() for _ in "BC")
    rates, D = -torch.ones(4 * channels, 1), torch.ones(4 * channels)
    # Direction 3 of the last channels is the end of delta; the others end in what all share.
    x[:, -few:], delta[:, 3, -few:] = normal(1, few, side, side).float(), normal(1, few, side, side).float().abs()
    gy = arrays.make(1, channels, side, side, fill=0.2) if backward else None
    if gy is not None:
        gy[:, -few:] = normal(1, few, side, side).float()

    def last(t: Tensor) -> Tensor:
        return t[..., -few:, :, :].clone()

    alone = [last(x), last(delta), rates[: 4 * few], B, C, D[: 4 * few]]
    want = run(cross_selective_scan, alone, None if gy is None else last(gy))
    got = run(cross_selective_scan, [x, delta, rates, B, C, D], gy)
    assert_same(last(got[0]), want[0])
    if backward:
        assert_same(last(got[1][:, 3]), want[1][:, 3])


def test_selective_scan_of_an_expanded_input(arrays, normal, backward):
    length, few = 1 << 16, 16
    channels = BEYOND // length + few
    u, delta, gy = (normal(1, 1, length).float() for _ in range(3))
    u, delta, gy = (x.expand(1, channels, length) for x in (u, delta.abs(), gy))
    assert u.numel() > BEYOND
    rates, B = -normal(channels, 1).float().exp(), normal(1, 1, length).float()

    def inputs(count: int) -> list[Tensor]:
        return [u[:, -count:], delta[:, -count:], rates[-count:], B, B]

    want = run(selective_scan, inputs(few), gy[:, -few:] if backward else None)
    got = run(selective_scan, inputs(channels), gy if backward else None)
    for a, b in zip(got[: 2 if backward else 1], want, strict=False):
        assert_same(a[:, -few:], b)


def test_causal_conv1d(arrays, normal, backward):
    channels, length, few = 2048, 2048, 16
    batch = BEYOND // (channels * length) + 1
    x, weight = arrays.make(batch, channels, length, fill=0.5), normal(channels, 4).float()
    x[-1, -few:] = normal(few, length).float()
    gy = arrays.make(batch, channels, length, fill=0.2) if backward else None
    want = run(causal_conv1d, [x[-1:, -few:].clone(), weight[-few:]], None if gy is None else gy[-1:, -few:].clone())
    got = run(causal_conv1d, [x, weight], gy)
    assert_same(got[0][-1:, -few:], want[0])


def test_bi_wkv(arrays, normal, backward):
    length, channels = 1024, 128
    batch = BEYOND // (length * channels) + 1
    k, v = (arrays.make(batch, length, channels, fill=0.5) for _ in "kv")
    k[-1], v[-1] = (normal(length, channels).float() for _ in "kv")
    w, u = (normal(channels, std=1 / length).float() for _ in "wu")
    gy = arrays.make(batch, length, channels, fill=0.2) if backward else None

    def wkv(k: Tensor, v: Tensor) -> Tensor:
        return bi_wkv(w, u, k, v)

    want = run(wkv, [k[-1:].clone(), v[-1:].clone()], None if gy is None else gy[-1:].clone())
    got = run(wkv, [k, v], gy)
    for a, b in zip(got, want, strict=True):
        assert_same(a[-1:], b)
