"""The restoration U-Net with SS2D as its mixer: the skeleton of Restore-RWKV, the selective scan of VMamba.

Everything but the mixer is `medseq.models.restore_rwkv.RestoreRWKV`, so that a difference between the two is the
mixer's. The same by one line of YAML on any configuration of that class:
``mixer: {class_path: medseq.nn.ss2d.SS2DMixer, init_args: {d_state: 1}}``, or ``medseq.nn.depthwise.DepthwiseMixer``.

Reference:
    Liu et al., VMamba: Visual State Space Model, arXiv:2401.10166; the skeleton: Yang et al., arXiv:2407.11087.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medseq.models.restore_rwkv import Init, RestoreRWKV
from medseq.nn.ss2d import SS2DMixer

__all__ = ["RestoreVMambaUNet", "restore_vmamba_unet_light"]


class RestoreVMambaUNet(RestoreRWKV):
    """Four-level U-Net of SS2D blocks with a global residual.

    Args:
        in_channels, out_channels, dim, num_blocks, num_refinement_blocks: See `RestoreRWKV`.
        hidden_rate, shuffle, condition_channels, residual_scale, init: See `RestoreRWKV`.
        d_state: States per channel and direction, see `medseq.nn.ss2d.SS2DMixer`.
        ssm_ratio: Inner width of the mixer in units of its channels.
        forward_type: Variant of SS2D.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        hidden_rate: int = 4,
        shuffle: int = 1,
        condition_channels: int = 0,
        residual_scale: float = 1.0,
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        forward_type: str = "v05_noz",
        init: Init = "stable",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            dim,
            num_blocks,
            num_refinement_blocks,
            hidden_rate,
            shuffle,
            condition_channels,
            residual_scale,
            mixer=partial(SS2DMixer, d_state=d_state, ssm_ratio=ssm_ratio, forward_type=forward_type),
            init=init,
        )


def restore_vmamba_unet_light(in_channels: int = 1, out_channels: int = 1, **keywords: Any) -> RestoreVMambaUNet:
    """The size of `medseq.models.restore_rwkv.restore_rwkv_light`: width 16, blocks 1-1-2-2, at half resolution."""
    defaults: dict[str, Any] = {
        "dim": 16,
        "num_blocks": (1, 1, 2, 2),
        "num_refinement_blocks": 0,
        "shuffle": 2,
        "residual_scale": 0.1,
    }
    return RestoreVMambaUNet(in_channels, out_channels, **{**defaults, **keywords})


def tiny() -> dict[str, nn.Module]:
    """Small instances of every variant, for tests."""
    small: dict[str, Any] = {"dim": 8, "num_blocks": (1, 1, 1, 1), "init": "paper"}
    return {
        "plain": RestoreVMambaUNet(num_refinement_blocks=1, **small),
        "light": restore_vmamba_unet_light(2, 1, d_state=2, **small),
    }


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward` for the instance `name` of `tiny`."""
    return {"image": torch.randn(2, 2 if name == "light" else 1, 19, 24)}
