"""Restoration of whole volumes, streamed plane by plane: denoising, artefact removal, anything image -> image.

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
from medseq.errors import BackendError, BundleError, FormatError, InputError
from medseq.inference.bundle import Bundle
from medseq.inference.device import require_device
from medseq.inference.fidelity import Fidelity, check_flags
from medseq.inference.predictor import Estimate, Flag, Output, Prediction, Role, Sink, Stopped
from medseq.inference.restore_params import RestoreParams
from medseq.inference.tiling import apply_tiled, exceeds
from medseq.io.source import source_warnings
from medseq.io.volume import VolumeHeader, VolumeReader

__all__ = ["RestorePredictor", "fill_padding"]

_FIT_PLANES = 16
# Pixels that `fit` may look at: 256 MiB of float32; of one 8192 x 8192 plane, all.
_FIT_PIXELS = 1 << 26
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
    ) -> None:
        self._params = RestoreParams.resolve(
            bundle.config, tile=tile, overlap=overlap, batch=batch, strength=strength, difference=difference
        )
        self._config, self._device = bundle.config, require_device(device)
        self._model = bundle.build_model(self._device)
        self._chain = bundle.transforms()
        self._seconds_per_pixel = 0.0

    def estimate(self, header: VolumeHeader) -> Estimate:
        """Peak bytes above the loaded model (an upper guess), and seconds at the pace of the items so far."""
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
        how = self._params
        rows, cols = header.plane_shape if how.tile is None else map(min, how.tile, header.plane_shape)
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
        started, header = time.perf_counter(), reader.header
        self._require_fit(header)
        params = self._fit(reader)
        fidelity = Fidelity(self._config.valid_range)
        with ExitStack() as undo:
            writers: list[Any] = []
            roles: tuple[Role, ...] = ("result", "difference") if self._params.difference else ("result",)
            for role in roles:
                writers.append(sink.volume(role))
                undo.callback(writers[-1].abort)
                writers[-1].begin(header)
            for lo, before, after in self._restored(reader, params, fidelity, should_stop):
                writers[0].write(lo, after)
                if self._params.difference:
                    writers[1].write(lo, after - before)
            outputs = [_output(role, writer.commit()) for role, writer in zip(roles, writers, strict=True)]
            undo.pop_all()
        metrics = fidelity.metrics(clipped=int(getattr(writers[0], "clipped", 0)))
        metrics["seconds"] = time.perf_counter() - started
        self._seconds_per_pixel = metrics["seconds"] / (header.planes * np.prod(header.plane_shape))
        flags = [Flag(warning.code, warning.message, "info") for warning in source_warnings(header)]
        flags += self._spacing_flags(header)
        flags += check_flags(metrics, self._config.checks, self._config.valid_range)
        return Prediction(tuple(outputs), metrics, tuple(flags))

    def _restored(
        self, reader: VolumeReader, params: Sequence[Any], fidelity: Fidelity, should_stop: Callable[[], bool]
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """First plane number, input and result of one micro-batch after another."""
        planes = reader.header.planes
        step = 1 if exceeds(reader.header.plane_shape, self._params.tile) else self._params.batch
        for lo in range(0, planes, step):
            hi = min(lo + step, planes)
            before, valid = _read(reader, lo, hi)
            filled = before
            if valid is not None:
                filled = np.stack([fill_padding(*pair) for pair in zip(before, valid, strict=True)])
            after = self._run_model(filled, params, should_stop)
            for number in range(hi - lo):
                fidelity.update(filled[number], after[number], None if valid is None else valid[number])
            yield lo, before, after if valid is None else np.where(valid, after, before)

    @torch.inference_mode()
    def _run_model(self, planes: np.ndarray, params: Sequence[Any], should_stop: Callable[[], bool]) -> np.ndarray:
        """Native planes ``(n, row, col)`` through the chain and the model, blended by `strength`."""

        def forward(batch: torch.Tensor) -> torch.Tensor:
            if should_stop():
                raise Stopped
            return self._model(batch)

        # A reader may hand out a view of a read-only map, which torch cannot wrap.
        image = torch.from_numpy(np.require(planes, np.float32, ["C", "W"]))[:, None].to(self._device)
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
        result = torch.lerp(image, restored, self._params.strength) if self._params.strength < 1 else restored
        bad = int(result.numel() - result.isfinite().sum())
        if bad:
            raise BackendError("the model returned values that are not finite", found=f"{bad} of {result.numel()}")
        return result[:, 0].float().cpu().numpy()

    def _fit(self, reader: VolumeReader) -> list[dict[str, float]]:
        """Volume-level numbers of the transforms, from up to 16 evenly spaced planes."""
        rows, cols = reader.header.plane_shape
        count = min(_FIT_PLANES, reader.header.planes, max(1, _FIT_PIXELS // (rows * cols)))
        # The two ends are left out: they often show air.
        chosen = np.unique(np.linspace(0, reader.header.planes - 1, count + 2)[1:-1].round().astype(int))
        if count == reader.header.planes:
            chosen = np.arange(count)
        pairs = [_read(reader, int(plane), int(plane) + 1) for plane in chosen]
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
        if header.units != spec.units:
            raise InputError(
                "the units do not fit the bundle",
                where=name,
                found=header.units,
                wanted=spec.units,
                remedy=f"if the values are in {spec.units}, pass --modality {(spec.modality or ['OT'])[0]}",
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
        return [Flag("spacing", text)] if outside else []


def fill_padding(plane: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Give every padding pixel of ``(row, col)`` the value of the nearest valid one, so that no edge is invented.

    A plane without valid pixels becomes zero.
    """
    if valid.all():
        return plane
    if not valid.any():
        return np.zeros_like(plane)
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return plane[tuple(nearest)]


def _read(reader: VolumeReader, lo: int, hi: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Planes and their mask; None if every pixel is valid.

    Raises:
        FormatError: Pixels that are not finite, marked as padding or not; the message counts those of the volume.
    """
    planes, valid = reader.read(lo, hi), reader.valid(lo, hi)
    if not np.isfinite(planes).all():
        total = reader.header.planes
        bad = sum(int(np.count_nonzero(~np.isfinite(reader.read(i, i + 1)))) for i in range(total))
        raise FormatError(
            "pixels are NaN or infinite",
            found=f"{bad} of {total * planes[0].size}",
            wanted="finite values",
            remedy="replace them in the source, by 0 where there is background",
        )
    return planes, None if valid is not None and valid.all() else valid


def _output(role: Role, paths: Sequence[Any]) -> Output:
    return Output(role, "dicom" if str(paths[0]).endswith(".dcm") else "nifti", tuple(paths))
