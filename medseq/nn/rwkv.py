"""RWKV layers for images: Omni-Shift, Re-WKV spatial mixing, channel mixing.

Images are ``(batch, channel, row, col)``. The layers run in channels-last memory, where the token view
``(batch, row * col, channel)`` is free. Names follow the original code, so its state dicts load.

Reference:
    Yang et al., Restore-RWKV: Efficient and Effective Medical Image Restoration with RWKV, arXiv:2407.11087.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from medseq.nn.mixers import OnGrid
from medseq.nn.recurrent import Recurrent
from medseq.ops import bi_wkv

__all__ = [
    "ChannelLayerNorm",
    "ChannelMix",
    "OmniShift",
    "ReWKVRecurrentMixer",
    "ReWKVSequenceMixer",
    "SpatialMix",
]

Convention = Literal["exact", "chunk64"]


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of ``(batch, channel, row, col)``."""

    def forward(self, x: Float[Tensor, "batch channel row col"]) -> Float[Tensor, "batch channel row col"]:
        """Normalise each pixel over its channels."""
        tokens = x.permute(0, 2, 3, 1)
        return F.layer_norm(tokens, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class OmniShift(nn.Module):
    """Multi-branch depthwise convolution: identity, 1x1, 3x3 and 5x5, each with a learned weight.

    All branches are linear, so their sum is one 5x5 depthwise convolution. Its kernel is built from the branches at
    every call (25 numbers a channel), in training too: it has gradients and cannot be stale. `reparameterized` gives
    the plain convolution for deployment.

    Args:
        channels: Number of channels.
        init: ``paper`` draws the branch weights from N(0, 1) as the original does; ``stable`` sets them to 1.
    """

    def __init__(self, channels: int, *, init: Literal["paper", "stable"] = "paper") -> None:
        super().__init__()
        self.conv1x1 = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
        self.conv3x3 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.conv5x5 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False)
        self.alpha = nn.Parameter(torch.randn(4) if init == "paper" else torch.ones(4))

    def merged_kernel(self) -> Float[Tensor, "channel 1 5 5"]:
        """The equivalent 5x5 depthwise kernel of the present branches."""
        kernel = self.alpha[3] * self.conv5x5.weight
        kernel = kernel + F.pad(self.alpha[2] * self.conv3x3.weight, (1, 1, 1, 1))
        return kernel + F.pad(self.alpha[1] * self.conv1x1.weight + self.alpha[0], (2, 2, 2, 2))

    def reparameterized(self) -> nn.Conv2d:
        """A plain depthwise 5x5 convolution with the same function; this module is left as it is."""
        channels = self.conv5x5.weight.shape[0]
        conv = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False)
        conv = conv.to(self.conv5x5.weight.device, self.conv5x5.weight.dtype)
        with torch.no_grad():
            conv.weight.copy_(self.merged_kernel())
        return conv

    def forward(self, x: Float[Tensor, "batch channel row col"]) -> Float[Tensor, "batch channel row col"]:
        """Convolve with the merged kernel; zero padding."""
        return F.conv2d(x, self.merged_kernel(), padding=2, groups=x.shape[1])


