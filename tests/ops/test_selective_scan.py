"""The selective scan: every implementation against the definition, forward and every gradient, and what it refuses."""

import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode

from medseq.errors import BackendError, InputError, ShapeError
from medseq.ops import bidirectional_selective_scan, selective_scan, selective_state_update
from medseq.ops.selective_scan import chunked, mamba_ssm, naive

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
IMPLEMENTATIONS = ("cpu", "chunked")


@pytest.fixture(params=IMPLEMENTATIONS)
def backend(request, monkeypatch):
    monkeypatch.setenv("MEDSEQ_BACKEND", request.param)
    return request.param


@pytest.fixture
def problem(normal):
    """problem(**sizes): keyword arguments of `selective_scan` in float64, as a Mamba layer would make them."""

    def make(batch=2, dim=10, length=70, state=5, groups=2, leave_out=(), constant="", decay=1.0):
        def token_matrix(name):
            return normal(dim, state) if name in constant else normal(batch, groups, state, length)

        inputs = {
            "u": normal(batch, dim, length),
            "delta": normal(batch, dim, length),
            "A": -decay * normal(dim, state).exp(),
            "B": token_matrix("B"),
            "C": token_matrix("C"),
            "D": normal(dim),
            "z": normal(batch, dim, length),
            "delta_bias": normal(dim),
            "initial_state": normal(batch, dim, state),
        }
        return {name: x for name, x in inputs.items() if name not in leave_out}

    return make


def definition(delta_softplus=True, **inputs):
    """The oracle's results: output and last state."""
    given = {name: inputs.get(name) for name in NAMES}
    state = given.pop("initial_state")
    if given["B"].dim() == 3:
        given["B"] = given["B"].unsqueeze(1)
    if given["C"].dim() == 3:
        given["C"] = given["C"].unsqueeze(1)
    return naive.selective_scan(*given.values(), delta_softplus, state)


def operator(delta_softplus=True, **inputs):
    return selective_scan(**inputs, delta_softplus=delta_softplus, return_last_state=True)


def evaluate(function, inputs, weights, dtype, **options):
    """y, last state and every gradient of their weighted sum, by name, as float64."""
    inputs = {name: x.to(dtype).clone().requires_grad_() for name, x in inputs.items()}
    y, last_state = function(**inputs, **options)
    loss = (y * weights[0].to(dtype)).sum() + (last_state * weights[1].to(dtype)).sum()
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    results = {"y": y, "last_state": last_state} | {f"g_{name}": g for name, g in zip(inputs, gradients, strict=True)}
    return {name: x.detach().double() for name, x in results.items()}


def assert_as_good_as_the_formula(inputs, normal, dtype=torch.float32, **options):
    """Error against the definition in float64: at most twice that of the definition in `dtype`, plus rounding."""
    weights = normal(*inputs["u"].shape), normal(*inputs["u"].shape[:2], inputs["A"].shape[1])
    truth = evaluate(definition, inputs, weights, torch.float64, **options)
    plain = evaluate(definition, inputs, weights, dtype, **options)
    ours = evaluate(operator, inputs, weights, dtype, **options)
    assert ours.keys() == truth.keys()
    for name, want in truth.items():
        # A few roundings of the largest value: exponentials, and sums in another order. What strong decay leaves is
        # e^-x, whose exponent is rounded: x times as much. Below the smallest normal number all digits may go.
        largest = want.abs().max().item()
        if name in ("g_A", "g_D", "g_delta_bias"):  # sums over all tokens, whose terms may cancel
            largest = max(largest, *(truth[term].abs().max().item() for term in ("g_u", "g_delta")))
        exponent = max(0.0, -math.log(max(largest, 1e-300)))
        rounding = (16 + 4 * exponent) * torch.finfo(dtype).eps * largest + torch.finfo(dtype).tiny
        if dtype == torch.float64:  # the truth is rounded like the result, and its own error is not in `plain`
            rounding *= 4
        allowed = 2 * (plain[name] - want).abs().max().item() + rounding
        error = (ours[name] - want).abs().max().item()
        assert ours[name].shape == want.shape
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 63, 64, 65, 100, 257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_length(backend, problem, normal, length, dtype):
    assert_as_good_as_the_formula(problem(length=length), normal, dtype)


