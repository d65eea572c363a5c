"""fastMRI, Stanford, SKM-TEA and Calgary-Campinas files: what is read is what was written."""

import h5py
import numpy as np
import pytest

from medseq.errors import FormatError, ShapeError
from medseq.io.kspace import KSpaceReader
from medseq.io.kspace_open import kspace_kind, open_kspace, open_kspace_items
from tests.io.kspace_synthetic import codes, fft2c, head_images, head_kspace, header_xml, ifft2c


def write(path, **datasets):
    with h5py.File(path, "w") as file:
        for key, value in datasets.items():
            file[key.replace("__", "/")] = value
    return path


def fastmri_header(rows, cols, recon, limits=None):
    fov = (recon[0] * 1.5 * rows / recon[0], cols * 0.7, 5.0)
    return header_xml((rows, cols, 1), (*recon, 1), fov, (recon[0] * 1.5, recon[1] * 0.7, 5.0), limits=limits)


@pytest.mark.parametrize(("rows", "cols"), [(64, 36), (33, 29), (640, 368)])
def test_a_multicoil_file_is_read_slice_by_slice(tmp_path, rng, rows, cols):
    kspace = head_kspace(rng, 3 if rows < 100 else 1, 4, rows, cols)
    recon = (rows // 2, cols - 5)
    path = write(tmp_path / "a.h5", kspace=kspace, ismrmrd_header=fastmri_header(rows, cols, recon))
    reader = open_kspace(path)
    assert isinstance(reader, KSpaceReader)
    assert (reader.n, reader.recon_shape, reader.phase_axis) == (len(kspace), recon, 1)
    assert reader.fft.origin == "centre"
    assert reader.fov_mm == pytest.approx((recon[0] * 1.5, recon[1] * 0.7))
    for i, part in enumerate(kspace):
        found = reader.read(i)
        assert np.array_equal(found.kspace, part)
        assert found.kspace.dtype == np.complex64
        assert found.mask.shape == (1, 1, cols)
        assert found.mask.all()
    assert codes(reader) == []
    with pytest.raises(ShapeError, match=f"no such slice.*found {len(kspace)}"):
        reader.read(len(kspace))


def test_single_coil_single_slice_and_no_header(tmp_path, rng):
    kspace = head_kspace(rng, 1, 1, 31, 22)[:, 0]
    reader = open_kspace(write(tmp_path / "a.h5", kspace=kspace))
    assert (reader.n, reader.recon_shape, reader.fov_mm, reader.affine) == (1, (31, 22), None, None)
    assert np.array_equal(reader.read(0).kspace[0], kspace[0])


def test_padded_columns_are_not_measured(tmp_path, rng):
    # 40 columns encoded, counters 0..30 with the centre at 16: columns 4..34 were measured.
    kspace = head_kspace(rng, 1, 2, 32, 40)
    xml = fastmri_header(32, 40, (16, 40), {"kspace_encoding_step_1": (30, 16)})
    reader = open_kspace(write(tmp_path / "a.h5", kspace=kspace, ismrmrd_header=xml))
    part = reader.read(0)
    assert np.array_equal(np.flatnonzero(part.mask[0, 0]), np.arange(4, 35))
    assert not part.kspace[..., :4].any()
    assert not part.kspace[..., 35:].any()
    assert codes(reader) == ["padding-not-empty"]
    kspace[..., :4] = kspace[..., 35:] = 0
    reader = open_kspace(write(tmp_path / "b.h5", kspace=kspace, ismrmrd_header=xml))
    assert np.array_equal(reader.read(0).kspace, kspace[0])
    # Zero padding is not undersampling: nothing had to be guessed.
    assert codes(reader) == []


def test_a_stored_mask_is_used(tmp_path, rng):
    mask = rng.random(40) < 0.5
    mask[16:24] = True
    kspace = head_kspace(rng, 2, 3, 24, 40) * mask
    path = write(tmp_path / "a.h5", kspace=kspace, mask=mask.astype("f4"))
    reader = open_kspace(path)
    assert np.array_equal(reader.read(1).mask[0, 0], mask)
    assert codes(reader) == []


@pytest.mark.parametrize("plane", [False, True])
def test_a_mask_is_derived_from_zeros_and_said(tmp_path, rng, plane):
    mask = rng.random((24, 40) if plane else (1, 40)) < 0.4
    mask[8:16, 16:24] = True
    if not plane:
        mask[:, 16:24] = True
    kspace = head_kspace(rng, 2, 3, 24, 40) * mask
    reader = open_kspace(write(tmp_path / "a.h5", kspace=kspace))
    assert np.array_equal(reader.read(0).mask[0], mask)
    assert codes(reader) == ["mask-derived"]
    assert f"{mask.mean():.3g} of it is sampled" in reader.notices[0].message


def test_a_mask_that_contradicts_kspace(tmp_path, rng):
    kspace = head_kspace(rng, 1, 2, 24, 40)
    kspace[..., 5] = 0
    mask = np.ones(40)
    mask[9] = 0
    reader = open_kspace(write(tmp_path / "a.h5", kspace=kspace, mask=mask))
    part = reader.read(0)
    assert np.array_equal(np.flatnonzero(~part.mask[0, 0]), [5, 9])
    assert not part.kspace[..., 9].any()
    assert codes(reader) == ["mask-disagrees"]
    kspace[..., 10:] = 0
    reader = open_kspace(write(tmp_path / "b.h5", kspace=kspace, mask=np.arange(40) > 20))
    with pytest.raises(FormatError, match="excludes every sample.*19 sampled positions.*leave the mask out"):
        reader.read(0)
    reader = open_kspace(write(tmp_path / "c.h5", kspace=kspace, mask=np.ones(39)))
    with pytest.raises(ShapeError, match=r"mask and k-space disagree.*\(39,\).*\(40,\)"):
        reader.read(0)


@pytest.mark.parametrize("key", ["sensitivity_map", "maps"])
def test_stored_maps_are_read_and_checked(tmp_path, rng, key):
    kspace, maps = head_kspace(rng, 2, 3, 16, 20), head_kspace(rng, 2, 3, 16, 20)
    reader = open_kspace(write(tmp_path / "a.h5", kspace=kspace, **{key: maps}))
    assert np.array_equal(reader.read(1).sens_maps, maps[1])
    for wrong in (maps[:, :2], maps[..., :-1]):
        with pytest.raises(ShapeError, match="k-space and sensitivity maps disagree.*re-estimate the maps"):
            open_kspace(write(tmp_path / "b.h5", kspace=kspace, **{key: wrong}))


def test_skm_tea_echoes_are_items_and_their_masks_are_offered(tmp_path, rng):
    kspace = head_kspace(rng, 6, 3, 20, 18).reshape(3, 2, 3, 20, 18).transpose(0, 3, 4, 1, 2)
    maps = rng.normal(size=(3, 20, 18, 3, 1)).astype("f4") + 0j
    masks = {"masks__poisson_4.0x": rng.random((20, 18)) < 0.5}
    masks["masks__poisson_4.0x"][8:12, 7:11] = True
    path = write(tmp_path / "a.h5", kspace=kspace, maps=maps.astype("c8"), **masks)
    readers = open_kspace_items(path)
    assert [reader.label for reader in readers] == ["contrast-0", "contrast-1"]
    part = readers[1].read(2)
    assert np.array_equal(part.kspace, kspace[2, :, :, 1].transpose(2, 0, 1))
    assert np.allclose(part.sens_maps, maps[2, ..., 0].transpose(2, 0, 1))
    assert set(codes(readers[0])) == {"axes-guessed", "mask-choice"}
    chosen = open_kspace(path, item="contrast-0", mask="masks/poisson_4.0x").read(0)
    assert np.array_equal(chosen.mask[0], masks["masks__poisson_4.0x"])
    with pytest.raises(FormatError, match="no mask 'masks/none'"):
        open_kspace_items(path, mask="masks/none")


def calgary(images):
    """(slice, coil, row, col) images -> interleaved k-space, zero frequency in the middle, plain FFT of the image."""
    kspace = np.fft.fftshift(np.fft.fft2(images, norm="ortho"), axes=(-2, -1)).transpose(0, 2, 3, 1)
    out = np.empty((*kspace.shape[:3], 2 * kspace.shape[3]), np.float32)
    out[..., ::2], out[..., 1::2] = kspace.real, kspace.imag
    return out


@pytest.mark.parametrize(("rows", "cols"), [(30, 24), (31, 25)])
@pytest.mark.parametrize("fft", [None, "corner"])
def test_calgary_images_come_out_whole_and_smooth(tmp_path, rng, rows, cols, fft):
    images = np.stack([head_images(rng, 3, rows, cols) for _ in range(4)])
    reader = open_kspace(write(tmp_path / "a.h5", kspace=calgary(images)), fft=fft)
    assert (reader.n, reader.fft.origin) == (4, "centre")
    found = reader.read(2)
    # Single precision throughout.
    assert np.abs(ifft2c(found.kspace) - images[2]).max() < 1e-5 * np.abs(images).max()
    assert found.mask.all()
    assert codes(reader) == []


def test_calgary_unsampled_corners_and_tail(tmp_path, rng):
    kspace = calgary(np.stack([head_images(rng, 2, 30, 40)] * 2))
    y, z = np.mgrid[:30, :40]
    corner = ((y - 15) / 16) ** 2 + ((z - 20) / 21) ** 2 > 1
    kspace[:, corner] = 0
    kspace[:, :, 34:] *= 1e-5
    reader = open_kspace(write(tmp_path / "a.h5", kspace=kspace))
    mask = reader.read(0).mask[0]
    assert not mask[corner].any()
    assert not mask[:, 34:].any()
    assert mask[:, :34][~corner[:, :34]].all()
    assert codes(reader) == ["partial-fourier", "mask-derived"]


@pytest.mark.parametrize("form", ["c16", "compound f2", "compound f8", "parts"])
def test_every_number_type_becomes_complex64(tmp_path, rng, form):
    kspace = head_kspace(rng, 2, 3, 16, 20)
    if form == "c16":
        stored = kspace.astype("c16")
    elif form == "parts":
        stored = np.stack([kspace.real, kspace.imag], axis=-1)
    else:
        part = form.split()[1]
        stored = np.empty(kspace.shape, [("real", part), ("imag", part)])
        stored["real"], stored["imag"] = kspace.real, kspace.imag
    found = open_kspace(write(tmp_path / "a.h5", kspace=stored)).read(1).kspace
    assert found.dtype == np.complex64
    # float16 has 11 significant bits.
    assert np.abs(found - kspace[1]).max() <= (2**-11 if "f2" in form else 0) * np.abs(kspace).max()


def test_dead_coils_empty_slices_and_nan(tmp_path, rng):
    kspace = head_kspace(rng, 3, 4, 16, 20)
    kspace[:, 2] = 0
    kspace[2] = 0
    reader = open_kspace(write(tmp_path / "a.h5", kspace=kspace))
    assert not reader.read(0).kspace[2].any()
    assert codes(reader) == ["zero-coils"]
    assert "1 of 4 coils" in reader.notices[0].message
    assert not reader.read(2).mask.any()
    assert codes(reader) == ["zero-coils", "empty-slice"]
    kspace[1, 3, 4, 5] = np.nan
    reader = open_kspace(write(tmp_path / "b.h5", kspace=kspace))
    reader.read(0)
    with pytest.raises(FormatError, match="slice 1: k-space holds NaN.*1 of 1280 samples, in coils 3"):
        reader.read(1)


def test_no_sampled_centre_is_said(tmp_path, rng):
    kspace = head_kspace(rng, 1, 2, 16, 20)
    kspace[..., 8:13] = 0
    reader = open_kspace(write(tmp_path / "a.h5", kspace=kspace), fft="centre")
    reader.read(0)
    assert "no-centre" in codes(reader)


def test_a_file_without_kspace_lists_its_keys(tmp_path):
    path = write(tmp_path / "DOE_JANE.h5", rawdata=np.zeros(3), reconstruction_rss=np.zeros(3))
    with pytest.raises(FormatError, match="no dataset 'kspace'.*keys: rawdata, reconstruction_rss") as caught:
        open_kspace(path)
    assert "DOE" not in str(caught.value)
    with pytest.raises(FormatError, match="keys: none"):
        open_kspace(write(tmp_path / "empty.h5"))
    with pytest.raises(FormatError, match=r"layout of 'kspace' is not known.*\(3, 4, 5\).*sidecar"):
        open_kspace(write(tmp_path / "real.h5", kspace=np.zeros((3, 4, 5))))


def test_truncated_files_are_refused(tmp_path, rng):
    path = write(tmp_path / "DOE_JANE.h5", kspace=head_kspace(rng, 4, 4, 32, 32))
    data = path.read_bytes()
    for size in (0, 100, 1000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(FormatError, match="cut short or damaged|not an HDF5 file|no dataset") as caught:
            open_kspace(path).read(3)
        assert "DOE" not in str(caught.value)
    with pytest.raises(FormatError, match="no such file"):
        open_kspace(tmp_path / "missing.dat")


def test_a_damaged_header_is_refused(tmp_path, rng):
    kspace = head_kspace(rng, 1, 2, 16, 20)
    for text, pattern in (
        ("<ismrmrdHeader", "not XML"),
        ("<a/>", "no usable encoding"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "without a document type"),
    ):
        with pytest.raises(FormatError, match=pattern):
            open_kspace(write(tmp_path / "a.h5", kspace=kspace, ismrmrd_header=text))


def test_kinds_are_told_by_content(tmp_path, rng):
    path = write(tmp_path / "scan.dat", kspace=head_kspace(rng, 1, 1, 8, 8))
    assert kspace_kind(path) == "hdf5"
    (tmp_path / "notes.txt").write_text("nothing")
    assert kspace_kind(tmp_path / "notes.txt") is None
    assert np.allclose(open_kspace(path).read(0).kspace, h5py.File(path)["kspace"][0])


def test_corner_convention_is_found_by_energy(tmp_path, rng):
    images = head_images(rng, 3, 40, 36)
    corner = np.fft.fft2(images, norm="ortho").astype("c8")[None]
    path = write(tmp_path / "a.h5", kspace=corner)
    reader = open_kspace(path)
    assert reader.fft.origin == "corner"
    assert codes(reader) == ["fft-convention"]
    assert "taken to be 'corner'" in reader.notices[0].message
    assert open_kspace(path, fft="corner").notices == []
    asked = open_kspace(path, fft="centred")
    assert asked.fft.origin == "centre"
    assert "looks wrong; pass fft=corner" in asked.notices[0].message
    assert np.array_equal(asked.read(0).kspace, corner[0])
    centre = write(tmp_path / "b.h5", kspace=fft2c(images)[None])
    asked = open_kspace(centre, fft="corner")
    assert (asked.fft.origin, codes(asked)[0]) == ("corner", "fft-convention")
