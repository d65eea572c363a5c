"""`medseq::selective_scan` as a torch operator: dispatch, compilation, checkpointing, threads, memory, DDP."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from medseq.errors import BackendError
from medseq.ops import backends, bidirectional_selective_scan, selective_scan
from medseq.ops.selective_scan import chunked, cpu, naive

IMPLEMENTATIONS = {"naive": naive, "chunked": chunked, "cpu": cpu}


@pytest.fixture(params=["chunked", "cpu"])
def backend(request, monkeypatch):
    monkeypatch.setenv("MEDSEQ_BACKEND", request.param)
    return request.param


@pytest.fixture
def inputs(normal):
    """u, delta, A, B, C, D, z, delta_bias in float32: batch 2, dim 6, length 70, state 4, 2 groups."""
    tensors = [normal(2, 6, 70), normal(2, 6, 70), -normal(6, 4).exp(), normal(2, 2, 4, 70), normal(2, 2, 4, 70)]
    return [x.float() for x in (*tensors, normal(6), normal(2, 6, 70), normal(6))]


def scan(*tensors):
    return selective_scan(*tensors, delta_softplus=True)


def with_gradients(function, tensors):
    needing = [x.detach().clone().requires_grad_() for x in tensors]
    y = function(*needing)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), needing)]


def assert_same(got, want, tolerance=1e-6):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(b.abs().max().item(), 1))


@pytest.mark.parametrize("bare", [False, True])
def test_opcheck(backend, inputs, normal, bare):
    short = [x[..., :9].contiguous() if x.dim() > 2 else x for x in inputs]
    start = normal(2, 6, 4).float()
    optional = [None] * 3 if bare else short[5:]
    needing = [x if x is None else x.clone().requires_grad_() for x in (*short[:5], *optional, start)]
    arguments = (*needing[:8], True, None if bare else needing[8])
    operator = torch.ops.medseq.selective_scan.default
    torch.library.opcheck(operator, (*arguments, False, True))
    torch.library.opcheck(operator, (*arguments, True, False))
    plain = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    y, state, kept = operator(*plain, True, True)
    assert kept.numel() > 0
    backward = torch.ops.medseq.selective_scan_backward.default
    torch.library.opcheck(backward, (torch.ones_like(y), None if bare else torch.ones_like(state), *plain, kept, True))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_forced_backend_is_what_runs(monkeypatch, inputs, name):
    monkeypatch.setenv("MEDSEQ_BACKEND", name)
    arguments = (*inputs, True, None)
    assert torch.equal(scan(*inputs), IMPLEMENTATIONS[name].forward(*arguments, False)[0])
    gradients = with_gradients(scan, inputs)
    y, _, kept = IMPLEMENTATIONS[name].forward(*arguments, False)
    *want, _ = IMPLEMENTATIONS[name].backward(2 * y, None, *arguments, kept, False)
    assert all(torch.equal(a, b) for a, b in zip(gradients[1:], want, strict=True))


def test_gradients_without_kept_states_are_the_same(backend, inputs):
    # What a caller of the bare operator gets who did not ask for them.
    arguments = (*inputs, True, None)
    y, _, kept = torch.ops.medseq.selective_scan(*arguments, False, True)
    nothing = torch.ops.medseq.selective_scan(*arguments, False, False)[2]
    assert nothing.numel() == 0
    run = torch.ops.medseq.selective_scan_backward
    for a, b in zip(run(y, None, *arguments, kept, False), run(y, None, *arguments, nothing, False), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("function", [scan, lambda *x: scan(*x) + scan(x[1], x[0], *x[2:])], ids=["once", "twice"])
def test_compiles_without_a_graph_break(backend, inputs, function):
    # aot_eager traces forward and backward as every backend does; generating code for them is torch's own matter.
    compiled = torch.compile(lambda *x: function(2 * x[0], *x[1:]), fullgraph=True, backend="aot_eager")
    assert_same(with_gradients(compiled, inputs), with_gradients(lambda *x: function(2 * x[0], *x[1:]), inputs))


def test_both_directions_compile(inputs, normal):
    delta, B, C = normal(2, 2, 6, 70).float(), normal(2, 2, 4, 70).float(), normal(2, 2, 4, 70).float()
    tensors = [inputs[0], delta.abs(), inputs[2].repeat(2, 1), B, C]
    compiled = torch.compile(bidirectional_selective_scan, fullgraph=True, backend="aot_eager")
    assert_same(with_gradients(compiled, tensors), with_gradients(bidirectional_selective_scan, tensors))


class Layer(torch.nn.Module):
    """The least that has parameters: rates and a direct connection."""

    def __init__(self):
        super().__init__()
        self.A_log = torch.nn.Parameter(torch.arange(1.0, 5.0).log().repeat(6, 1))
        self.D = torch.nn.Parameter(torch.ones(6))

    def forward(self, u, delta, B, C):
        return selective_scan(u, delta, -self.A_log.exp(), B, C, self.D, delta_softplus=True)


def test_exports_with_any_length(inputs):
    u, delta, _, B, C = inputs[:5]
    layer, length = Layer(), torch.export.Dim("length", min=2)
    program = torch.export.export(
        layer, (u, delta, B, C), dynamic_shapes=({2: length}, {2: length}, *[{3: length}] * 2)
    )
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert "medseq.selective_scan.default" in names
    for count in (70, 33):
        shorter = [x[..., :count] for x in (u, delta, B, C)]
        assert_same([program.module()(*shorter).detach()], [layer(*shorter).detach()])


def test_two_uses_in_one_graph(backend, inputs):
    # y feeds a second scan with the same parameters, whose gradients add up.
    def twice(u, *rest):
        return scan(scan(u, *rest), *rest)

    def oracle(u, *rest):
        run = lambda x: naive.selective_scan(x, *rest, True, None)[0]  # noqa: E731
        return run(run(u))

    wide = [x.double() for x in inputs]
    assert_same(with_gradients(twice, wide), with_gradients(oracle, wide), 1e-10)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(backend, inputs, reentrant):
    def kept(*tensors):
        return checkpoint(scan, *tensors, use_reentrant=reentrant)

    def backward(function):
        needing = [x.clone().requires_grad_() for x in inputs]
        function(*needing).square().sum().backward()
        return [x.grad for x in needing]

    assert all(torch.equal(a, b) for a, b in zip(backward(kept), backward(scan), strict=True))


def test_vmap_is_refused(inputs):
    u, *rest = inputs
    with pytest.raises(BackendError, match="selective_scan cannot be vmapped.*it has a batch axis"):
        torch.func.vmap(lambda x: scan(x, *rest))(torch.stack([u, u]))


def test_a_second_derivative_is_refused_not_wrong(inputs):
    needing = [x.clone().requires_grad_() for x in inputs]
    (gu,) = torch.autograd.grad(scan(*needing).sum(), needing[0], create_graph=True)
    with pytest.raises(BackendError, match="no second derivative.*naive"):
        gu.sum().backward()


def test_only_what_needs_gradients_gets_them(backend, inputs):
    u, delta, A, *rest = inputs
    A = A.clone().requires_grad_()
    y, last_state = selective_scan(u, delta, A, *rest, delta_softplus=True, return_last_state=True)
    assert (y.requires_grad, last_state.requires_grad) == (True, True)
    (through_state,) = torch.autograd.grad(last_state.sum(), A, retain_graph=True)
    wide = [x.detach().double() for x in (u, delta, A, *rest)]
    wide[2].requires_grad_()
    (want,) = torch.autograd.grad(naive.selective_scan(*wide, True, None)[1].sum(), wide[2])
    torch.testing.assert_close(through_state, want.float(), rtol=1e-4, atol=1e-5 * want.abs().max().item())


def test_autocast_mixes_dtypes_and_keeps_that_of_u(backend, inputs):
    u, delta, A, B, C, D, z, bias = inputs
    project = torch.nn.Linear(6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = project(u.transpose(1, 2)).transpose(1, 2)
        y = selective_scan(half, delta, A, B, C, D, z, bias, delta_softplus=True)
    assert (half.dtype, y.dtype) == (torch.bfloat16, torch.bfloat16)
    # The scan itself is in float32: what differs from it is the rounding of the result.
    assert torch.equal(y, selective_scan(half.float(), delta, A, B, C, D, z, bias, delta_softplus=True).bfloat16())
    y.float().sum().backward()
    assert project.weight.grad.isfinite().all()


def test_nan_stays_in_its_batch_item(backend, inputs):
    u, delta, A, B, C, D, z, bias = inputs
    clean = with_gradients(scan, inputs)
    for spoilt in (0, 1, 3, 4, 6):  # u, delta, B, C, z
        bad = [x.clone() for x in inputs]
        bad[spoilt][0, ..., 11] = torch.nan
        results = with_gradients(scan, bad)
        assert results[0][0].isnan().any()
        assert torch.equal(results[0][1], clean[0][1])
        for index in (1, 2, 4, 5, 7):
            assert torch.equal(results[index][1], clean[index][1])


def test_concurrent_calls(backend, normal):
    problems = []
    for count in range(8):
        shapes = [(1, 16, 200 + count)] * 2 + [(16, 4)] + [(1, 1, 4, 200 + count)] * 2
        tensors = [normal(*shape).float() for shape in shapes]
        problems.append([*tensors[:2], -tensors[2].exp(), *tensors[3:]])
    alone = [with_gradients(scan, tensors) for tensors in problems]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda tensors: with_gradients(scan, tensors), problems * 4))
    for index, results in enumerate(together):
        assert all(torch.equal(a, b) for a, b in zip(results, alone[index % 8], strict=True))


def test_rows_further_apart_than_32_bits_count(monkeypatch, normal):
    # Batch items 2^31 elements apart in memory that is reserved but, being never touched, not used.
    monkeypatch.setenv("MEDSEQ_BACKEND", "cpu")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    apart, tokens = (1 << 31) + 64, normal(2, 3, 40).float()
    reserved = torch.empty(apart + 3 * 40)
    u = reserved.as_strided((2, 3, 40), (apart, 40, 1))
    u.copy_(tokens)
    A, B = -normal(3, 4).exp().float(), normal(2, 4, 40).float()
    assert torch.equal(selective_scan(u, u, A, B, B, z=u), selective_scan(tokens, tokens, A, B, B, z=tokens))


def test_backends_names_every_scan(monkeypatch):
    monkeypatch.delenv("MEDSEQ_BACKEND", raising=False)
    assert backends()["selective_scan"]["cpu"].name == "cpu"
    monkeypatch.setenv("MEDSEQ_BACKEND", "chunked")
    assert backends()["selective_scan"]["cuda"] == ("chunked", "MEDSEQ_BACKEND=chunked")
    monkeypatch.setenv("MEDSEQ_BACKEND", "cpu")
    assert backends()["selective_scan"]["cuda"].name == "unavailable"
    monkeypatch.setenv("MEDSEQ_BACKEND", "mamba_ssm")
    assert "has no bi_wkv" in backends()["bi_wkv"]["cpu"].reason


WORKER = """
import sys, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from medseq.ops import selective_scan
rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.A_log = torch.nn.Parameter(torch.arange(1.0, 5.0).log().repeat(6, 1))
        self.project = torch.nn.Linear(6, 6)
    def forward(self, u, B):
        delta = self.project(u.transpose(1, 2)).transpose(1, 2)
        return selective_scan(u, delta, -self.A_log.exp(), B, B, delta_softplus=True)
torch.manual_seed(0)
layer, u, B = Layer(), torch.randn(2, 6, 70), torch.randn(2, 4, 70)
parallel = DistributedDataParallel(layer)
parallel(u[rank : rank + 1], B[rank : rank + 1]).square().sum().backward()
shared = [p.grad.clone() for p in layer.parameters()]
layer.zero_grad()
layer(u, B).square().sum().div(2).backward()
for a, p in zip(shared, layer.parameters()):
    torch.testing.assert_close(a, p.grad, rtol=1e-5, atol=1e-5)
dist.destroy_process_group()
print("same")
"""


def test_distributed_training_averages_the_gradients(tmp_path):
    command = [sys.executable, "-c", WORKER]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    workers = [subprocess.Popen([*command, str(rank), str(tmp_path / "store")], **options) for rank in range(2)]
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert (worker.returncode, out.strip().splitlines()[-1:]) == (0, ["same"]), err
