"""What of a bundle leaves as a graph: its network with plain tensors in and out, and inputs to trace it with.

Preprocessing stays behind: a graph starts at what the network sees, after the bundle's transforms. Images have one
size, which the graph keeps; bags of patches any number of instances; complex MR data have a last axis (real,
imaginary). Nothing here writes files.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from medseq.errors import InputError
from medseq.inference.bundle import Bundle
from medseq.models.restore_ensemble import RotationAverage

__all__ = ["Exportable", "exportable"]

# Bags shorter than the taps of a Mamba's convolution would need a branch in the graph.
LEAST_BAG = 4
_BAG, _COILS = 24, 4


@dataclass(frozen=True)
class Exportable:
    """A network ready to be traced.

    Attributes:
        module: Takes the inputs by position.
        inputs: Name -> example, whose values tests may redraw by `redraw`.
        outputs: Names.
        redraw: Makes other inputs of the same kind from a generator; of another length where that is free.
        dynamic: Name -> axis -> name of a size that stays free.
        axes: Input or output -> its axes in words.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    redraw: Callable[[torch.Generator], dict[str, Tensor]]
    dynamic: dict[str, dict[int, str]] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)


class _Turned(nn.Module):
    """`RotationAverage` with its four views in one batch: a quarter of the graph; square images only."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        views = torch.cat([torch.rot90(image, turns, (2, 3)) for turns in range(4)])
        parts = self.net(views).chunk(4)
        return sum(torch.rot90(part, -turns, (2, 3)) for turns, part in enumerate(parts)) / 4  # type: ignore[return-value]


class _Scores(nn.Module):
    """A model of bags, without the fields that it leaves empty."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        out = self.net(features)
        return (out.logits, out.attention) if out.embedding is None else (out.logits, out.attention, out.embedding)


class _RealNumbers(nn.Module):
    """A reconstruction network whose complex tensors have a last axis (real, imaginary)."""

    def __init__(self, net: nn.Module, takes_noise_sd: bool) -> None:
        super().__init__()
        self.net, self.takes_noise_sd = net, takes_noise_sd

    def forward(self, kspace: Tensor, mask: Tensor, sens_maps: Tensor, noise_sd: Tensor | None = None) -> Tensor:
        options: dict[str, Any] = {"noise_sd": noise_sd} if self.takes_noise_sd else {}
        image = self.net(torch.view_as_complex(kspace), mask, torch.view_as_complex(sens_maps), **options).image
        return torch.view_as_real(image) if image.is_complex() else image


def exportable(bundle: Bundle, size: tuple[int, int]) -> Exportable:
    """The network of a bundle, with inputs to trace it.

    Args:
        bundle: Any.
        size: Rows and columns of images and of k-space; bags have none.

    Raises:
        InputError: No graph can hold the network, or not at this size; the message says why and what to do.
    """
    makers = {"restore": _of_images, "mil": _of_bags, "recon": _of_scans}
    return makers[bundle.config.task](bundle, size)


def _of_images(bundle: Bundle, size: tuple[int, int]) -> Exportable:
    model: Any = bundle.build_model()
    channels, turned = bundle.config.input.channels, isinstance(model, RotationAverage)
    if turned and size[0] != size[1]:
        raise InputError("the network averages over quarter turns", where="--size", found=size, wanted="a square")
    net = model.net if turned else model
    if hasattr(net, "deployed"):
        net = net.deployed()

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        return {"image": torch.randn((1, channels, *size), generator=generator)}

    axes = dict.fromkeys(("image", "restored"), "batch 1, channel, row, col")
    return Exportable(_Turned(net) if turned else net, draw(torch.Generator()), ("restored",), draw, axes=axes)


def _of_bags(bundle: Bundle, size: tuple[int, int]) -> Exportable:
    model: Any = bundle.build_model()
    spec = bundle.config.input
    if getattr(getattr(model, "net", model), "scan2d", False):
        raise InputError(
            "the model lays patches on their slide's grid, whose size is no part of a graph",
            where=bundle.config.name,
            remedy="export it with --to hf",
        )
    width = spec.feature_dim or int(getattr(model, "feature_dim", 0) or model.in_dim)
    mean: Any = getattr(model, "feature_mean", 0.0)
    spread: Any = getattr(model, "feature_sd", 1.0)

    def draw(generator: torch.Generator, count: int | None = None) -> dict[str, Tensor]:
        count = count or int(torch.randint(LEAST_BAG, 3 * _BAG, (), generator=generator))
        drawn = torch.randn(count, width, generator=generator)
        # Around what the model was trained on, where it knows; it may have taken logarithms of that.
        return {"features": mean + spread * drawn}

    first = draw(torch.Generator(), _BAG)
    found = _Scores(model).eval()(first["features"])
    outputs = ("logits", "attention", "embedding")[: len(found)]
    axes = {
        "features": f"instance ({LEAST_BAG} or more), feature",
        "logits": "batch 1, class",
        "attention": "batch 1, instance",
        "embedding": "batch 1, width",
    }
    dynamic = {"features": {0: "instances"}}
    return Exportable(_Scores(model), first, outputs, draw, dynamic, {k: axes[k] for k in ("features", *outputs)})


def _of_scans(bundle: Bundle, size: tuple[int, int]) -> Exportable:
    model: Any = bundle.build_model()
    if hasattr(model, "choose"):
        raise InputError(
            "the network decides slice by slice how to reconstruct, by samples that it holds out: no graph can",
            where=bundle.config.name,
            found=type(model).__name__,
            remedy="export it with --to hf, or train its inner network alone and export that",
        )
    takes_noise = bool(getattr(model, "takes_noise_sd", False))

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        mask = torch.rand((1, 1, 1, size[1]), generator=generator) < 0.3
        mask[..., size[1] // 2 - 4 : size[1] // 2 + 4] = True
        kspace = torch.randn((1, _COILS, *size, 2), generator=generator) * mask[..., None]
        maps = torch.randn((1, _COILS, *size, 2), generator=generator)
        maps = maps / maps.square().sum(dim=(1, 4), keepdim=True).sqrt()
        inputs = {"kspace": kspace, "mask": mask, "sens_maps": maps}
        return inputs | {"noise_sd": 0.02 + 0.1 * torch.rand(1, generator=generator)} if takes_noise else inputs

    pair = "batch 1, coil, row, col, (real, imaginary)"
    axes = {"kspace": pair, "mask": "1, 1, 1, col; True where measured", "sens_maps": pair}
    axes |= {"noise_sd": "batch 1; of a pixel of one coil"} if takes_noise else {}
    axes["image"] = "batch 1, row, col, (real, imaginary)" if model.image_kind == "complex" else "batch 1, row, col"
    return Exportable(
        _RealNumbers(model, takes_noise), draw(torch.Generator().manual_seed(0)), ("image",), draw, axes=axes
    )
