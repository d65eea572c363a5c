"""Conjugate gradients against a dense solution, and the implicit gradient against the unrolled truth."""

import pytest
import torch

from medseq.nn.conjugate_gradient import cg_sense, conjugate_gradient, data_consistency
from medseq.ops.coils import SenseOperator


def system(seed, batch=2, rows=4, cols=5):
    """A Hermitian semi-definite operator on images of 20 pixels, of rank 12, as a function and as matrices."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(batch, 12, rows * cols, generator=generator, dtype=torch.complex128) / 4
    matrix = a.mH @ a

    def normal(x):
        return (matrix @ x.flatten(1)[..., None]).view_as(x)

    def image():
        return torch.randn(batch, rows, cols, generator=generator, dtype=torch.complex128)

    return normal, matrix, image


def test_solves_the_system(seed):
    normal, matrix, image = system(seed)
    right = image()
    weight = 0.1
    x = conjugate_gradient(lambda v: normal(v) + weight * v, right, image(), 40)
    eye = torch.eye(20, dtype=matrix.dtype)
    wanted = torch.linalg.solve(matrix + weight * eye, right.flatten(1)[..., None]).view_as(x)
    torch.testing.assert_close(x, wanted, rtol=1e-8, atol=1e-8)


def test_a_solution_stays_and_zero_gives_zero(seed):
    normal, _, image = system(seed)
    x = image()
    assert torch.equal(conjugate_gradient(normal, torch.zeros_like(x), torch.zeros_like(x), 5), torch.zeros_like(x))
    same = conjugate_gradient(lambda v: v, x, x, 3)
    torch.testing.assert_close(same, x)


@pytest.mark.parametrize("iterations", [4, 40])
def test_gradients(iterations, seed):
    normal, matrix, image = system(seed)
    projected, z = image(), image().requires_grad_()
    weight = torch.tensor([0.3, 0.7], dtype=torch.float64).view(2, 1, 1).requires_grad_()
    gain = image()
    x = data_consistency(normal, projected, z, weight, iterations)
    (x * gain.conj()).real.sum().backward()
    other_z, other_weight = z.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    eye = torch.eye(20, dtype=matrix.dtype)
    dense = torch.linalg.solve(
        matrix + other_weight * eye, (projected + other_weight * other_z).flatten(1)[..., None]
    ).view_as(x)
    (dense * gain.conj()).real.sum().backward()
    # Forty steps solve 20 unknowns; four leave a remainder, whose gradient has the same direction all the same.
    tolerance = 1e-7 if iterations == 40 else 0.15
    scale = float(other_z.grad.abs().max())
    torch.testing.assert_close(z.grad, other_z.grad, rtol=tolerance, atol=tolerance * scale)
    # That by the weight is the product of two vectors, which may cancel: errors are measured by their lengths.
    adjoint, change = other_z.grad / other_weight.detach(), (other_z - dense).detach()
    lengths = [v.flatten(1).norm(dim=1) for v in (adjoint, change)]
    error = (weight.grad - other_weight.grad).flatten().abs()
    assert (error <= tolerance * lengths[0] * lengths[1]).all()


def test_sense_recovers_an_image_from_undersampled_coils(seed):
    generator = torch.Generator().manual_seed(seed)
    y, x = (torch.linspace(-1, 1, size) for size in (24, 22))
    image = (torch.exp(-4 * (y[:, None] ** 2 + x**2)) * torch.exp(1j * x)).to(torch.complex64)[None]
    maps = torch.stack([torch.exp(-((y[:, None] - a) ** 2) - (x - b) ** 2) for a in (-1, 1) for b in (-1, 1)])
    maps = (maps / maps.square().sum(0).sqrt()).to(torch.complex64)[None]
    operator = SenseOperator(maps)
    mask = torch.zeros(1, 1, 1, 22, dtype=torch.bool)
    mask[..., torch.randperm(22, generator=generator)[:11]] = True
    mask[..., 0] = True  # the zero frequency in the operator's order
    kspace = operator.expand(image) * mask
    found = cg_sense(kspace, mask, operator, weight=1e-4, iterations=60)
    start = cg_sense(kspace, mask, operator, weight=1e-4, iterations=0)
    assert float((found - image).norm()) < 0.25 * float((start - image).norm())
