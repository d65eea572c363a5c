"""The Triton kernels of bidirectional WKV, interpreted on the CPU, against the definition."""

import pytest
import torch

from medseq.ops import bi_wkv
from medseq.ops.wkv import chunked, naive
from tests.ops.triton_checks import assert_as_exact_as


def run(interpreter, args, gy, convention="exact"):
    y = interpreter.call("wkv", "forward", *args, convention)
    return [y, *interpreter.call("wkv", "backward", gy, *args, convention)]


def reference(args, gy, module=naive, convention="exact"):
    forward = module.bi_wkv if module is naive else module.forward
    return [forward(*args, convention), *module.backward(gy, *args, convention)]


@pytest.mark.parametrize(
    ("length", "decay", "spread"),
    [(70, 0.03, 1.0), (1, 0.03, 1.0), (32, -0.3, 1.0), (33, 1.0, 8.0)],
    ids=["three chunks", "one token", "growing weights", "wide keys"],
)
def test_matches_the_definition(interpreter, normal, length, decay, spread):
    args = [normal(5, std=decay).abs().copysign(torch.tensor(decay)), normal(5)]
    args += [normal(2, length, 5, std=spread), normal(2, length, 5)]
    gy = normal(2, length, 5)
    # 1e-10: double precision, with thousands of roundings between.
    for got, want in zip(run(interpreter, args, gy), reference(args, gy), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_float32_is_as_exact_as_pure_torch(interpreter, normal):
    args = [normal(18, std=0.03), normal(18), normal(1, 70, 18), normal(1, 70, 18)]
    gy = normal(1, 70, 18)
    single = [x.float() for x in args]
    exact = reference([x.double() for x in single], gy.float().double())
    plain = reference(single, gy.float(), chunked)
    for got, want, truth in zip(run(interpreter, single, gy.float()), plain, exact, strict=True):
        # The interpreter adds the tokens one after the other, 70 roundings; a GPU's tree has 7.
        assert_as_exact_as(got, want, truth, ulps=64)


def test_half_precision_keys_are_read_as_they_are(interpreter, normal):
    w, u = normal(4, std=0.03).float(), normal(4).float()
    k, v, gy = (normal(1, 40, 4).bfloat16() for _ in range(3))
    results = run(interpreter, [w, u, k, v], gy)
    assert [x.dtype for x in results] == [torch.bfloat16, torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
    exact = reference([x.double() for x in (w, u, k, v)], gy.double())
    for got, want in zip(results, exact, strict=True):
        # Only the result is rounded; the interpreter cuts bfloat16 off where a GPU rounds to nearest.
        rounding = 2**-7 if got.dtype == torch.bfloat16 else 1e-5
        assert (got.double() - want).abs().max() <= rounding * want.abs().max()


def test_a_token_of_no_weight_and_nan(interpreter, normal):
    w, u, k, v = normal(3, std=0.03), normal(3), normal(2, 40, 3), normal(2, 40, 3)
    k[0, 7] = -torch.inf
    v[1, 3, 1] = torch.nan
    y = interpreter.call("wkv", "forward", w, u, k, v, "exact")
    torch.testing.assert_close(y[0], naive.bi_wkv(w, u, k, v)[0], rtol=1e-10, atol=1e-10)
    assert y[1, :, 1].isnan().all()
    assert y[1, :, [0, 2]].isfinite().all()


def test_chunk64_runs_as_pure_torch(interpreter, normal):
    args = [normal(3, std=0.03), normal(3), normal(1, 20, 3), normal(1, 20, 3)]
    gy = normal(1, 20, 3)
    for got, want in zip(run(interpreter, args, gy, "chunk64"), reference(args, gy, chunked, "chunk64"), strict=True):
        assert torch.equal(got, want)


@pytest.mark.gpu
def test_on_a_gpu(normal):
    args = [normal(40, std=0.003), normal(40), normal(2, 1000, 40), normal(2, 1000, 40)]
    single = [x.float().cuda().requires_grad_() for x in args]
    y = bi_wkv(*single)
    gradients = torch.autograd.grad(y.square().sum(), single)
    exact = chunked.forward(*args, "exact")
    plain = [x.float() for x in args]
    assert_as_exact_as(y.detach().cpu(), chunked.forward(*plain, "exact"), exact)
    want = chunked.backward(2 * exact, *args, "exact")
    for got, truth in zip(gradients, want, strict=True):
        assert (got.cpu().double() - truth).abs().max() <= 1e-4 * truth.abs().max()
