"""What a MONAI bundle of `export_monai` calls: the network, and medseq's predictor over one loaded image.

MONAI's images are ``(channel, col, row, slice)`` with an affine to RAS millimetres (nibabel's order); medseq's volumes
``[slice, row, col]`` with the same affine, transposed once here.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseq.errors import FormatError
from medseq.inference.bundle_classes import build_class
from medseq.inference.bundle_schema import BundleConfig, ClassSpec, validate_config
from medseq.inference.restore import RestorePredictor
from medseq.io.volume import Volume, VolumeHeader, slice_affines

__all__ = ["VolumeInferer", "build_network"]


def build_network(folder: str) -> nn.Module:
    """The network of the bundle in `folder`, without its weights.

    Raises:
        BundleError: The description does not fit, or names classes outside medseq.
    """
    config = _config(folder)
    return build_class(ClassSpec(**config.model.model_dump()), where=config.name)


class VolumeInferer:
    """Restores one image as ``medseq predict`` does.

    Args:
        folder: The MONAI bundle.
        network: Its network, weights loaded.
        device: Where the network is.
    """

    def __init__(self, folder: str, network: nn.Module, device: torch.device) -> None:
        self._config = _config(folder)
        # Built when the first image comes, when the weights have been loaded.
        self._network, self._device = network, device

    def __call__(self, image: Tensor) -> Tensor:
        """Restore a `MetaTensor` ``(1, col, row[, slice])``; the result has the geometry that the bundle gives it.

        Raises:
            FormatError: Several channels, or no geometry.
            InputError: See `RestorePredictor.predict`.
        """
        if image.shape[0] != 1 or image.dim() not in (3, 4) or not hasattr(image, "affine"):
            raise FormatError("not an image of one channel", found=tuple(image.shape), wanted="(1, col, row[, slice])")
        planar = image.dim() == 3
        array = np.asarray(image.cpu(), np.float32)[0]
        planes = np.ascontiguousarray((array[..., None] if planar else array).T)
        affine = np.asarray(image.affine.cpu(), np.float64)
        spec = self._config.input
        header = VolumeHeader(
            planes.shape,
            planes.dtype,
            affine,
            slice_affines(affine, len(planes)),
            spec.modality[0] if spec.modality else "OT",
            spec.units,
        )
        sink: Any = _Kept()
        bundle: Any = _Loaded(self._config, self._network)
        RestorePredictor(bundle, self._device).predict(Volume(header, planes), sink)
        restored = np.concatenate(sink.planes).T
        result = torch.from_numpy(np.ascontiguousarray(restored[..., 0] if planar else restored))[None]
        made: Any = type(image)
        out = made(result, meta=dict(getattr(image, "meta", {})))
        out.affine = torch.from_numpy(sink.affine)
        return out


@dataclass(frozen=True)
class _Loaded:
    """What `RestorePredictor` asks a bundle for."""

    config: BundleConfig
    network: nn.Module

    def build_model(self, device: Any) -> nn.Module:
        return self.network.to(device).eval()

    def transforms(self, modality: str | None = None) -> list[Any]:
        return [build_class(spec, where=self.config.name) for spec in self.config.preprocess_for(modality)]


class _Kept:
    """A sink that keeps the result in memory."""

    clipped = 0

    def __init__(self) -> None:
        self.planes: list[np.ndarray] = []
        self.affine = np.eye(4)

    def volume(self, role: str) -> "_Kept":
        return self

    def begin(self, header: VolumeHeader) -> None:
        self.affine = np.asarray(header.affine)

    def write(self, lo: int, planes: np.ndarray) -> None:
        self.planes.append(planes.copy())

    def commit(self) -> list[Path]:
        return [Path("result.nii.gz")]

    def abort(self) -> None:
        self.planes.clear()


def _config(folder: str) -> BundleConfig:
    about = json.loads((Path(folder) / "configs" / "medseq.json").read_text("utf-8"))
    content = {**about["bundle"], "weights": {"sha256": "0" * 64}}
    return validate_config(content, where=str(content.get("name")))
