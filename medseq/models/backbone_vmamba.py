"""VMamba (VSSM): a hierarchical backbone of SS2D blocks, for classification and for feature maps.

Reference:
    Liu et al., VMamba: Visual State Space Model, arXiv:2401.10166. Parameter names are those of the authors' code
    (github.com/MzeroMiko/VMamba), so its state dicts load through `medseq.inference.reference.load("vmamba", …)`.
    Computation is always channel first, which does not change the numbers.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseq.errors import InputError, ShapeError
from medseq.nn.rwkv import ChannelLayerNorm
from medseq.nn.vss_block import VSSBlock
from medseq.nn.vss_patches import downsample, patch_embed

__all__ = ["VSSM", "VSSMFeatures", "vmamba_base", "vmamba_small", "vmamba_tiny", "vmamba_vanilla_tiny"]

Downsample = Literal["v1", "v2", "v3"]
PatchEmbed = Literal["v1", "v2"]


class Stage(nn.Module):
    """The blocks of one resolution, and the way down to the next."""

    def __init__(self, blocks: nn.Sequential, downsample: nn.Module) -> None:
        super().__init__()
        self.blocks, self.downsample = blocks, downsample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The stage's own feature map, and the input of the next stage."""
        x = self.blocks(x)
        return x, self.downsample(x)


class VSSM(nn.Module):
    """Four stages of VSS blocks at 1/4, 1/8, 1/16 and 1/32 of the resolution, and a linear classifier.

    Args:
        in_channels: Channels of the image.
        num_classes: Outputs of the classifier.
        depths: Blocks of each stage.
        dims: Width of each stage, or of the first one; each further stage has twice as many.
        patch_size: Pixels of the image per pixel of the first stage, along each axis.
        ssm_d_state: See `medseq.nn.vss_block.VSSBlock`, as all that follow with the same name there.
        ssm_ratio: Inner width of the scans.
        ssm_dt_rank: Rank of the projection to the time step.
        ssm_act: Activation of the scans.
        ssm_conv: Size of the depthwise convolutions.
        ssm_conv_bias: Whether they have a bias.
        ssm_drop_rate: Dropout after the scans.
        forward_type: Variant of the scans.
        mlp_ratio: Hidden width of the feed-forward layers.
        mlp_act: Activation of the feed-forward layers.
        mlp_drop_rate: Dropout of the feed-forward layers.
        gmlp: Whether the feed-forward layers are gated.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
        patch_norm: Whether the patch embedding is normalised.
        downsample_version: Between stages: v1 merges squares, v2 is a 2x2 and v3 a 3x3 convolution of stride 2.
        patchembed_version: v1 is one convolution, v2 two of half the stride each.
        use_checkpoint: Trade time for memory in training.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (2, 2, 8, 2),
        dims: int | Sequence[int] = 96,
        patch_size: int = 4,
        ssm_d_state: int = 1,
        ssm_ratio: float = 1.0,
        ssm_dt_rank: int | str = "auto",
        ssm_act: str = "silu",
        ssm_conv: int = 3,
        ssm_conv_bias: bool = False,
        ssm_drop_rate: float = 0.0,
        forward_type: str = "v05_noz",
        mlp_ratio: float = 4.0,
        mlp_act: str = "gelu",
        mlp_drop_rate: float = 0.0,
        gmlp: bool = False,
        drop_path_rate: float = 0.1,
        patch_norm: bool = True,
        downsample_version: Downsample = "v3",
        patchembed_version: PatchEmbed = "v2",
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.dims = [dims * 2**stage for stage in range(len(depths))] if isinstance(dims, int) else list(dims)
        if len(self.dims) != len(depths) or not depths:
            raise InputError("VSSM needs as many dims as depths", found=(tuple(self.dims), tuple(depths)))
        self.in_channels, self.num_classes, self.patch_size = in_channels, num_classes, patch_size
        self.patch_embed = patch_embed(patchembed_version, in_channels, self.dims[0], patch_size, patch_norm)
        rates = iter(drop_path_rate * number / max(sum(depths) - 1, 1) for number in range(sum(depths)))

        def block(width: int) -> VSSBlock:
            return VSSBlock(
                width,
                drop_path=next(rates),
                channel_first=True,
                ssm_d_state=ssm_d_state,
                ssm_ratio=ssm_ratio,
                ssm_dt_rank=ssm_dt_rank,
                ssm_act=ssm_act,
                ssm_conv=ssm_conv,
                ssm_conv_bias=ssm_conv_bias,
                ssm_drop_rate=ssm_drop_rate,
                forward_type=forward_type,
                mlp_ratio=mlp_ratio,
                mlp_act=mlp_act,
                mlp_drop_rate=mlp_drop_rate,
                gmlp=gmlp,
                use_checkpoint=use_checkpoint,
            )

        self.layers = nn.ModuleList()
        for width, next_width, depth in zip(self.dims, [*self.dims[1:], None], depths, strict=True):
            down = nn.Identity() if next_width is None else downsample(downsample_version, width, next_width)
            blocks = nn.Sequential(*(block(width) for _ in range(depth)))
            self.layers.append(Stage(blocks, down))
        self._add_head()
        self.apply(_init_weights)

    def _add_head(self) -> None:
        parts = {
            "norm": ChannelLayerNorm(self.dims[-1]),
            "avgpool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(1),
            "head": nn.Linear(self.dims[-1], self.num_classes),
        }
        self.classifier = nn.Sequential(OrderedDict(parts))

    def features(self, image: Float[Tensor, "batch channel row col"]) -> list[Tensor]:
        """Feature maps after the blocks of every stage, finest first, not normalised.

        Args:
            image: Images of any size of at least one patch.

        Raises:
            ShapeError: Wrong channels, or an image smaller than a patch.
        """
        if image.dim() != 4 or image.shape[1] != self.in_channels or min(image.shape[2:]) < self.patch_size:
            raise ShapeError(
                "image does not fit the model",
                where="VSSM",
                found=tuple(image.shape),
                wanted=f"(batch, {self.in_channels}, row, col) of at least {self.patch_size} x {self.patch_size}",
            )
        x, maps = self.patch_embed(image), []
        for layer in self.layers:
            feature, x = layer(x)
            maps.append(feature)
        return maps

    def forward(self, image: Float[Tensor, "batch channel row col"]) -> Any:
        """Class logits, ``(batch, class)``."""
        return self.classifier(self.features(image)[-1])


class VSSMFeatures(VSSM):
    """VSSM for dense use: no classifier, a norm for each stage whose features are wanted.

    Args:
        out_indices: Stages whose feature maps `forward` returns.
        options: As of `VSSM`, without `num_classes`.
    """

    def __init__(self, out_indices: Sequence[int] = (0, 1, 2, 3), **options: Any) -> None:
        self.out_indices = tuple(out_indices)
        super().__init__(**{**options, "num_classes": 0})

    def _add_head(self) -> None:
        for stage in self.out_indices:
            self.add_module(f"outnorm{stage}", ChannelLayerNorm(self.dims[stage]))

    def forward(self, image: Float[Tensor, "batch channel row col"]) -> list[Tensor]:
        """Normalised feature maps ``(batch, channel, row, col)`` of the chosen stages, finest first."""
        maps = self.features(image)
        return [getattr(self, f"outnorm{stage}")(maps[stage]) for stage in self.out_indices]


def _init_weights(module: nn.Module) -> None:
    """The original's start of linear layers; the scans' own tensors are no linear layers and keep theirs."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def vmamba_tiny(**options: Any) -> VSSM:
    """VMamba-T [s1l8]: 30 M parameters."""
    return VSSM(**{"depths": (2, 2, 8, 2), "dims": 96, "ssm_ratio": 1.0, "drop_path_rate": 0.2, **options})


