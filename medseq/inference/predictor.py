"""The contract between the batch engine and what computes: plain values, no torch, no ledger, no printing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

__all__ = ["Estimate", "Flag", "FlagLevel", "Output", "Prediction", "Predictor", "Role", "Sink", "Stopped"]

Role = Literal["result", "uncertainty", "difference", "scores", "attention", "overlay", "kspace"]
FlagLevel = Literal["info", "warn", "fail"]


@dataclass(frozen=True)
class Flag:
    """Something a reader of the result must know: `code` is stable, `message` is for people."""

    code: str
    message: str
    level: FlagLevel = "warn"


@dataclass(frozen=True)
class Output:
    """One written result: its role, its kind (``nifti``, ``dicom``, ``h5``, ``csv`` …) and its files."""

    role: Role
    kind: str
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Estimate:
    """What an item will cost: peak bytes above the loaded model, and seconds."""

    peak_bytes: int
    seconds: float


@dataclass(frozen=True)
class Prediction:
    """Everything a predictor says about one item."""

    outputs: tuple[Output, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    flags: tuple[Flag, ...] = ()


class Stopped(Exception):
    """A predictor was asked to stop and removed what it had written; the item is as if it had never begun."""


class Sink(Protocol):
    """Hands out writers for the roles of one item; the engine decides where they end up."""

    def volume(self, role: Role) -> Any:
        """A `medseq.io.volume.VolumeWriter` for this role."""
        ...

    def series(self, label: str) -> Any:
        """A `VolumeWriter` for the result of raw data as DICOM; `label` tells items of one file apart."""
        ...

    def object(self, role: Role) -> Path:
        """Where to write a DICOM object of this role that is no series of images."""
        ...

    def provenance(self, role: Role) -> Any:
        """Who makes it, of what and when: `medseq.io.dicom_derive.Provenance`."""
        ...

    def file(self, role: Role, suffix: str) -> Path:
        """Where to write a file of this role that is no volume."""
        ...

    def seen(self, plane: int, image: Any) -> None:
        """Show a plane of the input, where the input itself is no image."""
        ...


class Predictor(Protocol):
    """One loaded model, ready for items.

    Raises `MedseqError` (permanent), `RetryableError` (memory, I/O) or `Stopped` (`should_stop` said so).
    """

    accepts: frozenset[str]

    def estimate(self, header: Any) -> Estimate: ...

    def predict(self, reader: Any, sink: Sink, *, should_stop: Callable[[], bool]) -> Prediction: ...
