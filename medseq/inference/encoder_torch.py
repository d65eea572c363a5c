"""Patch encoders of timm and Hugging Face, from weights on this machine: the extra ``encoders``. No code is loaded."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from medseq.errors import BackendError, FormatError, InputError
from medseq.inference.device import require_device
from medseq.inference.encoders import EncoderInfo, Preprocess, require_features, require_tiles, sha256_of
from medseq.io.privacy import path_label

__all__ = ["TorchEncoder", "huggingface_encoder", "timm_encoder", "read_tensors"]

_WEIGHTS = "model.safetensors"


class TorchEncoder:
    """A network of torch; a `medseq.inference.encoders.PatchEncoder`.

    Args:
        network: Takes ``(n, 3, row, col)`` float32.
        info: What bags record; its `dim` is found by a first tile.
        preprocess: What is done to tiles first.
        device: Where it runs.
    """

    def __init__(self, network: nn.Module, info: EncoderInfo, preprocess: Preprocess, device: str = "cpu") -> None:
        self._device = require_device(device)
        self._network = network.eval().requires_grad_(False).to(self._device)
        self._preprocess = preprocess
        side = info.tile_size or 224
        dim = self._run(np.zeros((1, side, side, 3), np.uint8), info.name).shape[1]
        settings = {
            **info.settings,
            "mean": list(preprocess.mean),
            "sd": list(preprocess.sd),
            "scale": preprocess.scale,
            "colours": preprocess.colours,
        }
        self.info = EncoderInfo(info.name, info.kind, dim, info.mpp, info.tile_size, info.weights_sha256, settings)

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        require_tiles(tiles, self.info.tile_size, self.info.name)
        return self._run(tiles, self.info.name) if len(tiles) else np.empty((0, self.info.dim), np.float32)

    def _run(self, tiles: np.ndarray, name: str) -> np.ndarray:
        images = torch.from_numpy(np.ascontiguousarray(self._preprocess(tiles).transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            values = self._network(images.to(self._device))
            # transformers returns a record.
            values = getattr(values, "last_hidden_state", values)
        return require_features(values.float().cpu().numpy(), name)


def timm_encoder(
    architecture: str, weights: Path, preprocess: Preprocess, mpp: float | None = None, device: str = "cpu"
) -> TorchEncoder:
    """A network of timm without its classifier, with the weights of a file.

    Raises:
        InputError: No such network or file.
        FormatError: The weights are not this network's, or hold more than tensors.
        BackendError: timm is not installed.
    """
    network = _timm_network(architecture, {})
    _load(network, weights)
    info = EncoderInfo(architecture, "timm", 1, mpp, _timm_side(network), sha256_of([weights]))
    return TorchEncoder(network, info, preprocess, device)


def huggingface_encoder(
    folder: Path, preprocess: Preprocess | None = None, mpp: float | None = None, device: str = "cpu"
) -> TorchEncoder:
    """The network in a folder as Hugging Face lays it out: ``config.json`` and ``model.safetensors``.

    Networks of timm are known by ``architecture`` in the configuration, others by ``model_type`` (transformers).

    Raises:
        FormatError: No configuration, no weights, or weights of another network.
        BackendError: timm or transformers is not installed.
    """
    where = path_label(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(
            "no encoder in the folder", where=where, found=type(error).__name__, wanted="config.json"
        ) from None
    weights = folder / _WEIGHTS
    if not isinstance(config, dict) or not weights.is_file():
        raise FormatError("no encoder in the folder", where=where, wanted=f"config.json and {_WEIGHTS}")
    kind: Literal["timm", "huggingface"]
    if isinstance(config.get("architecture"), str):
        kind, name = "timm", config["architecture"]
        network = _timm_network(name, config.get("model_args") or {})
        _load(network, weights)
        side, told = _timm_side(network), config.get("pretrained_cfg") or {}
        stated = told.get("mean"), told.get("std")
    else:
        kind, name = "huggingface", str(config.get("model_type", "unknown"))
        network = _transformers_network(folder, where)
        size = config.get("image_size")
        side, stated = size if isinstance(size, int) else None, _processor(folder)
    if preprocess is None:
        preprocess = Preprocess(tuple(stated[0]), tuple(stated[1])) if all(stated) else Preprocess()  # type: ignore[arg-type]
    info = EncoderInfo(name, kind, 1, mpp, side, sha256_of([folder / "config.json", weights]))
    return TorchEncoder(network, info, preprocess, device)


def _timm_network(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise BackendError(
            "timm is not installed",
            remedy="pip install 'medseq[encoders]'; it replaces a CPU build of torch, so export to ONNX on another "
            "machine if this one has none for CUDA",
        ) from None
    if not timm.is_model(architecture):
        raise InputError("timm knows no such network", found=architecture, wanted="a name of timm.list_models()")
    return timm.create_model(architecture, pretrained=False, num_classes=0, **arguments)


def _timm_side(network: nn.Module) -> int | None:
    size = (getattr(network, "pretrained_cfg", None) or {}).get("input_size")
    # Convolutional networks take any size, transformers the one of their position embedding.
    return int(size[-1]) if size and hasattr(network, "pos_embed") else None


def _transformers_network(folder: Path, where: str) -> nn.Module:
    try:
        from transformers import AutoModel
    except ImportError:
        raise BackendError(
            "transformers is not installed", where=where, remedy="pip install transformers, or export to ONNX"
        ) from None
    try:
        return AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise FormatError("not an encoder of transformers", where=where, found=type(error).__name__) from None


def _processor(folder: Path) -> tuple[Any, Any]:
    """Mean and standard deviation of transformers' image processor, if they are there."""
    try:
        told = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        return told.get("image_mean"), told.get("image_std")
    except (OSError, ValueError, AttributeError):
        return None, None


def _load(network: nn.Module, path: Path) -> None:
    """Weights of a file into a network; its classifier's are left out."""
    where = path_label(path)
    if not path.is_file():
        raise InputError("no such weights", where=where, wanted="a .safetensors or .pt file")
    state = read_tensors(path, where)
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), dict):
            state = state[key]
    wanted = network.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    wrong = sorted(key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape)
    if missing or wrong:
        found = f"{len(missing)} missing, {len(wrong)} of another shape, the first {(missing + wrong)[0]}"
        raise FormatError("the weights are not this network's", where=where, found=found)
    network.load_state_dict({key: state[key] for key in wanted})


def read_tensors(path: Path, where: str) -> dict[str, Any]:
    """A state dict from ``.safetensors`` or what torch wrote; no code in it is run.

    Raises:
        FormatError: Not such a file, or it holds more than tensors.
    """
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise FormatError(
            "weights that cannot be read", where=where, found=type(error).__name__, wanted="tensors and nothing else"
        ) from None
    if not isinstance(state, dict):
        raise FormatError("weights that cannot be read", where=where, found=type(state).__name__, wanted="a state dict")
    return state
