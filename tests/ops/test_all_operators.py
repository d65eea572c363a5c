"""What holds for every operator, swept by the table of operators: a new one fails here until it has a case."""

import gc
import os
import threading
from collections.abc import Callable
from typing import NamedTuple

import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from medseq.errors import BackendError
from medseq.ops import backend, bi_wkv, causal_conv1d, cross_selective_scan, selective_scan
from medseq.ops.causal_conv1d import chunked as convs
from medseq.ops.cross_scan import chunked as crosses
from medseq.ops.selective_scan import chunked as scans
from medseq.ops.wkv import chunked as wkvs


class Case(NamedTuple):
    """An operator and inputs for it, batched along axis 0 where `batched` says so."""

    call: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    batched: tuple[bool, ...]


@pytest.fixture(params=backend.OPERATORS)
def case(request, normal) -> Case:
    shapes = {
        "bi_wkv": ((5,), (5,), (3, 20, 5), (3, 20, 5)),
        "selective_scan": ((3, 4, 20), (3, 4, 20), (4, 2), (3, 2, 20), (3, 2, 20)),
        "cross_selective_scan": ((3, 2, 5, 4), (3, 4, 2, 5, 4), (8, 2), (3, 4, 2, 5, 4), (3, 4, 2, 5, 4), (8,)),
        "causal_conv1d": ((3, 4, 20), (4, 4), (4,)),
    }[request.param]
    inputs = [normal(*shape).float() for shape in shapes]
    if "scan" in request.param:
        inputs[1], inputs[2] = inputs[1].abs() * 0.3, -inputs[2].exp()
    if request.param == "bi_wkv":
        inputs[0] *= 0.03
    call = {
        "bi_wkv": bi_wkv,
        "selective_scan": selective_scan,
        "cross_selective_scan": cross_selective_scan,
        "causal_conv1d": lambda x, w, b: causal_conv1d(x, w, b, "silu"),
    }[request.param]
    return Case(call, tuple(inputs), tuple(x.shape[0] == 3 and x.dim() > 2 for x in inputs))


