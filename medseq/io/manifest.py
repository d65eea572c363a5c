r"""Manifests of training data: which files there are, of whom, and in which part of the split. No torch.

A manifest is YAML. Its entries name single files, or folders whose files tell their subject by their names:

    title: Our scanner
    files:
      - {path: a.h5, subject: volunteer-1, role: train, slices: [10, 90]}
    folders:
      - {path: Val, pattern: "*.h5", subject: '(e\d+)', role: val}

``path`` is absolute, or relative to the manifest's folder, or else to MEDSEQ_DATA. ``role`` is train, val or test; of a
folder it may be shares of subjects, such as ``{train: 0.8, val: 0.1, test: 0.1}``, dealt by the hash of the pseudonym,
so that a subject keeps its role when others join. ``subject`` of a file is a pseudonym; of a folder it is a regular
expression that finds the pseudonym in a file's path below the folder. All files of a subject have one role: a split of
slices or of visits would test on people that were trained on. What else a manifest says: `medseq.io.manifest_schema`.
"""

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from medseq.errors import ManifestError
from medseq.io.plain_text import plain_yaml

__all__ = ["ManifestFile", "Role", "find_manifest", "located", "read_manifest"]

Role = Literal["train", "val", "test"]
_PACKAGE = Path(__file__).resolve().parents[1]
_FILE_KEYS = {"path", "subject", "role", "slices", "sha256"}
_FOLDER_KEYS = {"path", "pattern", "subject", "role", "slices"}


class ManifestFile(NamedTuple):
    """One file of a data set.

    Attributes:
        path: Where it is.
        subject: Whose it is: a pseudonym.
        role: Its part of the split.
        slices: First slice and the one after the last, or None for all.
    """

    path: Path
    subject: str
    role: Role
    slices: tuple[int, int] | None = None


def find_manifest(name: str | os.PathLike) -> Path:
    """A manifest: a file that exists, here or below MEDSEQ_DATA, else the shipped one of this name.

    Raises:
        ManifestError: None of them.
    """
    plain = Path(name).name.removesuffix(".yaml")
    shipped = [folder / "data_manifests" for folder in (_PACKAGE / "_share", _PACKAGE.parent)]
    for path in (Path(name), _data_folder() / name, *(folder / f"{plain}.yaml" for folder in shipped)):
        if path.is_file():
            return path
    raise ManifestError(
        "no such manifest",
        found=Path(name).name,
        wanted="a YAML file, or a name that 'medseq data list' shows",
        remedy="write one (see docs/recon.md), or set MEDSEQ_DATA to the folder that holds it",
    )


def read_manifest(name: str | os.PathLike, *, split: bool = True) -> list[ManifestFile]:
    """The files of a manifest, in its order.

    Args:
        name: See `find_manifest`.
        split: Refuse a subject in two parts and a file that is listed twice; False for those who list such faults.

    Raises:
        ManifestError: Not such a manifest; an entry without a file, a subject or a role; a file twice; or a subject in
            two parts of the split, which is named.
    """
    path = find_manifest(name)
    where = path.name
    try:
        content = plain_yaml(path.read_bytes())
    except ValueError:
        raise ManifestError("not YAML", where=where) from None
    entries = content if isinstance(content, dict) else {}
    if not isinstance(entries.get("files", []), list) or not isinstance(entries.get("folders", []), list):
        raise ManifestError("files and folders are lists of entries", where=where)
    found: list[ManifestFile] = []
    for number, entry in enumerate(entries.get("files", [])):
        fields = _checked(entry, _FILE_KEYS, f"{where}: files[{number}]")
        place = _existing(fields["path"], path.parent, f"{where}: files[{number}]", folder=False)
        found.append(ManifestFile(place, str(fields["subject"]), fields["role"], fields["slices"]))
    for number, entry in enumerate(entries.get("folders", [])):
        found += _folder(_checked(entry, _FOLDER_KEYS, f"{where}: folders[{number}]"), path.parent, where, number)
    if not found:
        keys = ", ".join(sorted(entries)) or "none"
        raise ManifestError(
            "the manifest names no files", where=where, found=f"keys: {keys}", wanted="files or folders"
        )
    if split:
        _require_split(found, where)
    return found


def located(path: str, *, folder: bool = False) -> Path | None:
    """Where a path of a shipped manifest is: below MEDSEQ_DATA, absolute, or inside an installed package."""
    place = _data_folder() / path
    if place.is_dir() if folder else place.is_file():
        return place
    module, _, inside = path.partition("/")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    found = [Path(base, inside) for base in (spec.submodule_search_locations or ())] if spec else []
    return next((file for file in found if file.is_file() and not folder), None)


def _data_folder() -> Path:
    return Path(os.environ.get("MEDSEQ_DATA", "build/data"))


