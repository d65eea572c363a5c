"""The compiled selective scan against a plain recurrence in float64: values, every gradient, every kind of input."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medseq.ops.backend import _instruction_sets, compiled_kernels
from medseq.ops.selective_scan import cpu

NAMES = ("y", "last", "u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


@pytest.fixture(params=_instruction_sets(), autouse=True)
def isa(request, monkeypatch):
    monkeypatch.setenv("MEDSEQ_CPU_ISA", request.param)
    return request.param


@pytest.fixture
def threads():
    """threads(n) sets the number of threads until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def recurrence(u, delta, A, B, C, D, z, delta_bias, softplus, initial_state, reverse):
    """The definition, token by token, differentiable; A may also be given per token, (length, channel, state)."""
    turned = (lambda x: x.flip(-1)) if reverse else (lambda x: x)
    heads = u.shape[1]

    def per_token(x):
        return x[None, :, :, None] if x.dim() == 2 else turned(x).repeat_interleave(heads // x.shape[1], 1)

    x, step = turned(u), turned(delta)
    step = step if delta_bias is None else step + delta_bias[:, None]
    step = F.softplus(step) if softplus else step
    B, C = per_token(B), per_token(C)
    h = u.new_zeros(*u.shape[:2], A.shape[-1]) if initial_state is None else initial_state
    y = []
    for t in range(u.shape[2]):
        b, c = (m[..., t] if m.shape[-1] > 1 else m[..., 0] for m in (B, C))
        rate = A if A.dim() == 2 else A[t]
        h = torch.exp(step[:, :, t, None] * rate) * h + (step * x)[:, :, t, None] * b
        y.append((h * c).sum(-1))
    y = torch.stack(y, -1)
    y = y if D is None else y + D[:, None] * x
    y = y if z is None else y * F.silu(turned(z))
    return turned(y), h


class Case:
    """Random inputs as float64, with the recurrence's results and gradients for random gradients of y and the state."""

    def __init__(self, normal, batch=2, channels=11, length=70, states=5, groups=1, **kinds):
        self.softplus, self.reverse = kinds.pop("softplus", True), kinds.pop("reverse", False)
        present = {name: kinds.pop(name, True) for name in ("D", "z", "delta_bias", "initial_state")}
        constant = {name: kinds.pop(name, False) for name in ("constant_b", "constant_c")}
        std = kinds.pop("std", 1.0)
        assert not kinds
        rows, token = (batch, channels, length), (batch, groups, states, length)
        delta = normal(*rows, std=std)
        self.tensors = {
            "u": normal(*rows),
            # Without softplus the step sizes must be positive for the state not to grow without limit.
            "delta": delta if self.softplus else delta.abs() / 8 + 1,
            "A": -normal(channels, states).exp(),
            "B": normal(channels, states) if constant["constant_b"] else normal(*token),
            "C": normal(channels, states) if constant["constant_c"] else normal(*token),
            "D": normal(channels) if present["D"] else None,
            "z": normal(*rows) if present["z"] else None,
            "delta_bias": normal(channels, std=0.1) if present["delta_bias"] else None,
            "initial_state": normal(batch, channels, states) if present["initial_state"] else None,
        }
        self.gy, self.glast = normal(*rows), normal(batch, channels, states)

    def arguments(self, dtype=torch.float64, **other):
        inputs = [None if x is None else x.to(dtype) for x in ({**self.tensors, **other}).values()]
        return [*inputs[:8], self.softplus, inputs[8]]

    def plain(self, dtype=torch.float64):
        """Results and gradients of the recurrence, computed in `dtype`."""
        leaves = [x.requires_grad_() if isinstance(x, Tensor) else x for x in self._copies(dtype)]
        results = recurrence(*leaves, self.reverse)
        wanted = [x for x in leaves if isinstance(x, Tensor)]
        outer = [self.gy.to(dtype), self.glast.to(dtype)]
        found = iter(torch.autograd.grad(results, wanted, outer, allow_unused=True, materialize_grads=True))
        gradients = [next(found) if isinstance(x, Tensor) else None for x in leaves if not isinstance(x, bool)]
        return [x.detach() for x in results] + gradients

    def kernel(self, dtype=torch.float64, keep=True, **other):
        """The same of the compiled kernel; keep=False withholds the checkpoints from the way back."""
        inputs = self.arguments(dtype, **other)
        y, last, checkpoints = cpu.forward(*inputs, self.reverse)
        checkpoints = checkpoints if keep else checkpoints.new_empty(0)
        return [y, last, *cpu.backward(self.gy.to(dtype), self.glast.to(dtype), *inputs, checkpoints, self.reverse)]

    def _copies(self, dtype):
        return [x.clone() if isinstance(x, Tensor) else x for x in self.arguments(dtype)]


def error(found, truth, scale=None):
    """Largest error relative to `scale`, or to the largest value."""
    return ((found.double() - truth).abs().max() / (truth.abs().max() if scale is None else scale)).item()


def scales(case, truth):
    """By name, what errors are measured against.

    The gradients of A, D and delta_bias are sums over tokens that may cancel: their terms' absolute values, summed.
    """
    values = dict(zip(NAMES, truth, strict=True))
    found = {name: x.abs().max() for name, x in values.items() if x is not None}
    found["delta_bias"] = values["delta"].abs().sum((0, 2)).max()
    gate = 1 if case.tensors["z"] is None else F.silu(case.tensors["z"])
    found["D"] = (case.gy * gate * case.tensors["u"]).abs().sum((0, 2)).max()
    inputs = case.arguments()
    rates = inputs[2].expand(inputs[0].shape[2], -1, -1).clone().requires_grad_()
    y, last = recurrence(*inputs[:2], rates, *inputs[3:], case.reverse)
    (terms,) = torch.autograd.grad([y, last], [rates], [case.gy, case.glast])
    found["A"] = terms.abs().sum(0).max()
    return found


def assert_as_good_as_plain_torch(case, dtype):
    """At most twice the error of the recurrence in the same dtype, plus 8 roundings of the largest value.

    The kernel sums over tokens and channels in another order, which is worth a few roundings even where the recurrence
    happens to be exact.
    """
    truth, plain, ours = case.plain(), case.plain(dtype), case.kernel(dtype)
    scale = scales(case, truth)
    for name, a, b, c in zip(NAMES, truth, plain, ours, strict=True):
        if a is None:
            assert c is None, name
            continue
        assert c.dtype == dtype, name
        assert c.shape == a.shape, name
        allowed = 8 * torch.finfo(dtype).eps
        if dtype == torch.float32:
            allowed += 2 * error(b, a, scale[name])
        assert error(c, a, scale[name]) <= allowed, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
def test_every_length_equals_the_recurrence(normal, length, dtype):
    assert_as_good_as_plain_torch(Case(normal, length=length), dtype)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("states", "length"), [(1, 1100), (16, 700)])
