"""Which files of the input the caller wants, and which first: shell patterns over relative paths."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

__all__ = ["Choice"]


@dataclass(frozen=True)
class Choice:
    """Patterns such as ``*.nii.gz`` or ``study7/*``; ``*`` also crosses slashes.

    A pattern without a slash is compared with the file's name, one with a slash with its path below the input.

    Attributes:
        include: Files that match one are wanted; all, if there are none.
        exclude: Files that match one are not.
        first: Items with a file that matches the first pattern are computed first, then the second …
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    first: Sequence[str] = ()

    def wants(self, relpath: str) -> bool:
        """Whether a file is wanted."""
        return (not self.include or _any(self.include, relpath)) and not _any(self.exclude, relpath)

    def priority(self, relpaths: Sequence[str]) -> int:
        """Of an item, by its files: the higher, the earlier; 0 without a match."""
        for number, pattern in enumerate(self.first):
            if any(_matches(pattern, relpath) for relpath in relpaths):
                return len(self.first) - number
        return 0


def _any(patterns: Sequence[str], relpath: str) -> bool:
    return any(_matches(pattern, relpath) for pattern in patterns)


def _matches(pattern: str, relpath: str) -> bool:
    return fnmatchcase(relpath if "/" in pattern else relpath.rpartition("/")[2], pattern)
