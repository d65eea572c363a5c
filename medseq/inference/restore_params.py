"""The parameters of a restoration run: the caller's words where given, the bundle's where not. No torch.

These are the effective values that go into the run ledger, its hash and the report.
"""

from dataclasses import asdict, dataclass
from typing import Any

from medseq.errors import BundleError, InputError
from medseq.inference.bundle_schema import BundleConfig
from medseq.inference.fidelity import METRICS

__all__ = ["RestoreParams"]


@dataclass(frozen=True)
class RestoreParams:
    """What may change a result.

    Attributes:
        tile: ``(row, col)`` of a tile; None for whole planes.
        overlap: Share of a tile that its neighbour covers too.
        blend: ``gaussian`` or ``constant``.
        batch: Planes (or tiles) a forward pass.
        strength: 1 gives the model's result, 0 the input, between them a blend.
        difference: Also write result - input.
        uncertainty: Also write the standard deviation over flips and turns; eight times as many forward passes.
    """

    tile: tuple[int, int] | None
    overlap: float
    blend: str
    batch: int
    strength: float = 1.0
    difference: bool = False
    uncertainty: bool = False

    @classmethod
    def resolve(
        cls,
        config: BundleConfig,
        *,
        tile: int | tuple[int, int] | None = None,
        overlap: float | None = None,
        batch: int | None = None,
        strength: float = 1.0,
        difference: bool = False,
        uncertainty: bool | None = None,
    ) -> "RestoreParams":
        """Fill in the bundle's own values and check ranges.

        Raises:
            BundleError: The bundle is not for restoring volumes.
            InputError: A parameter is out of range.
        """
        _require_supported(config)
        defaults = config.inference
        tile = defaults.tile if tile is None else tile
        params = cls(
            tile=(tile, tile) if isinstance(tile, int) else tile,
            overlap=defaults.overlap if overlap is None else float(overlap),
            blend=defaults.blend,
            batch=defaults.batch if batch is None else int(batch),
            strength=float(strength),
            difference=bool(difference),
            uncertainty=bool(defaults.uncertainty if uncertainty is None else uncertainty),
        )
        for name, value, low, high in (
            ("strength", params.strength, 0.0, 1.0),
            ("overlap", params.overlap, 0.0, 0.9),
            ("batch", params.batch, 1, 4096),
            ("tile", min(params.tile or (8,)), 8, 1 << 20),
        ):
            if not low <= value <= high:
                raise InputError(f"{name} is out of range", found=value, wanted=f"{low} to {high}")
        return params

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "tile": None if self.tile is None else list(self.tile)}


def _require_supported(config: BundleConfig) -> None:
    for key, found, wanted in (
        ("task", config.task, "restore"),
        ("input.kind", config.input.kind, "volume"),
        ("input.context_slices", config.input.context_slices, 0),
        ("output.kind", config.output.kind, "volume"),
        ("output.units", config.output.units or config.input.units, config.input.units),
    ):
        if found != wanted:
            raise BundleError(f"{key} is not for restoration", where=config.name, found=found, wanted=wanted)
    unknown = [check.name for check in config.checks if check.name not in METRICS]
    if any(check.name == "low_band_change" for check in config.checks) and config.output.scale_factor == 1:
        raise BundleError(
            "the check low_band_change is for super-resolution", where=config.name, wanted="output.scale_factor above 1"
        )
    if unknown:
        raise BundleError("unknown fidelity check", where=config.name, found=unknown[0], wanted=", ".join(METRICS))
