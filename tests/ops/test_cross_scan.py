"""The cross scan: orders against the original's numbers, every implementation against the definition."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medseq.ops import cross_merge, cross_scan, cross_selective_scan, selective_scan
from medseq.ops.backend import compiled_kernels
from medseq.ops.cross_scan import naive

GOLDEN = Path(__file__).parents[1] / "golden" / "ss2d_cross_8x6.safetensors"
NAMES = ("y", "gx", "gdelta", "gA", "gB", "gC", "gD", "gdelta_bias")
DIRECTIONS = tuple(naive.ORDERS)
SHAPES = [(1, 1), (1, 9), (9, 1), (1, 130), (130, 1), (2, 3), (5, 7), (8, 8), (13, 11), (17, 16), (7, 38), (70, 5)]


@pytest.fixture(params=["cpu", "chunked"])
def backend(request, monkeypatch):
    monkeypatch.setenv("MEDSEQ_BACKEND", request.param)
    return request.param


@pytest.fixture
def problem(normal):
    """problem(rows, cols, ...): x, delta, A, B, C, D, delta_bias, gy like a model's; 11 channels fill no vector."""

    def make(rows, cols, states=2, channels=11, batch=2):
        x, gy = normal(batch, channels, rows, cols), normal(batch, channels, rows, cols)
        delta, bias = normal(batch, 4, channels, rows, cols), normal(4 * channels) - 1
        A = -normal(4 * channels, states).exp()
        B, C = (normal(batch, 4, states, rows, cols) for _ in "BC")
        return x, delta, A, B, C, normal(4 * channels), bias, gy

    return make


def evaluate(function, inputs, dtype, softplus=True, directions="cross"):
    """y and the gradients of all inputs that are there, as float64."""
    *args, gy = (None if t is None else t.to(dtype) for t in inputs)
    args = [None if t is None else t.clone().requires_grad_() for t in args]
    y = function(*args, softplus, directions)
    gradients = torch.autograd.grad(y, [t for t in args if t is not None], gy)
    return [t.detach().double() for t in (y, *gradients)]


def assert_as_good_as_the_formula(inputs, dtype=torch.float32, **options):
    """Error against the definition in float64: at most twice that of the definition in `dtype`, plus rounding."""
    truth = evaluate(naive.cross_selective_scan, inputs, torch.float64, **options)
    plain = evaluate(naive.cross_selective_scan, inputs, dtype, **options)
    ours = evaluate(cross_selective_scan, inputs, dtype, **options)
    for i, (want, of_definition, got) in enumerate(zip(truth, plain, ours, strict=True)):
        # 20 roundings of the largest value: a result is a sum over four directions, of up to hundreds of products
        # whose rounding errors partly cancel.
        rounding = 20 * torch.finfo(dtype).eps * max(want.abs().max().item(), 1.0)
        allowed = 2 * (of_definition - want).abs().max().item() + rounding
        error = (got - want).abs().max().item()
        assert error <= allowed, f"{NAMES[i]}: error {error:.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize(("number", "directions"), list(enumerate(DIRECTIONS)))
