"""Patch encoders: tiles of a slide in, feature vectors out. One protocol; one file a kind.

    hed-texture            built in: colour deconvolution and texture      `encoder_hed`
    FILE.onnx              any image encoder in ONNX                       `encoder_onnx`
    timm:NAME, FOLDER      timm and Hugging Face, from local weights       `encoder_torch`

Nothing is downloaded. What an encoder was trained on is not medseq's to say: a network for natural images gives
features of tiles, and is no histology encoder.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from medseq.errors import InputError
from medseq.io.privacy import path_label

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_SD",
    "EncoderInfo",
    "PatchEncoder",
    "Preprocess",
    "load_encoder",
    "require_features",
    "require_tiles",
    "sha256_of",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_SD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """What is done to tiles before a network: ``(tile * scale - mean) / sd``, in the network's order of colours.

    Attributes:
        mean: Of the colours, in the network's order.
        sd: Of the colours, in the network's order.
        scale: 1/255 for values from 0 to 1, 1 for values from 0 to 255.
        colours: ``rgb`` or ``bgr``.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    sd: tuple[float, ...] = IMAGENET_SD
    scale: float = 1 / 255
    colours: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.sd) != 3 or not all(sd > 0 for sd in self.sd) or not self.scale > 0:
            found = f"mean {self.mean}, sd {self.sd}, scale {self.scale:g}"
            raise InputError("a preprocessing of three colours is needed", found=found, wanted="3 means, 3 positive sd")

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """``(n, row, col, 3)`` float32 of uint8."""
        ordered = tiles if self.colours == "rgb" else tiles[..., ::-1]
        mean, sd = np.array(self.mean, np.float32), np.array(self.sd, np.float32)
        return (ordered.astype(np.float32) * np.float32(self.scale) - mean) / sd


@dataclass(frozen=True)
class EncoderInfo:
    """What a bag records of its encoder.

    Attributes:
        name: Name, as bags and bundles store it.
        kind: ``built-in``, ``onnx``, ``timm`` or ``huggingface``.
        dim: Numbers a tile.
        mpp: Microns per pixel it is made for, or None if nobody said.
        tile_size: Side of a tile it takes, or None for any.
        weights_sha256: Of its weights; None for a built-in.
        settings: Preprocessing and whatever else decides the numbers.
    """

    name: str
    kind: Literal["built-in", "onnx", "timm", "huggingface"]
    dim: int
    mpp: float | None = None
    tile_size: int | None = None
    weights_sha256: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """sha256 over everything that decides the features."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class PatchEncoder(Protocol):
    """Encodes tiles; the same tiles in the same batch give the same numbers, whenever and wherever in a run."""

    info: EncoderInfo

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        """Features ``(n, dim)`` float32 of tiles ``(n, row, col, 3)`` uint8 RGB.

        Raises:
            ShapeError: Tiles of another size or type than the encoder takes.
        """
        ...


def load_encoder(
    name: str,
    *,
    weights: str | Path | None = None,
    preprocess: Preprocess | None = None,
    output: str | None = None,
    mpp: float | None = None,
    device: str = "cpu",
) -> PatchEncoder:
    """The encoder of a name or a file.

    Args:
        name: ``hed-texture``, a path ending in ``.onnx``, ``timm:NAME``, or a folder with ``config.json`` and
            ``model.safetensors`` as Hugging Face lays them out.
        weights: Of ``timm:NAME``: its checkpoint, safetensors or a ``.pt`` that holds tensors only.
        preprocess: Of networks; default: what the folder says, else ImageNet's mean and standard deviation.
        output: Of ONNX: the node whose output is the feature; default: the first output.
        mpp: Microns per pixel the encoder is made for, where the caller knows.
        device: Of timm and Hugging Face.

    Raises:
        InputError: No such encoder, or an option that does not belong to it.
        FormatError: Weights that cannot be read, or are not this network's.
        BackendError: The library that runs it is not installed.
    """
    path = Path(name)
    if name.lower().endswith(".onnx"):
        from medseq.inference.encoder_onnx import OnnxEncoder

        _refuse(name, weights=weights)
        return OnnxEncoder(path, preprocess or Preprocess(), output=output, mpp=mpp)
    if name.startswith("timm:"):
        from medseq.inference.encoder_torch import timm_encoder

        _refuse(name, output=output)
        if weights is None:
            raise InputError("an encoder needs its weights", where="timm", wanted="--weights FILE; none are downloaded")
        return timm_encoder(name.removeprefix("timm:"), Path(weights), preprocess or Preprocess(), mpp, device)
    if path.is_dir():
        from medseq.inference.encoder_torch import huggingface_encoder

        _refuse("a folder", output=output, weights=weights)
        return huggingface_encoder(path, preprocess, mpp, device)
    if name == "hed-texture":
        from medseq.inference.encoder_hed import HedTexture

        _refuse(name, weights=weights, preprocess=preprocess, output=output, mpp=mpp)
        return HedTexture()
    raise InputError(
        "no such encoder",
        found=path_label(name) if path.name != name else name,
        wanted="hed-texture, FILE.onnx, timm:NAME with --weights, or a folder with config.json",
    )


def require_tiles(tiles: np.ndarray, size: int | None, name: str) -> None:
    """Refuse what is no batch of tiles of a size.

    Raises:
        ShapeError: It is not.
    """
    from medseq.errors import ShapeError

    sides = tiles.shape[1:3]
    good = tiles.ndim == 4 and tiles.dtype == np.uint8 and tiles.shape[3] == 3 and min(sides, default=0) > 0
    if not good or (size is not None and tuple(sides) != (size, size)):
        side = size or "any"
        found, wanted = f"{tiles.dtype} {tiles.shape}", f"uint8 (n, {side}, {side}, 3)"
        raise ShapeError("tiles do not fit the encoder", where=name, found=found, wanted=wanted)


def require_features(values: np.ndarray, where: str) -> np.ndarray:
    """One vector a tile from what a network returns: a map of features is averaged, of tokens the first is taken.

    Raises:
        FormatError: Neither a vector, nor tokens ``(n, token, dim)``, nor a map ``(n, dim, row, col)``.
    """
    from medseq.errors import FormatError

    if values.ndim == 4:
        values = values.mean(axis=(2, 3), dtype=np.float32)
    elif values.ndim == 3:
        values = values[:, 0]
    if values.ndim != 2 or not values.shape[1]:
        raise FormatError("no features come out of the encoder", where=where, found=values.shape, wanted="(n, dim)")
    return np.ascontiguousarray(values, dtype=np.float32)


def sha256_of(paths: Sequence[Path]) -> str:
    """sha256 over the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _refuse(name: str, **options: object) -> None:
    given = [option for option, value in options.items() if value is not None]
    if given:
        raise InputError("an option that this encoder does not have", where=name, found=", ".join(given))
