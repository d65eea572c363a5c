"""ISMRMRD files: readouts land where they belong, in k-space, among the items and in the patient."""

import subprocess

import h5py
import ismrmrd
import numpy as np
import pytest

from medseq.errors import FormatError, InputError
from medseq.io.kspace_fft import rss_image
from medseq.io.kspace_open import open_kspace, open_kspace_items
from tests.io.kspace_synthetic import codes, fft2c, head_images, header_xml, ifft2c

EYE = np.eye(3)


class Writer:
    """Writes acquisitions with the `ismrmrd` package; items and slices by keyword."""

    def __init__(self, path, xml):
        self.dataset = ismrmrd.Dataset(str(path), "dataset", create_if_needed=True)
        self.dataset.write_xml_header(xml.encode())

    def line(self, data, ky=0, *, kz=0, flags=(), center=None, position=(0, 0, 0), axes=EYE, dwell=5.0, **counters):
        acquisition = ismrmrd.Acquisition.from_array(np.ascontiguousarray(data, np.complex64))
        acquisition.center_sample = data.shape[1] // 2 if center is None else center
        acquisition.sample_time_us = dwell
        acquisition.position[:] = position
        for name, column in zip(("read_dir", "phase_dir", "slice_dir"), axes.T, strict=True):
            getattr(acquisition, name)[:] = column
        acquisition.idx.kspace_encode_step_1, acquisition.idx.kspace_encode_step_2 = ky, kz
        for name, value in counters.items():
            setattr(acquisition.idx, name, value)
        for flag in flags:
            acquisition.setFlag(flag)
        self.dataset.append_acquisition(acquisition)

    def plane(self, kspace, columns=None, **keywords):
        for ky in range(kspace.shape[2]) if columns is None else columns:
            self.line(kspace[:, :, ky], int(ky), **keywords)

    def close(self):
        self.dataset.close()


def write(path, xml, fill):
    writer = Writer(path, xml)
    fill(writer)
    writer.close()
    return path