def test_the_orders_of_the_original(number, directions):
    golden = load_file(GOLDEN)
    x = golden["in.x"].requires_grad_()
    scanned = cross_scan(x, directions)
    assert torch.equal(scanned.flatten(3), golden[f"out.scan{number}"])
    merged = cross_merge(golden["in.ys"], directions)
    # Adding four numbers in another order: a few roundings of numbers of size 4.
    torch.testing.assert_close(merged.flatten(2), golden[f"out.merge{number}"], rtol=0, atol=2e-6)
    (gx,) = torch.autograd.grad(scanned.flatten(3), x, golden["in.gxs"])
    torch.testing.assert_close(gx, golden[f"grad.scan{number}_x"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_merging_the_four_copies_gives_four_times_the_image(normal, rows, cols, directions):
    x, y = normal(2, 3, rows, cols), normal(2, 4, 3, rows, cols)
    scanned = cross_scan(x, directions)
    assert torch.equal(cross_merge(scanned, directions), 4 * x)
    # Adjoint: <scan x, y> = <x, merge y>.
    inner = (x * cross_merge(y, directions)).sum()
    torch.testing.assert_close((scanned * y).sum(), inner, rtol=0, atol=1e-11)


@pytest.mark.parametrize("states", [1, 2, 16])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_every_shape(backend, problem, rows, cols, states):
    if rows * cols > 250 and states == 16:  # autograd of the definition takes seconds there
        states = 3
    assert_as_good_as_the_formula(problem(rows, cols, states))


@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize(("rows", "cols"), [(5, 7), (13, 21)])
def test_other_directions_and_float64(backend, problem, directions, rows, cols):
    assert_as_good_as_the_formula(problem(rows, cols), torch.float64, directions=directions)
    assert_as_good_as_the_formula(problem(rows, cols), directions=directions)


@pytest.mark.parametrize(("channels", "states"), [(1, 1), (4, 3), (8, 5), (16, 4), (19, 7)])
def test_any_number_of_channels_and_states(backend, problem, channels, states):
    assert_as_good_as_the_formula(problem(9, 10, states, channels, batch=3))


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("missing", [(), (5,), (6,), (5, 6)])
def test_without_d_or_bias_or_softplus(backend, problem, softplus, missing):
    inputs = list(problem(6, 11, 3))
    if not softplus:  # a negative step would let the state grow
        inputs[1], inputs[6] = inputs[1].abs() * 0.3, inputs[6].abs() * 0.3
    for i in missing:
        inputs[i] = None
    assert_as_good_as_the_formula(inputs, softplus=softplus)


def test_no_state_at_all_leaves_the_direct_connection(backend, problem):
    x, delta, A, B, C, D, bias, _ = problem(5, 6, states=0)
    y = cross_selective_scan(x, delta, A, B, C, D, bias)
    torch.testing.assert_close(y, x * D.view(4, -1).sum(0)[:, None, None])


def test_an_image_as_four_sequences_of_the_one_dimensional_scan(backend, problem):
    # Independent of this package's oracle: the public scan, with flips and transpositions written out.
    x, delta, A, B, C, D, bias, _ = problem(6, 9, 4)
    total = torch.zeros_like(x)
    for k, (columns, reverse) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):

        def ordered(t, columns=columns, reverse=reverse):
            t = t.transpose(-1, -2) if columns else t
            return t.flatten(-2).flip(-1) if reverse else t.flatten(-2)

        part = slice(k * 11, (k + 1) * 11)
        u, dt, b, c = (ordered(t) for t in (x, delta[:, k], B[:, k], C[:, k]))
        y = selective_scan(u, dt, A[part], b, c, D[part], None, bias[part], True)
        y = y.flip(-1) if reverse else y
        total += y.view(2, 11, 9, 6).transpose(2, 3) if columns else y.view(2, 11, 6, 9)
    got = cross_selective_scan(x, delta, A, B, C, D, bias, True)
    torch.testing.assert_close(got, total, rtol=1e-12, atol=1e-12)


# Image operation -> where each direction goes.
SYMMETRIES = {
    "transpose": (lambda t: t.transpose(-1, -2), (1, 0, 3, 2)),
    "half turn": (lambda t: t.flip(-1, -2), (2, 3, 0, 1)),
    "both": (lambda t: t.transpose(-1, -2).flip(-1, -2), (3, 2, 1, 0)),
}


@pytest.mark.parametrize("name", SYMMETRIES)
def test_turning_the_image_permutes_the_directions(backend, problem, name):
    turn, order = SYMMETRIES[name]
    x, delta, A, B, C, D, bias, _ = problem(6, 9, 3)
    moved = [turn(t)[:, order] for t in (delta, B, C)]
    parameters = [t.view(4, 11, -1)[list(order)].reshape(t.shape) for t in (A, D, bias)]
    got = cross_selective_scan(turn(x), moved[0], parameters[0], *moved[1:], *parameters[1:], True)
    want = turn(cross_selective_scan(x, delta, A, B, C, D, bias, True))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("softplus", "size"), [(True, 1.0), (False, 100.0)])