@pytest.mark.parametrize(
    "sizes",
    [
        {"groups": 1, "dim": 1, "state": 1},
        {"groups": 1, "dim": 7, "state": 16},
        {"groups": 4, "dim": 4, "state": 3},
        {"groups": 3, "dim": 24, "state": 2},
        {"groups": 1, "dim": 2, "state": 130, "length": 20},
        {"batch": 5, "groups": 1, "dim": 3, "state": 1},
        {"constant": "B", "groups": 1},
        {"constant": "C"},
        {"constant": "BC"},
        {"leave_out": ("D", "z", "delta_bias", "initial_state")},
        {"leave_out": ("z",)},
        {"leave_out": ("delta_bias", "initial_state"), "constant": "B"},
    ],
    ids=str,
)
def test_every_shape_and_choice_of_inputs(backend, problem, normal, sizes):
    assert_as_good_as_the_formula(problem(**sizes), normal)
    assert_as_good_as_the_formula(problem(**sizes), normal, torch.float64)


def test_without_softplus(backend, problem, normal):
    inputs = problem()
    inputs["delta"], inputs["delta_bias"] = inputs["delta"].abs(), inputs["delta_bias"].abs()
    assert_as_good_as_the_formula(inputs, normal, delta_softplus=False)


def test_several_spans_of_the_chunked_form(backend, problem, normal):
    # More tokens than one span holds, and an odd rest.
    assert_as_good_as_the_formula(problem(batch=1, dim=3, length=2100, state=1, groups=1), normal)


@pytest.mark.parametrize("decay", [30.0, 1e3, 1e4])
def test_strong_decay(backend, problem, normal, decay):
    # |delta A| to 1e4 and beyond: every quotient of decays would overflow.
    assert_as_good_as_the_formula(problem(decay=decay), normal, torch.float64)
    assert_as_good_as_the_formula(problem(decay=decay), normal)


def test_growth_up_to_overflow_is_that_of_the_definition(backend, problem):
    inputs = problem(batch=1, length=40, decay=-1.0, leave_out=("z", "initial_state"))
    single = {name: x.float() for name, x in inputs.items()}
    y, want, plain = operator(**single)[0], definition(**inputs)[0], definition(**single)[0]
    # Positive A: the relative error of e^x is that of x, here below 100, times x; beyond the largest float32 the
    # definition itself gives inf or nan.
    fits = want.abs().lt(1e30) & plain.isfinite()
    assert fits.any()
    assert ((y - want)[fits].abs() <= 1e-3 * want[fits].abs() + 1e-3).all()


@pytest.mark.parametrize("case", ["0_full_G1", "2_G4_noz", "3_nod_nobias_nosoftplus"])
@pytest.mark.parametrize("name", ["naive", "chunked", "cpu"])
def test_numbers_of_the_original(monkeypatch, case, name):
    monkeypatch.setenv("MEDSEQ_BACKEND", name)
    with safe_open(GOLDEN / f"ss2d_selective_scan_{case}.safetensors", "pt") as file:
        golden = {key: file.get_tensor(key) for key in file.keys()}
        config = json.loads(file.metadata()["config"])
    inputs = {key: golden[f"in.{key}"].requires_grad_() for key in NAMES if f"in.{key}" in golden}
    y, last_state = operator(**inputs, delta_softplus=config["delta_softplus"])
    gradients = torch.autograd.grad((y * golden["in.gy"]).sum(), list(inputs.values()))
    results = {"out.y": y, "out.last_state": last_state}
    results |= {f"grad.{key}": g for key, g in zip(inputs, gradients, strict=True)}
    assert results.keys() == {key for key in golden if not key.startswith("in.")}
    for key, got in results.items():
        error = ((got - golden[key]).abs().max() / golden[key].abs().max()).item()
        assert error <= 1e-5, f"{key}: error {error:.2e} of the maximum"


