import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from medseq.errors import BackendError, BundleError, FormatError, InputError
from medseq.inference.bundle_schema import CheckSpec, Range
from medseq.inference.fidelity import Fidelity, check_flags
from medseq.inference.planes import fill_padding
from medseq.inference.predictor import Stopped
from medseq.inference.restore import RestorePredictor
from medseq.inference.tiling import apply_tiled
from medseq.io.volume import SourceRef, Volume
from tests.inference.memory_sink import MemorySink


class CountingReader:
    """A volume made of one repeated plane; remembers how it was read."""

    def __init__(self, plane, planes, modality="CT", units="HU"):
        stub = Volume.from_array(np.broadcast_to(plane, (planes, *plane.shape)), modality=modality, units=units)
        self.header, self._plane, self.largest = stub.header, plane, 0

    def read(self, lo, hi):
        self.largest = max(self.largest, hi - lo)
        return np.repeat(self._plane[None], hi - lo, axis=0).astype(np.float32)

    def valid(self, lo, hi):
        return None


def ct(rng, slices=5, size=40, mask=None):
    array = rng.normal(40, 20, (slices, size, size)).astype(np.float32)
    volume = Volume.from_array(array, modality="CT", units="HU")
    return volume if mask is None else replace(volume, mask=mask)


def test_the_result_is_the_models(ct_bundle, rng):
    volume, sink = ct(rng), MemorySink()
    prediction = RestorePredictor(ct_bundle).predict(volume, sink)
    model, [transform] = ct_bundle.build_model(), ct_bundle.transforms()
    image = torch.from_numpy(volume.array)[:, None]
    with torch.inference_mode():
        wanted = transform.invert(model(transform.apply(image, {})), image, {})[:, 0].numpy()
    # The same convolutions in batches of four: float32 rounding of values around 40.
    np.testing.assert_allclose(sink.array(), wanted, atol=1e-3)
    assert np.abs(sink.array() - volume.array).max() > 1, "the model must change something"
    assert [output.role for output in prediction.outputs] == ["result"]
    assert prediction.metrics["seconds"] > 0


def test_the_batch_size_does_not_change_the_result(ct_bundle, rng):
    volume, results = ct(rng, slices=7), []
    for batch in (1, 3, 16):
        sink = MemorySink()
        RestorePredictor(ct_bundle, batch=batch).predict(volume, sink)
        results.append(sink.array())
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-3)


def test_strength_blends_and_zero_returns_the_input_exactly(ct_bundle, rng):
    volume, results = ct(rng), {}
    for strength in (0.0, 0.5, 1.0):
        sink = MemorySink()
        RestorePredictor(ct_bundle, strength=strength).predict(volume, sink)
        results[strength] = sink.array()
    np.testing.assert_array_equal(results[0.0], volume.array)
    np.testing.assert_allclose(results[0.5], (volume.array + results[1.0]) / 2, atol=1e-3)


def test_difference_is_result_minus_input(ct_bundle, rng):
    volume, sink = ct(rng), MemorySink()
    prediction = RestorePredictor(ct_bundle, difference=True).predict(volume, sink)
    assert [output.role for output in prediction.outputs] == ["result", "difference"]
    np.testing.assert_array_equal(sink.array("difference"), sink.array() - volume.array)


def test_padding_is_pasted_back_and_never_seen_by_the_model(ct_bundle, rng):
    mask = np.zeros((5, 40, 40), dtype=bool)
    mask[:, 8:30, 6:33] = True
    mask[4] = False
    results = []
    for padding in (-2000.0, 30000.0):
        volume = ct(np.random.default_rng(3), mask=mask)
        volume.array[~mask] = padding
        sink = MemorySink()
        metrics = RestorePredictor(ct_bundle).predict(volume, sink).metrics
        assert (sink.array()[~mask] == padding).all()
        results.append((sink.array()[mask], metrics["out_of_range"], metrics["mean_shift"]))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]
    assert results[0][1] == 0