def test_gradients_match_finite_differences(backend, problem, softplus, size):
    # Exponents delta A up to about -300 take the branch that clamps.
    x, delta, A, B, C, D, bias, _ = problem(3, 4, 2, channels=2, batch=1)
    inputs = [x, delta if softplus else delta.abs(), A * size, B, C, D, bias if softplus else bias * 0]
    inputs = [t.requires_grad_() for t in inputs]
    # The difference quotient's own error: eps^2 times third derivatives, and 1e-16 / eps times the values.
    assert torch.autograd.gradcheck(
        lambda *t: cross_selective_scan(*t, softplus), inputs, eps=1e-7, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1, 3])
def test_nan_stays_in_its_batch_item(backend, problem, where, bad):
    inputs = list(problem(9, 10, 2, batch=3))
    inputs[where] = inputs[where].clone()
    inputs[where][1, ..., 4, 5] = bad
    clean = evaluate(cross_selective_scan, problem_without(inputs, 1), torch.float32)
    dirty = evaluate(cross_selective_scan, inputs, torch.float32)
    if bad != bad:
        assert dirty[0][1].isnan().any()
    for i in (0, 1, 2, 4, 5):
        # Pure torch's reductions may round differently in a larger batch.
        torch.testing.assert_close(dirty[i][[0, 2]], clean[i], rtol=1e-5, atol=1e-5)


def problem_without(inputs, item):
    keep = [i for i in range(3) if i != item]
    return [t[keep] if i in (0, 1, 3, 4, 7) else t for i, t in enumerate(inputs)]


def test_a_huge_exponent_forgets_without_nan(backend, problem):
    x, delta, A, B, C, D, bias, gy = problem(7, 9, 2)
    assert_as_good_as_the_formula((x, delta, A - 1e4, B, C, D, bias, gy))
    results = evaluate(cross_selective_scan, (x, delta, A - 1e4, B, C, D, bias, gy), torch.float32)
    assert all(t.isfinite().all() for t in results)


def test_memory_order_does_not_matter(backend, problem):
    inputs = [t.float() for t in problem(9, 10, 3)]
    x, delta, A, B, C, D, bias, gy = inputs
    strided = [
        x.to(memory_format=torch.channels_last),
        delta.transpose(3, 4).contiguous().transpose(3, 4),
        A.t().contiguous().t(),
        torch.stack([B, B + 1], -1)[..., 0],
        C.flip(1).contiguous().flip(1),
        torch.stack([D, D], 1)[:, 0],
        bias,
        gy.to(memory_format=torch.channels_last),
    ]
    assert not strided[0].is_contiguous()
    dense = evaluate(cross_selective_scan, inputs, torch.float32)
    for a, b in zip(evaluate(cross_selective_scan, strided, torch.float32), dense, strict=True):
        assert torch.equal(a, b)


def test_expanded_inputs_get_summed_gradients(backend, problem):
    x, _, A, B, C, D, bias, _ = problem(5, 6, 2)
    one = x[:, None].detach().requires_grad_()
    many = one.detach().repeat(1, 4, 1, 1, 1).requires_grad_()
    (a,) = torch.autograd.grad(cross_selective_scan(x, one.expand(-1, 4, -1, -1, -1), A, B, C, D).sum(), one)
    (b,) = torch.autograd.grad(cross_selective_scan(x, many, A, B, C, D).sum(), many)
    torch.testing.assert_close(a, b.sum(1, keepdim=True))


def test_every_instruction_set_agrees(monkeypatch, problem):
    monkeypatch.setenv("MEDSEQ_BACKEND", "cpu")
    for name in compiled_kernels().instruction_sets():
        monkeypatch.setenv("MEDSEQ_CPU_ISA", name)
        for dtype in (torch.float32, torch.float64):
            assert_as_good_as_the_formula(problem(7, 18, 3, channels=21), dtype)


def test_the_number_of_threads_changes_no_bit(monkeypatch, problem):
    monkeypatch.setenv("MEDSEQ_BACKEND", "cpu")
    inputs = problem(33, 20, 4, channels=50, batch=3)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(evaluate(cross_selective_scan, inputs, torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
