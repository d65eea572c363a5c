"""What restoration does with images that it was not made for: each has a clear outcome."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from pydicom import dcmread

from medseq.data.transforms import HounsfieldChannels, NoiseGate, RobustScale
from medseq.data.transforms_sr import KeepLowBand
from medseq.errors import BundleError, InputError
from medseq.inference.interpolated import interpolation_flags, outer_share
from medseq.inference.restore import RestorePredictor
from medseq.inference.run import predict_folder
from medseq.io.volume import Volume
from medseq.ops.resolution import zero_fill
from tests.inference.memory_sink import MemorySink


@pytest.fixture
def sr_bundle(make, tmp_path):
    return enlarging(make, tmp_path / "tiny-sr", 2)


def enlarging(make, folder, factor):
    steps = [
        {"class_path": "medseq.data.transforms_sr.KeepLowBand", "init_args": {"factor": 2}},
        {"class_path": "medseq.data.transforms.RobustScale"},
    ]
    output = {"kind": "volume", "units": "1", "scale_factor": factor}
    return make.bundle(folder, modality=("MR",), units="1", preprocess=steps, output=output)


def codes(prediction):
    return {flag.code for flag in prediction.flags}


def items(out):
    return json.loads((out / "report.json").read_text())["items"]


def test_a_scale_that_is_not_supported(make, tmp_path):
    with pytest.raises(InputError, match="found 1, wanted 2 or more"):
        KeepLowBand(factor=1)
    with pytest.raises(BundleError, match=r"output\.scale_factor"):
        enlarging(make, tmp_path / "nine", 9)


def test_images_of_high_resolution_already_are_refused_before_anything_is_read(sr_bundle):
    class Huge:
        header = Volume.from_array(np.zeros((1, 8, 5000), np.float32), modality="MR").header

        def read(self, lo, hi):
            raise AssertionError("must not be read")

    with pytest.raises(InputError, match=r"of high resolution already \(found 8 x 5000, wanted at most 4096 a side"):
        RestorePredictor(sr_bundle).predict(Huge(), MemorySink())


def test_a_series_that_the_scanner_enlarged_is_flagged_and_an_acquired_one_is_not(sr_bundle, rng):
    acquired = np.abs(rng.normal(300, 40, (3, 24, 32))).astype(np.float32)
    enlarged = zero_fill(torch.from_numpy(acquired), (48, 64)).abs().numpy()
    for array, expected in ((acquired, False), (enlarged, True)):
        prediction = RestorePredictor(sr_bundle).predict(Volume.from_array(array, modality="MR"), MemorySink())
        assert ("interpolated" in codes(prediction)) == expected


def test_the_outer_share_of_white_noise_is_the_share_of_frequencies(rng):
    noise = rng.normal(size=(200, 200))
    # 91 of 200 frequencies lie beyond 0.27 a pixel; 40 000 squared normals vary by less than a per cent.
    assert outer_share(noise) == pytest.approx((0.455, 0.455), abs=0.02)
    assert outer_share(np.full((9, 7), 3.0)) == (0.0, 0.0)
    assert interpolation_flags(Volume.from_array(np.ones((2, 9, 9), np.float32), modality="MR")) == []


def test_colour_images_are_no_input(make, mr_bundle, ct_bundle, tmp_path, rng):
    folder = tmp_path / "in"
    good = make.series(folder / "a", make.head(rng, 2))
    for path in make.series(folder / "b", make.head(rng, 1), name="colour"):
        image = dcmread(path)
        image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
        image.BitsAllocated, image.BitsStored, image.HighBit = 8, 8, 7
        image.PixelData = bytes(image.Rows * image.Columns * 3)
        image.save_as(path)
    summary = predict_folder(ct_bundle, folder, tmp_path / "out")
    assert len(good) == 2
    assert (summary.counts["done"], summary.counts["skipped"]) == (1, 1)
    reasons = [item["reason"] for item in items(tmp_path / "out") if item["state"] == "skipped"]
    assert "a colour image" in reasons[0]
    rgb = np.zeros((6, 5, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    (tmp_path / "nii").mkdir()
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path / "nii" / "c.nii")
    summary = predict_folder(mr_bundle, tmp_path / "nii", tmp_path / "out2", modality="MR")
    assert summary.counts["failed"] == 1
    assert "voxels of this type cannot be read" in items(tmp_path / "out2")[0]["reason"]


@pytest.mark.parametrize("value", [0.0, 40.0, -1000.0])
def test_constant_images_stay_finite_and_even(make, ct_bundle, mr_bundle, sr_bundle, value):
    kinds = [(ct_bundle, "CT", "HU"), (mr_bundle, "MR", "1"), (sr_bundle, "MR", "1")]
    for bundle, modality, units in kinds:
        sink = MemorySink()
        volume = Volume.from_array(np.full((2, 20, 24), value, np.float32), modality=modality, units=units)
        prediction = RestorePredictor(bundle).predict(volume, sink)
        assert np.isfinite(sink.array()).all()
        assert all(np.isfinite(number) for number in prediction.metrics.values())


def test_negative_pet_is_kept_as_it_was_measured(make, tmp_path, rng):
    # Filtered back-projection gives negative uptake in the background: an input, not a mistake.
    bundle = make.bundle(
        tmp_path / "pet",
        modality=("PT",),
        units="1",
        input={"kind": "volume", "modality": ["PT"], "units": "SUVbw", "channels": 1},
        output={"kind": "volume", "units": "SUVbw"},
        valid_range={"min": 0, "max": 20},
    )
    planes = rng.normal(0.2, 0.5, (2, 24, 24)).astype(np.float32)
    volume = Volume.from_array(planes, modality="PT", units="SUVbw")
    sink = MemorySink()
    prediction = RestorePredictor(bundle).predict(volume, sink)
    # Nothing falls further below 0 than it was, and what lies outside the range is told.
    assert (sink.array() >= np.minimum(planes, 0) - 1e-6).all()
    assert prediction.metrics["out_of_range"] == pytest.approx((planes < 0).mean())
    assert "out_of_range" in codes(prediction)


def test_ct_without_a_rescale_is_refused(make, ct_bundle, tmp_path, rng):
    for path in make.series(tmp_path / "in", make.head(rng, 2)):
        image = dcmread(path)
        del image.RescaleIntercept, image.RescaleSlope, image.RescaleType
        image.save_as(path)
    summary = predict_folder(ct_bundle, tmp_path / "in", tmp_path / "out")
    assert summary.exit_code == 3
    reason = items(tmp_path / "out")[0]["reason"]
    assert "units do not fit the bundle (found 1, wanted HU)" in reason
    assert "rescale slope" in reason


def test_values_beyond_the_stored_integers_are_limited_and_flagged(make, tmp_path, rng):
    planes = np.full((2, 24, 24), 32000.0)
    planes[:, ::2] = 300
    make.nifti(tmp_path / "in" / "a.nii", planes)
    # A network that doubles: its last layer's bias lifts everything.
    from medseq.models.restore_unet import RestoreUNet

    init = {"in_channels": 1, "out_channels": 1, "dims": [4], "num_blocks": [1]}
    state = RestoreUNet(**init).state_dict()
    last = [key for key in state if key.endswith("bias")][-1]
    state[last] = torch.ones_like(state[last])
    bundle = make.bundle(tmp_path / "up", modality=("MR",), units="1", state=state)
    predict_folder(bundle, tmp_path / "in", tmp_path / "out", modality="MR", names="source")
    result = np.asarray(nib.load(next((tmp_path / "out").rglob("a.nii"))).dataobj)
    assert result.max() == 32767
    assert result.min() >= 0
    assert "clipped" in {flag["code"] for flag in items(tmp_path / "out")[0]["flags"]}


def test_a_series_over_time_is_restored_frame_by_frame(mr_bundle, rng):
    frames = np.abs(rng.normal(300, 40, (3, 20, 24, 2))).astype(np.float32)
    sink = MemorySink()
    RestorePredictor(mr_bundle).predict(Volume.from_array(frames, modality="MR"), sink)
    assert sink.array().shape == (6, 20, 24)


def test_every_volume_is_judged_by_its_own_spacing(make, tmp_path, rng):
    bundle = make.bundle(
        tmp_path / "mr",
        modality=("MR",),
        units="1",
        input={"kind": "volume", "modality": ["MR"], "units": "1", "spacing_mm": {"min": 0.5, "max": 2.0}},
    )
    for name, spacing in (("fine", 0.2), ("usual", 1.0), ("coarse", 5.0)):
        affine = np.diag([spacing, spacing, 3.0, 1.0])
        (tmp_path / "in").mkdir(exist_ok=True)
        array = rng.integers(1, 900, (24, 20, 2)).astype(np.int16)
        nib.save(nib.Nifti1Image(array, affine), tmp_path / "in" / f"{name}.nii")
    summary = predict_folder(bundle, tmp_path / "in", tmp_path / "out", modality="MR")
    assert summary.counts["done"] == 3
    texts = [flag["message"] for item in items(tmp_path / "out") for flag in item["flags"]]
    found = sorted(text.split(" mm is outside")[0] for text in texts if "is outside" in text)
    assert found == ["pixel spacing 0.2 x 0.2", "pixel spacing 5 x 5"]


def test_extreme_anisotropy_in_the_plane_is_flagged_and_between_planes_is_none_of_its_business(make, tmp_path, rng):
    bundle = make.bundle(
        tmp_path / "mr",
        modality=("MR",),
        units="1",
        input={"kind": "volume", "modality": ["MR"], "units": "1", "spacing_mm": {"min": 0.3, "max": 2.0}},
    )
    for diagonal, expected in (([0.5, 8.0, 3.0], True), ([0.5, 0.5, 60.0], False)):
        array = rng.normal(300, 20, (2, 20, 24)).astype(np.float32)
        volume = Volume.from_array(array, modality="MR", affine=np.diag([*diagonal, 1.0]))
        prediction = RestorePredictor(bundle).predict(volume, MemorySink())
        assert ("out_of_range" in codes(prediction)) == expected


def test_an_implant_of_30000_hu_keeps_its_value_and_spoils_nothing_around_it(rng):
    plane = rng.normal(40, 10, (1, 1, 64, 64)).astype(np.float32)
    image = torch.from_numpy(plane)
    image[..., 30:34, 30:34] = 30000.0
    chain = [NoiseGate(), HounsfieldChannels()]
    params = [{"pixel_cm2": 0.01}, {}]
    seen = chain[1].apply(image, {})
    # What the network sees of it is the top of the range.
    assert float(seen.max()) == pytest.approx(3.072)
    restored = chain[1].invert(seen[:, :1], image, {})
    # A network that returns what it saw changes nothing, beyond the range included.
    torch.testing.assert_close(restored, image)
    changed = chain[0].invert(restored + 1.0, image, params[0])
    assert torch.isfinite(changed).all()
    assert float((changed - image).abs().max()) < 80


def test_the_robust_scale_is_not_the_implants():
    planes = np.full((4, 50, 50), 100.0, np.float32)
    planes[:, :3, :3] = 30000.0
    assert RobustScale().fit(planes)["scale"] == 100.0