def test_scans_longer_than_a_run_of_tiles_equal_the_recurrence(normal, states, length, reverse):
    case = Case(normal, batch=1, channels=17, states=states, length=length, reverse=reverse)
    assert_as_good_as_plain_torch(case, torch.float32)


@pytest.mark.parametrize("states", [1, 2, 3, 16, 33])
@pytest.mark.parametrize("channels", [1, 8, 21])
def test_every_size_equals_the_recurrence(normal, channels, states):
    assert_as_good_as_plain_torch(Case(normal, channels=channels, states=states, length=66), torch.float32)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["constant_b", "constant_c", "both", "groups"])
def test_every_kind_of_B_and_C_equals_the_recurrence(normal, kind, reverse):
    kinds = (
        {"groups": 3} if kind == "groups" else {"constant_b": kind != "constant_c", "constant_c": kind != "constant_b"}
    )
    assert_as_good_as_plain_torch(Case(normal, channels=33, reverse=reverse, **kinds), torch.float32)


def test_random_mixtures_of_options_equal_the_recurrence(normal, seed):
    draw = random.Random(seed)
    for _ in range(8):
        groups = draw.choice([1, 2, 3])
        options = {
            name: draw.random() < 0.5 for name in ("softplus", "reverse", "D", "z", "delta_bias", "initial_state")
        }
        case = Case(
            normal, batch=draw.choice([1, 3]), channels=groups * draw.choice([1, 7, 30]), length=draw.choice([5, 129]),
            states=draw.choice([1, 4, 7]), groups=groups, **options,
        )  # fmt: skip
        assert_as_good_as_plain_torch(case, draw.choice([torch.float32, torch.float64]))