def test_filled_padding_has_no_edge():
    plane = np.full((20, 20), 50.0, dtype=np.float32)
    valid = np.hypot(*np.mgrid[-10:10, -10:10]) < 8
    plane[~valid] = -3000
    np.testing.assert_array_equal(fill_padding(plane, valid), np.full((20, 20), 50.0))
    np.testing.assert_array_equal(fill_padding(plane, np.zeros_like(valid)), np.zeros((20, 20)))
    assert fill_padding(plane, np.ones_like(valid)) is plane


@pytest.mark.parametrize(("bad", "where"), [(np.nan, 0), (np.inf, 3), (-np.inf, 4)])
def test_pixels_that_are_not_finite_are_counted_and_refused(ct_bundle, rng, bad, where):
    volume, sink = ct(rng), MemorySink()
    volume.array[where, 3:5, 7] = bad
    volume.array[2, 0, 0] = np.nan
    with pytest.raises(FormatError, match=r"pixels are NaN or infinite \(found 3 of 8000, wanted finite values\)"):
        RestorePredictor(ct_bundle).predict(volume, sink)
    assert sink.committed == []


def test_padding_that_is_nan_is_refused_too(ct_bundle, rng):
    mask = np.ones((5, 40, 40), dtype=bool)
    mask[:, :4] = False
    volume = ct(rng, mask=mask)
    volume.array[~mask] = np.nan
    with pytest.raises(FormatError, match=r"found 800 of 8000, wanted finite values\); replace them in the source"):
        RestorePredictor(ct_bundle).predict(volume, MemorySink())


def test_a_wrong_modality_is_refused_with_what_to_pass(ct_bundle, rng):
    array = rng.normal(0, 1, (2, 8, 8)).astype(np.float32)
    predictor = RestorePredictor(ct_bundle)
    dicom = Volume.from_array(array, modality="MR", units="1")
    with pytest.raises(
        InputError, match=r"modality does not fit .*found MR, wanted CT.*pass --modality CT; else choose"
    ):
        predictor.predict(dicom, MemorySink())
    with pytest.raises(InputError, match=r"does not say what modality .*found unknown, wanted CT.*pass --modality CT"):
        predictor.predict(Volume.from_array(array), MemorySink())
    plain = Volume.from_array(array, modality="OT")
    plain = replace(plain, header=replace(plain.header, source=SourceRef("dicom")))
    with pytest.raises(InputError, match="found OT, wanted CT"):
        predictor.predict(plain, MemorySink())
    with pytest.raises(InputError, match=r"units do not fit .*found 1, wanted HU"):
        predictor.predict(Volume.from_array(array, modality="CT", units="1"), MemorySink())


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (3, 2, 1), (2, 7, 130)])
def test_odd_shapes_work(ct_bundle, rng, shape):
    array = rng.normal(0, 10, shape).astype(np.float32)
    sink = MemorySink()
    RestorePredictor(ct_bundle).predict(Volume.from_array(array, modality="CT", units="HU"), sink)
    assert sink.array().shape == shape


def test_four_dimensional_volumes_are_streamed_time_major(mr_bundle, rng):
    array = rng.normal(100, 10, (3, 16, 16, 2)).astype(np.float32)
    sink = MemorySink()
    RestorePredictor(mr_bundle, strength=0.0).predict(Volume.from_array(array, modality="MR"), sink)
    np.testing.assert_array_equal(sink.array(), np.moveaxis(array, 3, 0).reshape(6, 16, 16))


def test_memory_does_not_grow_with_the_number_of_slices(ct_bundle):
    plane = np.random.default_rng(0).normal(40, 20, (96, 96))
    predictor, peaks = RestorePredictor(ct_bundle, tile=96), {}

    class Nowhere(MemorySink):
        def volume(self, role):
            writer = super().volume(role)
            writer.write = lambda lo, planes: None
            return writer

    for slices in (20, 20, 200):
        reader = CountingReader(plane, slices)
        tracemalloc.start()
        predictor.predict(reader, Nowhere())
        peaks[slices] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert reader.largest <= 4
    # numpy's buffers are traced; ten times the slices may cost the per-slice geometry of the header, not planes.
    assert peaks[200] < 1.1 * peaks[20] + 64 * 1024


