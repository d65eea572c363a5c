"""Sparse images: exact transforms, proximal maps against their definition, the descent against its optimum."""

import pytest
import torch

from medseq.ops.sparse import TotalVariationProx, WaveletProx, analyse, fista, shrink, synthesise


def normal(generator, *shape):
    return torch.randn(*shape, dtype=torch.complex128, generator=generator)


@pytest.mark.parametrize("gap", [1, 2, 4])
@pytest.mark.parametrize("dim", [-2, -1])
def test_the_wavelet_transform_is_undone_and_its_details_ignore_ramps(gap, dim, generator):
    x = normal(generator, 2, 15, 22)
    torch.testing.assert_close(synthesise(*analyse(x, dim, gap), dim, gap), x)
    low, high = analyse(x, dim, gap)
    # A Parseval frame after halving.
    energy = (low.abs() ** 2 + high.abs() ** 2).sum() / 2
    torch.testing.assert_close(energy, (x.abs() ** 2).sum())
    ramp = torch.linspace(-3, 5, 40, dtype=torch.float64)[None].expand(40, 40)
    detail = analyse(ramp if dim == -1 else ramp.T, dim, 1)[1].narrow(dim, 0, 36)
    # Two vanishing moments: zero up to rounding, away from where the period jumps.
    assert detail.abs().max() < 1e-13


@pytest.mark.parametrize("size", [(32, 32), (17, 50), (5, 3)])
def test_shifts_of_the_image_are_shifts_of_the_result(size, generator):
    x = normal(generator, 2, *size)
    prox = WaveletProx(0.3, size)
    moved = torch.roll(prox(x, 1.0), (2, 1), dims=(-2, -1))
    torch.testing.assert_close(prox(torch.roll(x, (2, 1), dims=(-2, -1)), 1.0), moved)
    torch.testing.assert_close(WaveletProx(0.0, size)(x, 1.0), x)
    assert prox(x, 1.0).abs().sum() < x.abs().sum()


def test_shrinking_keeps_phase_and_stops_at_zero(generator):
    x = normal(generator, 50)
    found = shrink(x, 0.7)
    torch.testing.assert_close(found.abs(), (x.abs() - 0.7).clamp_min(0))
    assert (found[x.abs() > 0.7].sgn() - x[x.abs() > 0.7].sgn()).abs().max() < 1e-12
    assert not shrink(torch.zeros(3), 1.0).any()


def variation(x):
    """Isotropic total variation with a replicated edge."""
    down = torch.diff(x, dim=-2, append=x[..., -1:, :])
    across = torch.diff(x, dim=-1, append=x[..., -1:])
    return (down.abs() ** 2 + across.abs() ** 2).sqrt().sum()


def test_the_proximal_map_of_total_variation_is_a_minimum(generator):
    x, weight = normal(generator, 1, 9, 11), 0.4
    found = TotalVariationProx(weight, inner=3000)(x, 1.0)

    def cost(z):
        return float(weight * variation(z) + 0.5 * ((z - x).abs() ** 2).sum())

    best = cost(found)
    for scale in (1e-1, 1e-2, 1e-3):
        for _ in range(5):
            # The cost is strongly convex: any other point costs at least half its squared distance more.
            step = scale * normal(generator, 1, 9, 11)
            assert cost(found + step) > best + 0.4 * float((step.abs() ** 2).sum()) - 1e-6
    flat = torch.full((1, 6, 6), 2.0)
    torch.testing.assert_close(TotalVariationProx(weight)(flat, 1.0), flat)


def test_later_calls_continue_where_the_first_stopped(generator):
    x = normal(generator, 1, 12, 12)
    exact = TotalVariationProx(0.5, inner=2000)(x, 1.0)
    prox = TotalVariationProx(0.5, inner=5)
    errors = [float((prox(x, 1.0) - exact).abs().max()) for _ in range(20)]
    assert errors[-1] < 0.1 * errors[0]


def test_the_descent_reaches_the_solution_of_the_lasso(generator):
    matrix = torch.randn(30, 12, generator=generator, dtype=torch.float64)
    y = torch.randn(30, generator=generator, dtype=torch.float64)
    gram, right = matrix.T @ matrix, matrix.T @ y

    def gradient(x):
        return (x.flatten(1) @ gram - right).view_as(x)

    bound = float(torch.linalg.eigvalsh(gram)[-1])
    start = torch.zeros(1, 3, 4, dtype=torch.float64)
    x = fista(gradient, lambda z, step: shrink(z, 2.0 * step), start, bound=bound, iterations=2000)
    slope = gradient(x)
    # Optimality: the slope balances the penalty where x is not zero and stays below it elsewhere.
    torch.testing.assert_close(slope[x != 0], -2.0 * x[x != 0].sign(), rtol=0, atol=1e-8)
    assert slope.abs().max() <= 2.0 + 1e-8