def vmamba_small(**options: Any) -> VSSM:
    """VMamba-S [s2l15]: 50 M parameters."""
    return VSSM(**{"depths": (2, 2, 15, 2), "dims": 96, "ssm_ratio": 2.0, "drop_path_rate": 0.3, **options})


def vmamba_base(**options: Any) -> VSSM:
    """VMamba-B [s2l15]: 89 M parameters."""
    return VSSM(**{"depths": (2, 2, 15, 2), "dims": 128, "ssm_ratio": 2.0, "drop_path_rate": 0.6, **options})


# The first published form: a gate instead of feed-forward layers, 16 states.
_VANILLA: dict[str, Any] = {
    "depths": (2, 2, 9, 2),
    "ssm_d_state": 16,
    "ssm_ratio": 2.0,
    "ssm_conv_bias": True,
    "forward_type": "v0",
    "mlp_ratio": 0.0,
    "drop_path_rate": 0.2,
    "downsample_version": "v1",
    "patchembed_version": "v1",
}


def vmamba_vanilla_tiny(**options: Any) -> VSSM:
    """The first VMamba-T: 23 M parameters."""
    return VSSM(**{**_VANILLA, **options})


def tiny() -> dict[str, nn.Module]:
    """Small instances of every variant, for tests."""
    small: dict[str, Any] = {"in_channels": 1, "num_classes": 3, "dims": 8, "depths": (1, 2), "drop_path_rate": 0.0}
    return {
        "vmamba": VSSM(**small),
        "vanilla": VSSM(**{**_VANILLA, **small, "ssm_d_state": 4}),
        "one_direction": VSSM(**{**small, "forward_type": "v051d_noz"}),
        "two_directions": VSSM(**{**small, "forward_type": "v052d", "downsample_version": "v2"}),
        "cascade": VSSM(**{**small, "forward_type": "v052dc_noz", "gmlp": True, "use_checkpoint": True}),
    }


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward` for the instance `name` of `tiny`."""
    return {"image": torch.randn(2, 1, 27, 35)}
