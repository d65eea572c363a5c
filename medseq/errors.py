"""All errors that medseq raises on purpose.

    MedseqError                 anything medseq refuses; `code` goes to the ledger
    ├── InputError (ValueError) what the caller gave cannot be used
    │   ├── ShapeError          sizes, dtypes or devices that do not fit together
    │   ├── FormatError         a file that cannot be read as what it claims to be
    │   └── ManifestError       a data manifest or a configuration that contradicts itself
    ├── OutputError             a result that cannot be written as asked
    ├── BundleError             a model bundle that is incomplete, changed or not trusted
    ├── BackendError            an optional library or kernel that is missing or fails
    └── RetryableError          memory or I/O: the same input may pass the next time
        └── MemoryLimitError    more memory than there is, or than may be taken

Every message says what happened, where, what was found, what was wanted and the remedy. It holds no patient
name, patient id or path that may contain one: `where` takes an opaque label (`medseq.io.privacy.label`).
"""

from typing import Any

__all__ = [
    "BackendError",
    "BundleError",
    "FormatError",
    "InputError",
    "ManifestError",
    "MedseqError",
    "MemoryLimitError",
    "OutputError",
    "RetryableError",
    "ShapeError",
]


class MedseqError(Exception):
    """Base of all medseq errors.

    Args:
        what: One clause: what is wrong.
        where: File label, item, key or argument; never an identifier of a person.
        found: The value found.
        wanted: The value or range that would have been accepted.
        remedy: What the reader can do now.
    """

    code = "error"

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        wanted: object = None,
        remedy: str | None = None,
    ) -> None:
        self.what, self.where, self.found, self.wanted, self.remedy = what, where, found, wanted, remedy
        text = what if where is None else f"{where}: {what}"
        details = [f"{name} {value}" for name, value in (("found", found), ("wanted", wanted)) if value is not None]
        if details:
            text += f" ({', '.join(details)})"
        if remedy:
            text += f"; {remedy}"
        super().__init__(text)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process borders in the batch engine; the default drops keyword arguments.
        return _rebuild, (type(self), self.what, self.where, self.found, self.wanted, self.remedy)


def _rebuild(
    cls: type["MedseqError"], what: str, where: object, found: object, wanted: object, remedy: str | None
) -> "MedseqError":
    return cls(what, where=where, found=found, wanted=wanted, remedy=remedy)


class InputError(MedseqError, ValueError):
    """What the caller gave cannot be used."""

    code = "input"


class ShapeError(InputError):
    """Sizes, dtypes or devices that do not fit together."""

    code = "shape"


class FormatError(InputError):
    """A file that cannot be read as what it claims to be."""

    code = "format"


class ManifestError(InputError):
    """A data manifest or a configuration that contradicts itself."""

    code = "manifest"


class OutputError(MedseqError):
    """A result that cannot be written as asked."""

    code = "output"


class BundleError(MedseqError):
    """A model bundle that is incomplete, changed or not trusted."""

    code = "bundle"


class BackendError(MedseqError, RuntimeError):
    """An optional library or kernel that is missing or fails."""

    code = "backend"


class RetryableError(MedseqError):
    """Memory or I/O trouble: the same input may pass the next time."""

    code = "retry"


class MemoryLimitError(RetryableError):
    """More memory than there is, or than may be taken."""

    code = "memory"
