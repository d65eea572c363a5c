"""SS2D, the two-dimensional selective scan of VMamba, and its mixers.

An image is scanned in four directions with one set of parameters each (rows, columns, and both reversed), and the four
results are summed. Parameter names are those of the original code; `medseq.models.backbone_vmamba` loads its state
dicts.

Reference:
    Liu et al., VMamba: Visual State Space Model, arXiv:2401.10166.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from medseq.errors import InputError, ShapeError
from medseq.nn.mixers import OnGrid
from medseq.nn.pointwise import mix_channels
from medseq.nn.recurrent import Recurrent
from medseq.nn.ss2d_variants import ForwardType, out_norm
from medseq.nn.ssm_init import at_least_float32, poles_log, resolve_dt_rank, step_bias, step_weight
from medseq.ops import bidirectional_selective_scan, cross_selective_scan
from medseq.ops.cross_scan import Directions

__all__ = ["ACTIVATIONS", "SS2D", "Linear2d", "SS2DMixer", "SS2DRecurrentMixer", "SS2DSequenceMixer"]

ACTIVATIONS = {"silu": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU, "sigmoid": nn.Sigmoid}


class Linear2d(nn.Linear):
    """A linear layer over the channels of ``(batch, channel, row, col)``; loads 1x1 convolutions too."""

    def forward(self, x: Float[Tensor, "batch channel row col"]) -> Float[Tensor, "batch out row col"]:
        """Apply to each pixel."""
        return mix_channels(self.weight, x.flatten(2), self.bias).unflatten(2, x.shape[2:])

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and weight.dim() == 4 and weight.shape[2:] == (1, 1):
            state_dict[f"{prefix}weight"] = weight[:, :, 0, 0]
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class SS2D(nn.Module):
    """Four selective scans over an image, their sum normalised, optionally gated.

    ``out = W_out (norm(sum_k scan_k(silu(conv(x)))) * silu(z))`` with ``x, z = W_in input``; step, B and C of each
    direction come from each pixel.

    Args:
        d_model: Channels of the image.
        d_state: States per channel and direction.
        ssm_ratio: Inner width in units of `d_model`, rounded down.
        dt_rank: Rank of the projection to the time step; ``auto`` is a sixteenth of `d_model`.
        act: Activation after the convolution and of the gate: silu, gelu, relu or sigmoid.
        d_conv: Size of the depthwise convolution; below 2 for none.
        conv_bias: Whether the convolution has a bias.
        bias: Whether the projections in and out have one.
        dropout: After the projection out.
        forward_type: Variant, in the original's words: ``v05`` with the suffixes ``_noz`` (no gate), ``_nozact`` (a
            gate without activation), ``_oact`` (GELU on the summed scans), ``_onnone``, ``_ondwconv3``, ``_oncnorm``,
            ``_onsoftmax``, ``_onsigmoid`` (another norm). ``v051d`` scans rows forwards four times, ``v052d`` rows in
            both directions, ``v052dc`` each row by itself and then each column.
        channel_first: Whether images are ``(batch, channel, row, col)`` or ``(batch, row, col, channel)``.
        dt_min: Smallest time step at the start of training.
        dt_max: Largest time step at the start of training.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        dt_rank: int | str = "auto",
        act: str = "silu",
        d_conv: int = 3,
        conv_bias: bool = True,
        bias: bool = False,
        dropout: float = 0.0,
        forward_type: str = "v05",
        channel_first: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ) -> None:
        super().__init__()
        if act not in ACTIVATIONS:
            raise InputError("unknown activation", found=act, wanted=", ".join(ACTIVATIONS))
        self.kind = ForwardType.parse(forward_type)
        self.channel_first, self.d_model, self.d_state = channel_first, d_model, d_state
        self.d_inner = inner = int(ssm_ratio * d_model)
        self.dt_rank = rank = resolve_dt_rank(dt_rank, d_model)

        linear = Linear2d if channel_first else nn.Linear
        self.out_norm = out_norm(self.kind.out_norm, inner)
        self.in_proj = linear(d_model, inner * (2 if self.kind.gate else 1), bias=bias)
        self.act = ACTIVATIONS[act]()
        self.conv2d = (
            nn.Conv2d(inner, inner, d_conv, padding=(d_conv - 1) // 2, groups=inner, bias=conv_bias)
            if d_conv > 1
            else None
        )
        projections = torch.stack([nn.Linear(inner, rank + 2 * d_state, bias=False).weight for _ in range(4)])
        self.x_proj_weight = nn.Parameter(projections.detach())
        self.out_act = nn.GELU() if self.kind.out_activation else nn.Identity()
        self.out_proj = linear(inner, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.A_logs = nn.Parameter(poles_log(4 * inner, d_state))
        self.Ds = nn.Parameter(torch.ones(4 * inner))
        self.dt_projs_weight = nn.Parameter(torch.stack([step_weight(inner, rank) for _ in range(4)]))
        self.dt_projs_bias = nn.Parameter(step_bias(4 * inner, dt_min=dt_min, dt_max=dt_max).view(4, inner))

    def forward(
        self, x: Float[Tensor, "batch _ _ _"], mask: Bool[Tensor, "batch row col"] | None = None
    ) -> Float[Tensor, "batch _ _ _"]:
        """Mix all pixels of each image.

        Args:
            x: Images, channels where `channel_first` says.
            mask: False where there is nothing: such pixels have a time step of 0, so that states pass them unchanged,
                and give no output.

        Raises:
            ShapeError: The channels are not `d_model`, or the mask is of another size.
        """
        axis = 1 if self.channel_first else 3
        _check(x, self.d_model, axis, mask)
        x, z = self.in_proj(x), None
        if self.kind.gate:
            x, z = x.chunk(2, dim=axis)
            z = self.act(z) if self.kind.gate_activation else z
        if not self.channel_first:
            x = x.permute(0, 3, 1, 2).contiguous()
        if mask is not None:
            x = x.masked_fill(~mask[:, None], 0)
        x = self.act(x if self.conv2d is None else self.conv2d(x))
        y = self.out_norm(self._scan(x, mask)).to(x.dtype)
        y = self.out_act(y if self.channel_first else y.permute(0, 2, 3, 1))
        y = self.dropout(self.out_proj(y if z is None else y * z))
        return y if mask is None else y * mask.unsqueeze(axis)

    def _scan(self, x: Tensor, mask: Tensor | None) -> Float[Tensor, "batch inner row col"]:
        """The four scans, merged."""
        scan = self.kind.scan
        if scan != "cascade":
            return self._four(x, mask, scan)
        if mask is not None:
            raise InputError("the cascaded scan knows no holes", where="SS2D", remedy="use forward_type v05")
        # The norms without parameters are the original's, against overflow.
        x = _normalise(self._each_row(_normalise(x), 0))
        return self._each_row(x.mT, 2).mT

    def _inputs(self, x: Tensor, first: int = 0, last: int = 4) -> tuple[Tensor, Tensor, Tensor]:
        """Step (without its bias), B and C of directions `first` to `last`, in image order.

        Both projections are made where the pixels lie: no direction needs a copy of the image.
        """
        count, (batch, _, rows, cols) = last - first, x.shape
        weight = self.x_proj_weight[first:last].flatten(0, 1)
        parts = mix_channels(weight, x.flatten(2)).view(batch, count, -1, rows * cols)
        dt, B, C = parts.split([self.dt_rank, self.d_state, self.d_state], dim=2)
        delta = torch.matmul(self.dt_projs_weight[first:last], dt)
        return tuple(t.unflatten(-1, (rows, cols)) for t in (delta, B, C))

    @property
    def _poles(self) -> Float[Tensor, "direction_inner state"]:
        return -at_least_float32(self.A_logs).exp()

    def _four(self, x: Tensor, mask: Tensor | None, directions: Directions) -> Tensor:
        delta, B, C = self._inputs(x)
        bias: Tensor | None = at_least_float32(self.dt_projs_bias).flatten()
        if mask is not None:
            # The step is finished here, because exactly 0 is what no finite input of softplus gives.
            holes = ~mask[:, None]
            x = x.masked_fill(holes, 0)
            delta = F.softplus(delta + self.dt_projs_bias[:, :, None, None]).masked_fill(holes[:, None], 0)
            bias = None
        y = cross_selective_scan(
            x,
            delta,
            self._poles,
            B,
            C,
            at_least_float32(self.Ds),
            bias,
            delta_softplus=mask is None,
            directions=directions,
        )
        return y if mask is None else y.masked_fill(holes, 0)

    def _each_row(self, x: Tensor, first: int) -> Tensor:
        """Directions `first` (forwards) and the next (backwards) along every row by itself, summed.

        The original adds the backward result in the order of its scan, mirrored against the forward one. Weights were
        trained with that, so it stays.
        """
        batch, inner, rows, cols = x.shape

        def lines(t: Tensor) -> Tensor:
            """``(batch, …, row, col)`` -> ``(batch * row, …, col)``."""
            return t.movedim(-2, 1).flatten(0, 1)

        delta, B, C = (lines(t) for t in self._inputs(x, first, first + 2))
        part = slice(first * inner, (first + 2) * inner)
        bias = at_least_float32(self.dt_projs_bias[first : first + 2]).flatten()
        y = bidirectional_selective_scan(
            lines(x),
            delta,
            self._poles[part],
            B,
            C,
            at_least_float32(self.Ds[part]),
            delta_bias=bias,
            delta_softplus=True,
            merge=False,
        )
        y = y[:, 0] + y[:, 1].flip(-1)
        return y.view(batch, rows, inner, cols).transpose(1, 2)


class SS2DMixer(SS2D):
    """SS2D as an `ImageMixer`, by default in the form of the released VMamba models: no gate, one state.

    Args:
        channels: Number of channels.
        d_state: See `SS2D`, as all that follow.
        ssm_ratio: Inner width in units of `channels`.
        dt_rank: Rank of the projection to the time step.
        d_conv: Size of the depthwise convolution.
        conv_bias: Whether it has a bias.
        forward_type: Variant.
    """

    def __init__(
        self,
        channels: int,
        *,
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        dt_rank: int | str = "auto",
        d_conv: int = 3,
        conv_bias: bool = True,
        forward_type: str = "v05_noz",
    ) -> None:
        super().__init__(
            channels,
            d_state,
            ssm_ratio,
            dt_rank,
            d_conv=d_conv,
            conv_bias=conv_bias,
            forward_type=forward_type,
            channel_first=True,
        )


class SS2DRecurrentMixer(Recurrent):
    """SS2D as a `RecurrentMixer`; arguments as of `SS2DMixer`."""

    def __init__(
        self,
        channels: int,
        *,
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        d_conv: int = 3,
        forward_type: str = "v05_noz",
    ) -> None:
        mixer = SS2DMixer(channels, d_state=d_state, ssm_ratio=ssm_ratio, d_conv=d_conv, forward_type=forward_type)
        super().__init__(channels, mixer)


class SS2DSequenceMixer(OnGrid):
    """SS2D as a `SequenceMixer` on the slide's grid; holes are passed by, not read.

    Args:
        dim: Width of the tokens.
        d_state: See `SS2DMixer`, as those that follow.
        ssm_ratio: Inner width in units of `dim`.
        d_conv: Size of the depthwise convolution.
        forward_type: Variant with a cross scan.
        patch_size_level0: See `medseq.nn.mixers.OnGrid`.
    """

    def __init__(
        self,
        dim: int,
        *,
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        d_conv: int = 3,
        forward_type: str = "v05_noz",
        patch_size_level0: float | None = None,
    ) -> None:
        mixer = SS2DMixer(dim, d_state=d_state, ssm_ratio=ssm_ratio, d_conv=d_conv, forward_type=forward_type)
        super().__init__(mixer, patch_size_level0)


def _normalise(x: Tensor) -> Tensor:
    """Layer norm over channels, without parameters."""
    return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2).contiguous()


def _check(x: Tensor, channels: int, axis: int, mask: Tensor | None) -> None:
    if x.dim() != 4 or x.shape[axis] != channels:
        wanted = f"(batch, {channels}, row, col)" if axis == 1 else f"(batch, row, col, {channels})"
        raise ShapeError("image does not fit the layer", where="SS2D", found=tuple(x.shape), wanted=wanted)
    grid = (x.shape[0], *(x.shape[2:] if axis == 1 else x.shape[1:3]))
    if mask is not None and mask.shape != grid:
        raise ShapeError("mask does not fit the image", where="SS2D", found=tuple(mask.shape), wanted=grid)
