"""Scores and heat maps of whole-slide images, from bags of features or from the slides themselves.

A bag larger than `chunk` instances is streamed where the model allows it, so memory does not grow with the bag. Written
are ``scores.json``, ``attention.h5``, and, where the places of the patches are known, the heat map as pyramidal
TIFF, GeoJSON and PNG; with the slide at hand also its patches with the highest values. A DICOM slide also gets its
scores as a structured report, and the heat map as a Secondary Capture.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseq.errors import InputError
from medseq.inference.bag_scores import Scores, score_of, scores_of, source_flags
from medseq.inference.bundle import Bundle
from medseq.inference.device import require_device
from medseq.inference.heatmap import colours, heat_map, percentiles
from medseq.inference.heatmap_files import contact_sheet, over_thumbnail, patch_features, write_geojson
from medseq.inference.mil_attribution import gradient, occlusion
from medseq.inference.mil_item import MILItem
from medseq.inference.mil_params import AttributionName, FormatName, MILParams
from medseq.inference.mil_stream import can_stream, stream_bag
from medseq.inference.outputs_dicom import is_dicom, write_mil_objects
from medseq.inference.predictor import Estimate, Output, Prediction, Role, Sink, Stopped
from medseq.inference.run_folder import write_text
from medseq.io.attention_h5 import write_attention
from medseq.io.features import Bag, read_chunks, require_width
from medseq.io.features_open import open_bag
from medseq.io.heatmap_tiff import write_heatmap_tiff
from medseq.io.tissue_qc import write_png
from medseq.models.mil_fitted import FittedMIL
from medseq.nn.grid import patch_distance
from medseq.nn.mil import MILOutput

__all__ = ["MILPredictor"]

NOTICE = "Research use only, not for diagnosis"
# A whole bag in memory: its features, and as much again a few times over inside the model.
_MAX_WHOLE_BYTES = 1 << 30
# Overview, a batch of tiles and the encoder's work.
_SLIDE_BYTES = 300 << 20
# Longest side of the picture under a heat map; a slide of few pixels is read for it at once, a large one by parts.
_THUMBNAIL = 1024
_WHOLE_READ = 1 << 24


class MILPredictor:
    """A loaded bundle of a model of bags; see `medseq.inference.predictor.Predictor`.

    Args:
        bundle: A bundle with task ``mil``.
        device: Where the model runs.
        attribution: See `MILParams`; likewise the others.
        top: Same.
        mpp: Same.
        encoder: Same.
        format: Same.
        chunk: Same.

    Raises:
        BundleError: The bundle is for something else.
        InputError: A parameter is out of range.
    """

    accepts = frozenset({"bag", "slide"})

    def __init__(
        self,
        bundle: Bundle,
        device: str | torch.device = "cpu",
        *,
        attribution: AttributionName | None = None,
        top: int | None = None,
        mpp: float | None = None,
        encoder: str | None = None,
        format: FormatName | None = None,
        chunk: int | None = None,
    ) -> None:
        self._params = MILParams.resolve(
            bundle.config, attribution=attribution, top=top, mpp=mpp, encoder=encoder, format=format, chunk=chunk
        )
        self._bundle, self._config, self._device = bundle, bundle.config, require_device(device)
        self._model = bundle.build_model(self._device)
        self._encoder: Any = None
        self._seconds_per_instance = 0.0

    def estimate(self, header: MILItem) -> Estimate:
        """Peak bytes above the loaded model (an upper guess), and seconds at the pace of the items so far.

        Of a slide the number of patches is not known before its tissue is: what a chunk takes, and no time.
        """
        chunk, width = self._params.chunk, self._config.input.feature_dim or 0
        n = chunk if header.bag is None else header.bag.features.shape[0]
        rows = min(n, chunk) if can_stream(self._network) else n
        if header.bag is None:
            return Estimate(rows * 4 * (2 * width + 16_384) + _SLIDE_BYTES, 0.0)
        return Estimate(rows * 4 * (2 * width + 16_384) + 64 * n, self._seconds_per_instance * n)

    def predict(self, reader: MILItem, sink: Sink, *, should_stop: Callable[[], bool] = lambda: False) -> Prediction:
        """Score one bag, or one slide, whose features are extracted first.

        Raises:
            ShapeError: Features of another width than the model's.
            FormatError: Features that are not finite, or a broken slide.
            InputError: A slide without tissue, or a bag that is too large for a model that cannot stream.
            Stopped: `should_stop` returned True.
        """
        started = time.perf_counter()
        bag = reader.bag or open_bag(self._extract(reader, should_stop), slide_id=reader.name, patient_id=reader.name)
        require_width(bag, self._config.input.feature_dim or 0, encoder=self._config.input.encoder)
        self._require_encoder(bag)
        out = self._run(bag, should_stop)
        scores = scores_of(self._config, self._model, out, bag.features.shape[0])
        flags = [*scores.flags(), *source_flags(self._config, bag)]
        attention = out.attention[0].float().cpu().numpy()
        values = {"attention": attention}
        shown = "attention"
        if self._params.attribution != "attention":
            shown = self._params.attribution
            values[shown] = self._attribute(bag)
        outputs = [self._write_scores(sink, scores)]
        outputs += self._write_patches(sink, bag, values, shown, reader.slide)
        if self._params.format == "dicom" or is_dicom(reader.slide):
            picture = next((one.paths[0] for one in outputs if (one.role, one.kind) == ("overlay", "png")), None)
            outputs += write_mil_objects(sink, reader.name, reader.slide, scores.measured(), picture)
        metrics = scores.metrics() | {"seconds": time.perf_counter() - started}
        self._seconds_per_instance = metrics["seconds"] / scores.instances
        return Prediction(tuple(outputs), metrics, tuple(flags))

    @property
    def _network(self) -> Any:
        return self._model.net if isinstance(self._model, FittedMIL) else self._model

    def _require_encoder(self, bag: Bag) -> None:
        wanted = self._config.input.encoder
        if wanted and bag.encoder and bag.encoder != wanted:
            raise InputError(
                "the features are of another encoder than the model's",
                found=f"'{bag.encoder}'",
                wanted=f"'{wanted}'",
                remedy="equal width does not make them exchangeable; extract them with the model's encoder",
            )

    def _run(self, bag: Bag, should_stop: Callable[[], bool]) -> MILOutput:
        n = bag.features.shape[0]
        if n > self._params.chunk and can_stream(self._network):
            pieces = read_chunks(bag, self._params.chunk)
            # The model reads a bag once, from its start to its end.
            out = stream_bag(
                self._network,
                lambda lo, hi: self._standardised(next(pieces)).numpy(),
                n,
                chunk=self._params.chunk,
                should_stop=should_stop,
            )
            if out is None:
                raise Stopped
            return out
        with torch.inference_mode():
            return self._model(*self._whole(bag))

    def _standardised(self, features: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(np.ascontiguousarray(features, np.float32)).to(self._device)
        return (self._model.standardised(x) if isinstance(self._model, FittedMIL) else x).cpu()

    def _whole(self, bag: Bag) -> tuple[torch.Tensor, torch.Tensor | None]:
        """All features and places of a bag."""
        n, width = bag.features.shape
        if 4 * n * width > _MAX_WHOLE_BYTES:
            raise InputError(
                "the bag is too large for a model that needs all of it at once",
                found=f"{n} patches of {width} features",
                wanted=f"at most {_MAX_WHOLE_BYTES >> 20} MiB",
                remedy="use a model with Mamba, BiMamba, SRMamba or plain attention, or larger patches",
            )
        features = np.concatenate(list(read_chunks(bag)))
        coords = None if bag.coords is None else torch.from_numpy(bag.coords).to(self._device)
        return torch.from_numpy(features).to(self._device), coords

    def _attribute(self, bag: Bag) -> np.ndarray:
        features, coords = self._whole(bag)
        method = gradient if self._params.attribution == "gradient" else occlusion
        values = method(self._model, features, coords, lambda out: score_of(self._config, out))
        return values.float().cpu().numpy()

    def _extract(self, item: MILItem, should_stop: Callable[[], bool]) -> Path:
        """The bag of a slide, made by the encoder of the bundle; a part that is already there is not made again."""
        from medseq.inference.encoders import load_encoder
        from medseq.inference.extract import extract_slide
        from medseq.inference.extract_settings import ExtractSettings

        assert item.slide is not None
        wanted = self._config.input
        if self._params.encoder is None:
            raise InputError(
                "the model does not say which encoder its features come from",
                remedy="extract features with its encoder (medseq wsi extract), or name it by --encoder",
            )
        if self._encoder is None:
            self._encoder = load_encoder(self._params.encoder, device=str(self._device))
        if self._encoder.info.dim != wanted.feature_dim:
            raise InputError(
                "the encoder makes features of another width than the model takes",
                found=f"{self._encoder.info.dim} of '{self._encoder.info.name}'",
                wanted=f"{wanted.feature_dim} of '{wanted.encoder}'",
            )
        defaults = ExtractSettings()
        settings = ExtractSettings(
            mpp_target=wanted.mpp or defaults.mpp_target,
            tile=self._encoder.info.tile_size or defaults.tile,
            slide_mpp=self._params.mpp,
        )

        def progress(done: int, total: int) -> None:
            if should_stop():
                raise Stopped

        return extract_slide(item.slide, item.bags, self._encoder, settings, name=item.name, progress=progress).bag

    def _write_scores(self, sink: Sink, scores: Scores) -> Output:
        content = {
            "schema": 1,
            **scores.as_dict(),
            "model": self._config.name,
            "model_hash": self._bundle.hash,
            "notice": NOTICE,
        }
        path = sink.file("scores", ".json")
        write_text(path, json.dumps(content, indent=1, allow_nan=False))
        return Output("scores", "json", (path,))

    def _write_patches(
        self, sink: Sink, bag: Bag, values: dict[str, np.ndarray], shown: str, slide: Path | None
    ) -> Iterator[Output]:
        """What is known of single patches: the numbers, and pictures of them."""
        share = {f"{name}_percentile": percentiles(array) for name, array in values.items()}
        attributes = {"model": self._config.name, "model_hash": self._bundle.hash, "notice": NOTICE}
        path = write_attention(sink.file("attention", ".h5"), values | share, bag.coords, attributes)
        yield Output("attention", "h5", (path,))
        if bag.coords is None:
            return
        size = bag.patch_size_level0 or round(patch_distance(torch.from_numpy(bag.coords).double()))
        with _Pictured(slide, self._params.mpp) as pictured:
            heat = heat_map(share[f"{shown}_percentile"], bag.coords, size, pictured.dims, pictured.mpp)
            written: list[tuple[Role, str, Path]] = []
            tiff = sink.file("overlay", ".ome.tiff")
            pixel_um = None if heat.mpp is None else heat.mpp * heat.scale
            written.append(("overlay", "tiff", write_heatmap_tiff(tiff, colours(heat.values), pixel_um)))
            features = patch_features(values[shown], share[f"{shown}_percentile"], bag.coords, size, shown)
            written.append(("overlay", "geojson", write_geojson(sink.file("overlay", ".geojson"), features)))
            picture = sink.file("overlay", ".png")
            write_png(picture, over_thumbnail(heat, pictured.thumbnail))
            written.append(("overlay", "png", picture))
            if pictured.slide is not None:
                sheet = sink.file("attention", ".png")
                write_png(sheet, contact_sheet(pictured.slide, values[shown], bag.coords, size, self._params.top))
                written.append(("attention", "png", sheet))
        for role, kind, file in written:
            yield Output(role, kind, (file,))


class _Pictured:
    """The slide behind a bag, if it is at hand: its size, its resolution and a small picture of it."""

    def __init__(self, path: Path | None, mpp: float | None) -> None:
        self.slide: Any = None
        self.dims: tuple[int, int] | None = None
        self.mpp: float | None = None
        self.thumbnail: np.ndarray | None = None
        if path is None:
            return
        from medseq.io.slide_open import open_slide
        from medseq.io.slide_resample import read_scaled
        from medseq.io.tissue import read_overview

        self.slide = open_slide(path, mpp)
        self.dims = self.slide.dims[0]
        self.mpp = float(np.mean(self.slide.require_mpp()))
        width, height = self.dims
        scale = max(width, height) / _THUMBNAIL
        if scale > 1 and width * height <= _WHOLE_READ:
            size = round(width / scale), round(height / scale)
            self.thumbnail = read_scaled(self.slide, 0, 0, (width / size[0], height / size[1]), *size)
        else:
            self.thumbnail = read_overview(self.slide).rgb

    def __enter__(self) -> "_Pictured":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.slide is not None:
            self.slide.close()