def test_stopping_leaves_nothing_behind(ct_bundle, rng):
    sink, calls = MemorySink(), []

    def should_stop():
        calls.append(1)
        return len(calls) > 1

    with pytest.raises(Stopped):
        RestorePredictor(ct_bundle, batch=2).predict(ct(rng), sink, should_stop=should_stop)
    assert (sink.committed, sink.aborted) == ([], ["result"])


def test_a_model_that_returns_nan_is_not_believed(ct_bundle, rng):
    predictor = RestorePredictor(ct_bundle)
    predictor._model = lambda batch: batch[:, :1] * float("nan")
    sink = MemorySink()
    with pytest.raises(BackendError, match="model returned values that are not finite"):
        predictor.predict(ct(rng), sink)
    assert sink.aborted == ["result"]


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"strength": 1.5}, InputError, "strength is out of range .*found 1.5"),
        ({"overlap": 0.95}, InputError, "overlap is out of range"),
        ({"batch": 0}, InputError, "batch is out of range"),
        ({"tile": 4}, InputError, "tile is out of range"),
        ({"device": "gpu"}, InputError, "no such device .*found gpu"),
    ],
)
def test_parameters_out_of_range_are_refused(ct_bundle, keywords, error, message):
    with pytest.raises(error, match=message):
        RestorePredictor(ct_bundle, **keywords)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "mil"}, "task is not for restoration"),
        ({"input": {"kind": "slide"}}, "input.kind is not for restoration"),
        ({"input": {"kind": "volume", "units": "HU", "channels": 2, "context_slices": 1}}, "context_slices"),
        ({"output": {"kind": "volume", "units": "1"}}, "output.units is not for restoration .*found 1, wanted HU"),
        ({"checks": [{"name": "beauty", "max": 1}]}, "unknown fidelity check .*found beauty, wanted mean_shift"),
    ],
)
def test_bundles_for_something_else_are_refused(make, tmp_path, changes, message):
    bundle = make.bundle(tmp_path / "odd", **changes)
    with pytest.raises(BundleError, match=message):
        RestorePredictor(bundle)


def test_channels_that_disagree_with_preprocess_are_refused(make, tmp_path, rng):
    bundle = make.bundle(tmp_path / "odd", input={"kind": "volume", "modality": ["CT"], "units": "HU", "channels": 3})
    with pytest.raises(BundleError, match=r"preprocess and input.channels disagree \(found 2, wanted 3\)"):
        RestorePredictor(bundle).predict(ct(rng), MemorySink())


def test_checks_become_flags(make, tmp_path, rng):
    bundle = make.bundle(
        tmp_path / "strict",
        checks=[{"name": "mean_shift", "max": 0.001, "unit": "HU"}, {"name": "max_change", "max": 1e6, "unit": "HU"}],
        valid_range={"min": 0, "max": 3000},
        input={
            "kind": "volume",
            "modality": ["CT"],
            "units": "HU",
            "channels": 2,
            "spacing_mm": {"min": 0.1, "max": 0.9},
        },
    )
    prediction = RestorePredictor(bundle).predict(ct(rng), MemorySink())
    spacing, shift, values = sorted(prediction.flags, key=lambda flag: "valid range" in flag.message)
    assert [flag.code for flag in (spacing, shift, values)] == ["out_of_range", "mean_shift", "out_of_range"]
    assert "limit 0.001" in shift.message
    assert "outside the model's valid range, 0 to 3000" in values.message
    assert "0.1 to 0.9 mm" in spacing.message
    assert {flag.level for flag in prediction.flags} == {"warn"}


# --- tiling


def test_an_identity_model_is_the_identity_in_tiles(rng):
    image = torch.from_numpy(rng.normal(0, 1, (1, 2, 150, 97)).astype(np.float32))
    for overlap in (0.0, 0.25, 0.5):
        for blend in ("gaussian", "constant"):
            out = apply_tiled(lambda x: x, image, tile=(64, 64), overlap=overlap, blend=blend, batch=3)
            # A weighted mean of equal float32 values.
            torch.testing.assert_close(out, image, rtol=1e-5, atol=1e-5)


