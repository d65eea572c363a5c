"""Convolutional recurrent units for images: gated (GRU), minimally gated (MGU) and independently recurrent (IndRNN).

All are `RecurrentMixer`s: ``forward(x (B, C, H, W), state or None) -> (y, state)``, where None is a state of zeros.
`Recurrent` gives a state to any `ImageMixer`, so that scan blocks can stand where these units stand.

Parameters: `ih` acts on the input and has the bias, `hh` on the state. Gates are computed side by side in one
convolution. Their kernels are 1x1 by default; larger ones pad with zeros.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from medseq.errors import InputError

__all__ = ["MGU", "ConvGRU", "IndRNN", "Recurrent", "in_fast_layout", "make_recurrent", "replicate_conv"]

# Layers with fewer channels gain nothing from channels-last memory.
_WIDE = 32
# Pixels of a block: some 1.5 MB of a 128-channel GRU.
_BLOCK = 1024

Image = Float[Tensor, "batch channel row col"]
State = Float[Tensor, "batch channel row col"]


class _ConvCell(nn.Module):
    """The convolutions of a cell with `gates` gates."""

    gates: int

    def __init__(
        self,
        channels: int,
        hidden_channels: int | None = None,
        kernel_size: int = 1,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.hidden_channels = hidden = hidden_channels or channels
        padding = dilation * (kernel_size - 1) // 2
        self.ih = nn.Conv2d(channels, self.gates * hidden, kernel_size, padding=padding, dilation=dilation, bias=bias)
        self.hh = nn.Conv2d(hidden, self.gates * hidden, kernel_size, padding=padding, dilation=dilation, bias=False)
        for conv in (self.ih, self.hh):
            nn.init.orthogonal_(conv.weight)
        if self.ih.bias is not None:
            nn.init.zeros_(self.ih.bias)

    def zeros(self, x: Image) -> State:
        """The state before the first step."""
        return x.new_zeros(x.shape[0], self.hidden_channels, *x.shape[2:])


class ConvGRU(_ConvCell):
    """Gated recurrent unit; both places where the literature resets the state.

    ``r, z = sigmoid(ih(x) + hh(h))``, candidate n, and ``h' = (1 - z) n + z h`` with

    - ``reset="after"``: ``n = tanh(ih_n(x) + r * hh_n(h))``, as `torch.nn.GRU` (CIRIM);
    - ``reset="before"``: ``n = tanh(ih_n(x) + hh_n(r * h))``, as the original paper (RecurrentVarNet).

    Args:
        channels: Channels of the input.
        hidden_channels: Channels of the state; None for `channels`.
        kernel_size: Of all convolutions.
        dilation: Of all convolutions.
        bias: Whether the gates have one.
        reset: See above.

    Reference:
        Cho et al., Learning phrase representations using RNN encoder-decoder, arXiv:1406.1078, Eq. 5-8.
    """

    gates = 3

    def __init__(
        self,
        channels: int,
        hidden_channels: int | None = None,
        kernel_size: int = 1,
        dilation: int = 1,
        bias: bool = True,
        *,
        reset: Literal["after", "before"] = "after",
    ) -> None:
        super().__init__(channels, hidden_channels, kernel_size, dilation, bias)
        self.reset = reset

    def forward(self, x: Image, state: State | None = None) -> tuple[State, State]:
        """One step; the output is the new state."""
        h = self.zeros(x) if state is None else state
        if self.reset == "before" and self.ih.kernel_size == (1, 1) and _runs_blocked(x, h):
            h = _gru_blocked(x, h, self.ih.weight, self.ih.bias, self.hh.weight)
            return h, h
        width = self.hidden_channels
        from_x = self.ih(x)
        if self.reset == "after":
            from_h = self.hh(h)
            r, z = torch.sigmoid(from_x[:, : 2 * width] + from_h[:, : 2 * width]).chunk(2, dim=1)
            n = torch.tanh(from_x[:, 2 * width :] + r * from_h[:, 2 * width :])
        else:
            weight = self.hh.weight
            gates = from_x[:, : 2 * width] + self._hh(h, weight[: 2 * width])
            r, z = torch.sigmoid(gates).chunk(2, dim=1)
            n = torch.tanh(from_x[:, 2 * width :] + self._hh(r * h, weight[2 * width :]))
        h = n * (1 - z) + z * h
        return h, h

    def _hh(self, h: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(h, weight, padding=self.hh.padding, dilation=self.hh.dilation)


def _runs_blocked(x: Tensor, h: Tensor) -> bool:
    """Inference on a CPU with wide layers in channels-last memory."""
    wide = min(x.shape[1], h.shape[1]) >= _WIDE and x.device.type == "cpu" and x.dtype == h.dtype == torch.float32
    return wide and not torch.is_grad_enabled() and x.is_contiguous(memory_format=torch.channels_last)


def _gru_blocked(x: Tensor, h: Tensor, ih: Tensor, bias: Tensor | None, hh: Tensor) -> Tensor:
    """`ConvGRU` with ``reset="before"`` and 1x1 gates, a thousand pixels at a time so that all of it stays in cache.

    Inference on a CPU, channels-last: the gates are matrix products with the bias and the activation in place.
    """
    width = h.shape[1]
    pixels, states = (t.permute(0, 2, 3, 1).reshape(-1, t.shape[1]) for t in (x, h))
    from_x, from_h = ih[..., 0, 0].T, hh[..., 0, 0].T
    gates_x, candidate_x = from_x[:, : 2 * width].contiguous(), from_x[:, 2 * width :].contiguous()
    gates_h, candidate_h = from_h[:, : 2 * width].contiguous(), from_h[:, 2 * width :].contiguous()
    offset = bias if bias is not None else ih.new_zeros(3 * width)
    result = torch.empty_like(states)
    for start in range(0, len(pixels), _BLOCK):
        a, b = pixels[start : start + _BLOCK], states[start : start + _BLOCK]
        gates = torch.addmm(offset[: 2 * width], a, gates_x).addmm_(b, gates_h).sigmoid_()
        n = torch.addmm(offset[2 * width :], a, candidate_x).addmm_(gates[:, :width] * b, candidate_h)
        # tanh(n) as 2 sigmoid(2 n) - 1, which torch computes three times as fast, wrong by a rounding of 1 at most.
        n.mul_(2).sigmoid_().mul_(2).sub_(1)
        torch.sub(b, n, out=result[start : start + _BLOCK]).mul_(gates[:, width:]).add_(n)
    batch, _, rows, cols = x.shape
    return result.view(batch, rows, cols, width).permute(0, 3, 1, 2)


class MGU(_ConvCell):
    """Minimal gated unit: one gate keeps the state and lets it into the candidate.

    ``f = sigmoid(ih_f(x) + hh_f(h))``, ``n = tanh(ih_n(x) + f * hh_n(h))``, ``h' = n + f (h - n)``.

    Args:
        channels: Channels of the input.
        hidden_channels: Channels of the state; None for `channels`.
        kernel_size: Of all convolutions.
        dilation: Of all convolutions.
        bias: Whether the gates have one.

    Reference:
        Zhou et al., Minimal gated unit for recurrent neural networks, arXiv:1603.09420; here f keeps instead of
        replacing, and acts after the convolution of the state, as in the code that CIRIM was published with.
    """

    gates = 2

    def forward(self, x: Image, state: State | None = None) -> tuple[State, State]:
        """One step; the output is the new state."""
        h = self.zeros(x) if state is None else state
        (x_f, x_n), (h_f, h_n) = self.ih(x).chunk(2, dim=1), self.hh(h).chunk(2, dim=1)
        f = torch.sigmoid(x_f + h_f)
        n = torch.tanh(x_n + f * h_n)
        h = n + f * (h - n)
        return h, h


class IndRNN(nn.Module):
    """Independently recurrent unit: ``h' = relu(ih(x) + w * h)`` with one weight a channel.

    Args:
        channels: Channels of the input.
        hidden_channels: Channels of the state; None for `channels`.
        kernel_size: Of the convolution of the input.
        dilation: Same.
        bias: Whether that convolution has one.

    Reference:
        Li et al., Independently recurrent neural network, arXiv:1803.04831, Eq. 4.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int | None = None,
        kernel_size: int = 1,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.hidden_channels = hidden = hidden_channels or channels
        padding = dilation * (kernel_size - 1) // 2
        self.ih = nn.Conv2d(channels, hidden, kernel_size, padding=padding, dilation=dilation, bias=bias)
        # The deviation of the code that CIRIM was published with.
        deviation = 1.0 / (hidden * (1 + kernel_size**2))
        nn.init.normal_(self.ih.weight, 0, deviation)
        if self.ih.bias is not None:
            nn.init.zeros_(self.ih.bias)
        self.hh = nn.Parameter(torch.randn(1, hidden, 1, 1) * deviation)

    def forward(self, x: Image, state: State | None = None) -> tuple[State, State]:
        """One step; the output is the new state."""
        if state is not None and self.ih.kernel_size == (1, 1) and _runs_blocked(x, state):
            h = _indrnn_blocked(x, state, self.ih, self.hh)
            return h, h
        from_x = self.ih(x)
        # In place: the convolution does not need its result again.
        h = torch.relu_(from_x if state is None else from_x.addcmul_(self.hh, state))
        return h, h