def _checked(entry: Any, known: set[str], where: str) -> dict[str, Any]:
    """The fields of an entry, with `slices` as a pair or None."""
    if not isinstance(entry, Mapping) or not {"path", "subject", "role"} <= entry.keys() <= known:
        found = ", ".join(map(str, entry)) if isinstance(entry, Mapping) else type(entry).__name__
        raise ManifestError("not an entry of a manifest", where=where, found=found, wanted=", ".join(sorted(known)))
    shared = isinstance(entry["role"], Mapping) and "pattern" in known
    if shared and not _are_shares(entry["role"]):
        raise ManifestError(
            "shares are not of 1", where=where, found=dict(entry["role"]), wanted="{train: 0.8, val: 0.2}"
        )
    if not shared and entry["role"] not in get_args(Role):
        raise ManifestError("unknown role", where=where, found=entry["role"], wanted=", ".join(get_args(Role)))
    if not str(entry["subject"] or "").strip() or not isinstance(entry["path"], str):
        raise ManifestError("an entry needs a path and a subject", where=where, remedy="give every person a pseudonym")
    slices = entry.get("slices")
    if slices is not None:
        numbers = isinstance(slices, list) and len(slices) == 2 and all(isinstance(n, int) for n in slices)
        if not numbers or not 0 <= slices[0] < slices[1]:
            raise ManifestError("slices are no range", where=where, found=slices, wanted="[first, one after the last]")
        slices = (slices[0], slices[1])
    return {**entry, "slices": slices}


def _existing(text: str, beside: Path, where: str, *, folder: bool) -> Path:
    """The file or folder that a path means."""
    path = Path(text)
    if ".." in path.parts:
        raise ManifestError("a path leaves its folder", where=where, wanted="no '..'")
    for base in (beside, _data_folder()):
        # An absolute path stays what it is when joined.
        if (base / path).is_dir() if folder else (base / path).is_file():
            return base / path
        # BART's arrays are named without their suffix.
        if not folder and (base / path).with_name(f"{path.name}.cfl").is_file():
            return base / path
    if (packaged := located(text, folder=folder)) is not None:
        return packaged
    kind = "folder" if folder else "file"
    raise ManifestError(
        f"no such {kind}",
        where=where,
        wanted=f"a {kind} beside the manifest or below MEDSEQ_DATA",
        remedy="set MEDSEQ_DATA to the folder that holds the data",
    )


def _folder(fields: dict[str, Any], beside: Path, where: str, number: int) -> Iterable[ManifestFile]:
    """The files of a folder, each with the subject that its name tells."""
    where = f"{where}: folders[{number}]"
    folder = _existing(fields["path"], beside, where, folder=True)
    pattern = str(fields.get("pattern", "*.h5"))
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise ManifestError("a pattern leaves its folder", where=where, found=pattern, wanted="a pattern like *.h5")
    try:
        subject = re.compile(str(fields["subject"]))
    except re.error as error:
        raise ManifestError("the subject is no regular expression", where=where, found=str(error)) from None
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    if not files:
        raise ManifestError("the folder holds no such files", where=where, wanted=pattern)
    for position, path in enumerate(files):
        match = subject.search(path.relative_to(folder).as_posix())
        if match is None:
            raise ManifestError(
                "the name of a file tells no subject", where=where, found=f"file {position + 1}", wanted=subject.pattern
            )
        name, role = match.group(1 if subject.groups else 0), fields["role"]
        yield ManifestFile(path, name, _dealt(name, role) if isinstance(role, Mapping) else role, fields["slices"])


def _are_shares(shares: Mapping[Any, Any]) -> bool:
    numbers = all(isinstance(share, int | float) and 0 <= share <= 1 for share in shares.values())
    return numbers and set(shares) <= set(get_args(Role)) and abs(sum(shares.values()) - 1) < 1e-6


def _dealt(subject: str, shares: Mapping[Role, float]) -> Role:
    """The role of a subject: where the hash of its pseudonym, a number from 0 to 1, falls."""
    place = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:6]) / 2**48
    for role in get_args(Role):
        place -= shares.get(role, 0.0)
        if place < 0:
            return role
    return next(role for role in reversed(get_args(Role)) if shares.get(role))


def _require_split(files: list[ManifestFile], where: str) -> None:
    roles: dict[str, Role] = {}
    seen: set[Path] = set()
    for file in files:
        if roles.setdefault(file.subject, file.role) != file.role:
            raise ManifestError(
                f"subject '{file.subject}' is in two parts of the split",
                where=where,
                found=f"{roles[file.subject]} and {file.role}",
                wanted="one role for all files of a subject",
            )
        place = file.path.resolve()
        if place in seen:
            raise ManifestError("a file is listed twice", where=where, found=f"a file of subject '{file.subject}'")
        seen.add(place)
