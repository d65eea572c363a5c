"""Bundles: a trained model as a folder of plain data that can be checked before anything of it is run.

A folder holds ``bundle.yaml`` (see `bundle_schema`), ``model.safetensors``, ``metadata.json`` and ``README.md``
(the model card). Nothing is unpickled and nothing is evaluated: classes come by import path, from ``medseq`` or from
packages that the caller admits, and must be layers or transforms. Not here: training checkpoints (see the command
``medseq bundle``). Torch is imported only when a model is built or saved.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from medseq.errors import BundleError, OutputError
from medseq.inference.bundle_classes import build_class, is_transform, require_trust
from medseq.inference.bundle_schema import BundleConfig, parse_yaml, validate_config
from medseq.inference.zoo import unknown_bundle, zoo_folder, zoo_names
from medseq.io.plain_text import plain_json

if TYPE_CHECKING:
    import torch

__all__ = ["Bundle", "load_bundle", "save_bundle"]

_CONFIG, _WEIGHTS, _METADATA, _CARD = "bundle.yaml", "model.safetensors", "metadata.json", "README.md"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        folder: Where it lies.
        config: The content of ``bundle.yaml``.
        hash: sha256 over the hexadecimal sha256 of ``bundle.yaml`` followed by that of the weights.
        trust_packages: Packages besides medseq whose classes may be built.
        mapped: A file with the same weights as float32 that is mapped into memory instead of read, so that processes
            share it (`medseq.inference.shared_weights`).
    """

    folder: Path
    config: BundleConfig
    hash: str
    trust_packages: tuple[str, ...] = ()
    mapped: Path | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """The content of ``metadata.json``; empty if there is none."""
        return _read_metadata(self.folder, self.config.name)

    def build_model(self, device: "str | torch.device" = "cpu") -> "torch.nn.Module":
        """The network with its weights as float32 on `device`, in evaluation mode.

        Raises:
            BundleError: The weights changed since the bundle was loaded, do not fit the model, or are not finite.
        """
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load, load_file

        where = self.config.name
        try:
            state = load_file(self.mapped) if self.mapped else load(self.read_weights())
        except (SafetensorError, ValueError, KeyError) as error:
            raise BundleError("the weights are no safetensors file", where=where, found=type(error).__name__) from None
        state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
        bad = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
        if bad:
            raise BundleError("weights are not finite", where=where, found=", ".join(bad[:3]))
        # Initial weights are overwritten at once: drawing them must not advance the caller's generator.
        with torch.random.fork_rng(devices=[]):
            model = build_class(self.config.model, where=where, trust_packages=self.trust_packages)
        if not isinstance(model, torch.nn.Module):
            raise BundleError("model.class_path is no torch module", where=where, found=self.config.model.class_path)
        _load_strictly(model, state, where, assign=self.mapped is not None)
        return model.to(device).eval()

    @property
    def weight_bytes(self) -> int:
        """Size of the weights in memory, as float32."""
        return (self.folder / self.config.weights.file).stat().st_size * (
            2 if self.config.weights.dtype == "float16" else 1
        )

    def read_weights(self) -> bytes:
        """The content of the weights file.

        Raises:
            BundleError: It changed since the bundle was loaded.
        """
        where, weights = self.config.name, self.config.weights
        data = _read(self.folder / weights.file, where)
        _require_digest(hashlib.sha256(data).hexdigest(), weights.sha256, where)
        return data

    def transforms(self, modality: str | None = None) -> list[Any]:
        """The `preprocess` chain, built: each has ``fit``, ``apply`` and ``invert`` (`medseq.data.transforms`).

        Args:
            modality: Of a bundle for several modalities: whose chain.

        Raises:
            BundleError: An entry is not a transform.
        """
        where, chain = self.config.name, []
        for spec in self.config.preprocess_for(modality):
            transform = build_class(spec, where=where, trust_packages=self.trust_packages)
            if not is_transform(type(transform)):
                raise BundleError("preprocess entry is not a transform", where=where, found=spec.class_path)
            chain.append(transform)
        return chain


def load_bundle(source: str | os.PathLike[str], *, trust_packages: Iterable[str] = ()) -> Bundle:
    """Find a bundle, check its schema and verify its weights' sha256.

    Args:
        source: A path if it contains a separator or starts with '.', else the name of a shipped bundle.
        trust_packages: Packages besides medseq whose classes the bundle may name.

    Raises:
        BundleError: Unknown, incomplete, changed, truncated or not trusted; the message says which.
    """
    folder = _locate(source)
    text = _read(folder / _CONFIG, folder.name)
    config = validate_config(parse_yaml(text, where=folder.name), where=folder.name)
    digest = _file_sha256(folder / config.weights.file, config.name)
    _require_digest(digest, config.weights.sha256, config.name)
    _read_metadata(folder, config.name)
    trust = tuple(trust_packages)
    chains = [config.preprocess, *config.preprocess_of.values()]
    for spec in (config.model, *(spec for chain in chains for spec in chain)):
        require_trust(spec, trust, config.name)
    return Bundle(folder, config, _bundle_hash(text, digest), trust)