class SpatialMix(nn.Module):
    """Re-WKV: gated global token mixing by bidirectional WKV along rows, then along columns; an `ImageMixer`.

    ``out = W_o (sigmoid(W_r s) * WKV_cols(k, WKV_rows(k, v)))`` with ``s = OmniShift(x), k = W_k s, v = W_v s``.

    Args:
        channels: Number of channels.
        convention: ``exact`` is the paper's WKV; ``chunk64`` what the original kernel computes (see `bi_wkv`).
        decay_length: Decay and bonus are divided by this number of tokens; None takes the image's own number of
            tokens, as the paper does, and makes the receptive field grow with the image.
        init: ``paper`` draws decay, bonus and Omni-Shift weights from N(0, 1). ``stable`` spaces the decays
            logarithmically over 1..512 and starts Omni-Shift near the identity.

    Reference:
        arXiv:2407.11087, section 3 (Re-WKV); recurrence of two scans as in the original code.
    """

    def __init__(
        self,
        channels: int,
        *,
        convention: Convention = "exact",
        decay_length: int | None = None,
        init: Literal["paper", "stable"] = "paper",
    ) -> None:
        super().__init__()
        self.convention, self.decay_length = convention, decay_length
        self.omni_shift = OmniShift(channels, init=init)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.receptance = nn.Linear(channels, channels, bias=False)
        self.output = nn.Linear(channels, channels, bias=False)
        decay, first = torch.randn(2, channels), torch.randn(2, channels)
        if init == "stable":
            decay, first = torch.logspace(0, 2.709, channels).repeat(2, 1), torch.zeros(2, channels)
        self.spatial_decay = nn.Parameter(decay)
        self.spatial_first = nn.Parameter(first)

    def forward(
        self, x: Float[Tensor, "batch channel row col"], mask: Bool[Tensor, "batch row col"] | None = None
    ) -> Float[Tensor, "batch channel row col"]:
        """Mix all pixels of each image; those where `mask` is False are not read, and give 0."""
        batch, channels, rows, cols = x.shape
        if mask is not None:
            x = x * mask[:, None]
        shifted = self.omni_shift(x).permute(0, 2, 3, 1).reshape(batch, rows * cols, channels)
        k, v, r = self.key(shifted), self.value(shifted), torch.sigmoid(self.receptance(shifted))
        if mask is not None:
            # A weight of exp(-inf): the token is not there.
            k = k.masked_fill(~mask.reshape(batch, -1, 1), -torch.inf)
        length = self.decay_length or rows * cols
        decay, first = self.spatial_decay / length, self.spatial_first / length

        v = bi_wkv(decay[0], first[0], k, v, convention=self.convention)
        k, v = (_transpose_tokens(t, rows, cols) for t in (k, v))
        v = bi_wkv(decay[1], first[1], k, v, convention=self.convention)
        v = _transpose_tokens(v, cols, rows)

        y = self.output(r * v).view(batch, rows, cols, channels).permute(0, 3, 1, 2)
        return y if mask is None else y * mask[:, None]


def _transpose_tokens(tokens: Tensor, rows: int, cols: int) -> Tensor:
    """Row-major tokens of a (rows, cols) image -> row-major tokens of its transpose."""
    batch, length, channels = tokens.shape
    return tokens.view(batch, rows, cols, channels).transpose(1, 2).reshape(batch, length, channels)


class ReWKVRecurrentMixer(Recurrent):
    """Re-WKV as a `RecurrentMixer`; arguments as of `SpatialMix`."""

    def __init__(
        self, channels: int, *, decay_length: int | None = None, init: Literal["paper", "stable"] = "stable"
    ) -> None:
        super().__init__(channels, SpatialMix(channels, decay_length=decay_length, init=init))


class ReWKVSequenceMixer(OnGrid):
    """Re-WKV as a `SequenceMixer` on the slide's grid.

    Args:
        dim: Width of the tokens.
        decay_length: See `SpatialMix`.
        init: See `SpatialMix`.
        patch_size_level0: See `medseq.nn.mixers.OnGrid`.
    """

    def __init__(
        self,
        dim: int,
        *,
        decay_length: int | None = None,
        init: Literal["paper", "stable"] = "stable",
        patch_size_level0: float | None = None,
    ) -> None:
        super().__init__(SpatialMix(dim, decay_length=decay_length, init=init), patch_size_level0)


class ChannelMix(nn.Module):
    """Gated feed-forward layer with Omni-Shift: ``sigmoid(W_r s) * W_v relu(W_k s)^2``, ``s = OmniShift(x)``.

    Args:
        channels: Number of channels.
        hidden_rate: Width of the hidden layer in units of `channels`.
        init: See `OmniShift`.
    """

    def __init__(self, channels: int, *, hidden_rate: int = 4, init: Literal["paper", "stable"] = "paper") -> None:
        super().__init__()
        self.omni_shift = OmniShift(channels, init=init)
        self.key = nn.Linear(channels, hidden_rate * channels, bias=False)
        self.receptance = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(hidden_rate * channels, channels, bias=False)

    def forward(self, x: Float[Tensor, "batch channel row col"]) -> Float[Tensor, "batch channel row col"]:
        """Mix the channels of each pixel."""
        shifted = self.omni_shift(x).permute(0, 2, 3, 1)
        hidden = torch.relu(self.key(shifted)).square()
        return (torch.sigmoid(self.receptance(shifted)) * self.value(hidden)).permute(0, 3, 1, 2)
