"""`medseq::bi_wkv` as a torch operator: dispatch, dtypes, empty inputs, messages, compilation, fallback."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from medseq.errors import BackendError, InputError, ShapeError
from medseq.ops import backend, backends, bi_wkv
from medseq.ops.wkv import chunked, naive

CONVENTIONS = ("exact", "chunk64")


@pytest.fixture
def inputs(normal):
    """w, u (5,), k, v (2, 70, 5) in float32."""
    return tuple(x.float() for x in (normal(5, std=0.03), normal(5), normal(2, 70, 5), normal(2, 70, 5)))


def gradients(args, convention="exact"):
    args = [x.detach().clone().requires_grad_() for x in args]
    y = bi_wkv(*args, convention)
    return y, torch.autograd.grad(y.float().square().sum(), args)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", ["chunked", "cpu"])
def test_opcheck(monkeypatch, inputs, convention, name):
    monkeypatch.setenv("MEDSEQ_BACKEND", name)
    needing = [x[:, :6] if x.dim() == 3 else x for x in inputs]
    torch.library.opcheck(torch.ops.medseq.bi_wkv.default, (*(x.clone().requires_grad_() for x in needing), convention))
    gy = torch.randn_like(needing[3])
    torch.library.opcheck(torch.ops.medseq.bi_wkv_backward.default, (gy, *needing, convention))


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", ["naive", "chunked"])
def test_a_forced_backend_is_what_runs(monkeypatch, inputs, convention, name):
    monkeypatch.setenv("MEDSEQ_BACKEND", name)
    module = {"naive": naive, "chunked": chunked}[name]
    y, grads = gradients(inputs, convention)
    assert torch.equal(y, getattr(module, "bi_wkv" if name == "naive" else "forward")(*inputs, convention))
    for got, want in zip(grads, module.backward(2 * y.detach(), *inputs, convention), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_compiles_without_a_graph_break(inputs, convention):
    # aot_eager traces forward and backward as every backend does; generating code for them is torch's own matter.
    def loss(w, u, k, v):
        return (bi_wkv(w / k.shape[1], u, k * 2, v, convention) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        args = [x.clone().requires_grad_() for x in inputs]
        value = function(*args)
        results.append((value.detach(), *torch.autograd.grad(value, args)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(inputs, dtype):
    w, u, k, v = inputs
    half = [w, u, k.to(dtype), v.to(dtype)]
    y, (gw, gu, gk, gv) = gradients(half)
    assert (y.dtype, gw.dtype, gu.dtype, gk.dtype, gv.dtype) == (dtype, torch.float32, torch.float32, dtype, dtype)
    # Only the result is rounded: bit-equal to float32 on the rounded inputs.
    assert torch.equal(y, bi_wkv(w, u, k.to(dtype).float(), v.to(dtype).float()).to(dtype))


def test_float64_parameters_are_not_rounded(inputs):
    w, u, k, v = inputs
    y = bi_wkv(w.double(), u.double(), k, v)
    assert y.dtype == torch.float32
    assert torch.equal(y, bi_wkv(w.double(), u.double(), k.double(), v.double()).float())


def test_works_under_autocast(inputs):
    w, u, k, v = inputs
    layer = torch.nn.Linear(5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = bi_wkv(w, u, layer(k), layer(v))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("shape", [(0, 7, 3), (2, 0, 3), (2, 7, 0), (0, 0, 0)])
def test_empty_inputs(shape, convention):
    channels = shape[2]
    args = (torch.ones(channels), torch.ones(channels), torch.ones(shape), torch.ones(shape))
    y, grads = gradients(args, convention)
    assert y.shape == shape
    assert [g.shape for g in grads] == [x.shape for x in args]
    assert not any(g.any() for g in grads)


def test_inputs_are_left_alone(inputs):
    before = [x.clone() for x in inputs]
    gradients(inputs, "chunk64")
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))


def test_a_second_derivative_is_refused_not_wrong(inputs):
    args = [x.clone().requires_grad_() for x in inputs]
    (gk,) = torch.autograd.grad(bi_wkv(*args).sum(), args[2], create_graph=True)
    with pytest.raises(BackendError, match="no second derivative"):
        gk.sum().backward()


def test_messages_name_both_sides(inputs):
    w, u, k, v = inputs
    with pytest.raises(ShapeError, match=r"k \(2, 70, 5\), v \(2, 69, 5\)"):
        bi_wkv(w, u, k, v[:, :69])
    with pytest.raises(ShapeError, match=r"k \(70, 5\), v \(70, 5\)"):
        bi_wkv(w, u, k[0], v[0])
    with pytest.raises(ShapeError, match=r"w \(4,\), k \(2, 70, 5\), wanted w \(5,\)"):
        bi_wkv(w[:4], u, k, v)
    with pytest.raises(ShapeError, match=r"u \(5, 1\), k \(2, 70, 5\), wanted u \(5,\)"):
        bi_wkv(w, u[:, None], k, v)
    with pytest.raises(ShapeError, match=r"k torch\.float64, v torch\.float32"):
        bi_wkv(w, u, k.double(), v)
    with pytest.raises(ShapeError, match=r"w torch\.float64, u torch\.float32"):
        bi_wkv(w.double(), u, k, v)
    with pytest.raises(ShapeError, match=r"k torch\.int64"):
        bi_wkv(w, u, k.long(), v.long())
    with pytest.raises(ShapeError, match="u on meta, v on cpu"):
        bi_wkv(w, u.to("meta"), k, v)
    with pytest.raises(InputError, match=r"found chunk32, wanted exact \| chunk64"):
        bi_wkv(w, u, k, v, "chunk32")


def test_an_unknown_backend_is_refused_by_name(monkeypatch, inputs):
    monkeypatch.setenv("MEDSEQ_BACKEND", "cuda")
    with pytest.raises(BackendError, match=r"MEDSEQ_BACKEND.*found cuda, wanted naive \| chunked \| cpu"):
        bi_wkv(*inputs)


def test_an_instruction_set_that_is_not_there_is_refused_by_name(monkeypatch, inputs):
    monkeypatch.setenv("MEDSEQ_CPU_ISA", "avx4096")
    with pytest.raises(BackendError, match="MEDSEQ_CPU_ISA.*found avx4096, wanted baseline"):
        bi_wkv(*inputs)


def test_backends_says_what_runs_and_why(monkeypatch):
    monkeypatch.delenv("MEDSEQ_BACKEND", raising=False)
    monkeypatch.delenv("MEDSEQ_CPU_ISA", raising=False)
    table = backends()
    assert table["bi_wkv"]["cpu"].name == "cpu"
    assert backend.compiled_kernels().instruction_sets()[-1] in table["bi_wkv"]["cpu"].reason
    assert table["bi_wkv"]["cuda"].name == ("triton" if find_spec("triton") else "chunked")
    monkeypatch.setenv("MEDSEQ_CPU_ISA", "baseline")
    assert "baseline" in backends()["bi_wkv"]["cpu"].reason
    monkeypatch.setenv("MEDSEQ_BACKEND", "chunked")
    assert backends()["bi_wkv"]["cpu"] == ("chunked", "MEDSEQ_BACKEND=chunked")


def test_without_the_compiled_module_pure_torch_runs(monkeypatch, inputs):
    monkeypatch.delenv("MEDSEQ_BACKEND", raising=False)
    monkeypatch.setattr(backend, "compiled_kernels", lambda: None)
    assert "without a C++ compiler" in backends()["bi_wkv"]["cpu"].reason
    assert torch.equal(bi_wkv(*inputs), chunked.forward(*inputs, "exact"))
    monkeypatch.setenv("MEDSEQ_BACKEND", "cpu")
    with pytest.raises(BackendError, match="not installed.*reinstall medseq"):
        bi_wkv(*inputs)


def test_an_installation_without_the_module_imports_and_computes():
    code = """
import sys
sys.modules["medseq.ops._C"] = None  # makes the import fail as if the file were not there
import torch
from medseq.ops import backends, bi_wkv
k = torch.zeros(1, 4, 1)
v = torch.arange(4.0).view(1, 4, 1).requires_grad_()
y = bi_wkv(torch.zeros(1), torch.zeros(1), k, v)
y.sum().backward()
print(backends()["bi_wkv"]["cpu"].name, y.flatten().tolist(), v.grad.flatten().tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "chunked [1.5, 1.5, 1.5, 1.5] [1.0, 1.0, 1.0, 1.0]"


def test_asking_for_the_table_loads_no_torch():
    code = "import sys; from medseq.ops import backends; backends(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
