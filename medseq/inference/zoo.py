"""The bundles that ship with the package: names and metadata, without torch, so that listing them is instant."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medseq.errors import BundleError

__all__ = ["ZooEntry", "zoo_entry", "zoo_folder", "zoo_names"]


@dataclass(frozen=True)
class ZooEntry:
    """What `medseq zoo` shows of one bundle.

    Attributes:
        name, version, task: As in ``bundle.yaml``.
        modality: Modalities that it accepts.
        units: Units of its input.
        bytes: Size of the weights file.
        metadata: The content of ``metadata.json``: training data, metrics, licence, intended use.
    """

    name: str
    version: str
    task: str
    modality: tuple[str, ...]
    units: str
    bytes: int
    metadata: dict[str, Any]


def zoo_folder() -> Path:
    """Folder of the shipped bundles."""
    return Path(__file__).resolve().parent.parent / "zoo"


def zoo_names() -> list[str]:
    """Names of the shipped bundles, sorted."""
    folder = zoo_folder()
    return sorted(path.parent.name for path in folder.glob("*/bundle.yaml")) if folder.is_dir() else []


def zoo_entry(name: str) -> ZooEntry:
    """Metadata of one shipped bundle; its weights are neither read nor verified.

    Raises:
        BundleError: No such bundle, or its files cannot be parsed.
    """
    folder = zoo_folder() / name
    if name not in zoo_names():
        raise unknown_bundle(name)
    try:
        config = yaml.safe_load((folder / "bundle.yaml").read_bytes())
        card = folder / "metadata.json"
        return ZooEntry(
            name=config["name"],
            version=str(config["version"]),
            task=config["task"],
            modality=tuple(config["input"].get("modality", ())),
            units=str(config["input"].get("units", "1")),
            bytes=(folder / config["weights"]["file"]).stat().st_size,
            metadata=json.loads(card.read_text("utf-8")) if card.is_file() else {},
        )
    except (yaml.YAMLError, json.JSONDecodeError, KeyError, TypeError, AttributeError, OSError) as error:
        raise BundleError(
            "the shipped bundle cannot be read", where=name, found=type(error).__name__, remedy="install medseq again"
        ) from None


def unknown_bundle(name: str) -> BundleError:
    """The error for a name that is neither a shipped bundle nor a path."""
    return BundleError(
        "no bundle of this name",
        found=repr(name),
        wanted=", ".join(zoo_names()) or "a path (none are shipped)",
        remedy="a folder is given as a path with a separator, such as ./name",
    )