def save_bundle(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    state_dict: "Mapping[str, torch.Tensor]",
    *,
    metadata: Mapping[str, Any],
    card: str,
    dtype: str = "float32",
    overwrite: bool = False,
    trust_packages: Iterable[str] = (),
) -> Bundle:
    """Write a bundle; it appears complete or not at all.

    Args:
        folder: Must not exist yet, unless `overwrite`.
        config: ``bundle.yaml`` without `weights` (filled in here); `format` may be left out.
        state_dict: The model's parameters and buffers.
        metadata: JSON-serialisable: training data with hashes and licences, metrics, versions, intended use.
        card: The model card, Markdown.
        dtype: Storage of floating-point tensors, ``float32`` or ``float16``; always loaded as float32.
        overwrite: Replace an existing bundle.
        trust_packages: As in `load_bundle`.

    Raises:
        BundleError: The result would not load.
        OutputError: The folder exists, or cannot be written.
    """
    target = Path(folder)
    if target.exists() and not (overwrite and (not any(target.iterdir()) or (target / _CONFIG).is_file())):
        raise OutputError("the bundle's folder exists", where=target.name, remedy="choose another, or overwrite it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise OutputError("the bundle cannot be written", where=target.name, found=error.strerror) from None
    try:
        stage.chmod(0o755)
        weights = _serialise(state_dict, dtype, target.name)
        digest = hashlib.sha256(weights).hexdigest()
        content = {"format": 1, **config, "weights": {"file": _WEIGHTS, "sha256": digest, "dtype": dtype}}
        validate_config(content, where=target.name)
        _write(stage / _WEIGHTS, weights)
        _write(stage / _CONFIG, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110).encode())
        _write(stage / _METADATA, (json.dumps(dict(metadata), indent=1, ensure_ascii=False) + "\n").encode())
        _write(stage / _CARD, card.encode())
        load_bundle(stage, trust_packages=trust_packages)
        if target.exists():
            shutil.rmtree(target)
        stage.rename(target)
    except OSError as error:
        raise OutputError("the bundle cannot be written", where=target.name, found=error.strerror) from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return load_bundle(target.resolve(), trust_packages=trust_packages)


def _load_strictly(
    model: "torch.nn.Module", state: "dict[str, torch.Tensor]", where: str, *, assign: bool = False
) -> None:
    try:
        keys = model.load_state_dict(state, strict=False, assign=assign)
    except RuntimeError as error:
        detail = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        raise BundleError(
            "weights and model differ in shape", where=where, found=(detail or [str(error)])[0][:200]
        ) from None
    if keys.missing_keys or keys.unexpected_keys:
        missing, extra = ", ".join(keys.missing_keys[:3]) or "none", ", ".join(keys.unexpected_keys[:3]) or "none"
        raise BundleError(
            "weights and model differ",
            where=where,
            found=f"{len(keys.missing_keys)} missing: {missing}; {len(keys.unexpected_keys)} unknown: {extra}",
        )


def _locate(source: str | os.PathLike[str]) -> Path:
    text = os.fspath(source)
    separators = {os.sep, os.altsep or os.sep}
    if not isinstance(source, Path) and not text.startswith(".") and not any(mark in text for mark in separators):
        if text not in zoo_names():
            raise unknown_bundle(text)
        return zoo_folder() / text
    folder = Path(text)
    if not folder.is_dir():
        raise BundleError("no such bundle folder", where=folder.name, wanted="a folder with bundle.yaml")
    return folder


def _read(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error, where) from None


def _unreadable(path: Path, error: OSError, where: str) -> BundleError:
    return BundleError(
        f"{path.name} is missing or cannot be read",
        where=where,
        found=error.strerror,
        wanted=f"{_CONFIG} and {_WEIGHTS}",
        remedy="copy the whole bundle again",
    )


def _read_metadata(folder: Path, where: str) -> dict[str, Any]:
    path = folder / _METADATA
    if not path.is_file():
        return {}
    try:
        metadata = plain_json(_read(path, where))
    except ValueError:
        raise BundleError("metadata.json is not readable", where=where, wanted="JSON in UTF-8") from None
    if not isinstance(metadata, dict):
        raise BundleError("metadata.json holds no object", where=where, found=type(metadata).__name__)
    return metadata


def _file_sha256(path: Path, where: str) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error, where) from None


def _require_digest(found: str, wanted: str, where: str) -> None:
    if found != wanted:
        raise BundleError(
            "the weights were changed or truncated",
            where=where,
            found=f"sha256 {found[:12]}",
            wanted=f"sha256 {wanted[:12]}",
            remedy="copy the whole bundle again",
        )


def _bundle_hash(config_text: bytes, weights_sha256: str) -> str:
    return hashlib.sha256((hashlib.sha256(config_text).hexdigest() + weights_sha256).encode()).hexdigest()


def _serialise(state_dict: "Mapping[str, torch.Tensor]", dtype: str, where: str) -> bytes:
    import torch
    from safetensors.torch import save

    if dtype not in ("float32", "float16"):
        raise BundleError("weights cannot be stored so", where=where, found=dtype, wanted="float32 or float16")
    target, out = getattr(torch, dtype), {}
    for key, value in state_dict.items():
        # A copy each: safetensors refuses tensors that share memory.
        tensor = value.detach().to("cpu", target if value.is_floating_point() else value.dtype, copy=True).contiguous()
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise BundleError(f"weights do not fit {dtype}", where=where, found=key, remedy="store them as float32")
        out[key] = tensor
    return save(out)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
