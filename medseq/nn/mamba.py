"""Mamba layers for sequences ``(batch, length, dim)``: Mamba and its bidirectional form.

Mamba-2 is in `mamba2`, the form with sequence reordering in `srmamba`. Parameter names, their order and their start are
those of the original code, so its state dicts load (`medseq.inference.reference.load("mamba-ssm", …)`). All are
`SequenceMixer`s (see `medseq.nn.mixers`). The causal ones also run in pieces (``y, state = layer.stream(part, state)``)
and token by token (``y, state = layer.step(x, state)``).

Reference:
    Gu and Dao, Mamba, arXiv:2312.00752; Dao and Gu, Transformers are SSMs (Mamba-2), arXiv:2405.21060.
    Two-directional form: Zhu et al., Vision Mamba, arXiv:2401.09417.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseq.errors import InputError
from medseq.nn.mamba2 import Mamba2
from medseq.nn.pointwise import mix_channels
from medseq.nn.ssm_init import at_least_float32, poles_log, resolve_dt_rank, step_bias, step_weight
from medseq.nn.ssm_state import MambaState, check_tokens
from medseq.ops import bidirectional_selective_scan, causal_conv1d, selective_scan, selective_state_update

__all__ = ["BiMamba", "Branch", "Mamba", "Mamba2", "MambaState"]


class Branch(NamedTuple):
    """The layers of one scan direction."""

    conv1d: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    A_log: Tensor
    D: Tensor

    def convolve(self, x: Tensor, state: Tensor | None = None) -> tuple[Float[Tensor, "batch inner length"], Tensor]:
        """Input of the scan, and the convolution's next state."""
        conv = self.conv1d
        u, after = causal_conv1d(x, conv.weight[:, 0], conv.bias, "silu", state, return_final_state=True)
        return u, after

    def project(self, u: Float[Tensor, "batch inner length"]) -> tuple[Tensor, Tensor, Tensor]:
        """Step (without its bias), B and C of every token, ``(batch, …, length)``."""
        rank, states = self.dt_proj.in_features, self.A_log.shape[1]
        # The length stays the last axis: the scan reads it with stride 1, and no transposed copy is made.
        dt, B, C = mix_channels(self.x_proj.weight, u).split([rank, states, states], dim=1)
        return mix_channels(self.dt_proj.weight, dt), B, C

    @property
    def A(self) -> Tensor:
        """The poles, negative."""
        return -at_least_float32(self.A_log).exp()