@pytest.mark.parametrize("constant", ["", "B", "BC"])
def test_gradients_match_finite_differences(backend, problem, constant):
    inputs = problem(batch=1, dim=2, length=5, state=2, constant=constant, groups=1)
    names, tensors = list(inputs), [x.requires_grad_() for x in inputs.values()]
    run = lambda *x: operator(**dict(zip(names, x, strict=True)))  # noqa: E731
    assert torch.autograd.gradcheck(run, tensors, eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_only_storage(backend, problem, dtype):
    inputs = {name: x.float() for name, x in problem().items()}
    half = {name: x.to(dtype) if x.dim() > 2 and name != "initial_state" else x for name, x in inputs.items()}
    half = {name: x.clone().requires_grad_() for name, x in half.items()}
    y, last_state = operator(**half)
    gradients = torch.autograd.grad(y.sum(), list(half.values()))
    assert (y.dtype, last_state.dtype) == (dtype, torch.float32)
    assert [g.dtype for g in gradients] == [x.dtype for x in half.values()]
    # Only the result is rounded: bit-equal to float32 on the rounded inputs.
    wide_y, wide_state = operator(**{name: x.detach().float() for name, x in half.items()})
    assert torch.equal(y, wide_y.to(dtype))
    assert torch.equal(last_state, wide_state)


def test_one_float64_input_widens_the_sums(backend, problem):
    inputs = {name: x.float() for name, x in problem().items()}
    y, last_state = operator(**(inputs | {"A": inputs["A"].double()}))
    wide_y, wide_state = operator(**{name: x.double() for name, x in inputs.items()})
    assert (y.dtype, last_state.dtype) == (torch.float32, torch.float64)
    assert torch.equal(y, wide_y.float())
    assert torch.equal(last_state, wide_state)


@pytest.mark.parametrize("shape", [(0, 3, 4, 2), (2, 0, 4, 2), (2, 3, 0, 2), (2, 3, 4, 0), (0, 0, 0, 0)])
def test_empty_inputs(backend, shape):
    batch, dim, length, state = shape
    tensors = [torch.ones(batch, dim, length), torch.ones(batch, dim, length), torch.ones(dim, state)]
    tensors += [torch.ones(batch, 1, state, length) for _ in "BC"]
    inputs = {name: x.requires_grad_() for name, x in zip("u delta A B C".split(), tensors, strict=True)}
    start = torch.full((batch, dim, state), 3.0, requires_grad=True)
    y, last_state = operator(**inputs, initial_state=start)
    assert (y.shape, last_state.shape) == ((batch, dim, length), (batch, dim, state))
    if length == 0:
        assert torch.equal(last_state, start)
    gradients = torch.autograd.grad(y.sum() + last_state.sum(), [*inputs.values(), start])
    assert [g.shape for g in gradients] == [x.shape for x in [*inputs.values(), start]]
    assert not any(g.any() for g in gradients[:-1])
    if length == 0:
        assert torch.equal(gradients[-1], torch.ones_like(start))


def test_no_state_leaves_the_direct_connection(backend, problem):
    inputs = problem(state=0, groups=1)
    y = selective_scan(**inputs)
    torch.testing.assert_close(y, inputs["D"][:, None] * inputs["u"] * torch.nn.functional.silu(inputs["z"]))


def test_any_strides(backend, problem, normal):
    inputs = problem()
    strange = {name: x.transpose(0, -1).contiguous().transpose(0, -1) for name, x in inputs.items()}
    strange["u"], strange["z"] = torch.cat([inputs["u"], inputs["z"]], 1).chunk(2, 1)
    strange["delta"] = inputs["delta"][:, :1, :1].expand_as(inputs["delta"])
    assert not any(strange[name].is_contiguous() for name in ("u", "delta", "z", "B"))
    y, last_state = operator(**strange)
    want = operator(**{name: x.contiguous() for name, x in strange.items()})
    assert torch.equal(y, want[0])
    assert torch.equal(last_state, want[1])
    assert_as_good_as_the_formula(strange, normal)


def test_b_and_c_of_one_group_need_no_group_axis(backend, problem):
    inputs = problem(groups=1)
    flat = inputs | {"B": inputs["B"][:, 0], "C": inputs["C"][:, 0]}
    assert all(torch.equal(a, b) for a, b in zip(operator(**flat), operator(**inputs), strict=True))


def test_inputs_are_left_alone(backend, problem):
    inputs = problem(state=1)
    before = {name: x.clone() for name, x in inputs.items()}
    needing = {name: x.requires_grad_() for name, x in inputs.items()}
    y, last_state = operator(**needing)
    torch.autograd.grad(y.sum() + last_state.sum(), list(needing.values()))
    assert all(torch.equal(before[name], x) for name, x in inputs.items())


def test_a_step_is_the_scan(backend, problem):
    inputs = problem(length=20)
    want, want_state = operator(**inputs)
    state = inputs["initial_state"].clone()
    fixed = (inputs["D"], inputs["delta_bias"])
    for t in range(20):
        u, delta, B, C, z = (inputs[name][..., t] for name in ("u", "delta", "B", "C", "z"))
        y = selective_state_update(state, u, delta, inputs["A"], B, C, fixed[0], z, fixed[1], True)
        torch.testing.assert_close(y, want[..., t], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, want_state, rtol=1e-12, atol=1e-12)


def test_a_step_keeps_a_float32_state_beside_half_precision_tokens(problem):
    inputs = {name: x.float() for name, x in problem(length=1, groups=1).items()}
    state = inputs["initial_state"].clone()
    u, delta, B, C = (inputs[name][..., 0].bfloat16() for name in ("u", "delta", "B", "C"))
    y = selective_state_update(state, u, delta, inputs["A"], B[:, 0], C[:, 0])
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert not torch.equal(state, inputs["initial_state"])


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_bidirectional_is_a_scan_and_a_flipped_scan(backend, normal, merge, shared):
    batch, dim, length, state = 2, 3, 70, 4
    u = normal(batch, dim, length) if shared else normal(batch, 2, dim, length)
    delta, z = normal(batch, 2, dim, length), normal(batch, dim, length)
    A, D, bias = -normal(2 * dim, state).exp(), normal(2 * dim), normal(2 * dim)
    B, C = normal(batch, 2, state, length), normal(batch, 2, state, length)
    tensors = [x.requires_grad_() for x in (u, delta, A, B, C, D, z, bias)]
    y = bidirectional_selective_scan(*tensors, delta_softplus=True, merge=merge)
    one, other = (u, u) if shared else u.unbind(1)
    first, second = slice(0, dim), slice(dim, 2 * dim)
    ahead = selective_scan(one, delta[:, 0], A[first], B[:, 0], C[:, 0], D[first], z, bias[first], True)
    flipped = [x.flip(-1) for x in (other, delta[:, 1], B[:, 1], C[:, 1], z)]
    back = selective_scan(
        *flipped[:2], A[second], *flipped[2:4], D[second], flipped[4], bias[second], delta_softplus=True
    ).flip(-1)
    want = ahead + back if merge else torch.stack([ahead, back], 1)
    torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-12)
    weight = normal(*y.shape)
    gradients = zip(*(torch.autograd.grad((x * weight).sum(), tensors) for x in (y, want)), strict=True)
    for got, wanted in gradients:
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_messages_name_both_sides(problem):
    inputs = {name: x.float() for name, x in problem().items()}

    def refuses(match, error=ShapeError, **changes):
        with pytest.raises(error, match=match):
            selective_scan(**(inputs | changes))

    refuses(r"u must be \(batch, dim, length\) \(found u \(10, 70\)", u=inputs["u"][0])
    refuses(r"delta \(2, 10, 69\), u \(2, 10, 70\), wanted delta \(2, 10, 70\)", delta=inputs["delta"][..., 1:])
    refuses(r"z \(2, 9, 70\), u \(2, 10, 70\)", z=inputs["z"][:, 1:])
    refuses(r"A \(9, 5\), u \(2, 10, 70\), wanted A \(10, state\)", A=inputs["A"][1:])
    refuses(r"D \(5,\), u \(2, 10, 70\), wanted D \(10,\)", D=inputs["D"][:5])
    refuses(r"delta_bias \(10, 1\)", delta_bias=inputs["delta_bias"][:, None])
    refuses(r"initial_state \(1, 10, 5\).*wanted initial_state \(2, 10, 5\)", initial_state=inputs["initial_state"][:1])
    refuses(r"B \(2, 2, 4, 70\), u \(2, 10, 70\), A \(10, 5\)", B=inputs["B"][:, :, 1:])
    refuses(r"C \(5, 10\).*wanted C \(10, 5\)", C=torch.ones(5, 10))
    refuses(r"B with 3 groups, u with 10 channels", B=torch.ones(2, 3, 5, 70))
    refuses(r"same number of groups \(found B 2, C 1\)", C=inputs["C"][:, 0])
    refuses(r"delta torch\.float64, u torch\.float32.*only autocast", delta=inputs["delta"].double())
    refuses(r"B torch\.bfloat16, u torch\.float32", B=inputs["B"].bfloat16())
    refuses(r"u torch\.int64, wanted float32", u=inputs["u"].long())
    refuses(r"D on meta, u on cpu", D=inputs["D"].to("meta"))
    refuses(r"A must be real \(found A torch\.complex64", InputError, A=inputs["A"] + 0j)


