"""`medseq::cross_selective_scan` as a torch operator: dispatch, dtypes, empty inputs, messages, compilation."""

from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from medseq.errors import BackendError, InputError, ShapeError
from medseq.ops import cross_merge, cross_scan, cross_selective_scan
from medseq.ops.cross_scan import chunked, naive

BACKENDS = [name for name in ("chunked", "cpu") if (Path(naive.__file__).parent / f"{name}.py").exists()]


@pytest.fixture
def inputs(normal):
    """x (2, 5, 6, 7), delta, A with 3 states, B, C, D, delta_bias in float32."""
    A = -normal(20, 3).exp()
    tensors = normal(2, 5, 6, 7), normal(2, 4, 5, 6, 7), A, normal(2, 4, 3, 6, 7), normal(2, 4, 3, 6, 7)
    return tuple(t.float() for t in (*tensors, normal(20), normal(20)))


def gradients(args, directions="cross"):
    args = [None if t is None else t.detach().clone().requires_grad_() for t in args]
    y = cross_selective_scan(*args, True, directions)
    return y, torch.autograd.grad(y.float().square().sum(), [t for t in args if t is not None])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("without", [(), (5, 6)])
def test_opcheck(monkeypatch, inputs, name, without):
    monkeypatch.setenv("MEDSEQ_BACKEND", name)
    args = [None if i in without else t.clone() for i, t in enumerate(inputs)]
    needing = [None if t is None else t.clone().requires_grad_() for t in args]
    forward = torch.ops.medseq.cross_selective_scan
    torch.library.opcheck(forward.default, (*needing, True, "cross", True))
    _, kept = forward(*args, True, "cross", True)
    backward = torch.ops.medseq.cross_selective_scan_backward.default
    torch.library.opcheck(backward, (torch.randn_like(inputs[0]), *args, True, "cross", kept))


@pytest.mark.parametrize("name", BACKENDS)
def test_backward_finds_states_again_that_were_not_kept(monkeypatch, inputs, name):
    monkeypatch.setenv("MEDSEQ_BACKEND", name)
    gy = torch.randn_like(inputs[0])
    results = []
    for keep in (True, False):
        _, kept = torch.ops.medseq.cross_selective_scan(*inputs, True, "cross", keep)
        assert bool(kept.numel()) == keep
        results.append(torch.ops.medseq.cross_selective_scan_backward(gy, *inputs, True, "cross", kept))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_states_are_kept_only_for_gradients(monkeypatch, inputs):
    monkeypatch.setenv("MEDSEQ_BACKEND", "chunked")
    kept = []
    forward = chunked.checkpoint_shape
    monkeypatch.setattr(chunked, "checkpoint_shape", lambda *args: kept.append(1) or forward(*args))
    cross_selective_scan(*inputs)
    needing = inputs[0].clone().requires_grad_()
    with torch.no_grad():
        cross_selective_scan(needing, *inputs[1:])
    assert not kept
    cross_selective_scan(needing, *inputs[1:])
    assert kept


@pytest.mark.parametrize("name", ["naive", "chunked"])
def test_a_forced_backend_is_what_runs(monkeypatch, inputs, name):
    monkeypatch.setenv("MEDSEQ_BACKEND", name)
    module = {"naive": naive, "chunked": chunked}[name]
    y, grads = gradients(inputs)
    want, kept = module.forward(*inputs, True)
    assert torch.equal(y, want)
    wanted = module.backward(2 * y.detach(), *inputs, True, kept)
    assert all(torch.equal(a, b) for a, b in zip(grads, wanted, strict=True))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("directions", ["cross", "bidirectional"])
