"""NIfTI: every version, compression, dimension and type; fields verbatim; same bytes; damaged files refused."""

import errno
import gzip
import os
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseq.errors import FormatError, MedseqError, OutputError, RetryableError, ShapeError
from medseq.io.nifti import NiftiWriter, open_nifti
from medseq.io.source import source_warnings
from medseq.io.volume import Volume, VolumeReader, VolumeWriter
from tests.io.synthetic import FOLDER, PLANTED

SHIPPED = sorted(
    path for path in (Path(nib.__file__).parent / "tests" / "data").glob("*.nii*") if "dconn" not in path.name
)
GEOMETRY = ("sform_code", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
GEOMETRY += ("srow_x", "srow_y", "srow_z", "pixdim", "dim", "xyzt_units")


def whole(reader):
    """Everything a reader has, in [slice, row, col(, time)]."""
    planes, shape = reader.read(0, reader.header.planes), reader.header.shape
    return np.moveaxis(planes.reshape(shape[3], *shape[:3]), 0, 3) if len(shape) == 4 else planes


def copy(reader, path, step=3, **how):
    writer = NiftiWriter(path, **how)
    assert isinstance(writer, VolumeWriter)
    writer.begin(reader.header)
    for lo in range(0, reader.header.planes, step):
        writer.write(lo, reader.read(lo, min(lo + step, reader.header.planes)))
    assert writer.commit() == [path]
    return writer


def make(path, array, kind=nib.Nifti1Image, **fields):
    """A file written by nibabel, with an oblique sform and another qform."""
    affine = np.array([[-0.9, 0.1, 0.2, 11.3], [0.05, 1.1, -0.3, -22.7], [0.1, 0.2, 2.4, 5.1], [0, 0, 0, 1]])
    image = kind(array, affine)
    image.set_sform(affine, code=2)
    image.set_qform(np.diag([1, 1, 2.5, 1]) @ np.eye(4), code=1)
    for name, value in fields.items():
        image.header[name] = value
    image.to_filename(path)
    return path


def raw_header(path):
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    kind = nib.Nifti1Header if data[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") else nib.Nifti2Header
    order = "<" if data[0] else ">"
    return kind(data[: 348 if kind is nib.Nifti1Header else 540], endianness=order, check=False)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_nibabels_own_files_read_and_round_trip(path, tmp_path):
    reader, image = open_nifti(path), nib.load(path)
    assert isinstance(reader, VolumeReader)
    assert np.array_equal(reader.header.affine, image.affine)
    expected = np.moveaxis(image.get_fdata(), (0, 1, 2), (2, 1, 0)).astype(np.float32)
    assert np.array_equal(whole(reader), expected, equal_nan=True)
    for suffix in (".nii", ".nii.gz"):
        target = tmp_path / f"out{suffix}"
        assert copy(reader, target).clipped == 0
        back = nib.load(target)
        assert np.array_equal(back.affine, image.affine)
        # Not only the values: the stored voxels and every field of the geometry, byte for byte.
        assert np.array_equal(back.dataobj.get_unscaled(), image.dataobj.get_unscaled(), equal_nan=True)
        before, after = raw_header(path), raw_header(target)
        assert before.endianness == after.endianness
        for field in (*GEOMETRY, "datatype", "scl_slope", "scl_inter"):
            assert before[field].tobytes() == after[field].tobytes(), field
        assert len(back.header.extensions) == len(image.header.extensions)
        assert b"research use only" in back.header["descrip"].tobytes()


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3), (5, 4, 3, 2), (5, 4, 3, 1), (1, 1, 1)])
def test_versions_compressions_and_dimensions(tmp_path, rng, kind, suffix, shape):
    array = rng.normal(size=shape).astype(np.float32)
    path = make(tmp_path / f"a{suffix}", array, kind)
    reader = open_nifti(path, modality="MR", units="1")
    assert (reader.header.modality, reader.header.units) == ("MR", "1")
    assert reader.header.shape == (1, 4, 5) if len(shape) == 2 else shape[2::-1] + shape[3:]
    expected = array.T if len(shape) < 4 else np.moveaxis(array, (0, 1, 2), (2, 1, 0))
    assert np.array_equal(whole(reader), expected.reshape(reader.header.shape))
    copy(reader, tmp_path / f"b{suffix}", step=1)
    assert np.array_equal(nib.load(tmp_path / f"b{suffix}").dataobj.get_unscaled(), array)