def _indrnn_blocked(x: Tensor, h: Tensor, ih: nn.Conv2d, weight: Tensor) -> Tensor:
    """`IndRNN` with a 1x1 convolution, a thousand pixels at a time; see `_gru_blocked`."""
    pixels, states = (t.permute(0, 2, 3, 1).reshape(-1, t.shape[1]) for t in (x, h))
    matrix, own = ih.weight[..., 0, 0].T.contiguous(), weight.flatten()
    offset = ih.bias if ih.bias is not None else matrix.new_zeros(matrix.shape[1])
    result = torch.empty_like(states)
    for start in range(0, len(pixels), _BLOCK):
        block = result[start : start + _BLOCK]
        torch.addmm(offset, pixels[start : start + _BLOCK], matrix, out=block)
        block.addcmul_(own, states[start : start + _BLOCK]).relu_()
    batch, _, rows, cols = x.shape
    return result.view(batch, rows, cols, -1).permute(0, 3, 1, 2)


class Recurrent(nn.Module):
    """A state for any `ImageMixer`: the mixer mixes the input over the image, a GRU with 1x1 gates carries the state.

    ``u = x + scale * mixer(norm(x))``, then ``h' = ConvGRU(u, h)``. `scale` starts small, so that the unit begins as
    a plain ConvGRU and a mixer of any kind can be swapped in without retuning.

    Args:
        channels: Channels of the input and of the state.
        mixer: An `ImageMixer` of that many channels.
        reset: See `ConvGRU`.
    """

    def __init__(self, channels: int, mixer: nn.Module, *, reset: Literal["after", "before"] = "before") -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.mixer = mixer
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.1))
        self.cell = ConvGRU(channels, reset=reset)

    def forward(self, x: Image, state: State | None = None) -> tuple[State, State]:
        """One step; the output is the new state."""
        return self.cell(x + self.scale * self.mixer(self.norm(x)), state)


def make_recurrent(mixer: Callable[[int], nn.Module], channels: int) -> nn.Module:
    """The `RecurrentMixer` that a factory makes; an `ImageMixer`, which knows no state, is given one.

    A module is recurrent if its `forward` takes a second argument named `state`.

    Raises:
        InputError: The factory made no layer.
    """
    import inspect

    module = mixer(channels)
    if not isinstance(module, nn.Module):
        raise InputError("the mixer factory made no layer", found=type(module).__name__, wanted="an nn.Module")
    if "state" in inspect.signature(module.forward).parameters:
        return module
    return Recurrent(channels, module)


def in_fast_layout(x: Tensor, channels: int) -> Tensor:
    """`x` in the memory order in which convolutions with so many channels are fastest on a CPU."""
    return x.contiguous(memory_format=torch.channels_last) if channels >= _WIDE else x


def replicate_conv(
    in_channels: int, out_channels: int, kernel_size: int, *, dilation: int = 1, bias: bool = True
) -> nn.Conv2d:
    """A convolution that repeats the edge pixels, as all of CIRIM's and RecurrentVarNet's do."""
    padding = dilation * (kernel_size - 1) // 2
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=bias, padding_mode="replicate"
    )