def test_compiles_without_a_graph_break_used_twice(monkeypatch, inputs, name, directions):
    monkeypatch.setenv("MEDSEQ_BACKEND", name)

    # aot_eager traces forward and backward as every backend does; generating code for them is torch's own matter.
    def loss(x, *rest):
        y = cross_selective_scan(x, *rest, True, directions)
        return (cross_selective_scan(y.tanh(), *rest, True) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        args = [t.clone().requires_grad_() for t in inputs]
        value = function(*args)
        results.append((value.detach(), *torch.autograd.grad(value, args)))
    for a, b in zip(*results, strict=True):
        # The same operators in the same order; only torch's own functions between them may be fused differently.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


class Layer(torch.nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.rest = torch.nn.ParameterList(t.clone() for t in inputs[1:])

    def forward(self, x):
        return cross_selective_scan(x, *self.rest, True)


def test_exports(inputs):
    layer = Layer(inputs)
    program = torch.export.export(layer, (inputs[0],))
    # It leaves as plain torch, in another order of sums: the same to rounding.
    assert "medseq" not in str(program.graph)
    torch.testing.assert_close(program.module()(inputs[0]), layer(inputs[0]), rtol=1e-4, atol=1e-5)


def test_activation_checkpointing_changes_nothing(inputs):
    layer = Layer(inputs)
    results = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        layer.zero_grad()
        run(inputs[0]).square().sum().backward()
        results.append([p.grad for p in layer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(inputs, dtype):
    x, delta, A, B, C, D, bias = inputs
    half = [x.to(dtype), delta.to(dtype), A, B.to(dtype), C.to(dtype), D, bias]
    y, grads = gradients(half)
    assert y.dtype == dtype
    assert [g.dtype for g in grads] == [t.dtype for t in half]
    # Only the result is rounded: bit-equal to float32 on the rounded inputs.
    assert torch.equal(y, cross_selective_scan(*(t.float() for t in half), True).to(dtype))


def test_the_result_has_the_dtype_of_x(inputs):
    x, *rest = inputs
    y = cross_selective_scan(x, *(t.double() for t in rest), True)
    assert y.dtype == torch.float32
    assert torch.equal(y, cross_selective_scan(x.double(), *(t.double() for t in rest), True).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cross_selective_scan(x.bfloat16(), *rest).dtype == torch.bfloat16


@pytest.mark.parametrize("name", [*BACKENDS, "naive"])
@pytest.mark.parametrize(("batch", "channel", "rows", "cols"), [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_empty_inputs(monkeypatch, name, batch, channel, rows, cols):
    monkeypatch.setenv("MEDSEQ_BACKEND", name)
    per_token = torch.ones(batch, 4, 2, rows, cols)
    args = [
        torch.ones(batch, channel, rows, cols),
        torch.ones(batch, 4, channel, rows, cols),
        -torch.ones(4 * channel, 2),
        *(per_token, per_token),
        *(torch.ones(4 * channel), torch.ones(4 * channel)),
    ]
    y, grads = gradients(args)
    assert y.shape == args[0].shape
    assert [g.shape for g in grads] == [t.shape for t in args]
    assert not any(g.any() for g in grads)


def test_inputs_are_left_alone(inputs):
    before = [t.clone() for t in inputs]
    gradients(inputs)
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))


def test_a_second_derivative_is_refused_not_wrong(inputs):
    args = [t.clone().requires_grad_() for t in inputs]
    (gx,) = torch.autograd.grad(cross_selective_scan(*args).sum(), args[0], create_graph=True)
    with pytest.raises(BackendError, match="no second derivative"):
        gx.sum().backward()


def test_vmap_is_refused_with_the_way_out(inputs):
    with pytest.raises(BackendError, match=r"cross_selective_scan cannot be vmapped.*batch axis"):
        torch.vmap(cross_selective_scan, in_dims=(0, *[None] * 6))(inputs[0][None], *inputs[1:])


def test_messages_name_both_sides(inputs):
    x, delta, A, B, C, D, bias = inputs
    with pytest.raises(ShapeError, match=r"x must be \(batch, channel, row, col\).*3 axes, \(5, 6, 7\)"):
        cross_selective_scan(x[0], delta, A, B, C, D)
    with pytest.raises(ShapeError, match=r"A \(19, 3\), x \(2, 5, 6, 7\), wanted A \(20, state\)"):
        cross_selective_scan(x, delta, A[1:], B, C, D)
    with pytest.raises(ShapeError, match=r"delta \(2, 3, 5, 6, 7\), x \(2, 5, 6, 7\).*wanted delta \(2, 4, 5, 6, 7\)"):
        cross_selective_scan(x, delta[:, 1:], A, B, C, D)
    with pytest.raises(ShapeError, match=r"B \(2, 4, 2, 6, 7\).*A \(20, 3\), wanted B \(2, 4, 3, 6, 7\)"):
        cross_selective_scan(x, delta, A, B[:, :, 1:], C, D)
    with pytest.raises(ShapeError, match=r"C \(2, 4, 3, 7, 6\).*wanted C \(2, 4, 3, 6, 7\)"):
        cross_selective_scan(x, delta, A, B, C.transpose(3, 4), D)
    with pytest.raises(ShapeError, match=r"D \(5,\).*wanted D \(20,\)"):
        cross_selective_scan(x, delta, A, B, C, D[:5])
    with pytest.raises(ShapeError, match=r"delta_bias \(4, 5\).*wanted delta_bias \(20,\)"):
        cross_selective_scan(x, delta, A, B, C, D, bias.view(4, 5))
    with pytest.raises(ShapeError, match=r"A torch\.complex64"):
        cross_selective_scan(x, delta, A.to(torch.complex64), B, C, D)
    with pytest.raises(ShapeError, match="B on meta, x on cpu"):
        cross_selective_scan(x, delta, A, B.to("meta"), C, D)
    with pytest.raises(InputError, match=r"found diagonal, wanted cross \| forward \| bidirectional"):
        cross_selective_scan(x, delta, A, B, C, D, directions="diagonal")
    with pytest.raises(InputError, match="cross_scan.*found diagonal"):
        cross_scan(x, "diagonal")
    with pytest.raises(ShapeError, match=r"cross_scan.*3 axes, \(5, 6, 7\)"):
        cross_scan(x[0])
    with pytest.raises(ShapeError, match=r"cross_merge.*5 axes, \(2, 3, 5, 6, 7\)"):
        cross_merge(delta[:, 1:])