def test_time_is_read_one_volume_after_the_other_in_any_piece(tmp_path, rng):
    array = rng.normal(size=(5, 4, 3, 6)).astype(np.float32)
    reader = open_nifti(make(tmp_path / "a.nii.gz", array))
    assert reader.header.planes == 18
    for lo, hi in ((0, 18), (2, 7), (17, 18), (5, 5), (0, 1)):
        expected = [array[:, :, p % 3, p // 3].T for p in range(lo, hi)]
        assert np.array_equal(reader.read(lo, hi), np.reshape(expected, (hi - lo, 4, 5)))


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_integers_keep_type_scale_and_stored_values(tmp_path, rng, dtype, order):
    stored = rng.integers(0, 100, (4, 3, 5)).astype(dtype)
    image = nib.Nifti1Image(stored, np.eye(4), nib.Nifti1Header(endianness=order))
    image.header.set_data_dtype(np.dtype(dtype))
    path = tmp_path / "a.nii"
    image.to_filename(path)
    slope, intercept = (0.37, -12.5) if dtype[0] in "iu" else (1.0, 0.0)
    data = bytearray(path.read_bytes())
    for place, value in ((112, slope), (116, intercept)):
        data[place : place + 4] = np.array(value, f"{order}f4").tobytes()
    path.write_bytes(data)
    reader = open_nifti(path)
    assert reader.header.dtype == np.dtype(dtype)
    exact = stored.astype(np.float64) * float(np.float32(slope)) + float(np.float32(intercept))
    assert np.array_equal(whole(reader), exact.T.astype(np.float32))
    copy(reader, tmp_path / "b.nii")
    assert (tmp_path / "b.nii").read_bytes()[352:] == path.read_bytes()[352:]
    assert raw_header(tmp_path / "b.nii")["scl_slope"] == np.float32(slope)


def test_results_are_rounded_to_the_nearest_integer_and_clipped_ones_counted(tmp_path, rng):
    stored = rng.integers(-1000, 1000, (4, 3, 5)).astype("i2")
    reader = open_nifti(make(tmp_path / "a.nii", stored))
    planes = reader.read(0, 5) + rng.uniform(-3, 3, (5, 3, 4)).astype(np.float32)
    expected = planes.copy()
    planes[2, 1, 1], planes[4, 0, 0] = 40000, -40000
    writer = NiftiWriter(tmp_path / "b.nii")
    writer.begin(reader.header)
    writer.write(0, planes)
    writer.commit()
    assert writer.clipped == 2
    back = whole(open_nifti(tmp_path / "b.nii"))
    assert (back[2, 1, 1], back[4, 0, 0]) == (32767, -32768)
    back[2, 1, 1], back[4, 0, 0] = expected[2, 1, 1], expected[4, 0, 0]
    assert np.abs(back - expected).max() <= 0.5


def test_another_type_may_be_asked_for(tmp_path, rng):
    stored = rng.integers(0, 100, (4, 3, 5)).astype("u2")
    reader = open_nifti(make(tmp_path / "a.nii", stored))
    writer = NiftiWriter(tmp_path / "b.nii", dtype=np.float32)
    writer.begin(reader.header)
    difference = rng.normal(size=(5, 3, 4)).astype(np.float32)
    writer.write(0, difference)
    writer.commit()
    back = open_nifti(tmp_path / "b.nii")
    assert back.header.dtype == np.float32
    assert np.array_equal(back.read(0, 5), difference)
    assert np.array_equal(back.header.affine, reader.header.affine)


def test_values_that_are_not_finite_are_invalid_and_kept_in_floats(tmp_path, rng):
    array = rng.normal(size=(4, 3, 5)).astype(np.float32)
    array[0, 0, 0], array[1, 2, 3], array[3, 1, 3] = np.nan, np.inf, -np.inf
    reader = open_nifti(make(tmp_path / "a.nii.gz", array))
    assert reader.valid(1, 3) is None
    assert (~reader.valid(0, 5)).sum() == 3
    assert not reader.valid(0, 1)[0, 0, 0]
    copy(reader, tmp_path / "b.nii.gz")
    assert np.array_equal(nib.load(tmp_path / "b.nii.gz").dataobj.get_unscaled(), array, equal_nan=True)
    writer = NiftiWriter(tmp_path / "c.nii", dtype="i2")
    writer.begin(reader.header)
    with pytest.raises(OutputError, match="cannot hold NaN"):
        writer.write(0, reader.read(0, 1))
    writer.abort()
    assert not [name for name in os.listdir(tmp_path) if "c.nii" in name]


def test_integers_are_always_valid(tmp_path, rng):
    reader = open_nifti(make(tmp_path / "a.nii", rng.integers(0, 9, (4, 3, 5)).astype("i2")))
    assert reader.valid(0, 5) is None


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_the_same_volume_gives_the_same_bytes(tmp_path, rng, suffix, monkeypatch):
    volume = Volume.from_array(rng.normal(size=(3, 4, 5)).astype(np.float32))
    copy(volume, tmp_path / f"first{suffix}", step=1)
    # Neither the clock, the name nor the size of the pieces is in the file.
    monkeypatch.setattr("time.time", lambda: 12345.0)
    copy(volume, tmp_path / f"second{suffix}", step=3)
    assert (tmp_path / f"first{suffix}").read_bytes() == (tmp_path / f"second{suffix}").read_bytes()


@pytest.mark.parametrize("dtype", ["i2", "f4", "bool", "f2"])
def test_a_volume_in_memory_is_written_with_its_affine(tmp_path, rng, dtype):
    affine = np.array([[0, 0, 2.5, 1], [-0.5, 0, 0, 2], [0, -0.75, 0, 3], [0, 0, 0, 1]])
    array = rng.integers(0, 2, (3, 4, 5)).astype(dtype)
    copy(Volume.from_array(array, affine=affine), tmp_path / "a.nii")
    image = nib.load(tmp_path / "a.nii")
    assert np.array_equal(image.affine, affine)
    # The quaternion holds the same matrix to single precision.
    assert np.allclose(image.get_qform(), affine, atol=1e-6)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert np.array_equal(image.get_fdata().T, array.astype(float))


def test_more_voxels_along_an_axis_than_nifti1_counts_become_nifti2(tmp_path, rng):
    volume = Volume.from_array(rng.integers(0, 9, (1, 1, 40000)).astype("u1"))
    copy(volume, tmp_path / "a.nii")
    assert isinstance(nib.load(tmp_path / "a.nii"), nib.Nifti2Image)
    assert np.array_equal(whole(open_nifti(tmp_path / "a.nii")), volume.array)


def test_a_cropped_volume_gets_a_header_of_its_own(tmp_path, rng):
    from dataclasses import replace

    reader = open_nifti(make(tmp_path / "a.nii", rng.normal(size=(4, 3, 5)).astype("f4")))
    affine = reader.header.affine.copy()
    affine[:3, 3] += 2 * affine[:3, 2]
    header = replace(
        reader.header,
        shape=(3, 3, 4),
        affine=affine,
        slice_affines=reader.header.slice_affines[2:],
        dtype=np.dtype("f4"),
    )
    cropped = Volume(header, reader.read(2, 5))
    copy(cropped, tmp_path / "b.nii")
    back = open_nifti(tmp_path / "b.nii")
    assert back.header.shape == (3, 3, 4)
    assert np.allclose(back.header.affine, affine, atol=1e-6)
    assert np.array_equal(back.read(0, 3), cropped.array)


def test_a_file_without_orientation_says_so(tmp_path, rng):
    path = make(tmp_path / "a.nii", rng.normal(size=(4, 3, 5)).astype("f4"))
    data = bytearray(path.read_bytes())
    data[252:256] = bytes(4)
    path.write_bytes(data)
    assert [w.code for w in source_warnings(open_nifti(path).header)] == ["no-orientation"]


def test_memory_is_bounded_by_the_piece(tmp_path, rng):
    # 64 planes of 64 KiB; a reader that held the file would need 4 MiB.
    array = rng.normal(size=(128, 128, 64)).astype("f4")
    for suffix in (".nii", ".nii.gz"):
        reader = open_nifti(make(tmp_path / f"a{suffix}", array))
        writer = NiftiWriter(tmp_path / f"b{suffix}")
        reader.read(0, 1)
        tracemalloc.start()
        writer.begin(reader.header)
        for i in range(64):
            writer.write(i, reader.read(i, i + 1))
            reader.valid(i, i + 1)
        writer.commit()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20, suffix


def damaged(tmp_path, rng, change, suffix=".nii"):
    """A file below a folder with a patient's name, with `change` done to its bytes."""
    folder = tmp_path / FOLDER
    folder.mkdir(exist_ok=True)
    path = make(folder / f"{FOLDER}{suffix}", rng.normal(size=(4, 3, 5)).astype("f4"))
    path.write_bytes(change(bytearray(path.read_bytes())))
    return path


def patch(place, data):
    def change(content):
        content[place : place + len(data)] = data
        return content

    return change


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda data: data[:100], "not a NIfTI file .*100 bytes"),
        (lambda data: b"hello " * 100, "not a single-file NIfTI"),
        (lambda data: data[:400], "cut short or damaged .*wanted 592 bytes"),
        (lambda data: data[:-1], "cut short or damaged .*found 591 bytes"),
        (patch(344, b"ni1\0"), "not a single-file NIfTI"),
        (patch(40, np.array([5, 4, 3, 5, 1, 3], "<i2").tobytes()), "of these dimensions .*4, 3, 5, 1, 3"),
        (patch(40, np.array([3, 4, 0, 5], "<i2").tobytes()), "of these dimensions"),
        (patch(40, np.array([1, 4], "<i2").tobytes()), "of these dimensions"),
        (patch(70, np.array([128], "<i2").tobytes()), "of this type cannot be read"),
        (patch(70, np.array([32], "<i2").tobytes()), "of this type cannot be read .*complex64"),
        (patch(70, np.array([999], "<i2").tobytes()), "the NIfTI header makes no sense"),
        (patch(108, np.array([-5], "<f4").tobytes()), "voxel offset makes no sense"),
        (patch(280, bytes(48)), "affine makes no sense"),
        (patch(280, np.full(12, np.nan, "<f4").tobytes()), "affine makes no sense"),
    ],
)
def test_damaged_files_are_refused_without_names(tmp_path, rng, change, pattern):
    path = damaged(tmp_path, rng, change)
    with pytest.raises(FormatError, match=pattern) as caught:
        open_nifti(path)
    assert not any(word in str(caught.value).lower() for word in PLANTED)


