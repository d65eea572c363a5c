"""Bidirectional WKV: every implementation against the definition, forward and every gradient."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from medseq.ops import bi_wkv
from medseq.ops.backend import compiled_kernels
from medseq.ops.wkv import naive

GOLDEN = Path(__file__).parents[1] / "golden"
CONVENTIONS = ("exact", "chunk64")
NAMES = ("y", "gw", "gu", "gk", "gv")


@pytest.fixture(params=["cpu", "chunked"])
def backend(request, monkeypatch):
    monkeypatch.setenv("MEDSEQ_BACKEND", request.param)
    return request.param


@pytest.fixture
def problem(normal):
    """problem(length, k_std, w_std): w, u, k, v, gy as the model makes them; 11 channels fill no vector."""

    def make(length, k_std=1.0, w_std=None, batch=2, channels=11):
        w = normal(channels, std=2 / max(length, 1) if w_std is None else w_std)
        u = normal(channels, std=1 / max(length, 1))
        shape = (batch, length, channels)
        return w, u, normal(*shape, std=k_std), normal(*shape), normal(*shape)

    return make


def evaluate(function, inputs, convention, dtype):
    """y and the gradients of w, u, k, v, all as float64."""
    *args, gy = (x.to(dtype) for x in inputs)
    args = [x.clone().requires_grad_() for x in args]
    y = function(*args, convention)
    return [x.detach().double() for x in (y, *torch.autograd.grad(y, args, gy))]


def exponent_rounding(inputs, dtype):
    """Relative error of a result that rounding the exponents explains: 4 eps (s + 4), s the largest exponent.

    An exponent of size s is rounded by eps s / 2, which changes its weight by as much; an exponent is a sum of up to
    four numbers, and a gradient a product of up to four such weights.
    """
    w, u, k, _, _ = inputs
    size = (k.abs().max() + u.abs().max() + w.abs().max() * k.shape[1]).item()
    return 4 * torch.finfo(dtype).eps * (size + 4)


def assert_as_good_as_the_formula(inputs, convention, dtype=torch.float32):
    """Error against the definition in float64: at most twice that of the definition in `dtype`, plus rounding."""
    truth = evaluate(naive.bi_wkv, inputs, convention, torch.float64)
    plain = evaluate(naive.bi_wkv, inputs, convention, dtype)
    ours = evaluate(bi_wkv, inputs, convention, dtype)
    length, rounding = inputs[2].shape[1], exponent_rounding(inputs, dtype)
    for name, want, naive_result, got in zip(NAMES, truth, plain, ours, strict=True):
        # Where one token outweighs all others, v - y cancels in gu and gk, and its terms of size |gy v| = 1 are what is
        # rounded. Of one token or two every gradient cancels: gw, for one, is 0.
        scale = max(want.abs().max().item(), 1.0 if name in ("gu", "gk") or length <= 2 else 0.0)
        allowed = 2 * (naive_result - want).abs().max().item() + rounding * scale
        error = (got - want).abs().max().item()
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}, scale {scale:.2e}"


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 100, 257])
@pytest.mark.parametrize("k_std", [1.0, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_length_and_spread_of_k(backend, problem, convention, length, k_std, dtype):
    assert_as_good_as_the_formula(problem(length, k_std), convention, dtype)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("length", [63, 130])
def test_strong_decay_and_strong_growth(backend, problem, convention, sign, length):
    # Weights from e^-130 to e^130 in one sequence: far beyond float32 without a moving scale.
    w, *rest = problem(length, k_std=3.0, w_std=1.0)
    w = sign * w.abs() if convention == "exact" else (sign * w.abs()).clamp(-0.2, 0.2)
    assert_as_good_as_the_formula((w, *rest), convention)
    assert_as_good_as_the_formula((w, *rest), convention, torch.float64)


@pytest.mark.parametrize("channels", [1, 7, 8, 16, 19])
def test_any_number_of_channels(backend, problem, channels):
    assert_as_good_as_the_formula(problem(70, channels=channels), "exact")
    assert_as_good_as_the_formula(problem(70, channels=channels), "chunk64")


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("decay", [1.0, 30.0])
def test_rounding_does_not_grow_with_the_length(backend, problem, convention, decay):
    # 20000 tokens: a plain running sum in float32 is off by 1e-5 to 1e-4 here. Far too long for the naive table, so
    # float64 of the same implementation is the reference; shorter lengths check that one.
    inputs = problem(20_000, batch=1, channels=8, w_std=decay / 20_000)
    truth = evaluate(bi_wkv, inputs, convention, torch.float64)
    # Under strong decay gw is what is left of terms several times larger.
    allowed = exponent_rounding(inputs, torch.float32) * (1 if decay == 1.0 else 4)
    for name, want, got in zip(NAMES, truth, evaluate(bi_wkv, inputs, convention, torch.float32), strict=True):
        error = ((got - want).abs().max() / want.abs().max()).item()
        assert error <= allowed, f"{name}: error {error:.2e} of the maximum"


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("w", [0.05, -0.05, 0.4, -0.4])
def test_gradients_match_finite_differences(backend, normal, convention, w):
    # 67 tokens: chunks of two, the last one of one, so that every term of chunk64 is there.
    inputs = (torch.tensor([w], dtype=torch.float64), normal(1), normal(1, 67, 1), normal(1, 67, 1))
    inputs = tuple(x.requires_grad_() for x in inputs)
    # The difference quotient's own error: eps^2 times third derivatives by w of up to 67^3, and 1e-16 / eps.
    assert torch.autograd.gradcheck(lambda *x: bi_wkv(*x, convention), inputs, eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("name", ["wkv_0_T35", "wkv_1_T64", "wkv_3_T1024"])
@pytest.mark.parametrize(("convention", "suffix"), [("chunk64", ""), ("exact", "_ideal0")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_of_the_original(backend, name, convention, suffix, dtype):
    with safe_open(GOLDEN / f"restore_rwkv_{name}.safetensors", "pt") as file:
        golden = {key: file.get_tensor(key).double() for key in file.keys()}
        config = json.loads(file.metadata()["config"])
    inputs = [golden[f"in.{key}"] for key in ("w", "u", "k", "v", "gy")]
    assert inputs[2].shape == (config["B"], config["T"], config["C"])
    wanted = [golden[f"out.y{suffix}"], *(golden[f"grad{suffix}.{key}"] for key in ("w", "u", "k", "v"))]
    # The goldens are stored in float32: 6e-8 of each value, and 1e-5 is the project's promise for float32 results.
    tolerance = 1e-5 if dtype == torch.float32 else 2e-7
    for label, want, got in zip(NAMES, wanted, evaluate(bi_wkv, inputs, convention, dtype), strict=True):
        error = ((got - want).abs().max() / want.abs().max()).item()
        assert error <= tolerance, f"{label}: error {error:.2e} of the maximum"


def test_conventions_differ_as_documented(problem):
    def gap(length):
        w, u, k, v, _ = problem(length, channels=32)
        return (bi_wkv(w, u, k, v) - bi_wkv(w, u, k, v, "chunk64")).abs().max().item()

    assert 1e-4 < gap(64) < 1e-1
    assert gap(4096) < 1e-4 < gap(64)


@given(
    shift=st.floats(-60, 60),
    scale=st.floats(-4, 4),
    offset=st.floats(-4, 4),
    length=st.integers(1, 150),
    convention=st.sampled_from(CONVENTIONS),
    name=st.sampled_from(["cpu", "chunked"]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_shift_of_k_and_scale_of_v(shift, scale, offset, length, convention, name, seed):
    draw = torch.Generator().manual_seed(seed)
    w, u = (torch.randn(5, generator=draw).double() / length for _ in range(2))
    k, v = (torch.randn(2, length, 5, generator=draw).double() for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSEQ_BACKEND", name)
        y = bi_wkv(w, u, k, v, convention)
        shifted = bi_wkv(w, u, k + shift, v, convention)
        scaled = bi_wkv(w, u, k, scale * v + offset, convention)
        ones = bi_wkv(w, u, k, torch.ones_like(v), convention)
    # The weights change by a common factor; what is left is float64's rounding of k + 60.
    torch.testing.assert_close(shifted, y, rtol=0, atol=1e-12)
    # A mean is linear, and that of a constant is the constant, but for the part that the original's 1e-6 takes away.
    torch.testing.assert_close(scaled, scale * y + offset * ones, rtol=0, atol=1e-12)
    assert convention == "chunk64" or (ones - 1).abs().max() < 1e-13


def test_looking_from_the_other_end_is_the_same(backend, problem):
    w, u, k, v, _ = problem(100)
    reversed_y = bi_wkv(w, u, k.flip(1), v.flip(1)).flip(1)
    torch.testing.assert_close(reversed_y, bi_wkv(w, u, k, v), rtol=0, atol=1e-13)


def test_a_constant_value_is_its_own_mean(backend, problem):
    w, u, k, v, _ = problem(100, k_std=8.0)
    torch.testing.assert_close(bi_wkv(w, u, k, torch.full_like(v, 3.5)), torch.full_like(v, 3.5), rtol=1e-14, atol=0)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_batch_items_and_channels_do_not_meet(backend, problem, convention):
    w, u, k, v, _ = problem(100, batch=3)
    y = bi_wkv(w, u, k, v, convention)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(bi_wkv(w, u, k[order], v[order], convention), y[order], rtol=0, atol=0)
    part = slice(3, 9)
    one = bi_wkv(w[part], u[part], k[1:2, :, part], v[1:2, :, part], convention)
    # Not bit-equal: torch's exp differs in the last bit between a vector and its remainder, and the kernel's way for
    # small w is taken only if all channels of a vector have one.
    torch.testing.assert_close(one, y[1:2, :, part], rtol=0, atol=1e-14)


def test_strong_and_weak_decay_side_by_side(backend, problem):
    w, *rest = problem(100)
    w[::3] *= 100
    assert_as_good_as_the_formula((w, *rest), "exact")
    w[5] = float("nan")
    y = bi_wkv(w, *rest[:3])
    assert y[..., 5].isnan().all()
    assert y.isnan().sum() == y[..., 5].numel()


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("where", ["k", "v"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_stays_in_its_batch_item_and_channel(backend, problem, convention, where, bad):
    w, u, k, v, gy = problem(70)
    {"k": k, "v": v}[where][1, 40, 3] = bad
    y, gw, gu, gk, gv = evaluate(bi_wkv, (w, u, k, v, gy), convention, torch.float32)
    # An infinite k is an infinite weight: the mean may be that token's value, or undefined.
    if bad != bad:
        assert y[1, :, 3].isnan().all()
        assert gw[3].isnan()
        assert gu[3].isnan()
    for result in (y, gk, gv):
        result[1, :, 3] = 0
        assert result.isfinite().all()
    for result in (gw, gu):
        result[3] = 0
        assert result.isfinite().all()


def test_minus_infinity_removes_a_token(backend, problem):
    w, u, k, v, gy = problem(70)
    k[:, 10:20] = -torch.inf
    k[:, 0] = -torch.inf
    wanted = evaluate(naive.bi_wkv, (w, u, k, v, gy), "exact", torch.float64)
    got = evaluate(bi_wkv, (w, u, k, v, gy), "exact", torch.float64)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    assert not got[3][:, 10:20].any()
    assert not got[4][:, 10:20].any()


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_memory_order_does_not_matter(backend, problem, convention):
    w, u, k, v, gy = (x.float() for x in problem(100))
    dense = evaluate(bi_wkv, (w, u, k, v, gy), convention, torch.float32)
    k_strided = k.transpose(1, 2).contiguous().transpose(1, 2)
    v_strided = torch.stack([v, v + 1], dim=-1)[..., 0]
    w_strided = torch.stack([w, w], dim=-1)[:, 0]
    args = [x.detach().requires_grad_() for x in (w_strided, u, k_strided, v_strided)]
    assert not args[0].is_contiguous()
    assert not args[2].is_contiguous()
    assert not args[3].is_contiguous()
    y = bi_wkv(*args, convention)
    strided = (y, *torch.autograd.grad(y, args, gy.transpose(1, 2).contiguous().transpose(1, 2)))
    for a, b in zip(strided, dense, strict=True):
        # Pure torch's exp rounds strided and dense memory differently in the last bit; the kernel copies first.
        torch.testing.assert_close(a.detach().double(), b, rtol=0, atol=0 if backend == "cpu" else 1e-5)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_instruction_set_agrees(monkeypatch, problem, convention):
    monkeypatch.setenv("MEDSEQ_BACKEND", "cpu")
    names = compiled_kernels().instruction_sets()
    assert names[0] == "baseline"
    for name in names:
        monkeypatch.setenv("MEDSEQ_CPU_ISA", name)
        for dtype in (torch.float32, torch.float64):
            assert_as_good_as_the_formula(problem(100, channels=37), convention, dtype)


@pytest.mark.avx512
def test_the_avx512_build_is_among_them():
    assert "avx512" in compiled_kernels().instruction_sets()


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_number_of_threads_changes_no_bit(monkeypatch, problem, convention):
    monkeypatch.setenv("MEDSEQ_BACKEND", "cpu")
    inputs = problem(300, batch=3, channels=50)
    assert inputs[2].numel() > 1 << 15
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(evaluate(bi_wkv, inputs, convention, torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
