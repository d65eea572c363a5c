"""``run.json`` beside the checkpoints: what decided the numbers of a training, so that it can be repeated next year."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

__all__ = ["data_hash", "patient_hashes", "write_record"]

# What a training computes with; the whole list of installed packages follows as one digest.
_NAMED = ("medseq", "torch", "numpy", "pytorch-lightning", "monai", "torchmetrics", "scipy", "scikit-image", "h5py")


def write_record(folder: Path, *, command: str, config: Mapping[str, Any], datamodule: Any) -> Path:
    """Write ``run.json``: configuration hash, git commit, package versions, data hash, patients' hashes, seed.

    Args:
        folder: The run's folder, beside config.yaml.
        command: ``fit restore`` and the like; paths given on the command line stand in config.yaml.
        config: The resolved configuration.
        datamodule: Its data sets are asked for their patients.
    """
    versions = {name.lower(): dist.version for dist in distributions() if (name := dist.metadata["Name"])}
    record = {
        "schema": 1,
        "command": f"medseq {command}",
        "started_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.get("seed_everything"),
        "config_sha256": _digest(json.dumps(_plain(config), sort_keys=True)),
        "data_sha256": data_hash(config.get("data")),
        "patients": {part: patient_hashes(getattr(datamodule, part, None)) for part in ("train", "val", "test")},
        "git": git_state(Path.cwd()),
        "versions": {name: versions[name] for name in _NAMED if name in versions},
        "packages_sha256": _digest("\n".join(f"{name}=={version}" for name, version in sorted(versions.items()))),
        "python": platform.python_version(),
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "processor": platform.machine()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def patient_hashes(dataset: Any) -> list[str]:
    """SHA-256 of the patients' pseudonyms, sorted; [] for a data set that knows none."""
    patients = {str(patient) for patient in getattr(dataset, "patient_ids", None) or ()}
    return sorted(_digest(f"medseq-patient:{patient}") for patient in patients)


def data_hash(config: Any) -> str:
    """One hash of the data settings and of the files that they name.

    Files go in with their content, folders with the names and sizes of what is in them.
    """
    digest = hashlib.sha256(json.dumps(_plain(config), sort_keys=True).encode())
    for text in sorted(set(_strings(config))):
        path = Path(text)
        if path.is_file():
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        elif path.is_dir() and text not in (".", "/"):
            for inside in sorted(path.rglob("*")):
                if inside.is_file():
                    digest.update(f"{inside.relative_to(path).as_posix()}:{inside.stat().st_size};".encode())
    return digest.hexdigest()


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the repository that `folder` lies in, and whether files differ from it; None outside of one."""
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changes)}


def _plain(value: Any) -> Any:
    """The configuration as JSON can hold it."""
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _strings(value: Any) -> Iterator[str]:
    plain = _plain(value)
    if isinstance(plain, dict):
        for inner in plain.values():
            yield from _strings(inner)
    elif isinstance(plain, list):
        for inner in plain:
            yield from _strings(inner)
    elif isinstance(plain, str) and len(plain) < 4096:
        yield plain


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
