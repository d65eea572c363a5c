"""Restore-RWKV: a U-shaped restoration network of Re-WKV blocks, and the same skeleton for any other mixer.

Reference:
    Yang et al., Restore-RWKV: Efficient and Effective Medical Image Restoration with RWKV, arXiv:2407.11087.
    Parameter names are those of the authors' code (github.com/Yaziwel/Restore-RWKV), so its state dicts load through
    `medseq.inference.reference.load("restore-rwkv", …)`.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from medseq.errors import BundleError, InputError, ShapeError
from medseq.nn.rwkv import ChannelLayerNorm, ChannelMix, Convention, OmniShift, SpatialMix

__all__ = ["RestoreRWKV", "restore_rwkv", "restore_rwkv_light"]

Init = Literal["paper", "stable"]


class RestoreBlock(nn.Module):
    """``x + gamma1 * att(ln1 x)``, then ``x + gamma2 * ffn(ln2 x)``; `att` is any `ImageMixer`."""

    def __init__(self, channels: int, mixer: nn.Module, *, hidden_rate: int, init: Init) -> None:
        super().__init__()
        self.ln1 = ChannelLayerNorm(channels)
        self.ln2 = ChannelLayerNorm(channels)
        self.att = mixer
        self.ffn = ChannelMix(channels, hidden_rate=hidden_rate, init=init)
        self.gamma1 = nn.Parameter(torch.ones(channels))
        self.gamma2 = nn.Parameter(torch.ones(channels))

    def forward(self, x: Float[Tensor, "batch channel row col"]) -> Float[Tensor, "batch channel row col"]:
        """One residual block."""
        x = x + self.gamma1[:, None, None] * self.att(self.ln1(x))
        return x + self.gamma2[:, None, None] * self.ffn(self.ln2(x))


class Resample(nn.Module):
    """3x3 convolution and pixel (un)shuffle: halves or doubles the resolution."""

    def __init__(self, channels: int, direction: Literal["down", "up"]) -> None:
        super().__init__()
        width = channels // 2 if direction == "down" else channels * 2
        shuffle = nn.PixelUnshuffle(2) if direction == "down" else nn.PixelShuffle(2)
        self.body = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), shuffle)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, 2C, H/2, W/2)`` or ``(B, C/2, 2H, 2W)``."""
        return self.body(x)


