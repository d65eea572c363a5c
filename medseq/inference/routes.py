"""`routes.yaml`: which series goes to which model and where its result goes. First match wins; no match is skipped.

    format: 1
    destinations:
      archive: {url: "dicom://PACS@10.0.0.5:104", commit: true}
    routes:
      - name: low-dose chest
        when: {Modality: CT, BodyPart: CHEST, SeriesDescription: "(?i)low.?dose"}
        bundle: ct-denoise
        parameters: {strength: 0.8}
        destination: archive

Conditions of one route must all hold. `SeriesDescription` is a regular expression searched in the description; the
others are compared as a whole, without case, with ``*`` for anything.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medseq.errors import ManifestError
from medseq.io.plain_text import MAX_TEXT_BYTES, plain_yaml

__all__ = ["Decision", "Destination", "Route", "Routes", "load_routes"]

Fact = Literal["Modality", "SeriesDescription", "BodyPart", "Manufacturer", "AETitle"]
_OWN = "made by medseq: results are not processed again"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Destination(_Strict):
    """Where results go.

    Attributes:
        url: As `medseq.io.pacs.parse_remote` takes it.
        commit: Ask for storage commitment (DIMSE).
    """

    url: str
    commit: bool = False

    @model_validator(mode="after")
    def _commit_needs_dimse(self) -> "Destination":
        if self.commit and not self.url.startswith("dicom"):
            raise ValueError("commit needs a dicom:// address")
        return self


class Route(_Strict):
    """One rule."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
    when: dict[Fact, str] = Field(default_factory=dict)
    bundle: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    destination: str | None = None

    @field_validator("when")
    @classmethod
    def _compiles(cls, when: dict[str, str]) -> dict[str, str]:
        try:
            re.compile(when.get("SeriesDescription", ""))
        except re.error as error:
            raise ValueError(f"SeriesDescription is no regular expression: {error}") from None
        return when

    def mismatch(self, values: Mapping[str, str]) -> str | None:
        """Which condition does not hold, or None."""
        for fact, wanted in self.when.items():
            value = values.get(fact, "")
            if fact == "SeriesDescription":
                holds = re.search(wanted, value) is not None
            else:
                holds = fnmatchcase(value.casefold(), wanted.casefold())
            if not holds:
                return f"{fact} is not {wanted!r}"
        return None


class Routes(_Strict):
    """The whole file."""

    format: Literal[1]
    destinations: dict[str, Destination] = Field(default_factory=dict)
    routes: tuple[Route, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_fit(self) -> "Routes":
        names = [route.name for route in self.routes]
        if len(set(names)) < len(names):
            raise ValueError("two routes have the same name")
        missing = {route.destination for route in self.routes if route.destination} - set(self.destinations)
        if missing:
            raise ValueError(f"no such destination: {', '.join(sorted(missing))}")
        return self

    def decide(self, values: Mapping[str, str], *, ours: bool = False, unfit: str | None = None) -> "Decision":
        """The first route whose conditions all hold.

        Args:
            values: Fact -> what the series says.
            ours: The series was made by medseq.
            unfit: Why it is no input at all, or None.
        """
        if ours or unfit:
            return Decision(None, _OWN if ours else str(unfit), ())
        steps = []
        for route in self.routes:
            mismatch = route.mismatch(values)
            steps.append((route.name, mismatch or "matches"))
            if mismatch is None:
                return Decision(route, f"route {route.name}", tuple(steps))
        return Decision(None, "no route matches", tuple(steps))


@dataclass(frozen=True)
class Decision:
    """What happens to a series, and why.

    Attributes:
        route: The route, or None: skipped.
        reason: In one clause, without identifiers.
        steps: Each route that was tried, and which of its conditions failed.
    """

    route: Route | None
    reason: str
    steps: tuple[tuple[str, str], ...]


def load_routes(path: Path) -> Routes:
    """Read and check a routes file.

    Raises:
        ManifestError: Missing, not YAML, or something in it that is not understood; the message names the key.
    """
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise ManifestError("the routes file is too large", found=f"{path.stat().st_size} bytes")
        data = plain_yaml(path.read_bytes())
    except OSError as error:
        raise ManifestError("the routes file cannot be read", found=type(error).__name__, wanted="YAML") from None
    except ValueError as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError("the routes file cannot be read", found=str(error), wanted="YAML") from None
    try:
        return Routes.model_validate(data)
    except ValidationError as error:
        # A misspelt key explains the one that is missing.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        where = ".".join(str(part) for part in first["loc"]) or "routes file"
        raise ManifestError(first["msg"], where=where, remedy="see docs/dicom_conformance.md") from None
