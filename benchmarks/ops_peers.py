"""What bench_ops.py compares with, written from definitions in torch operations, as one would without a kernel."""

from importlib.util import find_spec

import torch
from mambapy.pscan import pscan
from torch import Tensor, nn
from torch.nn import functional as F

from medseq.ops import cross_merge, cross_scan, selective_scan

__all__ = [
    "convolution_and_silu",
    "mambapy_scan",
    "materialised_cross_scan",
    "reference_scan",
    "transformers_layer",
    "with_gradients",
]


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


def convolution_and_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The depthwise convolution of torch, of a padded sequence, cut, and its SiLU."""
    width = weight.shape[1]
    y = F.conv1d(x, weight[:, None], bias, padding=width - 1, groups=len(weight))
    return F.silu(y[..., : x.shape[2]])


def transformers_layer(dim: int) -> nn.Module | None:
    """A Mamba layer of the transformers package, whose way on a CPU is a loop over tokens; None if not installed.

    No dependency: `pip install transformers` for this comparison. Its parameters have the names of ours.
    """
    if find_spec("transformers") is None:
        return None
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    return MambaMixer(MambaConfig(hidden_size=dim, state_size=16, expand=2, use_mambapy=False), layer_idx=0).eval()


def with_gradients(function, tensors: list[Tensor]):
    """A call that runs `function` and the gradients of its sum of squares by all tensors."""

    def run() -> list[Tensor]:
        needing = [x.detach().requires_grad_() for x in tensors]
        y = function(*needing)
        return [y.detach(), *torch.autograd.grad(y, needing, 2 * y.detach())]

    return run
