"""Archives of atommic (``.atommic``): a tar, plain or gzipped, of a configuration and a checkpoint.

Nothing is ever written to disk and no code is run: the two members that are known are read into memory, within limits,
and anything in the archive that is not a plain file of a plain name refuses the whole.
"""

import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from medseq.errors import BundleError
from medseq.inference.reference_cirim import KEYS
from medseq.io.plain_text import plain_yaml

__all__ = ["is_archive", "read_archive", "without_training"]

_TRAINING = (
    *("train_loss_fn", "val_loss_fn", "train_losses", "val_losses", "test_losses"),
    *("MSE", "NMSE", "SSIM", "PSNR", "TotExamples"),
)
_CONFIG, _WEIGHTS = "model_config.yaml", "model_weights.ckpt"
_MAX_MEMBERS = 16
_MAX_BYTES = {_CONFIG: 1 << 20, _WEIGHTS: 4 << 30}
# gzip expands at most a thousandfold: what is skipped is bounded, too.
_MAX_OTHER = 64 << 20


def is_archive(path: Path) -> bool:
    """Whether a file is named as atommic names its archives."""
    return path.suffix == ".atommic"


def read_archive(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The checkpoint in an archive, not yet loaded, and the words of its configuration that `reference.load` knows.

    Raises:
        BundleError: Not such an archive; a member that is missing, too large, or whose name or kind could write
            elsewhere if somebody extracted it.
    """
    members = _members(path)
    for name in (_CONFIG, _WEIGHTS):
        if name not in members:
            raise BundleError(
                "the archive lacks a member", where=path.name, found=", ".join(sorted(members)) or "none", wanted=name
            )
    return members[_WEIGHTS], _config(members[_CONFIG], path.name)


def _members(path: Path) -> dict[str, bytes]:
    """The known members, in memory."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for number, member in enumerate(archive):
                _require_harmless(member, path.name)
                if number >= _MAX_MEMBERS:
                    raise BundleError("the archive has too many members", where=path.name, wanted=f"{_MAX_MEMBERS}")
                name = PurePosixPath(member.name).name
                limit = _MAX_BYTES.get(name, _MAX_OTHER)
                if member.size > limit:
                    raise BundleError(
                        f"'{name[:80]}' of the archive is too large",
                        where=path.name,
                        found=f"{member.size} bytes",
                        wanted=f"at most {limit}",
                    )
                stream = archive.extractfile(member) if member.isfile() and name in _MAX_BYTES else None
                if stream is not None:
                    if name in found:
                        raise BundleError("a member of the archive comes twice", where=path.name, found=name)
                    found[name] = stream.read(limit)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise BundleError(
            "not an archive of atommic, or damaged", where=path.name, found=type(error).__name__, wanted="tar or tar.gz"
        ) from None
    return found


def _require_harmless(member: tarfile.TarInfo, where: str) -> None:
    name = PurePosixPath(member.name)
    outside = name.is_absolute() or ".." in name.parts or "\\" in member.name or ":" in member.name
    if outside or not (member.isfile() or member.isdir()):
        raise BundleError(
            "a member of the archive points outside of it",
            where=where,
            found=ascii(member.name[:80]),
            wanted="plain files inside the archive",
            remedy="do not extract this archive",
        )


def without_training(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict without the windows and counters of losses and metrics, which lie beside atommic's networks."""
    return {key: value for key, value in state.items() if key.split(".")[0] not in _TRAINING}


def _config(content: bytes, where: str) -> dict[str, Any]:
    """The network's words: atommic puts them at the top of the model's configuration, among those of training."""
    try:
        found = plain_yaml(content)
    except ValueError:
        raise BundleError("the configuration of the archive is not YAML", where=where, found=_CONFIG) from None
    if isinstance(found, Mapping) and isinstance(found.get("model"), Mapping):
        found = found["model"]
    if not isinstance(found, Mapping):
        raise BundleError("the configuration of the archive names no arguments", where=where, found=_CONFIG)
    kept = {str(key): value for key, value in found.items() if key in KEYS and value is not None}
    kept |= _normalisation(found)
    # Losses are named there, or weighted by name; they change no number of a trained network.
    return {key: value for key, value in kept.items() if not key.endswith("loss_fn")}


def _normalisation(found: Mapping[str, Any]) -> dict[str, Any]:
    """How the data sets that the configuration names were normalised; nothing where it does not say."""
    for name in ("test_ds", "validation_ds", "train_ds"):
        data = found.get(name)
        if isinstance(data, Mapping) and data.get("normalize_inputs") is False:
            return {"normalization_type": "none"}
        if isinstance(data, Mapping) and isinstance(data.get("normalization_type"), str):
            return {"normalization_type": data["normalization_type"].lower()}
    return {}