class Mamba(nn.Module):
    """Gated selective scan from the first token to the last: linear in the length, causal.

    ``out = W_out (scan(silu(conv(x))) * silu(z))`` with ``x, z = W_in input``; step, B and C come from each token.

    Args:
        d_model: Width of the tokens.
        d_state: States per channel.
        d_conv: Taps of the causal convolution.
        expand: Inner width in units of `d_model`.
        dt_rank: Rank of the projection to the time step; ``auto`` is a sixteenth of `d_model`.
        conv_bias: Whether the convolution has a bias.
        bias: Whether the projections in and out have one.
        dt_min: Smallest time step at the start of training.
        dt_max: Largest time step at the start of training.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        conv_bias: bool = True,
        bias: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.d_inner = d_model, d_state, d_conv, int(expand * d_model)
        self.dt_rank = resolve_dt_rank(dt_rank, d_model)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        self._add_branch("", conv_bias, dt_min, dt_max)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)

    def _add_branch(self, suffix: str, conv_bias: bool, dt_min: float, dt_max: float) -> None:
        """Layers of one direction, under the original's names: ``conv1d_b``, but ``A_b_log``."""
        inner, rank, states = self.d_inner, self.dt_rank, self.d_state
        conv = nn.Conv1d(inner, inner, self.d_conv, groups=inner, padding=self.d_conv - 1, bias=conv_bias)
        dt_proj = nn.Linear(rank, inner)
        with torch.no_grad():
            dt_proj.weight.copy_(step_weight(inner, rank))
            dt_proj.bias.copy_(step_bias(inner, dt_min=dt_min, dt_max=dt_max))
        setattr(self, f"conv1d{suffix}", conv)
        setattr(self, f"x_proj{suffix}", nn.Linear(inner, rank + 2 * states, bias=False))
        setattr(self, f"dt_proj{suffix}", dt_proj)
        setattr(self, f"A{suffix}_log", nn.Parameter(poles_log(inner, states)))
        setattr(self, f"D{suffix}", nn.Parameter(torch.ones(inner)))

    def _branch(self, suffix: str = "") -> Branch:
        names = (f"conv1d{suffix}", f"x_proj{suffix}", f"dt_proj{suffix}", f"A{suffix}_log", f"D{suffix}")
        return Branch(*(getattr(self, name) for name in names))

    def _project_in(self, x: Tensor) -> tuple[Float[Tensor, "batch inner length"], Float[Tensor, "batch inner length"]]:
        """Inputs of the convolution and of the gate, length last."""
        check_tokens(x, self.d_model, type(self).__name__)
        x, z = mix_channels(self.in_proj.weight, x.mT, self.in_proj.bias).chunk(2, dim=1)
        return x, z

    def forward(
        self, x: Float[Tensor, "batch length dim"], coords: Tensor | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """Mix all tokens; `coords` are accepted as every `SequenceMixer` does, and not used.

        Raises:
            ShapeError: Not ``(batch, length, d_model)``.
        """
        x, z = self._project_in(x)
        branch = self._branch()
        u, _ = branch.convolve(x)
        delta, B, C = branch.project(u)
        y = selective_scan(u, delta, branch.A, B, C, branch.D, z, branch.dt_proj.bias, delta_softplus=True)
        assert isinstance(y, Tensor)
        return self.out_proj(y.mT)

    def initial_state(self, batch: int) -> MambaState:
        """State before the first token, on the device of the layer."""
        weight = self.out_proj.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        conv = torch.zeros(batch, self.d_inner, self.d_conv - 1, device=weight.device, dtype=weight.dtype)
        return MambaState(conv, torch.zeros(batch, self.d_inner, self.d_state, device=weight.device, dtype=dtype))

    def stream(
        self, x: Float[Tensor, "batch length dim"], state: MambaState | None = None
    ) -> tuple[Float[Tensor, "batch length dim"], MambaState]:
        """Mix the next tokens of a longer sequence; all parts together give what `forward` gives of the whole.

        Args:
            x: The next tokens, one or more.
            state: What the call before returned; None at the beginning.
        """
        state = self.initial_state(x.shape[0]) if state is None else state
        x, z = self._project_in(x)
        branch = self._branch()
        u, conv = branch.convolve(x, state.conv)
        delta, B, C = branch.project(u)
        y, ssm = selective_scan(
            u,
            delta,
            branch.A,
            B,
            C,
            branch.D,
            z,
            branch.dt_proj.bias,
            delta_softplus=True,
            return_last_state=True,
            initial_state=state.ssm,
        )
        return self.out_proj(y.mT), MambaState(conv, ssm)

    def step(self, x: Float[Tensor, "batch dim"], state: MambaState) -> tuple[Float[Tensor, "batch dim"], MambaState]:
        """Mix one token, in constant time and memory; equal to `stream` of one token.

        Args:
            x: The next token.
            state: From `initial_state`, `stream` or `step`; left as it is.
        """
        x, z = self._project_in(x[:, None])
        branch = self._branch()
        u, conv = branch.convolve(x, state.conv)
        delta, B, C = (t[..., 0] for t in branch.project(u))
        ssm = state.ssm.clone()
        y = selective_state_update(
            ssm, u[..., 0], delta, branch.A, B, C, branch.D, z[..., 0], branch.dt_proj.bias, dt_softplus=True
        )
        return self.out_proj(y), MambaState(conv, ssm)


class BiMamba(Mamba):
    """Mamba in both directions: the sum of a scan forwards and one backwards, each with its own parameters.

    Projections in and out are shared; the second direction's layers end in ``_b``. Not causal, so it cannot stream.
    Arguments as of `Mamba`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        conv_bias: bool = True,
        bias: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ) -> None:
        super().__init__(d_model, d_state, d_conv, expand, dt_rank, conv_bias, bias, dt_min, dt_max)
        self._add_branch("_b", conv_bias, dt_min, dt_max)

    def forward(
        self, x: Float[Tensor, "batch length dim"], coords: Tensor | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """Mix all tokens; `coords` are not used."""
        x, z = self._project_in(x)
        branches = self._branch(), self._branch("_b")
        # Only the second convolution needs a reversed copy: all else is done where the tokens lie.
        inputs = branches[0].convolve(x)[0], branches[1].convolve(x.flip(-1))[0].flip(-1)
        steps, B, C = zip(*(branch.project(u) for branch, u in zip(branches, inputs, strict=True)), strict=True)
        y = bidirectional_selective_scan(
            torch.stack(inputs, 1),
            torch.stack(steps, 1),
            torch.cat([branch.A for branch in branches]),
            torch.stack(B, 1),
            torch.stack(C, 1),
            torch.cat([branch.D for branch in branches]),
            z,
            torch.cat([branch.dt_proj.bias for branch in branches]),
            delta_softplus=True,
        )
        return self.out_proj(y.mT)

    def stream(self, x: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """Refused: every output needs the whole sequence.

        Raises:
            InputError: Always.
        """
        raise InputError("BiMamba needs the whole sequence", remedy="use Mamba to stream")

    def step(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """Refused, as `stream`.

        Raises:
            InputError: Always.
        """
        return self.stream(x, state)