class RestoreRWKV(nn.Module):
    """Four-level U-Net of Re-WKV blocks with a global residual.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the result.
        dim: Width of the first level; the levels have 1, 2, 4 and 8 times as many.
        num_blocks: Blocks of level 1, 2, 3 and of the latent level; decoders mirror the encoders.
        num_refinement_blocks: Blocks after the last decoder.
        hidden_rate: Width of the feed-forward layers in units of their channels.
        shuffle: Pixel-unshuffle factor before the network and shuffle after it; 1 for none.
        condition_channels: Channels of an optional `condition` image, concatenated to the input.
        residual_scale: The network's output times this is added to the first `out_channels` channels of the input.
        mixer: Makes the token mixer of a block from its number of channels; None for Re-WKV (`SpatialMix`).
        convention: WKV convention of the default mixer, see `medseq.ops.bi_wkv`.
        decay_length: See `medseq.nn.rwkv.SpatialMix`; for the default mixer.
        init: ``paper`` as the original; ``stable`` for training from scratch (near-identity start).
    """

    # Set by `from_reference`: what builds this network again, for `medseq convert`.
    init_args: dict[str, Any]

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        hidden_rate: int = 4,
        shuffle: int = 1,
        condition_channels: int = 0,
        residual_scale: float = 1.0,
        mixer: Callable[[int], nn.Module] | None = None,
        convention: Convention = "exact",
        decay_length: int | None = None,
        init: Init = "paper",
    ) -> None:
        super().__init__()
        if in_channels < out_channels and in_channels != 1:
            raise InputError(
                "the global residual needs in_channels >= out_channels, or in_channels 1",
                found=(in_channels, out_channels),
            )
        if len(num_blocks) != 4:
            raise InputError("num_blocks has the wrong length", found=len(num_blocks), wanted=4)
        self.in_channels, self.out_channels, self.condition_channels = in_channels, out_channels, condition_channels
        self.shuffle, self.residual_scale = shuffle, residual_scale

        def level(channels: int, count: int) -> nn.Sequential:
            def block() -> RestoreBlock:
                made = (
                    mixer(channels)
                    if mixer is not None
                    else SpatialMix(channels, convention=convention, decay_length=decay_length, init=init)
                )
                return RestoreBlock(channels, made, hidden_rate=hidden_rate, init=init)

            return nn.Sequential(*(block() for _ in range(count)))

        c1, c2, c3, c4 = dim, 2 * dim, 4 * dim, 8 * dim
        n1, n2, n3, n4 = num_blocks
        area = shuffle * shuffle
        self.patch_embed = nn.Conv2d((in_channels + condition_channels) * area, c1, 3, padding=1)
        self.encoder_level1 = level(c1, n1)
        self.down1_2 = Resample(c1, "down")
        self.encoder_level2 = level(c2, n2)
        self.down2_3 = Resample(c2, "down")
        self.encoder_level3 = level(c3, n3)
        self.down3_4 = Resample(c3, "down")
        self.latent = level(c4, n4)
        self.up4_3 = Resample(c4, "up")
        self.reduce_chan_level3 = nn.Conv2d(c4, c3, 1)
        self.decoder_level3 = level(c3, n3)
        self.up3_2 = Resample(c3, "up")
        self.reduce_chan_level2 = nn.Conv2d(c3, c2, 1)
        self.decoder_level2 = level(c2, n2)
        self.up2_1 = Resample(c2, "up")
        self.decoder_level1 = level(c2, n1)
        self.refinement = level(c2, num_refinement_blocks)
        self.output = nn.Conv2d(c2, out_channels * area, 3, padding=1)
        if init == "stable":
            for parameter in self.output.parameters():
                nn.init.zeros_(parameter)

    def forward(
        self,
        image: Float[Tensor, "batch channel row col"],
        condition: Float[Tensor, "batch condition row col"] | None = None,
    ) -> Float[Tensor, "batch out row col"]:
        """Restore images of any size >= 1 x 1.

        Args:
            image: What the bundle's transforms make of the native image.
            condition: Images on the same grid, `condition_channels` of them.

        Returns:
            Restored image, in the units of the input's first channels.

        Raises:
            ShapeError: The channels are not those the model was built for.
        """
        given = 0 if condition is None else condition.shape[1]
        if image.dim() != 4 or image.shape[1] != self.in_channels or given != self.condition_channels:
            raise ShapeError(
                "input does not fit the model",
                found=f"image {tuple(image.shape)}, condition channels {given}",
                wanted=f"(batch, {self.in_channels}, row, col), condition channels {self.condition_channels}",
            )
        x = image if condition is None else torch.cat([image, condition], dim=1)
        rows, cols = image.shape[2:]
        x = pad_to_multiple(x, 8 * self.shuffle)
        if self.shuffle > 1:
            x = F.pixel_unshuffle(x, self.shuffle)
        x = self._features(x.contiguous(memory_format=torch.channels_last))
        if self.shuffle > 1:
            x = F.pixel_shuffle(x, self.shuffle)
        return image[:, : self.out_channels] + self.residual_scale * x[:, :, :rows, :cols]

    def _features(self, x: Tensor) -> Tensor:
        enc1 = self.encoder_level1(self.patch_embed(x))
        enc2 = self.encoder_level2(self.down1_2(enc1))
        enc3 = self.encoder_level3(self.down2_3(enc2))
        x = self.latent(self.down3_4(enc3))

        x = self.decoder_level3(self.reduce_chan_level3(torch.cat([self.up4_3(x), enc3], 1)))
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(x), enc2], 1)))
        x = self.decoder_level1(torch.cat([self.up2_1(x), enc1], 1))
        return self.output(self.refinement(x))

    def deployed(self) -> nn.Module:
        """A copy for inference with every Omni-Shift as one plain 5x5 convolution; this model is left as it is."""
        model = copy.deepcopy(self).eval()
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, OmniShift):
                    setattr(module, name, child.reparameterized())
        return model


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad rows and columns at the end: by reflection, or by replication where the image is too small for it."""
    down, right = (-x.shape[2]) % multiple, (-x.shape[3]) % multiple
    if not (down or right):
        return x
    if down < x.shape[2] and right < x.shape[3]:
        return F.pad(x, (0, right, 0, down), mode="reflect")
    return F.pad(x, (0, right, 0, down), mode="replicate")


def restore_rwkv(in_channels: int = 1, out_channels: int = 1, **keywords: Any) -> RestoreRWKV:
    """The paper's size: width 48, blocks 4-6-6-8, 4 refinement blocks, 28.0 M trained parameters."""
    return RestoreRWKV(in_channels, out_channels, **keywords)


def restore_rwkv_light(in_channels: int = 1, out_channels: int = 1, **keywords: Any) -> RestoreRWKV:
    """The light size for CPUs: width 16, blocks 1-1-2-2, no refinement, at half resolution; 1.16 M parameters.

    The paper names a light variant of 1.16 M parameters without its configuration; this one is ours.
    """
    defaults: dict[str, Any] = {
        "dim": 16,
        "num_blocks": (1, 1, 2, 2),
        "num_refinement_blocks": 0,
        "shuffle": 2,
        "residual_scale": 0.1,
        "decay_length": 1024,
        "init": "stable",
    }
    return RestoreRWKV(in_channels, out_channels, **{**defaults, **keywords})


