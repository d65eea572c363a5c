"""What de-identification replaces identifiers by, what it may keep, and what it says about one file.

Pseudonyms are keyed hashes (HMAC-SHA256) of the identifiers: with the same secret salt the same patient, study, series
and image get the same pseudonyms in every run and at every site that shares it, and nobody without it can go back,
not even by trying every possible number. Dates move by a whole number of days that is the same for all of one patient:
intervals and times of day stay.

    names = Pseudonyms.from_environment()
    names.patient("4711"), names.uid("1.2.840…"), names.shift("20240131", "4711")

The formats: `medseq.io.deidentify_dicom`, `_nifti`, `_kspace`, `_tiff`; whole folders: `medseq.inference.deidentify`.
"""

import hashlib
import hmac
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

from medseq.errors import InputError

__all__ = ["FACES", "KEEPABLE", "Cleaned", "Identifiers", "Options", "Pseudonyms", "Refused"]

FACES = "shows, or may show, a head: the face can be rebuilt from the volume; remove it before sharing"
KEEPABLE = ("characteristics", "device", "uids")
_SALT = "MEDSEQ_SALT"
_MIN_SALT = 16
_MAX_SHIFT_DAYS = 1095
# Placeholders, not names: they would empty half of the technical attributes.
_NOBODY = {"anonymous", "anonymized", "unknown", "none", "null", "patient", "test", "phantom", "name", "not", "the"}


@dataclass(frozen=True)
class Options:
    """What may stay.

    Attributes:
        dates: ``shift`` moves every date by the patient's own number of days, ``remove`` empties them.
        keep: Of `KEEPABLE`: patient characteristics (sex, size, weight, age up to 89), device identity, UIDs.
        burned_in: Also take images that may show text in their pixels; the default refuses them.
    """

    dates: str = "shift"
    keep: frozenset[str] = frozenset()
    burned_in: bool = False

    def __post_init__(self) -> None:
        if self.dates not in ("shift", "remove"):
            raise InputError("no such treatment of dates", found=self.dates, wanted="shift or remove")
        unknown = sorted(set(self.keep) - set(KEEPABLE))
        if unknown:
            raise InputError("cannot be kept", found=", ".join(unknown), wanted=f"of {', '.join(KEEPABLE)}")


@dataclass(frozen=True)
class Cleaned:
    """A file that was written without identifiers.

    Attributes:
        path: The new file, below the output folder.
        notes: What its user must know, in sentences without identifiers.
    """

    path: Path = field(repr=False)
    notes: tuple[str, ...] = ()


class Refused(InputError):
    """A file that is left out because it cannot be cleaned; the message says why."""

    code = "refused"


class Pseudonyms:
    """Consistent stand-ins for identifiers.

    Args:
        salt: The secret; whoever has it can test guesses.
    """

    def __init__(self, salt: str):
        if len(salt) < _MIN_SALT:
            raise InputError(
                "the secret salt is too short to resist guessing",
                where=_SALT,
                found=f"{len(salt)} characters",
                wanted=f"at least {_MIN_SALT}",
                remedy="python -c 'import secrets; print(secrets.token_hex(16))', kept apart from the results",
            )
        self._key = hashlib.sha256(b"medseq pseudonyms\0" + salt.encode()).digest()

    @classmethod
    def from_environment(cls) -> "Pseudonyms":
        """Take the salt from ``MEDSEQ_SALT``.

        Raises:
            InputError: It is not set, or too short.
        """
        salt = os.environ.get(_SALT)
        if not salt:
            raise InputError(
                "de-identification needs a secret salt, the same in every run that shall agree",
                where=_SALT,
                found="not set",
                remedy=f"export {_SALT}=$(python -c 'import secrets; print(secrets.token_hex(16))') and keep it safe",
            )
        return cls(salt)

    def patient(self, identity: str) -> str:
        """``P-`` and 16 hexadecimal digits."""
        return f"P-{self._digest('patient', identity).hex()[:16]}"

    def name(self, kind: str, identity: str) -> str:
        """16 hexadecimal digits for a study, a series or a file."""
        return self._digest(kind, identity).hex()[:16]

    def uid(self, uid: str) -> str:
        """A UID under 2.25, of 128 bits of the hash."""
        return f"2.25.{int.from_bytes(self._digest('uid', uid.strip())[:16], 'big')}"

    def days(self, identity: str) -> int:
        """By how many days the dates of a patient move: into the past, at least one."""
        number = int.from_bytes(self._digest("days", identity)[:8], "big")
        return -(1 + number % _MAX_SHIFT_DAYS)

    def shift(self, text: str, identity: str) -> str:
        """Move a date ``YYYYMMDD`` or ``YYYY-MM-DD``, with or without a time after it; empty if it is none."""
        match = re.match(r"\s*(\d{4})([-.]?)(\d{2})\2(\d{2})(.*)$", text, re.DOTALL)
        if match is None:
            return ""
        year, mark, month, day, rest = match.groups()
        # What follows must be a time, or it may be anything.
        if rest.strip() and not re.fullmatch(r"[T ]?[\d:.]*([+-]\d{2}:?\d{2}|Z)?", rest.strip()):
            return ""
        try:
            moved = date(int(year), int(month), int(day)) + timedelta(days=self.days(identity))
        except (ValueError, OverflowError):
            return ""
        return f"{moved.year:04d}{mark}{moved.month:02d}{mark}{moved.day:02d}{rest.rstrip()}"

    def _digest(self, kind: str, identity: str) -> bytes:
        data = f"{kind}\0{identity}".encode("utf-8", "surrogateescape")
        return hmac.new(self._key, data, hashlib.sha256).digest()


class Identifiers:
    """The words that identify one patient, to be looked for in whatever else is kept.

    Args:
        names: Names of people; each of their parts counts.
        numbers: Identifiers as a whole.
    """

    def __init__(self, names: Iterable[str] = (), numbers: Iterable[str] = ()):
        words = {part for name in names for part in re.split(r"[\s^=,;/\\._-]+", name.casefold())}
        words |= {number.casefold().strip() for number in numbers}
        # One letter or a lone digit stands in every second technical text.
        self._words = {word for word in words if len(word) >= 2 and word not in _NOBODY}

    def found(self, text: str) -> bool:
        """Whether a text holds one of the words; short ones must stand alone."""
        text = text.casefold()
        for word in self._words:
            if word in text and (len(word) > 3 or re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)):
                return True
        return False