def test_a_truncated_compressed_file_is_refused_when_the_end_is_reached(tmp_path, rng):
    path = damaged(tmp_path, rng, lambda data: data[: len(data) - 60], ".nii.gz")
    reader = open_nifti(path)
    with pytest.raises(FormatError, match="cut short or damaged") as caught:
        reader.read(0, 5)
    assert not any(word in str(caught.value).lower() for word in PLANTED)


def test_a_header_that_promises_more_than_compression_can_hold_is_refused(tmp_path, rng):
    path = make(tmp_path / "a.nii", np.zeros((4, 3, 5), "f4"))
    data = bytearray(path.read_bytes())
    data[40:48] = np.array([3, 30000, 30000, 30000], "<i2").tobytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(FormatError, match="before compression"):
        open_nifti(tmp_path / "b.nii.gz")


def test_a_missing_file_is_retryable_without_its_name(tmp_path):
    with pytest.raises(RetryableError, match="cannot be read .*No such file") as caught:
        open_nifti(tmp_path / FOLDER / "a.nii")
    assert not any(word in str(caught.value).lower() for word in PLANTED)


def test_mutated_files_raise_nothing_but_medseqs_errors(tmp_path, rng):
    sources = [path.read_bytes() for path in SHIPPED if path.stat().st_size < 70_000]
    outcomes = {"read": 0, "refused": 0}
    for _ in range(300):
        data = bytearray(sources[rng.integers(len(sources))])
        reach = len(data) if rng.random() < 0.3 else min(352, len(data))
        for _ in range(rng.choice([1, 2, 8])):
            data[rng.integers(reach)] = rng.integers(256)
        if rng.random() < 0.2:
            data = data[: rng.integers(len(data))]
        path = tmp_path / ("a.nii.gz" if data[:2] == b"\x1f\x8b" else "a.nii")
        path.write_bytes(data)
        try:
            reader = open_nifti(path)
            reader.read(0, 1)
            reader.read(reader.header.planes - 1, reader.header.planes)
            outcomes["read"] += 1
        except MedseqError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10, outcomes