def tiny() -> dict[str, nn.Module]:
    """Small instances of every variant, for tests."""
    small: dict[str, Any] = {"dim": 8, "num_blocks": (1, 1, 1, 1), "num_refinement_blocks": 1}
    return {
        "paper": RestoreRWKV(**small),
        "chunk64": RestoreRWKV(convention="chunk64", **small),
        "light": restore_rwkv_light(2, 1, dim=8, num_blocks=(1, 1, 1, 1)),
        "conditioned": RestoreRWKV(1, 3, condition_channels=2, **small),
    }


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward` for the instance `name` of `tiny`."""
    inputs = {"image": torch.randn(2, 2 if name == "light" else 1, 19, 24)}
    if name == "conditioned":
        inputs["condition"] = torch.randn(2, 2, 19, 24)
    return inputs


def from_reference(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> nn.Module:
    """Build what a state dict of the original code belongs to, and load it: the network, or one of its blocks.

    Sizes come from the state dict; `config` may name them too, by the original constructor's words (``inp_channels``,
    ``out_channels``, ``dim``, ``num_blocks``, ``num_refinement_blocks``; ``n_embd``, ``hidden_rate`` of a block), and
    must then agree. The stored 5x5 re-parameterised kernels are ignored: they may be stale, and the branches say the
    same. ``att.dwconv.weight`` of code before 2025-07 is unused and dropped.

    Raises:
        BundleError: Keys are missing or unknown, or `config` contradicts the state dict.
    """
    dropped = ("conv5x5_reparam.weight", "att.dwconv.weight")
    state = {key: value for key, value in state_dict.items() if not key.endswith(dropped)}
    module, sizes = _from_sizes(state)
    for key, value in config.items():
        if key not in sizes:
            raise BundleError("unknown configuration key", where="restore-rwkv", found=key, wanted=sorted(sizes))
        found = list(value) if isinstance(value, Sequence) else value
        if sizes[key] is not None and sizes[key] != found:
            raise BundleError(
                f"configuration contradicts the state dict in {key!r}",
                where="restore-rwkv",
                found=value,
                wanted=sizes[key],
            )
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise BundleError("state dict does not fit", where="restore-rwkv", found=str(error)[:500]) from None
    return module


def _from_sizes(state: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, Any]]:
    """The module that a state dict belongs to, and the original constructor's arguments read off it."""

    def depth(level: str) -> int:
        return 1 + max((int(key.split(".")[1]) for key in state if key.startswith(f"{level}.")), default=-1)

    def spatial_mix(channels: int) -> SpatialMix:
        return SpatialMix(channels, convention="chunk64")

    if {"patch_embed.weight", "output.weight"} <= state.keys():
        sizes: dict[str, Any] = {
            "inp_channels": state["patch_embed.weight"].shape[1],
            "out_channels": state["output.weight"].shape[0],
            "dim": state["patch_embed.weight"].shape[0],
            "num_blocks": [depth(name) for name in ("encoder_level1", "encoder_level2", "encoder_level3", "latent")],
            "num_refinement_blocks": depth("refinement"),
        }
        keywords = {"in_channels": sizes["inp_channels"], **sizes, "convention": "chunk64"}
        del keywords["inp_channels"]
        model = RestoreRWKV(**keywords)
        model.init_args = keywords
        return model, sizes
    if {"att.key.weight", "ffn.key.weight"} <= state.keys():
        hidden, channels = state["ffn.key.weight"].shape
        rate = hidden // channels
        block = RestoreBlock(channels, spatial_mix(channels), hidden_rate=rate, init="paper")
        return block, {"n_embd": channels, "hidden_rate": rate}
    if "spatial_decay" in state:
        channels = state["spatial_decay"].shape[1]
        return spatial_mix(channels), {"n_embd": channels, "resolution": None}
    if "receptance.weight" in state and "key.weight" in state:
        hidden, channels = state["key.weight"].shape
        mix = ChannelMix(channels, hidden_rate=hidden // channels)
        return mix, {"n_embd": channels, "hidden_rate": hidden // channels, "resolution": None}
    if "alpha" in state and "conv5x5.weight" in state:
        channels = state["conv5x5.weight"].shape[0]
        return OmniShift(channels), {"dim": channels}
    raise BundleError("not a Restore-RWKV state dict", where="restore-rwkv", found=sorted(state)[:5])
