"""Where the data folders are: inside an installed package, or beside it in a repository."""

import importlib.util
from pathlib import Path
from typing import Any, Literal

from medseq.errors import InputError, ManifestError

__all__ = ["config_names", "find_config", "package_file", "read_manifests", "share_folder"]

_PACKAGE = Path(__file__).resolve().parents[1]


def share_folder(name: Literal["apps", "configs", "data_manifests"]) -> Path:
    """The folder `name` as shipped with this installation.

    Raises:
        ManifestError: This installation has none.
    """
    for folder in (_PACKAGE / "_share" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise ManifestError(f"this installation has no {name}", remedy="install medseq again from its wheel")


def config_names() -> list[str]:
    """Names of the shipped configurations, as ``task/name``."""
    folder = share_folder("configs")
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def find_config(name: str) -> Path:
    """A configuration file: a path that exists, else the shipped one of this name.

    Raises:
        InputError: Neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    if name.removesuffix(".yaml") in config_names():
        return share_folder("configs") / f"{name.removesuffix('.yaml')}.yaml"
    raise InputError(
        "no configuration file of this name",
        where="--config",
        found=name,
        wanted=f"a file, or one of {', '.join(config_names())}",
    )


def read_manifests() -> dict[str, dict[str, Any]]:
    """The shipped data manifests by name."""
    import yaml

    files = sorted(share_folder("data_manifests").glob("*.yaml"))
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in files}


def package_file(module: str, inside: str) -> Path | None:
    """A data file of an installed Python package, whose code is not run; None if there is none."""
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder, inside)).is_file():
            return path
    return None