def test_messages_of_the_step_and_of_both_directions(problem):
    inputs = {name: x.float() for name, x in problem(length=1).items()}
    step = {name: inputs[name][..., 0] for name in ("u", "delta", "B", "C")} | {"A": inputs["A"]}
    with pytest.raises(ShapeError, match=r"state \(2, 10, 4\), u \(2, 10\), wanted state \(2, 10, 5\)"):
        selective_state_update(torch.zeros(2, 10, 4), **step)
    with pytest.raises(ShapeError, match=r"B \(2, 3, 5\), u \(2, 10\), wanted B \(2, 5\)"):
        selective_state_update(torch.zeros(2, 10, 5), **(step | {"B": torch.ones(2, 3, 5)}))
    u, delta = torch.ones(2, 4, 6), torch.ones(2, 2, 4, 6)
    A, B = torch.ones(8, 3), torch.ones(2, 2, 3, 6)
    with pytest.raises(ShapeError, match=r"A \(4, 3\), u \(2, 4, 6\), wanted A \(8, state\)"):
        bidirectional_selective_scan(u, delta, A[:4], B, B)
    with pytest.raises(ShapeError, match=r"u \(2, 3, 4, 6\)"):
        bidirectional_selective_scan(torch.ones(2, 3, 4, 6), delta, A, B, B)
    with pytest.raises(ShapeError, match=r"C \(2, 3, 6\), u \(2, 4, 6\), wanted C \(2, 2, 3, 6\)"):
        bidirectional_selective_scan(u, delta, A, B, B[:, 0])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("leave_out", [("initial_state",), ("initial_state", "D", "z", "delta_bias")])
