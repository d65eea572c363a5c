"""From files to items of pathology: bags of features, slides, or a bag with the slide it was made of. No torch.

A bag and a slide of one name in one folder are one item: the bag is scored, the slide is shown. A table holds many
bags; each is an item. A zarr bag is a folder, and so is the data of a MRXS slide: their files belong to the item.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from medseq.errors import InputError, MedseqError
from medseq.inference.found import Found, broken_item, file_rows, item_id, refused_item, relative
from medseq.inference.h5_guard import require_openable
from medseq.inference.mil_item import MILItem
from medseq.io.features import Bag
from medseq.io.features_open import BAG_SUFFIXES, open_bag
from medseq.io.features_table import read_bag_csv
from medseq.io.privacy import label
from medseq.io.slide_find import SLIDE_SUFFIXES, find_slides, slide_name

__all__ = ["discover_mil", "open_mil_item"]

_TABLES = (".csv", ".txt")


def discover_mil(root: Path, paths: Sequence[Path]) -> Iterator[Found]:
    """Items among `paths`, and what the other files are.

    Args:
        root: See `medseq.inference.discover.input_root`.
        paths: Regular files below it.
    """
    groups: dict[Path, list[Path]] = {}
    for path in paths:
        groups.setdefault(_unit(path), []).append(path)
    dicom = {path for path in groups if path.suffix.lower() in (".dcm", ".dicom")}
    slides = {path for path in groups if path.suffix.lower() in SLIDE_SUFFIXES}
    for folder in sorted({path.parent for path in dicom}):
        slides |= set(find_slides(folder)) & dicom
    bags = [path for path in groups if path.suffix.lower() in BAG_SUFFIXES]
    shown: set[Path] = set()
    for path in bags:
        partner = next((slide for slide in sorted(slides) if _same(slide, path)), None)
        shown |= {partner} if partner else set()
        files = [*sorted(groups[path]), *(_slide_files(partner, groups, dicom) if partner else [])]
        yield _bag(root, path, files, partner)
    for path in sorted(slides - shown):
        relpath = relative(root, path)
        rows = file_rows(root, _slide_files(path, groups, dicom))
        yield Found(item_id("slide", [relpath]), "slide", label(relpath), rows)
    taken = slides | set(bags) | {member for slide in slides for member in _slide_files(slide, groups, dicom)}
    for path in sorted(groups.keys() - taken):
        if path.suffix.lower() in _TABLES:
            yield from _table(root, path)
        else:
            yield refused_item(root, path, "skipped", "not-mil", "neither features nor a slide")


def open_mil_item(root: Path, wanted: str, kind: str, relpaths: Sequence[str], bags: Path) -> MILItem:
    """Open a discovered item again, in any process.

    Args:
        root: The input root.
        wanted: Id of the item; also its pseudonym, since what a file is called may be the name of a person.
        kind: ``bag`` or ``slide``.
        relpaths: Its files, the features or the slide first.
        bags: Folder for features that are extracted from slides.

    Raises:
        FormatError: The file cannot be read.
        InputError: It no longer holds what was discovered.
    """
    path = _unit(root / relpaths[0])
    if kind == "slide":
        return MILItem(wanted, None, path, bags)
    if path.suffix.lower() in _TABLES:
        state = path.stat()
        for number, bag in enumerate(_bags_of(path, state.st_size, state.st_mtime_ns)):
            if _table_id(root, path, number) == wanted:
                return MILItem(wanted, Bag(bag.features, wanted, wanted), None, bags)
        raise InputError("the files changed since they were found", remedy="run again when nothing writes to the input")
    slide = next((root / name for name in relpaths[1:] if _same(root / name, path)), None)
    return MILItem(wanted, open_bag(path, slide_id=wanted, patient_id=wanted), slide, bags)


def _unit(path: Path) -> Path:
    """The file itself, or the zarr folder that it is a part of."""
    return next((parent for parent in path.parents if parent.suffix.lower() == ".zarr"), path)


def _same(slide: Path, bag: Path) -> bool:
    """Whether a slide and a bag have one name in one folder."""
    is_slide = slide.suffix.lower() in (*SLIDE_SUFFIXES, ".dcm", ".dicom")
    return is_slide and slide_name(slide) == bag.stem and bag.parent in (slide.parent, slide.parent.parent)


def _slide_files(slide: Path, groups: dict[Path, list[Path]], dicom: set[Path]) -> list[Path]:
    """The slide's file, then what belongs to it."""
    if slide in dicom:
        return [slide, *sorted(path for path in dicom if path.parent == slide.parent and path != slide)]
    if slide.suffix.lower() == ".mrxs":
        return [slide, *sorted(path for path in groups if path.parent == slide.with_suffix(""))]
    return [slide]


def _bag(root: Path, path: Path, files: list[Path], slide: Path | None) -> Found:
    relpath = relative(root, path)
    try:
        require_openable(path, "bag")
        open_bag(path)
    except MedseqError as error:
        return broken_item(root, files, label(relpath), error, "bag")
    remarks = () if slide is None else (("slide-beside", "pictures show the slide of the same name"),)
    return Found(item_id("bag", [relpath]), "bag", label(relpath), file_rows(root, files), remarks=remarks)


def _table(root: Path, path: Path) -> Iterator[Found]:
    relpath = relative(root, path)
    try:
        state = path.stat()
        count = len(_bags_of(path, state.st_size, state.st_mtime_ns))
    except MedseqError as error:
        text = f"a table that holds no bags: {error.what}"
        yield refused_item(root, path, "skipped", "not-bags", text)
        return
    for number in range(count):
        name = f"{label(relpath)} bag-{number + 1}"
        yield Found(_table_id(root, path, number), "bag", name, file_rows(root, [path]))


def _table_id(root: Path, path: Path, number: int) -> str:
    return item_id("bag", [relative(root, path), str(number)])


@lru_cache(maxsize=1)
def _bags_of(path: Path, size: int, mtime_ns: int) -> list[Bag]:
    """All bags of a table; kept, since every bag of it is an item that asks again."""
    return read_bag_csv(path).bags
