"""Mamba-2 for sequences ``(batch, length, dim)``: one decay per head, computed by matrix products over chunks.

Names, their order and their start are those of the original code (``Mamba2Simple``).

Reference:
    Dao and Gu, Transformers are SSMs, arXiv:2405.21060.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from medseq.errors import InputError
from medseq.nn.ssm_init import at_least_float32, step_bias
from medseq.nn.ssm_state import MambaState, check_tokens
from medseq.ops import causal_conv1d, ssd

__all__ = ["GatedRMSNorm", "Mamba2"]


class GatedRMSNorm(nn.Module):
    """``rms_norm(x * silu(z)) * weight`` over the last axis."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*any dim"], z: Float[Tensor, "*any dim"]) -> Float[Tensor, "*any dim"]:
        """Gate with `z`, then normalise."""
        return F.rms_norm(x * F.silu(z), self.weight.shape, self.weight, self.eps)


class Mamba2(nn.Module):
    """Mamba-2: one decay per head, computed by matrix products over chunks (`medseq.ops.ssd`); causal.

    Args:
        d_model: Width of the tokens.
        d_state: States per channel.
        d_conv: Taps of the causal convolution.
        expand: Inner width in units of `d_model`.
        headdim: Channels per head.
        ngroups: Groups of heads that share B and C.
        chunk_size: Tokens per chunk; changes the speed, not the result.
        conv_bias: Whether the convolution has a bias.
        bias: Whether the projections in and out have one.
        learnable_init_states: Whether the state before the first token is a parameter.
        dt_limit: Time steps are clamped to this range.
        dt_min: Smallest time step at the start of training.
        dt_max: Largest time step at the start of training.
        A_init_range: Range of the decay rates at the start of training.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        d_conv: int = 4,
        expand: float = 2,
        headdim: int = 64,
        ngroups: int = 1,
        chunk_size: int = 64,
        conv_bias: bool = True,
        bias: bool = False,
        learnable_init_states: bool = False,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        A_init_range: tuple[float, float] = (1.0, 16.0),
    ) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.d_inner = d_model, d_state, d_conv, int(expand * d_model)
        self.headdim, self.ngroups, self.chunk_size = headdim, ngroups, chunk_size
        self.dt_limit = dt_limit
        self.nheads = self.d_inner // headdim
        if self.nheads * headdim != self.d_inner or self.nheads % ngroups:
            raise InputError(
                "Mamba2 needs an inner width of whole heads, and heads of whole groups",
                found=f"inner width {self.d_inner}, headdim {headdim}, ngroups {ngroups}",
            )
        self.conv_dim = self.d_inner + 2 * ngroups * d_state
        # The original's order of rows: z, x, B, C, dt.
        self.in_proj = nn.Linear(d_model, self.d_inner + self.conv_dim + self.nheads, bias=bias)
        self.conv1d = nn.Conv1d(
            self.conv_dim, self.conv_dim, d_conv, groups=self.conv_dim, padding=d_conv - 1, bias=conv_bias
        )
        if learnable_init_states:
            self.init_states = nn.Parameter(torch.zeros(self.nheads, headdim, d_state))
        self.dt_bias = nn.Parameter(step_bias(self.nheads, dt_min=dt_min, dt_max=dt_max))
        self.A_log = nn.Parameter(torch.empty(self.nheads).uniform_(*A_init_range).log())
        self.D = nn.Parameter(torch.ones(self.nheads))
        self.norm = GatedRMSNorm(self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)

    def forward(
        self, x: Float[Tensor, "batch length dim"], coords: Tensor | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """Mix all tokens; `coords` are accepted as every `SequenceMixer` does, and not used."""
        return self._run(x, None, self.chunk_size)[0]

    def initial_state(self, batch: int) -> MambaState:
        """State before the first token, on the device of the layer."""
        weight = self.out_proj.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        conv = torch.zeros(batch, self.conv_dim, self.d_conv - 1, device=weight.device, dtype=weight.dtype)
        if hasattr(self, "init_states"):
            return MambaState(conv, self.init_states.to(dtype).expand(batch, -1, -1, -1))
        shape = (batch, self.nheads, self.headdim, self.d_state)
        return MambaState(conv, torch.zeros(shape, device=weight.device, dtype=dtype))

    def stream(
        self, x: Float[Tensor, "batch length dim"], state: MambaState | None = None
    ) -> tuple[Float[Tensor, "batch length dim"], MambaState]:
        """Mix the next tokens of a longer sequence; all parts together give what `forward` gives of the whole."""
        return self._run(x, state, self.chunk_size)

    def step(self, x: Float[Tensor, "batch dim"], state: MambaState) -> tuple[Float[Tensor, "batch dim"], MambaState]:
        """Mix one token, in constant time and memory."""
        y, state = self._run(x[:, None], state, 1)
        return y[:, 0], state

    def _run(self, tokens: Tensor, state: MambaState | None, chunk: int) -> tuple[Tensor, MambaState]:
        check_tokens(tokens, self.d_model, "Mamba2")
        batch, length, _ = tokens.shape
        state = self.initial_state(batch) if state is None else state
        z, xBC, dt = self.in_proj(tokens).split([self.d_inner, self.conv_dim, self.nheads], dim=-1)
        taps, bias = self.conv1d.weight[:, 0], self.conv1d.bias
        mixed, conv = causal_conv1d(xBC.mT, taps, bias, "silu", state.conv, return_final_state=True)
        width = self.ngroups * self.d_state
        x, B, C = mixed.mT.split([self.d_inner, width, width], dim=-1)
        x = x.reshape(batch, length, self.nheads, self.headdim)
        B, C = (t.reshape(batch, length, self.ngroups, self.d_state) for t in (B, C))
        steps = F.softplus(at_least_float32(dt) + at_least_float32(self.dt_bias)).clamp(*self.dt_limit)
        y, ssm = ssd(
            x,
            steps,
            -at_least_float32(self.A_log).exp(),
            B,
            C,
            chunk,
            initial_state=state.ssm,
            return_last_state=True,
        )
        y = (y + self.D[:, None] * x).flatten(2)
        return self.out_proj(self.norm(y, z)), MambaState(conv, ssm)
