"""The variants of SS2D under the original's names: order of the scans, gate, activation and norm.

Reference:
    Liu et al., VMamba: Visual State Space Model, arXiv:2401.10166, and its authors' code.
"""

from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from medseq.errors import InputError
from medseq.nn.rwkv import ChannelLayerNorm

__all__ = ["ForwardType", "out_norm"]

Scan = Literal["cross", "forward", "bidirectional", "cascade"]

_CROSS: Scan = "cross"
# Words of the original's `forward_type` -> the order of the four scans. Its other words named kernels, not functions.
_SCANS: dict[str, Scan] = {
    **dict.fromkeys(("v0", "v0seq", "v01", "v02", "v03", "v04", "v05", "v2", "v3"), _CROSS),
    "v051d": "forward",
    "v052d": "bidirectional",
    "v052dc": "cascade",
}
_OUT_NORMS = ("none", "dwconv3", "cnorm", "softmax", "sigmoid")


class ForwardType(NamedTuple):
    """What a `forward_type` such as ``v05_onnone_noz_oact`` says."""

    scan: Scan
    gate: bool
    gate_activation: bool
    out_activation: bool
    out_norm: str

    @classmethod
    def parse(cls, text: str) -> "ForwardType":
        """Read the words of the original code, suffixes in any order.

        Raises:
            InputError: An unknown word.
        """
        base, *words = text.split("_")
        norms = [word.removeprefix("on") for word in words if word.removeprefix("on") in _OUT_NORMS]
        # no32 asked for half-precision scans; here the operator decides.
        others = {word for word in words if word.removeprefix("on") not in _OUT_NORMS} - {"no32"}
        if base not in _SCANS or others - {"noz", "nozact", "oact"} or len(norms) > 1:
            raise InputError(
                "unknown forward_type",
                found=text,
                wanted=f"{' | '.join(_SCANS)} and of _{', _'.join(f'on{name}' for name in _OUT_NORMS)}, _noz, _nozact, "
                "_oact, _no32",
            )
        norm = norms[0] if norms else "layer"
        return cls(_SCANS[base], "noz" not in others, "nozact" not in others, "oact" in others, norm)


class SpatialSoftmax(nn.Module):
    """Softmax over all pixels of each channel."""

    def forward(self, x: Float[Tensor, "batch channel row col"]) -> Float[Tensor, "batch channel row col"]:
        """Weights that sum to 1 over rows and columns."""
        return x.flatten(2).softmax(-1).view(x.shape)


def out_norm(kind: str, channels: int) -> nn.Module:
    """The norm after the merge, over ``(batch, channel, row, col)``; places in a sequence are those of the original."""
    if kind in ("dwconv3", "cnorm"):
        conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        norm = [ChannelLayerNorm(channels)] if kind == "cnorm" else []
        return nn.Sequential(*norm, nn.Identity(), conv, nn.Identity())
    simple = {"none": nn.Identity, "softmax": SpatialSoftmax, "sigmoid": nn.Sigmoid}
    return simple[kind]() if kind in simple else ChannelLayerNorm(channels)
