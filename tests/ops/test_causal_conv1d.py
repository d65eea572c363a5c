"""`causal_conv1d`: every implementation against the definition in float64, streaming, properties."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseq.errors import BackendError, InputError, ShapeError
from medseq.ops import backend, causal_conv1d, causal_conv1d_update
from medseq.ops.causal_conv1d import naive

IMPLEMENTATIONS = ("naive", "chunked", "cpu")
SHAPES = [(1, 1, 1, 1), (2, 3, 1, 4), (2, 5, 3, 4), (1, 2, 2, 7), (3, 4, 17, 3), (2, 3, 1029, 2), (1, 2, 2050, 5)]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, monkeypatch):
    monkeypatch.setenv("MEDSEQ_BACKEND", request.param)
    return request.param


def problem(normal, batch, dim, length, width, *, bias=True, state=True):
    inputs = [normal(batch, dim, length), normal(dim, width), normal(dim), normal(batch, dim, width - 1)]
    return [inputs[0], inputs[1], inputs[2] if bias else None, inputs[3] if state else None]


def results(function, inputs, weights):
    """The output, and the gradients of `(output * weights).sum()`."""
    inputs = [None if x is None else x.detach().clone().requires_grad_() for x in inputs]
    y = function(*inputs)
    return y.detach(), torch.autograd.grad((y * weights).sum(), [x for x in inputs if x is not None])


def oracle(silu):
    def run(x, weight, bias, state):
        bias = x.new_zeros(x.shape[1]) if bias is None else bias
        state = x.new_zeros(*x.shape[:2], weight.shape[1] - 1) if state is None else state
        return naive.causal_conv1d(x, weight, bias, state, silu)

    return run


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("silu", [False, True])
def test_agrees_with_the_definition(normal, implementation, shape, silu):
    place = SHAPES.index(shape) + 2 * silu
    inputs = problem(normal, *shape, bias=place % 2 == 0, state=place % 4 < 2)
    weights = normal(*shape[:3])
    want, want_gradients = results(oracle(silu), inputs, weights)

    def run(x, weight, bias, state):
        return causal_conv1d(x, weight, bias, "silu" if silu else None, state)

    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        got, gradients = results(run, [None if x is None else x.to(dtype) for x in inputs], weights.to(dtype))
        pairs = [(got, want), *zip(gradients, want_gradients, strict=True)]
        for a, b in pairs:
            # Sums of `width` products, or of all tokens: rounding grows with the root of their number.
            scale = max(1.0, b.abs().max().item() if b.numel() else 1.0) * (1 + b.numel() and shape[2] ** 0.5)
            torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * scale)


def test_gradcheck(normal, implementation):
    inputs = [x.requires_grad_() for x in problem(normal, 2, 3, 6, 4)]
    assert torch.autograd.gradcheck(lambda x, w, b, s: causal_conv1d(x, w, b, "silu", s), inputs)


@pytest.mark.parametrize("isa", backend._instruction_sets())
def test_every_instruction_set(monkeypatch, normal, isa):
    monkeypatch.setenv("MEDSEQ_CPU_ISA", isa)
    x, weight, bias, state = (y.float() for y in problem(normal, 2, 3, 77, 4))
    want = naive.causal_conv1d(x.double(), weight.double(), bias.double(), state.double(), True)
    # A few float32 operations on numbers of size 1 to 10.
    torch.testing.assert_close(causal_conv1d(x, weight, bias, "silu", state).double(), want, rtol=0, atol=5e-6)


@pytest.mark.parametrize("value", [1e4, -1e4, 1e38, -1e38])
def test_large_values_do_not_overflow(implementation, value):
    y = causal_conv1d(torch.tensor([[[value]]]), torch.ones(1, 1), activation="silu")
    assert y.item() == pytest.approx(max(value, 0.0), rel=1e-6, abs=1e-35)


def test_nan_stays_with_the_tokens_that_see_it(normal, implementation):
    x = normal(2, 3, 9).float()
    x[1, 2, 4] = torch.nan
    y = causal_conv1d(x, normal(3, 3).float(), activation="silu")
    bad = torch.zeros_like(y, dtype=torch.bool)
    bad[1, 2, 4:7] = True
    assert torch.equal(y.isnan(), bad)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_the_bits(normal, threads):
    inputs = [x.float() for x in problem(normal, 3, 8, 3000, 4)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = results(lambda *a: causal_conv1d(*a[:3], "silu", a[3]), inputs, 1.0)
        torch.set_num_threads(threads)
        got = results(lambda *a: causal_conv1d(*a[:3], "silu", a[3]), inputs, 1.0)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got[0], want[0])
    assert all(torch.equal(a, b) for a, b in zip(got[1], want[1], strict=True))


@given(cuts=st.lists(st.integers(0, 23), max_size=4), width=st.integers(1, 6), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_a_stream_in_pieces_is_the_whole(cuts, width, seed):
    draw = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(2, 3, 23, generator=draw), torch.randn(3, width, generator=draw)
    whole, last = causal_conv1d(x, weight, activation="silu", return_final_state=True)
    state, pieces, edges = torch.zeros(2, 3, width - 1), [], [0, *sorted(cuts), 23]
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        y, state = causal_conv1d(x[:, :, a:b], weight, None, "silu", state, return_final_state=True)
        pieces.append(y)
    # The same products in the same order, fused or not.
    torch.testing.assert_close(torch.cat(pieces, 2), whole, rtol=0, atol=1e-5)
    assert torch.equal(state, last)


@given(at=st.integers(0, 19), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_no_token_sees_a_later_one_and_the_filter_is_linear(at, seed):
    draw = torch.Generator().manual_seed(seed)
    x, other, weight = (torch.randn(*s, generator=draw) for s in ((1, 2, 20), (1, 2, 20), (2, 4)))
    changed = x.clone()
    changed[:, :, at:] += 1
    assert torch.equal(causal_conv1d(changed, weight)[:, :, :at], causal_conv1d(x, weight)[:, :, :at])
    mixed = causal_conv1d(2 * x - 3 * other, weight)
    torch.testing.assert_close(
        mixed, 2 * causal_conv1d(x, weight) - 3 * causal_conv1d(other, weight), rtol=0, atol=1e-4
    )


def test_single_tokens_are_the_whole(normal):
    x, weight, bias, state = (y.float() for y in problem(normal, 2, 3, 11, 4))
    whole = causal_conv1d(x, weight, bias, "silu", state)
    tokens = [causal_conv1d_update(state, x[:, :, t], weight, bias, "silu") for t in range(11)]
    torch.testing.assert_close(torch.stack(tokens, 2), whole, rtol=0, atol=1e-5)
    assert torch.equal(state, x[:, :, -3:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(normal, dtype):
    x, weight, bias, state = problem(normal, 2, 3, 20, 4)
    half = [y.to(dtype) for y in (x, weight, bias, state)]
    y, gradients = results(lambda *a: causal_conv1d(*a[:3], "silu", a[3]), half, 1.0)
    assert y.dtype == dtype
    assert all(g.dtype == dtype for g in gradients)
    full = causal_conv1d(*(t.float() for t in half[:3]), "silu", half[3].float())
    assert torch.equal(y, full.to(dtype))  # only the result is rounded


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (2, 3, 0)])
def test_empty_sequences(shape):
    x, weight = torch.zeros(shape, requires_grad=True), torch.zeros(shape[1], 4, requires_grad=True)
    y, state = causal_conv1d(x, weight, activation="silu", return_final_state=True)
    y.sum().backward()
    assert y.shape == shape
    assert state.shape == (*shape[:2], 3)
    assert torch.equal(weight.grad, torch.zeros(shape[1], 4))


def test_any_memory_layout(normal):
    x, weight = normal(2, 5, 7).float(), normal(5, 3).float()
    assert torch.equal(causal_conv1d(x.mT.contiguous().mT, weight.T.contiguous().T), causal_conv1d(x, weight))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 4)}, r"x must be \(batch, dim, length\)"),
        ({"weight": torch.zeros(4, 2)}, r"one filter per channel of x .*weight \(4, 2\), x \(2, 3, 5\)"),
        ({"bias": torch.zeros(2)}, r"bias must hold .*bias \(2,\), weight \(3, 4\)"),
        ({"initial_state": torch.zeros(2, 3, 4)}, r"initial_state must hold .*wanted \(2, 3, 3\)"),
        ({"weight": torch.zeros(3, 4, dtype=torch.int64)}, "weight must be a floating-point"),
        ({"weight": torch.zeros(3, 4, device="meta")}, "weight on meta, x on cpu"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"x": torch.zeros(2, 3, 5), "weight": torch.zeros(3, 4)} | change
    with pytest.raises(ShapeError, match=message):
        causal_conv1d(**arguments)


def test_unknown_activation_and_second_derivative_are_refused():
    x = torch.ones(1, 1, 3, requires_grad=True)
    with pytest.raises(InputError, match="unknown activation"):
        causal_conv1d(x, torch.ones(1, 2), activation="relu")
    (g,) = torch.autograd.grad(causal_conv1d(x, torch.ones(1, 2), activation="silu").sum(), x, create_graph=True)
    with pytest.raises(BackendError, match="no second derivative"):
        torch.autograd.grad(g.sum(), x)


@pytest.mark.parametrize("name", ["chunked", "cpu"])
def test_opcheck(monkeypatch, normal, name):
    monkeypatch.setenv("MEDSEQ_BACKEND", name)
    inputs = [x.float() for x in problem(normal, 2, 3, 6, 4)]
    operators = torch.ops.medseq
    torch.library.opcheck(operators.causal_conv1d.default, (*(x.clone().requires_grad_() for x in inputs), True))
    torch.library.opcheck(operators.causal_conv1d.default, (*inputs[:2], None, None, False))
    torch.library.opcheck(operators.causal_conv1d_backward.default, (torch.ones(2, 3, 6), *inputs, True))


def test_compiles_and_exports_without_a_graph_break(normal):
    class Filter(torch.nn.Module):
        def forward(self, x, weight):
            return causal_conv1d(causal_conv1d(x, weight, activation="silu"), weight.flip(1)).sum()

    inputs = [normal(2, 3, 20).float().requires_grad_(), normal(3, 4).float().requires_grad_()]
    want = Filter()(*inputs)
    compiled = torch.compile(Filter(), fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(compiled, want)
    for a, b in zip(torch.autograd.grad(compiled, inputs), torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        exported = torch.export.export(Filter(), tuple(inputs)).module()
        torch.testing.assert_close(exported(*inputs), want)


def test_the_name_means_the_function_whatever_is_imported_first():
    orders = ("import medseq.ops.causal_conv1d.naive", "from medseq.ops import causal_conv1d", "import medseq.ops")
    for first in orders:
        code = f"{first}; import medseq.ops; print(type(medseq.ops.causal_conv1d).__name__)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout.strip() == "function", done.stderr
