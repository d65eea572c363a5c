"""Mamba with sequence reordering: one scan in the order of the bag, one in a strided order."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from medseq.nn.mamba import BiMamba, Branch
from medseq.nn.reorder import stride, unstride
from medseq.ops import selective_scan

__all__ = ["SRMamba"]


class SRMamba(BiMamba):
    """The sum of a scan over the tokens as they come and one over ``0, r, 2r, …, 1, r + 1, …``.

    Parameters are those of `BiMamba`; the second scan's layers end in ``_b``. Tokens that fill the last run up are
    zeros behind the projection in. They stand inside the sequence, and what convolution and state make of them is part
    of the model.

    Args:
        d_model: Width of the tokens.
        rate: Stride r of the second scan.
        d_state: States per channel.
        d_conv: Taps of the causal convolution.
        expand: Inner width in units of `d_model`.
        dt_rank: Rank of the projection to the time step.
        conv_bias: Whether the convolutions have biases.
        bias: Whether the projections in and out have biases.
        dt_min: Smallest time step at the start of training.
        dt_max: Largest time step at the start of training.

    Reference:
        Yang et al., MambaMIL, arXiv:2403.06800, section 3.3.
    """

    def __init__(
        self,
        d_model: int,
        rate: int = 5,
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
        self.rate = rate

    def forward(
        self, x: Float[Tensor, "batch length dim"], coords: Tensor | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """Mix all tokens; `coords` are not used."""
        x, z = self._project_in(x)
        y = _scan(self._branch(), x)
        strided = _scan(self._branch("_b"), stride(x, self.rate))
        # The gate acts on each token alone, so it may wait until both scans are in one order.
        y = (y + unstride(strided, self.rate, x.shape[-1])) * F.silu(z)
        return self.out_proj(y.mT)


def _scan(branch: Branch, x: Float[Tensor, "batch inner length"]) -> Float[Tensor, "batch inner length"]:
    u, _ = branch.convolve(x)
    delta, B, C = branch.project(u)
    y = selective_scan(u, delta, branch.A, B, C, branch.D, None, branch.dt_proj.bias, delta_softplus=True)
    assert isinstance(y, Tensor)
    return y