def test_tiles_leave_no_seams(rng):
    """A model that darkens each tile by its own mean: without blending, every border is a step."""
    ramp = torch.linspace(0, 8, 192)[None, None, None].expand(1, 1, 192, 192).contiguous()
    noise = torch.from_numpy(rng.normal(0, 0.01, (1, 1, 192, 192)).astype(np.float32))

    def biased(tiles):
        return tiles - 0.5 * tiles.mean(dim=(2, 3), keepdim=True)

    def worst_step(overlap, blend):
        out = apply_tiled(biased, ramp + noise, tile=(64, 64), overlap=overlap, blend=blend, batch=4)
        return (out - ramp - noise).diff(dim=3).abs().max().item()

    hard, soft = worst_step(0.0, "constant"), worst_step(0.5, "gaussian")
    assert hard > 0.5
    # Neighbouring tiles differ by 0.67; over 32 columns a smooth blend changes at most some 0.1 a column.
    assert soft < 0.15


def test_a_trained_kind_of_model_shows_no_grid_in_tiles(ct_bundle, rng):
    """Columns where tiles meet are no rougher than the others."""
    plane = rng.normal(40, 20, (1, 160, 160)).astype(np.float32)
    sinks = {}
    for tile in (64, 512):
        sinks[tile] = MemorySink()
        RestorePredictor(ct_bundle, tile=tile, overlap=0.5).predict(
            Volume.from_array(plane, modality="CT", units="HU"), sinks[tile]
        )
    error = np.abs(sinks[64].array() - sinks[512].array())[0]
    change = np.abs(sinks[512].array() - plane)[0]
    # Zero padding at tile borders is the only difference; the Gaussian weight there is near its floor of 0.001.
    assert error.max() < 0.05 * change.max()


def test_planes_within_a_tile_never_import_monai(ct_bundle, rng, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "monai.inferers.utils", None)
    RestorePredictor(ct_bundle, tile=40).predict(ct(rng), MemorySink())
    with pytest.raises(ImportError):
        RestorePredictor(ct_bundle, tile=16).predict(ct(rng), MemorySink())


# --- fidelity


def test_metrics_are_those_of_the_whole_volume(rng):
    before = rng.normal(0, 50, (4, 1100, 30)).astype(np.float32)
    after = before + rng.normal(2, 5, before.shape).astype(np.float32)
    valid = rng.random(before.shape) > 0.3
    fidelity = Fidelity(Range(min=-100, max=100))
    for planes in zip(before, after, valid, strict=True):
        fidelity.update(*planes)
    metrics, change = fidelity.metrics(clipped=7), (after - before)[valid].astype(np.float64)
    assert metrics["mean_shift"] == pytest.approx(change.mean(), rel=1e-6)
    assert metrics["residual_sd"] == pytest.approx(change.std(), rel=1e-6)
    assert metrics["max_change"] == pytest.approx(np.abs(change).max())
    assert metrics["out_of_range"] == pytest.approx(np.mean(np.abs(before[valid]) > 100))
    assert metrics["clipped"] == pytest.approx(7 / valid.sum())
    down = np.diff(after, axis=1, append=after[:, -1:])
    right = np.diff(after, axis=2, append=after[:, :, -1:])
    slope = np.hypot(down, right)[valid]
    assert metrics["edge_correlation"] == pytest.approx(np.corrcoef(change, slope)[0, 1], abs=1e-6)


def test_an_empty_volume_has_zero_metrics():
    fidelity = Fidelity()
    fidelity.update(np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((4, 4), dtype=bool))
    assert set(fidelity.metrics().values()) == {0.0}


def test_limits_are_compared_by_magnitude():
    metrics = {"mean_shift": -2.0, "out_of_range": 0.0, "clipped": 0.01}
    flags = check_flags(metrics, [CheckSpec(name="mean_shift", max=1.0, unit="HU")], None)
    assert [flag.code for flag in flags] == ["mean_shift", "clipped"]
    assert check_flags(metrics, [CheckSpec(name="clipped", max=0.5)], None) == []
