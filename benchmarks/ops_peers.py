"""What bench_ops.py compares with, written from definitions in torch operations, as one would without a kernel."""

import torch
from mambapy.pscan import pscan
from torch import Tensor
from torch.nn import functional as F

from medseq.ops import cross_merge, cross_scan, selective_scan

__all__ = ["mambapy_scan", "materialised_cross_scan", "reference_scan", "with_gradients"]


def reference_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Decays and inputs of all tokens as two tables (batch, dim, length, state), then a loop over tokens.

    The structure of the reference function beside mamba_ssm's CUDA kernels, which needs that package.
    """
    dt = F.softplus(delta)
    decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, A))
    entering = torch.einsum("bdl,bnl,bdl->bdln", dt, B, u)
    h, outputs = torch.zeros_like(decay[:, :, 0]), []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + entering[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))
    return torch.stack(outputs, 2) + u * D[:, None]


def mambapy_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The parallel scan of the mambapy package, its inputs (batch, length, ...) as that package lays them out."""
    dt = F.softplus(delta)
    decay = torch.exp(dt.unsqueeze(-1) * A)
    states = pscan(decay, dt.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1))
    return (states @ C.unsqueeze(-1)).squeeze(3) + D * u


def materialised_cross_scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Four copies of the image, medseq's one-dimensional scan with the directions as groups, and the sum.

    delta (batch, 4, channel, length), B and C (batch, 4, state, length) lie in scan order already: permuting them is
    not charged.
    """
    batch, channel, row, col = x.shape
    u = cross_scan(x).view(batch, 4 * channel, row * col)
    y = selective_scan(u, delta.flatten(1, 2), A, B, C, D, delta_softplus=True)
    return cross_merge(y.view(batch, 4, channel, row, col))


def with_gradients(function, tensors: list[Tensor]):
    """A call that runs `function` and the gradients of its sum of squares by all tensors."""

    def run() -> list[Tensor]:
        needing = [x.detach().requires_grad_() for x in tensors]
        y = function(*needing)
        return [y.detach(), *torch.autograd.grad(y, needing, 2 * y.detach())]

    return run
