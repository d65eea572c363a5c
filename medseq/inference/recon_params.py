"""The parameters of a reconstruction run: the caller's words where given, the bundle's where not. No torch.

These are the effective values that go into the run ledger, its hash and the report.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from medseq.errors import BundleError, InputError
from medseq.inference.bundle_schema import BundleConfig
from medseq.inference.recon_maps import maps_digest

__all__ = ["METRICS", "ReconParams", "SensMethod"]

SensMethod = Literal["auto", "given", "espirit", "estimate"]

METRICS = {
    "data_residual": "largest ||M(F S x - y)|| / ||y|| of a slice",
    "data_residual_mean": "mean of it over slices",
    "residual_over_noise": "root mean square of M(F S x - y) over the noise of a sample, largest of a slice",
    "acceleration": "points of k-space over measured points, mean over slices",
    "noise_to_signal": "noise of a coil's pixel over the 95th percentile of the image, mean over slices",
    "held_out": "relative error of held-out samples after the network was adapted, mean over slices",
    "held_out_before": "the same before",
    "change_when_full": "change of a fully sampled image by the network over that image, largest of a slice",
}


@dataclass(frozen=True)
class ReconParams:
    """What may change a result.

    Attributes:
        sens: Where sensitivity maps come from: ``given`` with the data, ``espirit`` or ``estimate`` (low-resolution
            coil images), ``auto`` takes given ones and else ESPIRiT.
        fft: Fourier convention of the files, ``centre`` or ``corner``; None lets format and energy decide.
        virtual_coils: Compress to this many coils; None keeps up to `MAX_COILS`, which bounds the time.
        orientations: How many of the eight orientations are averaged, where the model can.
        adapt: Adapt the network to each slice by its own samples (`medseq.inference.recon_adapt`); slow.
        sens_maps: sha256 of the maps that the caller named (`medseq.inference.recon_maps`); a path would name people.
    """

    sens: SensMethod
    fft: str | None
    virtual_coils: int
    orientations: int
    adapt: bool = False
    sens_maps: str | None = None

    # The shipped model was trained on 1 to 16 coils; more cost time and, compressed, lose next to nothing.
    MAX_COILS = 16

    @classmethod
    def resolve(
        cls,
        config: BundleConfig,
        *,
        sens: SensMethod | None = None,
        fft: str | None = None,
        virtual_coils: int | None = None,
        orientations: int | None = None,
        adapt: bool = False,
        sens_maps: str | Path | None = None,
    ) -> "ReconParams":
        """Fill in defaults and check ranges; `sens_maps` is a file or folder here.

        Raises:
            BundleError: The bundle is not for reconstruction.
            InputError: A parameter is out of range.
        """
        for key, found, wanted in (("task", config.task, "recon"), ("input.kind", config.input.kind, "kspace")):
            if found != wanted:
                raise BundleError(f"{key} is not for reconstruction", where=config.name, found=found, wanted=wanted)
        unknown = [check.name for check in config.checks if check.name not in METRICS]
        if unknown:
            raise BundleError("unknown fidelity check", where=config.name, found=unknown[0], wanted=", ".join(METRICS))
        if sens_maps is not None and sens not in (None, "auto", "given"):
            raise InputError("maps are named, and others asked for", found=f"sens {sens}", wanted="sens given")
        params = cls(
            sens=sens or "auto" if sens_maps is None else "given",
            fft="centre" if fft == "centred" else fft,
            virtual_coils=cls.MAX_COILS if virtual_coils is None else int(virtual_coils),
            orientations=8 if orientations is None else int(orientations),
            adapt=bool(adapt),
            sens_maps=None if sens_maps is None else maps_digest(Path(sens_maps)),
        )
        if params.sens not in get_args(SensMethod):
            raise InputError("sens is unknown", found=params.sens, wanted=", ".join(get_args(SensMethod)))
        if params.fft not in (None, "centre", "corner"):
            raise InputError("fft is unknown", found=params.fft, wanted="centre or corner")
        for name, value, high in (
            ("virtual_coils", params.virtual_coils, 1024),
            ("orientations", params.orientations, 8),
        ):
            if not 1 <= value <= high:
                raise InputError(f"{name} is out of range", found=value, wanted=f"1 to {high}")
        return params

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