def test_no_states_leaves_the_direct_connection(normal):
    case = Case(normal, states=0, z=False)
    y, last, *_ = case.kernel()
    torch.testing.assert_close(y, case.tensors["D"][:, None] * case.tensors["u"])
    assert last.shape == (2, 11, 0)


@pytest.mark.parametrize("size", [{"length": 0}, {"batch": 0}])
def test_empty_problems_return_empty_results_and_zero_gradients(normal, size):
    case = Case(normal, **size)
    y, last, *gradients = case.kernel()
    assert y.shape == case.tensors["u"].shape
    if "length" in size:
        torch.testing.assert_close(last, case.tensors["initial_state"])
        torch.testing.assert_close(gradients[-1], case.glast)
    for name, x in zip(NAMES[2:-1], gradients, strict=False):
        assert x.shape == case.tensors[name].shape
        assert not x.any(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reverse", [False, True])
def test_checkpoints_may_be_withheld(normal, reverse, dtype):
    case = Case(normal, length=150, reverse=reverse)
    for name, a, b in zip(NAMES, case.kernel(dtype), case.kernel(dtype, keep=False), strict=True):
        assert torch.equal(a, b), name


def test_results_do_not_depend_on_the_number_of_threads(normal, threads):
    case = Case(normal, channels=100, length=130, states=8)
    threads(1)
    one = case.kernel(torch.float32)
    for count in (2, 3):
        threads(count)
        for name, a, b in zip(NAMES, one, case.kernel(torch.float32), strict=True):
            assert torch.equal(a, b), name


def test_rows_are_read_in_place_whatever_their_strides(normal):
    case = Case(normal, channels=9)
    both = torch.cat([case.tensors["u"], case.tensors["z"]], 1)
    u, z = both.chunk(2, dim=1)
    assert not u.is_contiguous()
    turned = case.tensors["delta"].mT.contiguous().mT
    expanded = case.tensors["B"][:1].expand(2, -1, -1, -1)
    ours = case.kernel(u=u, z=z, delta=turned, B=expanded)
    case.tensors["B"] = expanded
    for name, a, b in zip(NAMES, case.plain(), ours, strict=True):
        assert error(b, a) < 1e-13, name


def test_rows_may_lie_more_than_two_to_the_31_elements_apart(normal):
    case = Case(normal, batch=1, channels=2, length=40, z=False)
    far = 2**31 + 5
    # Only the pages of the two rows are ever touched.
    memory = torch.from_numpy(np.empty(far + 64, dtype=np.float32))
    u = memory.as_strided((1, 2, 40), (0, far, 1))
    u.copy_(case.tensors["u"])
    y, *_ = cpu.forward(*case.arguments(torch.float32, u=u), False)
    near, *_ = cpu.forward(*case.arguments(torch.float32), False)
    assert torch.equal(y, near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [100.0, 150.0, 1e4])
def test_large_exponents_neither_overflow_nor_turn_to_nan(normal, size, dtype):
    case = Case(normal, softplus=False, delta_bias=False)
    case.tensors["delta"] = case.tensors["delta"] * 0 + 1
    case.tensors["delta"][:, :, ::7] = size
    case.tensors["A"] = case.tensors["A"] * 0 - 1
    case.tensors["A"][1:4] = 0.0
    for name, a, b in zip(NAMES, case.plain(), case.kernel(dtype), strict=True):
        if a is not None:
            assert error(b, a) < 100 * torch.finfo(dtype).eps, name


def test_positive_A_overflows_to_infinity_where_the_definition_does(normal):
    case = Case(normal, softplus=False, delta_bias=False, D=False, z=False, states=1)
    case.tensors["A"] = case.tensors["A"] * 0 + 130
    case.tensors["delta"] = case.tensors["delta"] * 0 + 1
    case.tensors["B"], case.tensors["C"] = (case.tensors[k].abs() + 1 for k in ("B", "C"))
    case.tensors["u"], case.tensors["initial_state"] = (case.tensors[k].abs() for k in ("u", "initial_state"))
    y, last, *_ = case.kernel(torch.float32)
    assert torch.isinf(y).all()
    assert torch.isinf(last).all()


@pytest.mark.parametrize("payload", [0x7FC00000, 0x7FC00001, 0xFFC12345 - 2**32])
@pytest.mark.parametrize("name", ["u", "delta", "z", "B", "initial_state"])
def test_nan_stays_in_its_batch_item(normal, name, payload):
    case = Case(normal, batch=3)
    inputs = {k: None if x is None else x.float() for k, x in case.tensors.items()}
    nan = torch.tensor([payload], dtype=torch.int32).view(torch.float32)[0]
    clean = case.kernel(torch.float32)
    inputs[name][1].view(-1)[3] = nan
    dirty = case.kernel(torch.float32, **{name: inputs[name]})
    assert torch.isnan(dirty[0][1]).any()
    for key, a, b in zip(NAMES, clean, dirty, strict=True):
        if a.shape[0] == 3:
            assert torch.equal(a[[0, 2]], b[[0, 2]]), key


def test_a_fading_state_ends_at_zero(normal):
    case = Case(normal, length=4000, softplus=False, D=False, z=False, delta_bias=False, channels=8)
    case.tensors["u"] = case.tensors["u"] * 0
    case.tensors["delta"] = case.tensors["delta"] * 0 + 0.1
    y, last, *_ = case.kernel(torch.float32)
    assert torch.isfinite(y).all()
    truth, _ = recurrence(*case.arguments(), case.reverse)
    assert error(y, truth) < 1e-5


def test_constants_without_softplus_keep_the_state_exactly(normal):
    case = Case(normal, softplus=False, delta_bias=False, D=False, z=False)
    case.tensors["delta"] = case.tensors["delta"] * 0
    for dtype in (torch.float32, torch.float64):
        _, last, *_ = case.kernel(dtype)
        assert torch.equal(last, case.tensors["initial_state"].to(dtype))


def test_out_of_memory_raises(isa):
    kernels = compiled_kernels()
    sizes = [1, 8, 64, 1 << 48, 1, 1]
    with pytest.raises(MemoryError):
        kernels.selective_scan_forward(isa, False, sizes, [0] * 4, [0] * 15, [0] * 5, 1)
    with pytest.raises(MemoryError):
        kernels.selective_scan_backward(isa, False, sizes, [0] * 4, [0] * 15, [0] * 5, [0] * 15, 1)


def test_lists_of_the_wrong_length_are_refused(isa):
    with pytest.raises(ValueError, match="wrong count of arguments"):
        compiled_kernels().selective_scan_forward(isa, False, [1, 8, 64], [0] * 4, [0] * 15, [0] * 5, 1)


@pytest.mark.parametrize(("dtype", "ulps"), [(torch.float32, 2), (torch.float64, 2)])
def test_the_kernels_exponential(isa, generator, dtype, ulps):
    x = (torch.rand(1003, generator=generator) * 250 - 125).to(dtype)
    y = torch.empty_like(x)
    compiled_kernels().exp2(isa, dtype == torch.float64, x.numel(), x.data_ptr(), y.data_ptr())
    truth = torch.exp2(x.double())
    assert ((y.double() / truth - 1).abs().max() <= ulps * torch.finfo(dtype).eps).item()
