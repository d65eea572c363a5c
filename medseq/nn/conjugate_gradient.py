"""Data consistency by conjugate gradients, as a layer: ``x = argmin ||A x - y||^2 + lambda ||x - z||^2``.

The layer's backward pass solves one more system of the same kind instead of remembering the iterations, so its memory
does not grow with their number. Both passes take the same fixed number of steps from the same kind of start, so that
the gradient is the one of the map that was applied; started elsewhere, four steps are far from it wherever the
operator is blind, and lambda runs away in training.

Reference:
    Aggarwal, Mani, Jacob, MoDL: model-based deep learning architecture for inverse problems, IEEE TMI 38(2), 2019.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from medseq.ops.coils import SenseOperator

__all__ = ["cg_sense", "conjugate_gradient", "data_consistency"]

Image = Complex[Tensor, "batch row col"]
Normal = Callable[[Tensor], Tensor]


def conjugate_gradient(normal: Normal, right: Image, start: Image, iterations: int) -> Image:
    """`iterations` steps towards the solution of ``normal(x) = right``; each item of the batch has its own steps.

    Args:
        normal: Hermitian positive (semi-)definite operator.
        right: Right-hand side.
        start: First guess.
        iterations: Steps; an item whose residual is zero stays where it is.
    """
    x = start
    residual = right - normal(x)
    direction = residual
    energy = _inner(residual, residual)
    for _ in range(iterations):
        image = normal(direction)
        step = energy / _inner(direction, image).clamp_min(torch.finfo(energy.dtype).tiny)
        x = x + step * direction
        residual = residual - step * image
        following = _inner(residual, residual)
        direction = residual + following / energy.clamp_min(torch.finfo(energy.dtype).tiny) * direction
        energy = following
    return x


def data_consistency(
    normal: Normal, projected: Image, z: Image, weight: Float[Tensor, "batch 1 1"], iterations: int
) -> Image:
    """Solve ``(A^H A + weight) x = A^H y + weight z``, starting at z.

    Args:
        normal: ``A^H A``.
        projected: ``A^H y``, the zero-filled image; receives no gradient, nor do the maps inside `normal`.
        z: What x should be close to; receives a gradient.
        weight: lambda > 0; receives a gradient.
        iterations: Steps of the conjugate gradients, in the forward pass and in the backward pass.
    """
    return _DataConsistency.apply(normal, projected, z, weight, iterations)


def cg_sense(kspace: Tensor, mask: Tensor, operator: SenseOperator, weight: float = 0.02, iterations: int = 8) -> Image:
    """Regularised SENSE from zero, ``(A^H A + weight) x = A^H y``: the start and the scale of unrolled networks.

    Args:
        kspace: Measured data in the operator's order.
        mask: Same.
        operator: Maps whose root sum of squares is 1 make `weight` a number without a unit.
        weight: Of the prior; keeps undersampled directions from growing noise.
        iterations: Conjugate gradients.

    Reference:
        Pruessmann et al., Advances in sensitivity encoding with arbitrary k-space trajectories, MRM 46, 2001.
    """
    projected = operator.reduce(kspace)
    return conjugate_gradient(
        # Zero as a product: ONNX has no complex zeros_like.
        lambda v: operator.normal(v, mask) + weight * v,
        projected,
        0.0 * projected,
        iterations,
    )


class _DataConsistency(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, normal: Normal, projected: Tensor, z: Tensor, weight: Tensor, iterations: int) -> Tensor:
        x = conjugate_gradient(lambda v: normal(v) + weight * v, projected + weight * z, z, iterations)
        ctx.normal, ctx.iterations = normal, iterations
        ctx.save_for_backward(z, weight, x)
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, x = ctx.saved_tensors
        # x depends on z through M^-1 lambda with M = A^H A + lambda, which is its own adjoint.
        toward_z = conjugate_gradient(lambda v: ctx.normal(v) + weight * v, weight * gradient, gradient, ctx.iterations)
        toward_weight = _inner(toward_z / weight, z - x)
        return None, None, toward_z, toward_weight, None


def _inner(a: Image, b: Image) -> Float[Tensor, "batch 1 1"]:
    """Real part of the inner product of each item."""
    return (torch.view_as_real(a) * torch.view_as_real(b)).sum(dim=(1, 2, 3)).view(-1, 1, 1)
