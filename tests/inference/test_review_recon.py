"""Raw data beside its reconstruction: pictures of what was measured, by known objects."""

import io

import h5py
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medseq.errors import InputError
from medseq.inference.discover import discover
from medseq.inference.review_cache import ByteCache
from medseq.inference.review_open import open_recon, open_series
from medseq.inference.review_recon import find_reference
from medseq.inference.review_runs import Runs
from tests.inference.made_review import KEY, add_item, begin_run
from tests.io.kspace_synthetic import head_images, ifft2c

ROWS, COLS, COILS, SLICES = 48, 40, 4, 2


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.fixture
def scan(tmp_path, rng):
    """A run over undersampled raw data; the result is the truth itself. Returns the view, k-space, mask and truth."""
    root, out = tmp_path / "input" / "mri", tmp_path / "out" / "mri"
    root.mkdir(parents=True)
    images = np.stack([head_images(rng, COILS, ROWS, COLS) for _ in range(SLICES)])
    axes = (-2, -1)
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(images, axes=axes), norm="ortho"), axes=axes).astype("c8")
    mask = np.zeros(COLS, bool)
    mask[::3], mask[16:24] = True, True
    with h5py.File(root / "Plantedname.h5", "w") as file:
        file["kspace"] = kspace * mask
        file["mask"] = mask
    [found] = [item for item in discover(root, "kspace") if item.state == "queued"]
    truth = np.sqrt((np.abs(images) ** 2).sum(1)).astype(np.float32)
    with begin_run(out, name="mri-recon", task="recon", modality=("MR",), units="1", fft=None) as ledger:
        folder = out / found.item_id
        folder.mkdir()
        nib.save(nib.Nifti1Image(truth.T, np.eye(4)), folder / "result.nii.gz")
        files = [root / file.relpath for file in found.files]
        add_item(
            ledger,
            found.item_id,
            kind="kspace",
            root=root,
            inputs=files,
            outputs=[("result", folder / "result.nii.gz")],
        )
    (tmp_path / "truth" / "mri").mkdir(parents=True)
    np.save(tmp_path / "truth" / "mri" / "image.npy", truth)
    runs = Runs([out], KEY)
    token = runs.page()[0][0].token
    cache = ByteCache(1 << 26, lambda value: len(value) if isinstance(value, bytes) else value.nbytes)
    series = open_series(runs, token, cache, str)
    return open_recon(runs, token, series), kspace, mask, truth


def test_before_and_after_of_raw_data_are_zero_filled_and_result(scan):
    view, kspace, mask, truth = scan
    assert view.series.roles == ["before", "after", "difference"]
    layout = view.series.master.layout("stack")
    zero_filled = np.sqrt((np.abs(ifft2c(kspace * mask)) ** 2).sum(1))
    for index in range(SLICES):
        shown = view.series.layers["before"].picture("stack", index)
        assert np.allclose(shown, layout.turned(zero_filled[index]), atol=1e-5)  # float32 FFTs of values near 1
        assert np.allclose(view.series.layers["after"].picture("stack", index), layout.turned(truth[index]))


def test_facts_and_pictures(scan):
    view, _, mask, _ = scan
    info = view.info(1)
    assert (info["slices"], info["coils"], info["matrix"]) == (SLICES, COILS, [ROWS, COLS])
    assert info["measured"] == pytest.approx(mask.mean())
    assert info["acceleration"] == pytest.approx(1 / mask.mean())
    assert "estimate" in info["maps_from"]
    assert info["pictures"] == [
        "mask",
        "kspace",
        "coils",
        "maps",
        "zero-filled",
        "result",
        "reference",
        "ssim",
        "error",
    ]
    # The result is the truth; zero filling is not.
    assert info["ssim"]["result"] == pytest.approx(1.0, abs=1e-4)
    assert info["ssim"]["zero-filled"] < 0.98
    assert np.array_equal(pixels(view.picture("mask", 0))[0] == 255, mask)
    kspace = pixels(view.picture("kspace", 0))
    assert kspace[:, ~mask].max() == 0
    assert np.unravel_index(kspace.argmax(), kspace.shape) == (ROWS // 2, COLS // 2)
    assert pixels(view.picture("coils", 0)).shape == (ROWS, COILS * (COLS + 2) - 2)
    assert (pixels(view.picture("ssim", 0)) == 255).mean() > 0.99
    assert pixels(view.picture("error", 0)).max() < 25  # dark: no error
    assert pixels(view.picture("error", 0, "zero-filled")).max() > 100


def test_estimated_maps_follow_the_coils(scan):
    view, kspace, mask, _ = scan
    sheet = pixels(view.picture("maps", 0)).astype(float)
    found = np.stack([sheet[:, n * (COLS + 2) : n * (COLS + 2) + COLS] for n in range(COILS)]) / 255
    images = np.abs(ifft2c(kspace[0]))
    want = images / np.sqrt((images**2).sum(0))
    want = np.stack([view.series.master.layout("stack").turned(plane) for plane in want])
    body = found.sum(0) > 0
    middle = body & (want[0] > 0)
    middle[:10], middle[-10:], middle[:, :10], middle[:, -10:] = False, False, False, False
    # A low-resolution estimate of smooth maps from eight central lines: a few hundredths off inside the body.
    assert np.abs(found - want)[:, middle].mean() < 0.06


def test_what_is_not_there_is_said(scan, tmp_path):
    view, *_ = scan
    for index in (-1, SLICES):
        with pytest.raises(InputError, match="no such slice"):
            view.picture("mask", index)
    with pytest.raises(InputError, match="no such picture"):
        view.picture("../mask")
    view.reference = None
    assert "ssim" not in view.info()
    with pytest.raises(InputError, match="no such picture"):
        view.picture("ssim")


def test_a_reference_must_have_the_shape_of_the_slices(tmp_path, rng):
    truth = rng.random((2, 5, 6)).astype(np.float32)
    np.save(tmp_path / "scan_reference.npy", truth)
    assert np.array_equal(find_reference([tmp_path], "x/scan.h5", (2, 5, 6)), truth)
    assert find_reference([tmp_path], "x/scan.h5", (2, 5, 7)) is None
    assert find_reference([tmp_path], "x/other.h5", (2, 5, 6)) is None
    (tmp_path / "scan_reference.npy").write_bytes(b"broken")
    nib.save(nib.Nifti1Image(truth.T, np.eye(4)), tmp_path / "scan.nii.gz")
    assert np.allclose(find_reference([tmp_path], "scan.h5", (2, 5, 6)), truth)
    (tmp_path / "objects").mkdir()
    # An array of objects would have to be unpickled: it is no reference.
    np.save(tmp_path / "objects" / "scan.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert find_reference([tmp_path / "objects"], "scan.h5", (1,)) is None
