"""State space duality: the chunked matrix form is the selective scan with one decay per head."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medseq.errors import InputError, ShapeError
from medseq.ops import selective_scan, ssd


def inputs(seed, batch=2, length=37, heads=4, dim=3, groups=2, states=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    x, dt = draw(batch, length, heads, dim), draw(batch, length, heads).exp() * 0.1
    return x, dt, -draw(heads).exp(), draw(batch, length, groups, states), draw(batch, length, groups, states)


def by_selective_scan(x, dt, A, B, C, initial_state=None):
    """The same as a selective scan whose A and delta are the same in all channels of a head."""
    batch, length, heads, dim = x.shape
    states = B.shape[-1]
    u = x.permute(0, 2, 3, 1).reshape(batch, heads * dim, length)
    delta = dt.mT.repeat_interleave(dim, 1)
    A = A.repeat_interleave(dim)[:, None].expand(-1, states)
    first = None if initial_state is None else initial_state.reshape(batch, heads * dim, states)
    y, last = selective_scan(
        u, delta, A, B.permute(0, 2, 3, 1), C.permute(0, 2, 3, 1), return_last_state=True, initial_state=first
    )
    return y.view(batch, heads, dim, length).permute(0, 3, 1, 2), last.view(batch, heads, dim, states)


@pytest.mark.parametrize("chunk", [1, 4, 8, 32, 50])
def test_matches_the_original(chunk, seed):
    from pathlib import Path

    from safetensors.torch import load_file

    tensors = load_file(Path(__file__).parents[1] / "golden" / "ss2d_ssd_minimal.safetensors")
    given_ = {name: tensors[f"in.{name}"].requires_grad_() for name in ("X", "dt", "A", "B", "C")}
    y, last = ssd(*given_.values(), chunk, return_last_state=True)
    # Float32 numbers of order 1: 1e-5 is a hundred roundings.
    torch.testing.assert_close(y, tensors["out.y"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, tensors["out.final_state"], rtol=1e-5, atol=1e-5)
    y.backward(tensors["in.gy"])
    for name, tensor in given_.items():
        torch.testing.assert_close(tensor.grad, tensors[f"grad.{name}"], rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    length=st.integers(0, 70),
    chunk=st.integers(1, 40),
    shape=st.sampled_from([(1, 1), (2, 1), (2, 2), (6, 3)]),
    with_state=st.booleans(),
)
def test_is_the_selective_scan_for_a_scalar_decay(length, chunk, shape, with_state, seed):
    x, dt, A, B, C = inputs(seed, length=length, heads=shape[0], groups=shape[1])
    state = torch.randn(2, shape[0], 3, 5, dtype=x.dtype) if with_state else None
    y, last = ssd(x, dt, A, B, C, chunk, initial_state=state, return_last_state=True)
    wanted, wanted_last = by_selective_scan(x, dt, A, B, C, state)
    # float64 sums in another order.
    torch.testing.assert_close(y, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(last, wanted_last, rtol=1e-9, atol=1e-9)


def test_thousands_of_chunks_are_carried_in_blocks(seed):
    # Chunks of one token: three levels of blocks of 32.
    x, dt, A, B, C = inputs(seed, batch=1, length=1500, heads=2, dim=2, groups=1, states=2)
    state = torch.ones(1, 2, 2, 2, dtype=x.dtype)
    y, last = ssd(x, dt, A, B, C, 1, initial_state=state, return_last_state=True)
    wanted, wanted_last = by_selective_scan(x, dt, A, B, C, state)
    torch.testing.assert_close(y, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(last, wanted_last, rtol=1e-9, atol=1e-9)


def test_gradients(seed):
    arguments = [tensor.requires_grad_() for tensor in inputs(seed, length=7, heads=2, dim=2, groups=1, states=2)]
    state = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *a: ssd(*a[:5], 3, initial_state=a[5], return_last_state=True), (*arguments, state)
    )


def test_strong_decay_neither_overflows_nor_gives_nan(seed):
    x, dt, A, B, C = (tensor.float().requires_grad_() for tensor in inputs(seed, length=130))
    y = ssd(x, dt * 1e4, A, B, C)
    y.sum().backward()
    assert all(torch.isfinite(tensor).all() for tensor in (y, x.grad, dt.grad, A.grad))


def test_half_precision_comes_back_as_it_went_in(seed):
    x, dt, A, B, C = inputs(seed, dtype=torch.float32)
    wanted = ssd(x, dt, A, B, C)
    found = ssd(x.bfloat16(), dt, A, B.bfloat16(), C.bfloat16())
    assert found.dtype == torch.bfloat16
    # Inputs are rounded to 8 bits.
    assert (found.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_wrong_shapes_are_named(seed):
    x, dt, A, B, C = inputs(seed)
    with pytest.raises(ShapeError, match=r"x \(2, 37, 4, 3\), dt \(2, 37, 3\)"):
        ssd(x, dt[..., :3], A, B, C)
    with pytest.raises(ShapeError, match=r"B \(2, 37, 2, 5\), C \(2, 36, 2, 5\)"):
        ssd(x, dt, A, B, C[:, 1:])
    with pytest.raises(ShapeError, match=r"heads a multiple of the groups.*B \(2, 37, 3, 5\)"):
        ssd(x, dt, A, *[torch.cat([t, t[:, :, :1]], 2) for t in (B, C)])
    with pytest.raises(ShapeError, match=r"initial_state \(found \(2, 4, 3, 4\), wanted \(2, 4, 3, 5\)\)"):
        ssd(x, dt, A, B, C, initial_state=torch.zeros(2, 4, 3, 4))
    with pytest.raises(InputError, match="chunk is too small \\(found 0, wanted >= 1\\)"):
        ssd(x, dt, A, B, C, 0)
