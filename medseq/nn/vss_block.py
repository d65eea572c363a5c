"""The residual block of VMamba: SS2D, then a feed-forward layer, each behind a norm and under stochastic depth.

Parameter names are those of the original code.

Reference:
    Liu et al., VMamba: Visual State Space Model, arXiv:2401.10166.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medseq.errors import InputError
from medseq.nn.rwkv import ChannelLayerNorm
from medseq.nn.ss2d import ACTIVATIONS, SS2D, Linear2d

__all__ = ["DropPath", "FeedForward", "VSSBlock"]


class DropPath(nn.Module):
    """Stochastic depth: in training, a whole item's branch is left out with probability `rate`.

    Reference:
        Huang et al., Deep Networks with Stochastic Depth, arXiv:1603.09382.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise InputError("rate of stochastic depth", found=rate, wanted="0 <= rate < 1")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """The branch of each item, or 0; scaled so that the mean stays."""
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1 - self.rate)


class FeedForward(nn.Module):
    """Two linear layers around an activation, per pixel.

    Args:
        channels: Channels of the image.
        hidden: Width between the layers.
        act: Activation: silu, gelu, relu or sigmoid.
        gated: Whether half of the first layer gates the other half.
        dropout: After each layer (after the second only, if `gated`).
        channel_first: Where the channels are, see `medseq.nn.ss2d.SS2D`.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        act: str = "gelu",
        gated: bool = False,
        dropout: float = 0.0,
        channel_first: bool = False,
    ) -> None:
        super().__init__()
        linear = Linear2d if channel_first else nn.Linear
        self.gated, self.axis = gated, 1 if channel_first else -1
        self.fc1 = linear(channels, 2 * hidden if gated else hidden)
        self.act = ACTIVATIONS[act]()
        self.fc2 = linear(hidden, channels)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        if self.gated:
            x, z = self.fc1(x).chunk(2, dim=self.axis)
            return self.drop(self.fc2(x * self.act(z)))
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class VSSBlock(nn.Module):
    """``x + op(norm(x))``, then ``x + mlp(norm2(x))``.

    Args:
        hidden_dim: Channels of the image.
        drop_path: Rate of stochastic depth.
        channel_first: Whether images are ``(batch, channel, row, col)`` or ``(batch, row, col, channel)``.
        ssm_d_state: `d_state` of `medseq.nn.ss2d.SS2D`, as all that start with ``ssm``.
        ssm_ratio: Inner width of the scan; 0 for no scan.
        ssm_dt_rank: Rank of the projection to the time step.
        ssm_act: Activation of the scan.
        ssm_conv: Size of the depthwise convolution.
        ssm_conv_bias: Whether it has a bias.
        ssm_drop_rate: Dropout after the scan.
        forward_type: Variant of the scan.
        mlp_ratio: Hidden width of the feed-forward layer in units of `hidden_dim`; 0 for none.
        mlp_act: Activation of the feed-forward layer.
        mlp_drop_rate: Dropout of the feed-forward layer.
        gmlp: Whether the feed-forward layer is gated.
        post_norm: Whether norms stand behind the layers.
        use_checkpoint: Compute the block again in backward instead of storing what is inside.
    """

    def __init__(
        self,
        hidden_dim: int,
        drop_path: float = 0.0,
        channel_first: bool = False,
        ssm_d_state: int = 16,
        ssm_ratio: float = 2.0,
        ssm_dt_rank: int | str = "auto",
        ssm_act: str = "silu",
        ssm_conv: int = 3,
        ssm_conv_bias: bool = True,
        ssm_drop_rate: float = 0.0,
        forward_type: str = "v05",
        mlp_ratio: float = 4.0,
        mlp_act: str = "gelu",
        mlp_drop_rate: float = 0.0,
        gmlp: bool = False,
        post_norm: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.post_norm, self.use_checkpoint = post_norm, use_checkpoint
        norm = ChannelLayerNorm if channel_first else nn.LayerNorm
        self.op, self.mlp = None, None
        if ssm_ratio > 0:
            self.norm = norm(hidden_dim)
            self.op = SS2D(
                hidden_dim,
                ssm_d_state,
                ssm_ratio,
                ssm_dt_rank,
                ssm_act,
                ssm_conv,
                ssm_conv_bias,
                dropout=ssm_drop_rate,
                forward_type=forward_type,
                channel_first=channel_first,
            )
        self.drop_path = DropPath(drop_path)
        if mlp_ratio > 0:
            self.norm2 = norm(hidden_dim)
            self.mlp = FeedForward(
                hidden_dim,
                int(mlp_ratio * hidden_dim),
                act=mlp_act,
                gated=gmlp,
                dropout=mlp_drop_rate,
                channel_first=channel_first,
            )

    def forward(self, x: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        """One residual block."""
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._block, x, use_reentrant=False)
        return self._block(x)

    def _block(self, x: Tensor) -> Tensor:
        if self.op is not None:
            x = x + self.drop_path(self.norm(self.op(x)) if self.post_norm else self.op(self.norm(x)))
        if self.mlp is not None:
            x = x + self.drop_path(self.norm2(self.mlp(x)) if self.post_norm else self.mlp(self.norm2(x)))
        return x
