"""A bundle that enlarges the grid: geometry, what was measured stays, and files of the new size."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch

from medseq.data.transforms_sr import KeepLowBand
from medseq.errors import BundleError, FormatError, ShapeError
from medseq.inference.planes import EnlargedReader, enlarged_header
from medseq.inference.restore import RestorePredictor
from medseq.inference.run import predict_folder
from medseq.io.volume import Volume
from medseq.ops.resolution import truncate_kspace
from tests.inference.memory_sink import MemorySink

STEPS = [
    {"class_path": "medseq.data.transforms_sr.KeepLowBand", "init_args": {"factor": 2}},
    {"class_path": "medseq.data.transforms.RobustScale"},
]


@pytest.fixture
def sr_bundle(make, tmp_path):
    return make.bundle(
        tmp_path / "tiny-sr",
        modality=("MR",),
        units="1",
        preprocess=STEPS,
        output={"kind": "volume", "units": "1", "scale_factor": 2},
        checks=[{"name": "low_band_change", "max": 0.05, "unit": "1"}],
    )


def mr(rng, shape=(3, 12, 10), **keywords):
    # Far from 0, where magnitudes are limited.
    return Volume.from_array((400 + rng.gamma(4, 10, shape)).astype(np.float32), modality="MR", **keywords)


def test_corners_of_the_field_of_view_stay_where_they_are(rng):
    affine = np.array([[1.1, 0.2, 0.1, -30], [-0.1, 1.3, 0, 12], [0, 0.1, 4, 7], [0, 0, 0, 1]])
    header = mr(rng, (3, 12, 10), affine=affine).header
    new = enlarged_header(header, 2)
    assert new.shape == (3, 24, 20)
    np.testing.assert_allclose(np.array(new.spacing_mm[1:]) * 2, header.spacing_mm[1:])
    for corner, far in (((-0.5, -0.5), (-0.5, -0.5)), ((9.5, 11.5), (19.5, 23.5))):
        for index in range(3):
            old_mm, new_mm = header.affine @ [*corner, index, 1], new.affine @ [*far, index, 1]
            np.testing.assert_allclose(new_mm, old_mm, atol=1e-9)
            flat = new.slice_affines[index] @ [*far, 0, 1]
            np.testing.assert_allclose(flat, header.slice_affines[index] @ [*corner, 0, 1], atol=1e-9)


def test_the_result_is_finer_and_its_low_frequencies_are_the_input(sr_bundle, rng):
    volume, sink = mr(rng), MemorySink()
    prediction = RestorePredictor(sr_bundle).predict(volume, sink)
    result = sink.array()
    assert result.shape == (3, 24, 20)
    filled = EnlargedReader(volume, 2).read(0, 3)
    assert np.abs(result - filled).max() > 1, "the model must change something"
    low = truncate_kspace(torch.from_numpy(result), (12, 10)).numpy()
    # float32 rounding of values around 500 through two interpolations.
    np.testing.assert_allclose(low, volume.array, atol=2e-3)
    assert prediction.metrics["low_band_change"] < 1e-5
    assert [(flag.code, flag.level) for flag in prediction.flags] == [("enlarged", "info")]
    assert "12 x 10 pixels became 24 x 20" in prediction.flags[0].message


def test_a_model_that_moves_the_measured_band_is_flagged(make, tmp_path, rng):
    bundle = make.bundle(
        tmp_path / "loose",
        modality=("MR",),
        units="1",
        output={"kind": "volume", "units": "1", "scale_factor": 2},
        checks=[{"name": "low_band_change", "max": 1e-4, "unit": "1"}],
    )
    prediction = RestorePredictor(bundle).predict(mr(rng), MemorySink())
    assert prediction.metrics["low_band_change"] > 1e-4
    assert "below the acquired resolution" in {flag.code: flag.message for flag in prediction.flags}["low_band_change"]


def test_the_check_needs_a_bundle_that_enlarges(make, tmp_path):
    checks = [{"name": "low_band_change", "max": 0.1, "unit": "1"}]
    bundle = make.bundle(tmp_path / "same", modality=("MR",), units="1", checks=checks)
    with pytest.raises(BundleError, match=r"wanted output\.scale_factor above 1"):
        RestorePredictor(bundle)


def test_padding_is_pasted_back_at_the_new_size(sr_bundle, rng):
    volume = mr(rng)
    mask = np.ones(volume.array.shape, dtype=bool)
    mask[:, :4, :3] = False
    volume.array[~mask] = -2000.0
    sink = MemorySink()
    RestorePredictor(sr_bundle).predict(Volume(volume.header, volume.array, mask), sink)
    assert (sink.array()[:, :8, :6] == -2000.0).all()
    assert sink.array()[:, 8:].min() >= 0


def test_pixels_that_are_not_finite_are_counted_on_the_acquired_grid(sr_bundle, rng):
    volume = mr(rng)
    volume.array[1, 2, 3] = np.nan
    with pytest.raises(FormatError, match=r"found 1 of 360"):
        RestorePredictor(sr_bundle).predict(volume, MemorySink())


def test_values_of_either_sign_are_left_so(rng):
    image = torch.from_numpy(rng.normal(size=(2, 1, 8, 8)))
    image[1] = 5 + 0.1 * image[1]
    change = 40 * torch.from_numpy(rng.normal(size=(2, 1, 8, 8)))
    result = KeepLowBand(2).invert(image + change, image, {})
    assert result[0].min() < -1
    assert result[1].min() == 0
    with pytest.raises(ShapeError, match="not on an enlarged grid"):
        KeepLowBand(2).invert(image[..., :7], image[..., :7], {})


def test_a_folder_run_writes_the_new_grid_with_its_affine(sr_bundle, tmp_path, rng):
    affine = np.diag([1.5, 1.5, 4.0, 1.0])
    affine[:3, 3] = (-20, 10, 5)
    source = nib.Nifti1Image(rng.gamma(4, 25, (10, 12, 3)).astype(np.int16), affine)
    (tmp_path / "in").mkdir()
    nib.save(source, tmp_path / "in" / "head.nii.gz")
    summary = predict_folder(sr_bundle.folder, tmp_path / "in", tmp_path / "out", modality="MR")
    assert summary.counts["done"] == 1
    [path] = (tmp_path / "out").rglob("result.nii.gz")
    result = nib.load(path)
    assert result.shape == (20, 24, 3)
    assert result.get_data_dtype() == np.int16
    np.testing.assert_allclose(result.affine[:3, 3], (-20 - 0.375, 10 - 0.375, 5), atol=1e-5)
    np.testing.assert_allclose(np.diag(result.affine), (0.75, 0.75, 4, 1), atol=1e-6)
    report = summary.report_path.read_text()
    assert "12 x 10 pixels became 24 x 20" in report


def test_a_dicom_series_has_the_size_of_the_new_grid(sr_bundle, make, tmp_path, rng):
    make.series(tmp_path / "in", rng.integers(100, 900, (3, 12, 10)).astype(np.uint16), modality="MR")
    summary = predict_folder(sr_bundle.folder, tmp_path / "in", tmp_path / "out", created_utc=make.created)
    assert summary.counts["done"] == 1
    images = [pydicom.dcmread(path) for path in (tmp_path / "out").rglob("*.dcm")]
    assert {(ds.Rows, ds.Columns, len(ds.PixelData)) for ds in images} == {(24, 20, 24 * 20 * 2)}
    np.testing.assert_allclose(np.array(images[0].PixelSpacing, dtype=float), (0.35, 0.4))
