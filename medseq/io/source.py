"""What a source tells about itself that a reader of the result must know."""

from dataclasses import dataclass

from medseq.io.volume import VolumeHeader

__all__ = ["SourceWarning", "source_warnings"]


@dataclass(frozen=True)
class SourceWarning:
    """One remark on a source: `code` is stable, `message` is for people and holds no identifiers."""

    code: str
    message: str


def source_warnings(header: VolumeHeader) -> tuple[SourceWarning, ...]:
    """The remarks that the reader of this volume made, in order.

    Codes: ``gantry-tilt`` (sheared slices), ``uneven-spacing`` (no single affine), ``series-split`` (the series holds
    several stacks), ``lossy-source``, ``single-slice-step`` (a lone slice without a thickness), ``no-orientation``
    (NIfTI without sform and qform), ``resampled``.
    """
    return tuple(getattr(header.source.header, "warnings", ()))