def test_the_adapter_of_mamba_ssm_passes_what_its_kernels_expect(monkeypatch, problem, leave_out, reverse):
    # No CUDA build here: a stand-in with the extension's calling convention, computing with the definition.
    kernels = types.ModuleType("selective_scan_cuda")

    def fwd(u, delta, A, B, C, D, z, bias, softplus):
        ungated, state = naive.selective_scan(u, delta, A, B, C, D, None, bias, softplus, None)
        states = torch.stack([torch.zeros_like(state), state], -1).flatten(2).unsqueeze(2)
        return (ungated, states) if z is None else (ungated, states, ungated * torch.nn.functional.silu(z))

    def bwd(u, delta, A, B, C, D, z, bias, gy, states, ungated, gz_buffer, softplus, recompute):
        assert (ungated is None) == (z is None)
        assert states.shape == (*u.shape[:2], 1, 2 * A.shape[1])
        assert (gz_buffer, recompute) == (None, False)
        found = naive.backward(gy, None, u, delta, A, B, C, D, z, bias, softplus, None, states)
        return (*found[:6], found[7], *(() if z is None else (found[6],)))

    kernels.fwd, kernels.bwd = fwd, bwd
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", kernels)
    inputs = {name: x.float() for name, x in problem(length=9, leave_out=leave_out).items()}
    arguments = [*(inputs.get(name) for name in NAMES[:-1]), True, None]
    y, state, kept = mamba_ssm.forward(*arguments, reverse)
    want, want_state, _ = naive.forward(*arguments, reverse)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(state, want_state)
    gradients = mamba_ssm.backward(torch.ones_like(y), None, *arguments, kept, reverse)
    for got, wanted in zip(gradients, naive.backward(torch.ones_like(y), None, *arguments, kept, reverse), strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            torch.testing.assert_close(got, wanted)


def test_a_forced_backend_that_is_not_here_is_refused(monkeypatch, problem):
    monkeypatch.setenv("MEDSEQ_BACKEND", "triton")
    with pytest.raises(BackendError, match="triton runs on cuda tensors, not on cpu"):
        selective_scan(**problem())
    monkeypatch.setenv("MEDSEQ_BACKEND", "mamba_ssm")
    with pytest.raises(BackendError, match="mamba_ssm runs on cuda tensors.*unset MEDSEQ_BACKEND"):
        selective_scan(**problem())


class Calls(TorchDispatchMode):
    """Counts the torch operations that run inside."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def calls(function):
    with Calls() as counter:
        function()
    return counter.count


def test_the_chunked_form_has_no_loop_over_tokens(normal):
    def inputs(length):
        u, delta = normal(1, 64, length).float(), normal(1, 64, length).float()
        return u, delta, -torch.ones(64, 16), *(normal(1, 1, 16, length).float() for _ in "BC"), None, None, None

    counts = {}
    for length in (1000, 10_000):
        tensors = inputs(length)
        y, _, kept = chunked.forward(*tensors, True, None)
        counts[length, "forward"] = calls(lambda: chunked.forward(*tensors, True, None))  # noqa: B023
        counts[length, "backward"] = calls(lambda: chunked.backward(y, None, *tensors, True, None, kept))  # noqa: B023
    for way in ("forward", "backward"):
        assert counts[10_000, way] <= 12 * counts[1000, way]
    # Far fewer than one for each token.
    assert counts[10_000, "forward"] < 10_000 / 2


def test_memory_of_the_chunked_form_is_linear():
    # In a process of its own, whose peak is its own.
    code = """
import resource, torch
from medseq.ops import selective_scan
torch.set_num_threads(1)
def train(length):
    u = torch.randn(1, 512, length, requires_grad=True)
    B = torch.randn(1, 16, length, requires_grad=True)
    A = torch.randn(512, 16).exp().neg().requires_grad_()
    selective_scan(u, u, A, B, B, delta_softplus=True).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(train(4096) - train(1024))
"""
    environment = os.environ | {"MEDSEQ_BACKEND": "chunked"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    # 3072 more tokens are 6.3 MB in each of about ten arrays like u; their states alone would be 100 MB an array.
    assert int(done.stdout) * 1024 < 16 * 512 * 3072 * 4