@pytest.mark.parametrize(
    ("attempt", "kind", "pattern"),
    [
        (lambda w, v: w.write(0, v.array), OutputError, "nothing was begun"),
        (lambda w, v: (w.begin(v.header), w.write(1, v.array)), ShapeError, "found plane 1"),
        (lambda w, v: (w.begin(v.header), w.write(0, v.array[:, 1:])), ShapeError, "do not continue"),
        (lambda w, v: (w.begin(v.header), w.write(0, v.array[:1]), w.commit()), OutputError, "not complete"),
    ],
)
def test_misuse_is_refused_and_leaves_nothing(tmp_path, rng, attempt, kind, pattern):
    volume = Volume.from_array(rng.normal(size=(2, 3, 4)).astype("f4"))
    writer = NiftiWriter(tmp_path / "a.nii.gz")
    with pytest.raises(kind, match=pattern):
        attempt(writer, volume)
    writer.abort()
    writer.abort()
    assert os.listdir(tmp_path) == []


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(OutputError, match="not a NIfTI name .*found .mha"):
        NiftiWriter(tmp_path / "a.mha")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_full_disk_is_retryable_and_leaves_the_old_file(tmp_path, rng, monkeypatch, suffix):
    target = tmp_path / f"a{suffix}"
    volume = Volume.from_array(rng.normal(size=(2, 3, 4)).astype("f4"))
    copy(volume, target)
    old = target.read_bytes()
    writer = NiftiWriter(target)
    writer.begin(volume.header)
    writer.write(0, volume.array)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RetryableError, match="ENOSPC"):
        writer.commit()
    writer.abort()
    assert os.listdir(tmp_path) == [target.name]
    assert target.read_bytes() == old