class Layer(nn.Module):
    """The operator with its second input as a parameter, used twice in one graph."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.call, self.rest = case.call, case.inputs[2:]
        self.parameter = nn.Parameter(case.inputs[1].clone())

    def forward(self, x: Tensor) -> Tensor:
        once = self.call(x, self.parameter, *self.rest)
        return once + self.call(x * 0.5, self.parameter, *self.rest)


def gradients(run: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    return list(torch.autograd.grad(run(x).square().sum(), [x, *layer.parameters()]))


def test_compiles_twice_in_one_graph(case):
    layer = Layer(case)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(compiled, layer, case.inputs[0]), gradients(layer, layer, case.inputs[0]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_exports(case):
    layer = Layer(case)
    with torch.no_grad():
        program = torch.export.export(layer, (case.inputs[0],))
        # The operators of the networks that ship leave as plain torch, which other runtimes know; the others stay.
        is_ours = any("medseq" in str(node.target) for node in program.graph.nodes)
        assert is_ours == (case.call not in (bi_wkv, cross_selective_scan))
        torch.testing.assert_close(program.module()(case.inputs[0]), layer(case.inputs[0]))


def test_activation_checkpointing_changes_nothing(case):
    layer = Layer(case)
    again = gradients(lambda x: checkpoint(layer, x, use_reentrant=False), layer, case.inputs[0])
    for a, b in zip(again, gradients(layer, layer, case.inputs[0]), strict=True):
        assert torch.equal(a, b)


def test_vmap_is_refused_with_the_way_out(case):
    with pytest.raises(BackendError, match="cannot be vmapped.*batch axis"):
        torch.vmap(lambda x: case.call(x, *case.inputs[1:]))(case.inputs[0][None])


def test_a_second_derivative_is_refused(case):
    x = case.inputs[0].clone().requires_grad_()
    (g,) = torch.autograd.grad(case.call(x, *case.inputs[1:]).square().sum(), x, create_graph=True)
    with pytest.raises(BackendError, match="no second derivative"):
        torch.autograd.grad(g.sum(), x)


def test_nan_stays_in_its_batch_item(case):
    for place, batched in enumerate(case.batched):
        if not batched:
            continue
        bad = [x.clone() for x in case.inputs]
        bad[place][1].view(-1)[0] = torch.nan
        y, clean = case.call(*bad), case.call(*case.inputs)
        assert y[1].isnan().any()
        assert torch.equal(y[[0, 2]], clean[[0, 2]])


def test_an_empty_batch_gives_an_empty_result_and_zero_gradients(case):
    empty = [x[:0] if batched else x.clone() for x, batched in zip(case.inputs, case.batched, strict=True)]
    empty = [x.detach().requires_grad_() for x in empty]
    y = case.call(*empty)
    found = torch.autograd.grad(y.sum(), empty)
    assert y.shape[0] == 0
    assert all(g.shape == x.shape and not g.any() for g, x in zip(found, empty, strict=True))


@pytest.mark.parametrize("name", ["naive", "chunked", "cpu"])
def test_autocast_leaves_the_operator_alone(monkeypatch, case, name):
    monkeypatch.setenv("MEDSEQ_BACKEND", name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = case.call(*case.inputs)
    assert y.dtype == torch.float32
    assert torch.equal(y, case.call(*case.inputs))


def test_concurrent_calls_do_not_disturb_each_other(case):
    layer, wrong = Layer(case), []
    want = gradients(layer, layer, case.inputs[0])

    def work() -> None:
        for _ in range(5):
            found = gradients(layer, layer, case.inputs[0])
            wrong.extend(not torch.equal(a, b) for a, b in zip(found, want, strict=True))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 4 * 5 * len(want)
    assert not any(wrong)


def test_ten_thousand_calls_leak_nothing(monkeypatch, case):
    monkeypatch.setenv("MEDSEQ_BACKEND", "cpu")
    process = psutil.Process(os.getpid())
    needing = [x.detach().requires_grad_() for x in case.inputs]

    def call(times: int) -> int:
        for _ in range(times):
            y = case.call(*needing)
            torch.autograd.grad(y, needing, y.detach())
        gc.collect()
        return process.memory_info().rss

    call(500)  # fills caches
    before = call(500)
    # 100 bytes a call would be 1 MB: the smallest tensor or scratch that stays behind weighs more.
    assert call(10_000) - before < 1 << 20


class Calls(TorchDispatchMode):
    """Counts the torch operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def pure_torch(name: str, tokens: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Forward and backward of an operator's chunked form on `tokens` tokens."""
    u, delta, A = torch.ones(1, 8, tokens), torch.ones(1, 8, tokens), -torch.ones(8, 4)
    B, image = torch.ones(1, 1, 4, tokens), torch.ones(1, 2, tokens // 20, 20)
    steps, B4 = torch.ones(1, 4, 2, tokens // 20, 20), torch.ones(1, 4, 4, tokens // 20, 20)
    scan, k, w = (u, delta, A, B, B, None, None, None, True, None), torch.ones(1, tokens, 8), torch.ones(8) / tokens
    cross, convention = (image, steps, A, B4, B4, None, None, True), "chunk64" if name == "chunk64" else "exact"
    if name == "selective_scan":
        kept = scans.forward(*scan)[2]
        return lambda: scans.forward(*scan), lambda: scans.backward(u, None, *scan, kept)
    if name == "cross_selective_scan":
        kept = crosses.forward(*cross)[1]
        return lambda: crosses.forward(*cross), lambda: crosses.backward(image, *cross, kept)
    if name == "causal_conv1d":
        taps = torch.ones(8, 4)
        return lambda: convs.forward(u, taps, None, None, True), lambda: convs.backward(u, u, taps, None, None, True)
    return lambda: wkvs.forward(w, w, k, k, convention), lambda: wkvs.backward(k, w, w, k, k, convention)


@pytest.mark.parametrize("name", [*backend.OPERATORS, "chunk64"])
def test_pure_torch_loops_over_no_tokens(name):
    counts = {}
    for tokens in (1000, 10_000):
        for way, run in zip(("forward", "backward"), pure_torch(name, tokens), strict=True):
            with Calls() as calls:
                run()
            counts[tokens, way] = calls.count
    for way in ("forward", "backward"):
        assert 0 < counts[10_000, way] <= 12 * counts[1000, way]
        assert counts[10_000, way] < 10_000 / 2


def test_data_parallel_training_sees_the_mean_gradient(case, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        layer = Layer(case)
        parallel = nn.parallel.DistributedDataParallel(layer)
        parallel(case.inputs[0]).square().sum().backward()
        want = gradients(layer, layer, case.inputs[0])[1]
        torch.testing.assert_close(layer.parameter.grad, want)
    finally:
        torch.distributed.destroy_process_group()
