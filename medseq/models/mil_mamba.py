"""MambaMIL: the patches of a slide are mixed by a linear-time sequence model before attention pools them.

Reference:
    Yang et al., MambaMIL: Enhancing long sequence modeling with sequence reordering in computational pathology,
    arXiv:2403.06800. Reference implementation: isyangshu/MambaMIL.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseq.errors import InputError
from medseq.nn.attention_pool import AttentionPool
from medseq.nn.mamba import BiMamba, Mamba
from medseq.nn.mil import Bags, MILOutput, padded
from medseq.nn.mixers import OnGrid
from medseq.nn.rwkv import ReWKVSequenceMixer
from medseq.nn.srmamba import SRMamba
from medseq.nn.ss2d import SS2DSequenceMixer

__all__ = ["MambaMIL", "MixerBlock"]


class MixerBlock(nn.Module):
    """``h <- h + mixer(norm(h))``.

    Args:
        dim: Width of the tokens.
        mixer: A `SequenceMixer`.
    """

    def __init__(self, dim: int, mixer: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = mixer

    def forward(self, h: Float[Tensor, "batch n dim"], coords: Tensor | None = None) -> Float[Tensor, "batch n dim"]:
        """Mix the tokens of one bag, or of several of one length."""
        return h + self.mixer(self.norm(h), coords)


class MambaMIL(nn.Module):
    """Projection, blocks of a sequence mixer, attention pooling, linear classifier.

    Args:
        in_dim: Width of the patch features.
        n_classes: Logits; time bins for survival.
        d_model: Width of the tokens.
        num_layers: Mixer blocks.
        mixer: Takes the width and makes a `SequenceMixer`: `medseq.nn.mamba.Mamba`, `BiMamba`,
            `medseq.nn.srmamba.SRMamba`, `medseq.nn.rwkv.ReWKVSequenceMixer`, …; None for SRMamba of `rate`, or with
            `scan2d` for SS2D on the slide's grid.
        rate: Stride of sequence reordering, where `mixer` is None.
        scan2d: Patches are laid on their slide's grid by their coordinates and mixed there; without coordinates the
            model then refuses, where it would else fill a square.
        dropout: Share of projected features that are dropped in training.
        activation: Behind the projection.
        attention_dim: Hidden width of the attention.
        init: ``mamba`` keeps the time steps of Mamba's own start, 0.001 to 0.1; ``original`` repeats the authors'
            code, which draws every linear layer anew and so starts at steps of about 0.7.
    """

    def __init__(
        self,
        in_dim: int = 1024,
        n_classes: int = 2,
        d_model: int = 512,
        num_layers: int = 2,
        mixer: Callable[[int], nn.Module] | None = None,
        rate: int = 5,
        scan2d: bool = False,
        dropout: float = 0.25,
        activation: Literal["gelu", "relu"] = "gelu",
        attention_dim: int = 128,
        init: Literal["mamba", "original"] = "mamba",
    ) -> None:
        super().__init__()
        self.in_dim, self.scan2d = in_dim, scan2d
        if mixer is None:
            mixer = SS2DSequenceMixer if scan2d else partial(SRMamba, rate=rate)
        self.embed = nn.Sequential(
            nn.Linear(in_dim, d_model), nn.GELU() if activation == "gelu" else nn.ReLU(), nn.Dropout(dropout)
        )
        self.layers = nn.ModuleList(MixerBlock(d_model, mixer(d_model)) for _ in range(num_layers))
        if scan2d and not all(isinstance(layer.mixer, OnGrid) for layer in self.layers):
            raise InputError(
                "scan2d needs a mixer that works on the slide's grid",
                found=type(self.layers[0].mixer).__name__,
                wanted="SS2DSequenceMixer, ReWKVSequenceMixer or another OnGrid",
            )
        self.norm = nn.LayerNorm(d_model)
        self.attention = AttentionPool(d_model, attention_dim)
        self.classifier = nn.Linear(d_model, n_classes)
        if init == "original":
            self.apply(_draw_anew)

    def forward(self, features: Tensor, coords: Tensor | None = None, lengths: Tensor | None = None) -> MILOutput:
        """Scores of bags; see `medseq.nn.mil`.

        Args:
            features: ``(n, d)`` or ``(batch, n, d)``.
            coords: Level-0 pixels (x, y), ``(n, 2)`` or ``(batch, n, 2)``.
            lengths: Instances of each bag that are no padding.

        Raises:
            ShapeError: Sizes do not fit.
            InputError: `scan2d` without coordinates.
        """
        bags = Bags.of(features, self.in_dim, coords, lengths)
        if self.scan2d and bags.coords is None:
            raise InputError(
                "this model lays patches on the slide's grid and needs their coordinates",
                wanted="coords (n, 2) in level-0 pixels",
                remedy="extract features with coordinates, or train with scan2d: false",
            )
        tokens = self._mix_all(bags)
        embedding, attention = self.attention(tokens, bags.mask)
        return MILOutput(self.classifier(embedding), attention, embedding=embedding)

    def _mix_all(self, bags: Bags) -> Float[Tensor, "batch n dim"]:
        if bags.mask is None:
            return self.mix(bags.features, bags.coords)
        # A scan would read the padding, and a backward one would read it first.
        return padded([self.mix(features, coords) for features, coords in bags.each()])

    def mix(self, features: Float[Tensor, "batch n d"], coords: Tensor | None = None) -> Float[Tensor, "batch n dim"]:
        """Normalised tokens of bags without padding."""
        h = self.embed(features)
        for layer in self.layers:
            h = layer(h, coords)
        return self.norm(h)


def _draw_anew(module: nn.Module) -> None:
    """The authors' start: Xavier weights and zero biases of every linear layer, those of the time step too."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def tiny() -> dict[str, nn.Module]:
    """Small instances, for tests."""
    small: dict[str, Any] = {"in_dim": 12, "d_model": 16, "attention_dim": 8, "dropout": 0.0}
    return {
        "mamba": MambaMIL(mixer=Mamba, num_layers=1, **small),
        "bimamba": MambaMIL(mixer=BiMamba, num_layers=1, n_classes=4, **small),
        "srmamba": MambaMIL(rate=3, **small),
        "scan2d": MambaMIL(scan2d=True, **small),
        "rewkv": MambaMIL(mixer=ReWKVSequenceMixer, num_layers=1, **small),
        "original": MambaMIL(init="original", activation="relu", **small),
    }


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward` for the instance `name` of `tiny`."""
    inputs: dict[str, Tensor] = {"features": torch.randn(2, 11, 12), "lengths": torch.tensor([11, 7])}
    if name == "scan2d":
        cells = torch.randperm(25)[:11]
        inputs["coords"] = (256 * torch.stack([cells % 5, cells // 5], 1)).expand(2, -1, -1)
    return inputs