def xml(nx, ny, *, over=1, recon_y=None, nz=1, **keywords):
    """2-D or 3-D header with pixels of 1.5 x 0.8 x 4 mm."""
    recon_y = recon_y or ny
    limits = {"kspace_encoding_step_1": (ny - 1, ny // 2), "kspace_encoding_step_2": (nz - 1, nz // 2)}
    return header_xml(
        (nx, ny, nz),
        (nx // over, recon_y, nz),
        (nx * 1.5, ny * 0.8, nz * 4.0),
        (nx // over * 1.5, recon_y * 0.8, nz * 4.0),
        **{"limits": limits, **keywords},
    )


@pytest.mark.parametrize(("rows", "cols"), [(32, 24), (33, 27), (30, 21)])
def test_a_slice_comes_back(tmp_path, rng, rows, cols):
    kspace = fft2c(head_images(rng, 3, rows, cols))
    reader = open_kspace(write(tmp_path / "a.h5", xml(rows, cols), lambda w: w.plane(kspace)))
    part = reader.read(0)
    assert np.array_equal(part.kspace, kspace)
    assert part.mask.shape == (1, 1, cols)
    assert part.mask.all()
    assert (reader.n, reader.label, reader.recon_shape, codes(reader)) == (1, "", (rows, cols), [])
    assert reader.fov_mm == pytest.approx((rows * 1.5, cols * 0.8))


@pytest.mark.parametrize("rows", [24, 22])
def test_readout_oversampling_is_removed(tmp_path, rng, rows):
    images = head_images(rng, 2, 2 * rows, 20)
    images[:, : rows // 2] = images[:, rows // 2 + rows :] = 0
    reader = open_kspace(write(tmp_path / "a.h5", xml(2 * rows, 20, over=2), lambda w: w.plane(fft2c(images))))
    found = ifft2c(reader.read(0).kspace)
    # Single precision; the values of the image are kept, not only its shape.
    assert np.abs(found - images[:, rows - rows // 2 : rows - rows // 2 + rows]).max() < 1e-5 * np.abs(images).max()
    assert reader.recon_shape == (rows, 20)


def test_acceleration_and_phase_oversampling(tmp_path, rng):
    kspace = fft2c(head_images(rng, 3, 24, 40))
    columns = np.unique([*range(0, 40, 3), *range(16, 25)])
    header = xml(24, 40, recon_y=30, parallel="interleaved")
    reader = open_kspace(write(tmp_path / "a.h5", header, lambda w: w.plane(kspace, columns)))
    part = reader.read(0)
    assert np.array_equal(np.flatnonzero(part.mask[0, 0]), columns)
    assert np.array_equal(part.kspace, np.where(part.mask, kspace, 0))
    assert reader.recon_shape == (24, 30)
    # The sampling is in the file: nothing is guessed.
    assert codes(reader) == []


def test_partial_fourier_in_phase_is_placed_by_the_limits(tmp_path, rng):
    kspace = fft2c(head_images(rng, 2, 24, 32))
    # Counters start at the first measured line, the centre is counter 10.
    header = xml(24, 32, limits={"kspace_encoding_step_1": (25, 10)})

    def fill(writer):
        for ky in range(26):
            writer.line(kspace[:, :, ky + 6], ky)

    part = open_kspace(write(tmp_path / "a.h5", header, fill)).read(0)
    assert np.array_equal(np.flatnonzero(part.mask[0, 0]), np.arange(6, 32))
    assert np.array_equal(part.kspace[..., 6:], kspace[..., 6:])


@pytest.mark.parametrize("over", [1, 2])
def test_partial_echo_is_marked(tmp_path, rng, over):
    rows = 32 * over
    images = head_images(rng, 2, rows, 20)
    if over == 2:
        images[:, :16] = images[:, 48:] = 0
    kspace, missing = fft2c(images), 9 * over
    header = xml(rows, 20, over=over)

    def fill(writer):
        for ky in range(20):
            writer.line(kspace[:, missing:, ky], ky, center=rows // 2 - missing)

    reader = open_kspace(write(tmp_path / "a.h5", header, fill))
    part = reader.read(0)
    assert part.mask.shape == (1, 32, 20)
    assert np.array_equal(np.flatnonzero(part.mask[0, :, 0]), np.arange(9, 32))
    assert not part.kspace[:, :9].any()
    assert codes(reader) == ["partial-echo"]
    if over == 1:
        assert np.array_equal(part.kspace[:, 9:], kspace[:, 9:])


def test_contrasts_and_repetitions_are_items_of_their_own(tmp_path, rng):
    planes = {(c, r): fft2c(head_images(rng, 2, 16, 20)) for c in range(2) for r in range(3)}

    def fill(writer):
        for ky in range(20):
            for (contrast, repetition), plane in planes.items():
                writer.line(plane[:, :, ky], ky, contrast=contrast, repetition=repetition)

    path = write(tmp_path / "a.h5", xml(16, 20), fill)
    readers = open_kspace_items(path)
    assert [reader.label for reader in readers] == [f"contrast-{c}_repetition-{r}" for c, r in planes]
    for reader, plane in zip(readers, planes.values(), strict=True):
        assert np.array_equal(reader.read(0).kspace, plane)
    assert np.array_equal(open_kspace(path, item="contrast-1_repetition-2").read(0).kspace, planes[1, 2])
    with pytest.raises(InputError, match="several items.*contrast-0_repetition-0, .*open_kspace_items"):
        open_kspace(path)


@pytest.mark.parametrize("counter", ["average", "phase", "set"])
def test_other_counters_are_items_too(tmp_path, rng, counter):
    planes = [fft2c(head_images(rng, 2, 16, 12)) for _ in range(2)]

    def fill(writer):
        for number, plane in enumerate(planes):
            writer.plane(plane, **{counter: number})

    readers = open_kspace_items(write(tmp_path / "a.h5", xml(16, 12), fill))
    assert [reader.label for reader in readers] == [f"{counter}-0", f"{counter}-1"]
    assert np.array_equal(readers[1].read(0).kspace, planes[1])


def rotation(rng):
    q = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return q * np.sign(np.linalg.det(q))


def test_slices_are_ordered_in_space_and_the_affine_says_where(tmp_path, rng):
    axes, start = rotation(rng), rng.normal(size=3) * 30
    planes = [fft2c(head_images(rng, 2, 24, 20)) for _ in range(5)]
    acquired = [3, 0, 2, 4, 1]

    def fill(writer):
        for number, place in enumerate(acquired):
            writer.plane(planes[place], slice=number, position=start + axes[:, 2] * place * 5.5, axes=axes)

    reader = open_kspace(write(tmp_path / "a.h5", xml(24, 20), fill))
    assert reader.n == 5
    for i in range(5):
        assert np.array_equal(reader.read(i).kspace, planes[i])
    flip = np.diag([-1, -1, 1.0])
    for col, row, s in ((10, 12, 0), (10, 12, 4), (0, 0, 1), (19, 23, 3)):
        lps = start + axes @ [(row - 12) * 1.5, (col - 10) * 0.8, s * 5.5]
        # Positions and directions are stored in single precision.
        assert np.allclose(reader.affine @ [col, row, s, 1], [*(flip @ lps), 1], atol=1e-4)


def test_a_single_slice_takes_its_thickness_and_uneven_ones_have_no_affine(tmp_path, rng):
    plane = fft2c(head_images(rng, 1, 16, 12))
    reader = open_kspace(write(tmp_path / "a.h5", xml(16, 12), lambda w: w.plane(plane)))
    assert np.allclose(reader.affine[:3, :3], np.array([[0, -1.5, 0], [-0.8, 0, 0], [0, 0, 4]]))

    def fill(writer):
        for number, z in enumerate((0, 4, 11)):
            writer.plane(plane, slice=number, position=(0, 0, z))

    reader = open_kspace(write(tmp_path / "b.h5", xml(16, 12), fill))
    assert reader.affine is None
    assert codes(reader) == ["uneven-spacing"]
    reader = open_kspace(write(tmp_path / "c.h5", xml(16, 12), lambda w: w.plane(plane, axes=np.zeros((3, 3)))))
    assert reader.affine is None
    assert codes(reader) == ["no-orientation"]


def test_a_volume_is_cut_along_its_readout(tmp_path, rng):
    images = np.stack([head_images(rng, 2, 14, 12) * w for w in np.hanning(22)[1:-1]], axis=1)
    axes = (1, 2, 3)
    shifted = np.fft.ifftshift(images, axes=axes)
    kspace = np.fft.fftshift(np.fft.fftn(shifted, axes=axes, norm="ortho"), axes=axes)
    keep = rng.random((14, 12)) < 0.7
    keep[5:10, 4:9] = True
    turn = rotation(rng)

    def fill(writer):
        for ky, kz in np.argwhere(keep):
            writer.line(kspace[:, :, ky, kz], int(ky), kz=int(kz), axes=turn, position=(1, 2, 3))

    reader = open_kspace(write(tmp_path / "a.h5", xml(20, 14, nz=12), fill))
    assert (reader.n, reader.recon_shape) == (20, (14, 12))
    assert reader.fov_mm == pytest.approx((14 * 0.8, 12 * 4.0))
    for i in (0, 7, 19):
        part = reader.read(i)
        assert np.array_equal(part.mask[0], keep)
        wanted = np.where(keep, fft2c(images[:, i]), 0)
        assert np.abs(part.kspace - wanted).max() < 1e-5 * np.abs(wanted).max()
    lps = np.array([1, 2, 3]) + turn @ [(15 - 10) * 1.5, (2 - 7) * 0.8, (9 - 6) * 4.0]
    assert np.allclose(reader.affine @ [9, 2, 15, 1], [*(lps * [-1, -1, 1]), 1], atol=1e-4)


def test_noise_readouts_whiten_the_data(tmp_path, rng):
    mixing = rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4)) + 3 * np.eye(4)

    def noise(*shape):
        return np.tensordot(mixing, rng.normal(size=(4, *shape, 2)) @ [1, 1j] / np.sqrt(2), axes=1)

    # The noise was measured with half the dwell time: twice the power of the noise in the image data.
    kspace = noise(64, 64).astype("c8")
    signal = 1000 * fft2c(head_images(rng, 4, 64, 64))

    def fill(writer, data):
        for _ in range(4):
            writer.line(np.sqrt(2) * noise(512), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT], dwell=2.5)
        writer.plane(data)

    path = write(tmp_path / "a.h5", xml(64, 64), lambda w: fill(w, kspace))
    reader = open_kspace(path)
    part = reader.read(0)
    flat = part.kspace.reshape(4, -1)
    # 2048 noise samples and 4096 of data: a standard error of about 2 % an entry; five times that.
    assert np.abs(flat @ flat.conj().T / flat.shape[1] - np.eye(4)).max() < 0.15
    assert np.array_equal(part.noise_cov, np.eye(4))
    assert "prewhitened" in codes(reader)
    raw = open_kspace(path, prewhiten=False).read(0)
    assert np.array_equal(raw.kspace, kspace)
    power = np.abs(mixing @ mixing.conj().T).max()
    assert np.abs(raw.noise_cov - mixing @ mixing.conj().T).max() < 0.2 * power
    both = open_kspace(write(tmp_path / "b.h5", xml(64, 64), lambda w: fill(w, signal))).read(0)
    assert np.isfinite(both.kspace).all()


def test_lines_that_are_no_image_are_left_out(tmp_path, rng):
    kspace = fft2c(head_images(rng, 2, 16, 12))
    junk = 100 * rng.normal(size=(2, 16))

    def fill(writer):
        for flag in (ismrmrd.ACQ_IS_NAVIGATION_DATA, ismrmrd.ACQ_IS_PHASECORR_DATA, ismrmrd.ACQ_IS_DUMMYSCAN_DATA):
            writer.line(junk, 6, flags=[flag])
        writer.line(junk, 6, flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION])
        writer.plane(kspace)

    reader = open_kspace(write(tmp_path / "a.h5", xml(16, 12, parallel="separate"), fill))
    assert np.array_equal(reader.read(0).kspace, kspace)
    assert codes(reader) == ["calibration-left-out"]


def test_embedded_calibration_lines_and_repeats_are_used(tmp_path, rng):
    kspace = fft2c(head_images(rng, 2, 16, 12))

    def fill(writer):
        writer.plane(kspace, range(0, 12, 2))
        for ky in (5, 7):
            writer.line(kspace[:, :, ky], ky, flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION])
        writer.line(3 * kspace[:, :, 4], 4)

    reader = open_kspace(write(tmp_path / "a.h5", xml(16, 12, parallel="embedded"), fill))
    part = reader.read(0)
    assert np.array_equal(np.flatnonzero(part.mask[0, 0]), [0, 2, 4, 5, 6, 7, 8, 10])
    assert np.allclose(part.kspace[..., 4], 2 * kspace[..., 4])
    assert np.array_equal(part.kspace[..., 5], kspace[..., 5])
    assert codes(reader) == ["repeated-lines"]


def test_reversed_readouts_are_turned(tmp_path, rng):
    kspace = fft2c(head_images(rng, 2, 16, 12))

    def fill(writer):
        writer.plane(kspace, range(0, 12, 2))
        for ky in range(1, 12, 2):
            writer.line(kspace[:, ::-1, ky], ky, flags=[ismrmrd.ACQ_IS_REVERSE])

    reader = open_kspace(write(tmp_path / "a.h5", xml(16, 12), fill))
    assert np.array_equal(reader.read(0).kspace, kspace)
    assert codes(reader) == ["epi"]


def test_what_cannot_be_read_is_refused(tmp_path, rng):
    plane = fft2c(head_images(rng, 2, 16, 12))

    def refused(name, header, fill, pattern):
        with pytest.raises(FormatError, match=pattern):
            open_kspace(write(tmp_path / f"{name}.h5", header, fill)).read(0)

    refused("a", xml(16, 12, trajectory="spiral"), lambda w: w.plane(plane), "only Cartesian.*spiral")
    refused("b", xml(16, 8), lambda w: w.plane(plane), "counter lies outside the encoded matrix.*0 to 11.*0 to 7")
    refused("c", xml(12, 12), lambda w: w.plane(plane), "does not fit the encoded matrix.*16 samples.*within 12")
    refused("d", xml(16, 12), lambda w: w.line(plane[:, :, 0], flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT]), "no imaging")
    refused("e", xml(16, 12), lambda w: (w.plane(plane), w.line(plane[:1, :, 0], 3)), "coils changes.*1, 2")
    plane[1, 3, 4] = np.nan
    refused("f", xml(16, 12), lambda w: w.plane(plane), "slice 0: k-space holds NaN.*in coils 1")


def test_truncated_files_are_refused(tmp_path, rng):
    plane = fft2c(head_images(rng, 4, 64, 48))
    path = write(tmp_path / "DOE_JANE.h5", xml(64, 48), lambda w: w.plane(plane))
    data = path.read_bytes()
    for size in (200, 3000, len(data) // 2, len(data) - 5):
        path.write_bytes(data[:size])
        with pytest.raises(FormatError, match="cut short or damaged|not an HDF5 file") as caught:
            open_kspace(path).read(0)
        assert "DOE" not in str(caught.value)


def test_the_official_generator_is_understood(tmp_path):
    path = tmp_path / "phantom.h5"
    command = "ismrmrd_generate_cartesian_shepp_logan -m 64 -c 6 -n 0.01 -a 2 -w 16 -C -o"
    subprocess.run([*command.split(), str(path)], check=True, capture_output=True)
    readers = open_kspace_items(path)
    assert [reader.label for reader in readers] == ["repetition-0", "repetition-1"]
    parts = [reader.read(0) for reader in readers]
    # Lines 0, 2, 4 … and 1, 3, 5 …, each with the 16 central ones.
    for first, part in enumerate(parts):
        columns = np.flatnonzero(part.mask[0, 0])
        assert set(columns) == set(range(first, 64, 2)) | set(range(24, 40))
    assert readers[0].recon_shape == (64, 64)
    assert readers[0].fov_mm == pytest.approx((300, 300))
    both = np.where(parts[0].mask, parts[0].kspace, parts[1].kspace)
    with h5py.File(path) as file:
        phantom = np.abs(file["dataset/phantom"][0]["real"]).T
    image = rss_image(both)
    # Coil sensitivities shade the image: the phantom and its square-root-of-squares image agree up to that.
    assert np.corrcoef(image.ravel(), phantom.ravel())[0, 1] > 0.9
    assert np.corrcoef(image.ravel(), phantom[::-1].ravel())[0, 1] < 0.9
