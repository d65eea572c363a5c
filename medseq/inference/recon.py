"""Reconstruction of raw MR data, slice by slice: from k-space files to images, whatever the acquisition.

Memory is bounded by one slice. Results are magnitude images as NIfTI (with geometry where the file has it), as HDF5 in
the form of the original toolkits, complex images included, and as a DICOM series where the header says enough. How
well every slice agrees with its measured data is reported and flagged: an image that contradicts them shows something
that is not there.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from medseq.data.recon_scale import KSpaceScale
from medseq.errors import BundleError, InputError, MedseqError
from medseq.inference.bundle import Bundle
from medseq.inference.device import require_device
from medseq.inference.predictor import Estimate, Flag, Output, Prediction, Sink, Stopped
from medseq.inference.recon_adapt import adapt_network
from medseq.inference.recon_params import METRICS, ReconParams, SensMethod
from medseq.inference.recon_slice import SliceResult, prepare_slice, reconstruct_slice
from medseq.io.kspace import KSpaceReader, KSpaceSlice
from medseq.io.kspace_fft import centred
from medseq.io.kspace_write import ReconstructionWriter, centre_crop, dicom_lacks, recon_header
from medseq.io.volume import VolumeWriter
from medseq.models.recon_hybrid import Hybrid
from medseq.models.recon_modl import MoDL, OrientationAverage

__all__ = ["ReconPredictor"]

# Remarks of readers that take nothing from a result; the others are warnings.
_HARMLESS = (
    "calibration-left-out",
    "empty-slice",
    "map-sets",
    "mask-choice",
    "mask-derived",
    "no-orientation",
    "partial-echo",
    "partial-fourier",
    "prewhitened",
    "recon-shape",
)


class ReconPredictor:
    """A loaded reconstruction bundle; see `medseq.inference.predictor.Predictor`.

    Args:
        bundle: A bundle with task ``recon`` and input kind ``kspace``.
        device: Where the model runs.
        sens: See `ReconParams`; likewise the others.
        fft: Used where files are opened.
        virtual_coils: Same.
        orientations: Of the eight orientations of the networks, how many are averaged.
        adapt: Adapt the network to every slice first.

    Raises:
        BundleError: The bundle is for something else.
        InputError: A parameter is out of range.
    """

    accepts = frozenset({"kspace"})

    def __init__(
        self,
        bundle: Bundle,
        device: str | torch.device = "cpu",
        *,
        sens: SensMethod | None = None,
        fft: str | None = None,
        virtual_coils: int | None = None,
        orientations: int | None = None,
        adapt: bool = False,
    ) -> None:
        self._params = ReconParams.resolve(
            bundle.config, sens=sens, fft=fft, virtual_coils=virtual_coils, orientations=orientations, adapt=adapt
        )
        self._config, self._device = bundle.config, require_device(device)
        self._scaling = _scaling(bundle)
        model = bundle.build_model(self._device)
        if isinstance(model, MoDL):
            model = OrientationAverage(model).eval()
        if isinstance(model, OrientationAverage | Hybrid):
            model.orientations = self._params.orientations
        self._model = model
        self._seconds_per_slice = 0.0
        self._attributes: dict[str, str | float] = {
            "model": bundle.config.name,
            "model_hash": bundle.hash,
            "notice": "Research use only, not for diagnosis",
        }

    def estimate(self, header: KSpaceReader) -> Estimate:
        """Peak bytes above the loaded model (an upper guess), and seconds at the pace of the items so far."""
        rows, cols = header.recon_shape
        # Oversampling doubles an axis; coils, their k-space and the iterations' copies; 64 channels of the network.
        peak = 8 * 2 * rows * cols * (6 * self._params.virtual_coils + 64)
        # A gradient keeps what passes through every cascade.
        return Estimate(8 * peak if self._params.adapt else peak, self._seconds_per_slice * header.n)

    def predict(
        self, reader: KSpaceReader, sink: Sink, *, should_stop: Callable[[], bool] = lambda: False
    ) -> Prediction:
        """Reconstruct every slice of one acquisition.

        Raises:
            InputError: The data hold no signal, or maps are missing and cannot be estimated.
            Stopped: `should_stop` returned True; nothing is left behind.
        """
        started = time.perf_counter()
        reader = centred(reader)
        totals: list[dict[str, float]] = []
        complete = empty = estimated = 0
        with ExitStack() as undo:
            images = sink.volume("result")
            undo.callback(images.abort)
            stored = ReconstructionWriter(sink.file("result", ".h5"), attributes=self._attributes)
            undo.callback(stored.abort)
            writers: list[VolumeWriter] = [images]
            lacks = dicom_lacks(reader)
            if not lacks:
                writers.append(sink.series(str(getattr(reader, "label", ""))))
                undo.callback(writers[-1].abort)
            header = recon_header(reader)
            for writer in (*writers, stored):
                writer.begin(header)
            for number in range(reader.n):
                if should_stop():
                    raise Stopped
                result = self._slice(reader.read(number), number, reader)
                complete, empty = complete + result.complete, empty + (not result.metrics)
                estimated += result.maps_from == "estimate"
                totals += [result.metrics] if result.metrics else []
                image = centre_crop(result.image, reader.recon_shape)
                for writer in writers:
                    writer.write(number, np.abs(image)[None])
                stored.write(number, image[None])
                sink.seen(number, np.abs(centre_crop(result.zero_filled, reader.recon_shape)))
            if not totals:
                raise InputError("the data hold no signal", found=f"{reader.n} slices of zeros")
            outputs = (
                Output("result", "nifti", tuple(images.commit())),
                Output("result", "h5", tuple(stored.commit())),
                *(Output("result", "dicom", tuple(series.commit())) for series in writers[1:]),
            )
            undo.pop_all()
        metrics = _summary(totals) | {"seconds": time.perf_counter() - started}
        self._seconds_per_slice = metrics["seconds"] / reader.n
        flags = self._flags(reader, metrics, complete, empty, estimated)
        if lacks and reader.source.header is not None:
            text = f"no DICOM series: the raw data is without {', '.join(lacks)}"
            flags.append(Flag("no-dicom", text, "info"))
        return Prediction(outputs, metrics, tuple(flags))

    def _slice(self, part: KSpaceSlice, number: int, reader: KSpaceReader) -> SliceResult:
        """One slice; a slice of zeros gives zeros."""
        if not np.where(part.mask, part.kspace, 0).any():
            nothing = np.zeros(part.kspace.shape[-2:], np.complex64)
            return SliceResult(nothing, nothing, {})
        try:
            prepared = prepare_slice(part, self._params.sens, reader.fft.norm, self._device)
            asked: dict[str, Any] = {"own_maps": self._params.sens == "auto", "scaling": self._scaling}
            net, told = self._model, None
            if self._params.adapt and not prepared.mask.all():
                net, told = adapt_network(net, prepared, **asked)
            result = reconstruct_slice(net, prepared, **asked)
            if told is not None:
                result.metrics.update(held_out=told.after, held_out_before=told.before)
            return result
        except MedseqError as error:
            place = f"slice {number}" if error.where is None else f"slice {number}, {error.where}"
            raise type(error)(
                error.what, where=place, found=error.found, wanted=error.wanted, remedy=error.remedy
            ) from error

    def _flags(
        self, reader: KSpaceReader, metrics: dict[str, float], complete: int, empty: int, estimated: int
    ) -> list[Flag]:
        flags = [
            Flag(notice.code, notice.message, "info" if notice.code in _HARMLESS else "warn")
            for notice in getattr(reader, "notices", ())
        ]
        if complete:
            text = f"{complete} of {reader.n} slices are fully sampled: "
            if "change_when_full" in metrics:
                text += f"the network was run all the same and changed them by {metrics['change_when_full']:.3g}"
            else:
                text += "their coils are combined, nothing is estimated"
            flags.append(Flag("fully-sampled", text, "warn" if "change_when_full" in metrics else "info"))
        if self._params.adapt and "held_out" in metrics:
            text = f"from {metrics['held_out_before']:.4g} to {metrics['held_out']:.4g}"
            text = f"adapted slice by slice: the error of held-out samples went {text}, on average"
            flags.append(Flag("adapted", text, "info"))
        elif self._params.adapt:
            text = "not adapted: patterns of lines, few points and full sampling leave no samples to hold out"
            flags.append(Flag("not-adapted", text, "info"))
        if empty:
            flags.append(Flag("empty-slices", f"{empty} of {reader.n} slices hold no signal and stay zero", "info"))
        if estimated and self._params.sens == "auto":
            text = (
                f"too few central samples for ESPIRiT in {estimated} of {reader.n} slices: low-resolution maps are used"
            )
            flags.append(Flag("maps-estimated", text))
        for check in self._config.checks:
            if metrics.get(check.name, 0.0) > check.max:
                text = f"{METRICS[check.name]}: {metrics[check.name]:.4g}, limit {check.max:g}"
                flags.append(Flag(check.name, text))
        return flags


def _scaling(bundle: Bundle) -> KSpaceScale | None:
    """The one rule for the scale of k-space that a bundle may name.

    Raises:
        BundleError: Several, or transforms of images.
    """
    chain = bundle.transforms()
    if len(chain) > 1 or not all(isinstance(rule, KSpaceScale) for rule in chain):
        raise BundleError(
            "preprocess does not fit raw data",
            where=bundle.config.name,
            found=", ".join(type(rule).__name__ for rule in chain),
            wanted="at most one rule of medseq.data.recon_scale",
        )
    return chain[0] if chain else None


def _summary(slices: list[dict[str, float]]) -> dict[str, float]:
    """Metrics of an item from those of its slices: the worst where a slice alone can be wrong, else the mean."""

    def values(key: str) -> np.ndarray:
        return np.array([metrics[key] for metrics in slices if key in metrics])

    changes = values("change_when_full")
    adapted = {name: float(values(name).mean()) for name in ("held_out", "held_out_before") if values(name).size}
    return (
        adapted
        | ({"change_when_full": float(changes.max())} if changes.size else {})
        | {
            "data_residual": float(values("data_residual").max()),
            "data_residual_mean": float(values("data_residual").mean()),
            "residual_over_noise": float(values("residual_over_noise").max()),
            "acceleration": float(values("acceleration").mean()),
            "noise_to_signal": float(values("noise_to_signal").mean()),
        }
    )
