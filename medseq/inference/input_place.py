"""Where a run reads: the input itself, or a folder that shows it with its archives unpacked. No torch.

An archive that lies in an input folder appears as a folder of the same name, beside everything else under the names
that it has: ``IN/site/study.zip`` holding ``a.nii`` is read as ``site/study.zip/a.nii``. Nothing is copied but what was
packed: the other files are reached by links that are made here, and that discovery follows, as it follows no others.
Archives in archives stay packed.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from medseq.errors import MedseqError
from medseq.inference.choice import Choice
from medseq.inference.discover import walk
from medseq.inference.found import relative
from medseq.inference.unpack import FOLDER, is_archive, unpack_into, unpacked
from medseq.io.atomic import written

__all__ = ["Place", "archives_of", "input_place"]


@dataclass(frozen=True)
class Place:
    """What discovery is given.

    Attributes:
        folder: Where relative paths start, or a single file.
        links: Links in it that were made here.
        broken: Archives that could not be unpacked, and why.
    """

    folder: Path
    links: frozenset[Path] = frozenset()
    broken: Mapping[Path, MedseqError] = field(default_factory=dict)


def archives_of(source: Path, choice: Choice) -> list[Path]:
    """The archives that have to be unpacked: the input, if it is one, or those in it that are wanted."""
    if is_archive(source):
        return [source]
    if not source.is_dir():
        return []
    root = source.resolve()
    found = (path for path, refusal in walk(root) if refusal is None and is_archive(path))
    return [path for path in found if choice.wants(relative(root, path))]


@contextmanager
def input_place(source: Path, archives: Sequence[Path], out: Path) -> Iterator[Place]:
    """The place to read from; what was unpacked is removed at the end.

    Args:
        source: File or folder.
        archives: See `archives_of`.
        out: The output folder, locked if there are archives.

    Raises:
        MedseqError: The input is an archive that cannot be unpacked. One inside of it only costs itself.
    """
    if not archives or is_archive(source):
        with unpacked(source, out) as folder:
            yield Place(folder)
        return
    folder = out.resolve() / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with written("the unpacked input"):
            folder.mkdir(mode=0o700)
        yield _shown(source.resolve(), archives, folder)
    finally:
        # Links are removed, not followed.
        shutil.rmtree(folder, ignore_errors=True)


def _shown(root: Path, archives: Sequence[Path], folder: Path) -> Place:
    """Make the folder: real folders on the way to an archive, links to everything beside it."""
    on_the_way = {parent for path in archives for parent in path.parents if parent == root or root in parent.parents}
    links: set[Path] = set()
    broken: dict[Path, MedseqError] = {}
    packed = set(archives)
    for own in sorted(on_the_way):
        shown = folder / own.relative_to(root)
        with written("the unpacked input"):
            shown.mkdir(exist_ok=True)
            for entry in sorted(own.iterdir()):
                if entry not in on_the_way and entry not in packed:
                    (shown / entry.name).symlink_to(entry)
                    links.add(shown / entry.name)
    for path in archives:
        target = folder / path.relative_to(root)
        try:
            with written("the unpacked input"):
                target.mkdir()
                unpack_into(path, target)
        except MedseqError as error:
            shutil.rmtree(target, ignore_errors=True)
            with written("the unpacked input"):
                target.symlink_to(path)
            links.add(target)
            broken[target] = error
    return Place(folder, frozenset(links), broken)
