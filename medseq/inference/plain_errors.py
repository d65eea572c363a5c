"""Errors as plain values and back, so that they cross to another process as JSON: nothing is unpickled."""

from collections.abc import Mapping
from typing import Any

from medseq import errors
from medseq.errors import MedseqError

__all__ = ["as_error", "refusal"]


def refusal(error: MedseqError) -> dict[str, Any]:
    """An error as plain values; `as_error` makes it one again."""
    words = {"where": error.where, "found": error.found, "wanted": error.wanted}
    return {
        "type": type(error).__name__,
        "what": error.what,
        "remedy": error.remedy,
        **{key: None if value is None else str(value) for key, value in words.items()},
    }


def as_error(parts: Mapping[str, Any]) -> MedseqError:
    """The error that another process met."""
    kind = parts["type"] if parts["type"] in errors.__all__ else "BackendError"
    words = {key: parts.get(key) for key in ("where", "found", "wanted", "remedy")}
    error: MedseqError = getattr(errors, kind)(parts["what"], **words)
    return error
