"""Restoration of whole volumes, streamed plane by plane: denoising, super-resolution, anything image -> image.

Memory is bounded by one micro-batch of planes (`inference.batch`), whatever the number of slices. What the scanner
marked as padding never reaches the model: it is filled from its surroundings before, and pasted back after.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from medseq.data.transforms import apply_chain, fit_chain, invert_chain
from medseq.errors import BackendError, BundleError, InputError
from medseq.inference.bundle import Bundle
from medseq.inference.device import require_device
from medseq.inference.fidelity import Fidelity, check_flags
from medseq.inference.interpolated import interpolation_flags
from medseq.inference.planes import EnlargedReader, enlarged_header, fill_padding, read_planes
from medseq.inference.predictor import Estimate, Flag, Output, Prediction, Role, Sink, Stopped
from medseq.inference.restore_params import RestoreParams
from medseq.inference.tiling import apply_tiled, exceeds
from medseq.inference.views import single_view, view_spread
from medseq.io.source import source_warnings
from medseq.io.volume import VolumeHeader, VolumeReader

__all__ = ["RestorePredictor"]

_FIT_PLANES = 16
# Pixels that `fit` may look at: 256 MiB of float32; of one 8192 x 8192 plane, all.
_FIT_PIXELS = 1 << 26
# Of an enlarged image, rows or columns.
_LARGEST_SIDE = 8192
# What is left of a tile after memory was short several times.
_LEAST_TILE = 64
# Bytes a pixel in flight, for the estimate: input, result and stages, and 64 float32 channels inside the network.
_BYTES_PER_PIXEL = 4 * (8 + 64)


class RestorePredictor:
    """A loaded restoration bundle; see `medseq.inference.predictor.Predictor`.

    Args:
        bundle: A bundle with task ``restore`` and input kind ``volume``.
        device: Where the model runs.
        tile: Side of a tile, or ``(row, col)``; default: the bundle's.
        overlap: Share of a tile that its neighbour covers too; default: the bundle's.
        batch: Planes (or tiles) a forward pass; default: the bundle's.
        strength: 1 gives the model's result, 0 the input, between them a blend.
        difference: Also write result - input.
        uncertainty: Also write the standard deviation over flips and turns; default: the bundle's.

    Raises:
        BundleError: The bundle is for something else, or asks for what is not known here.
        InputError: A parameter is out of range.
    """

    accepts = frozenset({"volume"})

    def __init__(
        self,
        bundle: Bundle,
        device: str | torch.device = "cpu",
        *,
        tile: int | tuple[int, int] | None = None,
        overlap: float | None = None,
        batch: int | None = None,
        strength: float = 1.0,
        difference: bool = False,
        uncertainty: bool | None = None,
    ) -> None:
        self._params = RestoreParams.resolve(
            bundle.config,
            tile=tile,
            overlap=overlap,
            batch=batch,
            strength=strength,
            difference=difference,
            uncertainty=uncertainty,
        )
        self._config, self._device = bundle.config, require_device(device)
        self._model = bundle.build_model(self._device)
        self._chains = {modality: bundle.transforms(modality) for modality in (None, *self._config.preprocess_of)}
        self._chain = self._chains[None]
        self._factor = bundle.config.output.scale_factor
        self._seconds_per_pixel = 0.0

    def estimate(self, header: VolumeHeader) -> Estimate:
        """Peak bytes above the loaded model (an upper guess), and seconds at the pace of the items so far."""
        header = self._grid(header)
        rows, cols = header.plane_shape
        plane = rows * cols
        tiled = exceeds((rows, cols), self._params.tile)
        inside = self._params.batch * (
            self._params.tile[0] * self._params.tile[1] if tiled and self._params.tile else plane
        )
        planes = 1 if tiled else self._params.batch
        peak = max(_BYTES_PER_PIXEL * inside + 4 * 16 * planes * plane, 4 * min(_FIT_PIXELS, _FIT_PLANES * plane))
        return Estimate(peak, self._seconds_per_pixel * plane * header.planes)

    def smaller(self, header: VolumeHeader) -> "RestorePredictor | None":
        """The same model with a smaller footprint: first one plane at a time, then halved tiles; None at the end."""
        how, plane = self._params, self._grid(header).plane_shape
        rows, cols = plane if how.tile is None else map(min, how.tile, plane)
        if how.batch > 1:
            changed = replace(how, batch=1)
        elif max(rows, cols) > _LEAST_TILE:
            changed = replace(how, tile=(max(_LEAST_TILE, rows // 2), max(_LEAST_TILE, cols // 2)))
        else:
            return None
        reduced = copy(self)
        reduced._params = changed
        return reduced

    def predict(
        self, reader: VolumeReader, sink: Sink, *, should_stop: Callable[[], bool] = lambda: False
    ) -> Prediction:
        """Restore one volume.

        Raises:
            InputError: Wrong modality or units for the bundle.
            FormatError: Pixels that are not finite.
            Stopped: `should_stop` returned True; nothing is left behind.
        """
        started = time.perf_counter()
        suv = self._suv_factor(reader.header)
        if suv is not None:
            from medseq.io.pet_suv import SuvReader

            reader = SuvReader(reader, suv)
        self._require_fit(reader.header)
        self._chain = self._chains.get(reader.header.modality, self._chains[None])
        flags = [Flag(warning.code, warning.message, "info") for warning in source_warnings(reader.header)]
        flags += self._spacing_flags(reader.header) + self._grid_flags(reader.header)
        if self._factor > 1:
            flags += interpolation_flags(reader)
            reader = EnlargedReader(reader, self._factor)
        header = reader.header
        params = self._fit(reader)
        fidelity = Fidelity(self._config.valid_range, self._factor)
        with ExitStack() as undo:
            writers: list[Any] = []
            extra: dict[Role, bool] = {"difference": self._params.difference, "uncertainty": self._params.uncertainty}
            roles: tuple[Role, ...] = ("result", *(role for role, wanted in extra.items() if wanted))
            for role in roles:
                writers.append(_stored_as_activity(sink.volume(role), suv))
                undo.callback(writers[-1].abort)
                writers[-1].begin(header)
            for lo, before, after, spread in self._restored(reader, params, fidelity, should_stop):
                planes = {"result": after, "difference": after - before, "uncertainty": spread}
                for role, writer in zip(roles, writers, strict=True):
                    writer.write(lo, planes[role])
            outputs = [_output(role, writer.commit()) for role, writer in zip(roles, writers, strict=True)]
            undo.pop_all()
        metrics = fidelity.metrics(clipped=int(getattr(writers[0], "clipped", 0)))
        metrics["seconds"] = time.perf_counter() - started
        self._seconds_per_pixel = metrics["seconds"] / (header.planes * np.prod(header.plane_shape))
        flags += check_flags(metrics, self._config.checks, self._config.valid_range)
        if getattr(writers[0], "coarse", False):
            text = "the result spans more than its stored type holds: it is stored in larger steps than the source's"
            flags.append(Flag("coarse", text))
        return Prediction(tuple(outputs), metrics, tuple(flags))

    def _restored(
        self, reader: VolumeReader, params: Sequence[Any], fidelity: Fidelity, should_stop: Callable[[], bool]
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray | None]]:
        """First plane number, input, result and uncertainty of one micro-batch after another."""
        planes = reader.header.planes
        step = 1 if exceeds(reader.header.plane_shape, self._params.tile) else self._params.batch
        for lo in range(0, planes, step):
            hi = min(lo + step, planes)
            before, valid = read_planes(reader, lo, hi)
            filled = before
            if valid is not None:
                filled = np.stack([fill_padding(*pair) for pair in zip(before, valid, strict=True)])
            after, spread = self._run_model(filled, params, should_stop)
            for number in range(hi - lo):
                mask = None if valid is None else valid[number]
                fidelity.update(filled[number], after[number], mask, None if spread is None else spread[number])
            if valid is not None:
                after = np.where(valid, after, before)
                spread = None if spread is None else np.where(valid, spread, np.float32(0))
            yield lo, before, after, spread

    @torch.inference_mode()
    def _run_model(
        self, planes: np.ndarray, params: Sequence[Any], should_stop: Callable[[], bool]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Native planes ``(n, row, col)`` through the chain and the model, blended by `strength`; their uncertainty."""

        def run(image: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
            restored = self._native(image, model, params, should_stop)
            return torch.lerp(image, restored, self._params.strength) if self._params.strength < 1 else restored

        # A reader may hand out a view of a read-only map, which torch cannot wrap.
        image = torch.from_numpy(np.require(planes, np.float32, ["C", "W"]))[:, None].to(self._device)
        result = run(image, self._model)
        bad = int(result.numel() - result.isfinite().sum())
        if bad:
            raise BackendError("the model returned values that are not finite", found=f"{bad} of {result.numel()}")
        spread = None
        if self._params.uncertainty:
            one = single_view(self._model)
            spread = view_spread(lambda view: run(view, one), image)[:, 0].float().cpu().numpy()
        return result[:, 0].float().cpu().numpy(), spread

    def _native(
        self,
        image: torch.Tensor,
        model: torch.nn.Module,
        params: Sequence[Any],
        should_stop: Callable[[], bool],
    ) -> torch.Tensor:
        """Planes ``(n, 1, row, col)`` in native units through the chain and the model."""

        def forward(batch: torch.Tensor) -> torch.Tensor:
            if should_stop():
                raise Stopped
            return model(batch)

        stages = apply_chain(self._chain, image, params)
        if stages[-1].shape[1] != self._config.input.channels:
            raise BundleError(
                "preprocess and input.channels disagree", found=stages[-1].shape[1], wanted=self._config.input.channels
            )
        how = self._params
        output = apply_tiled(forward, stages[-1], tile=how.tile, overlap=how.overlap, blend=how.blend, batch=how.batch)
        restored = invert_chain(self._chain, output, stages, params)
        if restored.shape != image.shape:
            raise BundleError(
                "the model's output does not fit its input", found=tuple(restored.shape), wanted=tuple(image.shape)
            )
        return restored

    def _fit(self, reader: VolumeReader) -> list[dict[str, float]]:
        """Volume-level numbers of the transforms, from up to 16 evenly spaced planes."""
        rows, cols = reader.header.plane_shape
        count = min(_FIT_PLANES, reader.header.planes, max(1, _FIT_PIXELS // (rows * cols)))
        # The two ends are left out: they often show air.
        chosen = np.unique(np.linspace(0, reader.header.planes - 1, count + 2)[1:-1].round().astype(int))
        if count == reader.header.planes:
            chosen = np.arange(count)
        pairs = [read_planes(reader, int(plane), int(plane) + 1) for plane in chosen]
        planes = np.concatenate([planes for planes, _ in pairs])
        masks = [np.ones_like(piece, dtype=bool) if valid is None else valid for piece, valid in pairs]
        valid = None if all(valid is None for _, valid in pairs) else np.concatenate(masks)
        return fit_chain(self._chain, planes, valid, reader.header.spacing_mm[1:])

    def _require_fit(self, header: VolumeHeader) -> None:
        """Refuse what the bundle was not made for; nothing is ever switched in silence."""
        spec, name = self._config.input, self._config.name
        if spec.modality and header.modality not in spec.modality:
            wanted = " or ".join(spec.modality)
            unknown = header.modality == "OT" and header.source.kind != "dicom"
            raise InputError(
                "the file does not say what modality it shows" if unknown else "the modality does not fit the bundle",
                where=name,
                found="unknown" if unknown else header.modality,
                wanted=wanted,
                remedy=f"if the images are {wanted}, pass --modality {spec.modality[0]}; else choose another bundle",
            )
        units = self._config.units_for(header.modality)
        if header.units != units:
            remedy = f"if the values are in {units}, pass --modality {(spec.modality or ['OT'])[0]}"
            if header.source.kind == "dicom":
                remedy = "the header must say it: for CT rescale slope, intercept and type, for PET Units"
            raise InputError(
                "the units do not fit the bundle", where=name, found=header.units, wanted=units, remedy=remedy
            )
        if self._factor > 1 and self._factor * max(header.plane_shape) > _LARGEST_SIDE:
            raise InputError(
                "the images are of high resolution already",
                where=name,
                found=f"{header.plane_shape[0]} x {header.plane_shape[1]}",
                wanted=f"at most {_LARGEST_SIDE // self._factor} a side, to enlarge by {self._factor}",
            )

    def _spacing_flags(self, header: VolumeHeader) -> list[Flag]:
        limits = self._config.input.spacing_mm
        if limits is None:
            return []
        low, high = limits.min or 0.0, limits.max or np.inf
        outside = [f"{side:.3g}" for side in header.spacing_mm[1:] if not low <= side <= high]
        text = (
            f"pixel spacing {' x '.join(outside)} mm is outside what the model was trained on, {low:g} to {high:g} mm"
        )
        return [Flag("out_of_range", text)] if outside else []

    def _suv_factor(self, header: VolumeHeader) -> float | None:
        """SUVbw of one Bq/ml where the bundle wants the one and the series has the other; else None."""
        if (
            self._config.units_for(header.modality) != "SUVbw"
            or header.units != "Bq/ml"
            or header.source.kind != "dicom"
        ):
            return None
        from medseq.io.pet_suv import suv_per_activity

        return suv_per_activity(header)

    def _grid(self, header: VolumeHeader) -> VolumeHeader:
        """The header of the result."""
        return enlarged_header(header, self._factor) if self._factor > 1 else header

    def _grid_flags(self, header: VolumeHeader) -> list[Flag]:
        """Say that the result has another grid than the input."""
        if self._factor == 1:
            return []
        (rows, cols), (new_rows, new_cols) = header.plane_shape, self._grid(header).plane_shape
        text = f"{rows} x {cols} pixels became {new_rows} x {new_cols}: detail finer than the input's is estimated"
        return [Flag("enlarged", text, "info")]


def _stored_as_activity(writer: Any, suv: float | None) -> Any:
    """A writer that takes the model's units: what was Bq/ml is written as Bq/ml."""
    if suv is None:
        return writer
    from medseq.io.pet_suv import ActivityWriter

    return ActivityWriter(writer, suv)


def _output(role: Role, paths: Sequence[Any]) -> Output:
    return Output(role, "dicom" if str(paths[0]).endswith(".dcm") else "nifti", tuple(paths))
