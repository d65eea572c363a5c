"""Pixels of a stack: values, padding, pieces, memory; and the windows that go with them."""

import tracemalloc
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_rescale, apply_voi, apply_windowing
from pydicom.sequence import Sequence

from medseq.errors import FormatError, RetryableError, ShapeError
from medseq.io.dicom import display_window, group_dicom, open_dicom
from medseq.io.volume import Volume, VolumeReader
from tests.io.synthetic import PLANTED, save, set_pixels, stack


def read_one(paths):
    stacks, skipped, broken = group_dicom(paths)
    assert (len(stacks), skipped, broken) == (1, [], [])
    return open_dicom(stacks[0])


def opened(images, tmp_path):
    return read_one(save(images, tmp_path))


@pytest.mark.parametrize("dtype", ["i2", "u2", "u1", "i4", "u4"])
def test_values_are_stored_times_slope_plus_intercept(tmp_path, rng, dtype):
    images = stack(rng, slices=3, modality="MR", dtype=dtype)
    for ds in images:
        ds.RescaleSlope, ds.RescaleIntercept = "3.774114", "0.000061"
    reader = opened(images, tmp_path)
    assert isinstance(reader, VolumeReader)
    assert reader.header.dtype == np.dtype(dtype)
    expected = np.stack([apply_rescale(ds.pixel_array, ds) for ds in images])
    assert reader.read(0, 3).dtype == np.float32
    # pydicom computes in float64; ours is that, rounded once.
    assert np.array_equal(reader.read(0, 3), expected.astype(np.float32))


def test_every_slice_has_its_own_slope(tmp_path, rng):
    images = stack(rng, slices=4, modality="PT")
    for k, ds in enumerate(images):
        ds.RescaleSlope = str(0.25 * (k + 1))
    reader = opened(images, tmp_path)
    expected = np.stack([ds.pixel_array * np.float32(0.25 * (k + 1)) for k, ds in enumerate(images)])
    assert np.array_equal(reader.read(0, 4), expected)
    assert reader.header.units == "Bq/ml"


def test_bits_above_bits_stored_are_not_part_of_the_value(tmp_path, rng):
    images = stack(rng, slices=1, modality="MR", dtype="u2")
    values = rng.integers(0, 4096, (6, 8)).astype("u2")
    set_pixels(images[0], values | 0xA000)
    images[0].BitsStored, images[0].HighBit = 12, 11
    assert np.array_equal(opened(images, tmp_path).read(0, 1)[0], values)


def test_a_modality_lookup_table_is_applied(tmp_path, rng):
    images = stack(rng, slices=1, modality="MR", dtype="u2")
    set_pixels(images[0], rng.integers(0, 4, (6, 8)).astype("u2"))
    table = pydicom.Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4, 0, 16], "US"
    table.LUTData = [7, 100, 5, 2000]
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    images[0].ModalityLUTSequence = Sequence([table])
    expected = np.array([7, 100, 5, 2000])[images[0].pixel_array]
    assert np.array_equal(opened(images, tmp_path).read(0, 1)[0], expected)


@pytest.mark.parametrize(
    ("stored", "first", "limit", "padded"),
    [
        ("i2", -2000, None, {-2000}),
        ("i2", -2000, -1998, {-2000, -1999, -1998}),
        ("i2", -1998, -2000, {-2000, -1999, -1998}),
        ("u2", 0, 2, {0, 1, 2}),
        ("u2", 65535, None, {65535}),
    ],
)
def test_padding_values_are_not_valid(tmp_path, rng, stored, first, limit, padded):
    images = stack(rng, slices=3, modality="MR", dtype=stored)
    values = np.arange(48).reshape(6, 8).astype(stored)
    values.flat[: len(padded) + 1] = [*sorted(padded), max(padded) + (1 if max(padded) < 65535 else -1)]
    for ds in images[1:]:
        set_pixels(ds, values)
        ds.PixelPaddingValue = first
        if limit is not None:
            ds.PixelPaddingRangeLimit = limit
    reader = opened(images, tmp_path)
    expected = ~np.isin(values, list(padded))
    assert 0 < expected.sum() < expected.size
    assert np.array_equal(reader.valid(1, 3), [expected, expected])
    assert reader.valid(0, 1) is None
    assert reader.valid(0, 2)[0].all()


def test_a_padding_value_of_the_wrong_sign_is_understood(tmp_path, rng):
    images = stack(rng, slices=1)
    values = images[0].pixel_array.copy()
    values[0, :3] = -2000
    set_pixels(images[0], values)
    images[0].add_new(0x00280120, "US", 63536)
    assert (~opened(images, tmp_path).valid(0, 1)).sum() == 3


def circle(values, stored):
    values = values.copy()
    for r in (0, -1):
        for c in (0, -1):
            values[r, c] = stored
    return values


def test_the_outside_of_the_reconstruction_circle_is_not_valid_without_a_tag(tmp_path, rng):
    images = stack(rng, slices=1)
    set_pixels(images[0], circle(images[0].pixel_array, -2000))
    valid = opened(images, tmp_path).valid(0, 1)
    assert (~valid).sum() == 4
    assert not valid[0, 0, 0]


@pytest.mark.parametrize(("modality", "stored"), [("CT", 0), ("CT", -400), ("MR", -2000)])
def test_air_in_the_corners_is_valid(tmp_path, rng, modality, stored):
    images = stack(rng, slices=1, modality=modality)
    set_pixels(images[0], circle(images[0].pixel_array, stored))
    assert opened(images, tmp_path).valid(0, 1) is None


def test_monochrome1_keeps_its_values_and_is_shown_inverted(tmp_path, rng):
    images = stack(rng, slices=1)
    images[0].PhotometricInterpretation = "MONOCHROME1"
    reader = opened(images, tmp_path)
    assert np.array_equal(reader.read(0, 1)[0], images[0].pixel_array - 1024)
    assert reader.header.source.header.frames[0].pixels.photometric == "MONOCHROME1"
    window = display_window(reader.header)
    assert window.inverted
    assert window.grey(np.array([-1000.0, 1000.0])).tolist() == [1.0, 0.0]


def test_pieces_equal_the_whole_and_each_frame_is_decoded_once(tmp_path, rng, monkeypatch):
    import medseq.io.dicom_codecs as module

    images = stack(rng, slices=9)
    for ds in images:
        ds.PixelPaddingValue = 3
    reader = opened(images, tmp_path)
    whole = open_dicom(group_dicom(reader.header.source.files)[0][0]).read(0, 9)
    decoded = []
    original = module.iter_pixels

    def counting(path, **kwargs):
        decoded.extend([path] * len(list(kwargs["indices"])))
        return original(path, **kwargs)

    monkeypatch.setattr(module, "iter_pixels", counting)
    for lo in range(0, 9, 2):
        hi = min(lo + 2, 9)
        reader.valid(lo, hi)
        assert np.array_equal(reader.read(lo, hi), whole[lo:hi])
    assert sorted(decoded) == sorted(reader.header.source.files)
    # A window of context slices that moves by one decodes one new frame a step.
    decoded.clear()
    for lo in range(7):
        reader.read(lo, lo + 3)
    assert len(decoded) == 9


def test_memory_is_bounded_by_the_piece_not_by_the_volume(tmp_path, rng):
    def peak(slices):
        reader = opened(stack(rng, slices=slices, shape=(128, 128)), tmp_path / str(slices))
        reader.read(0, 1)
        tracemalloc.start()
        for i in range(slices):
            reader.read(i, i + 1)
            reader.valid(i, i + 1)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small, large = peak(4), peak(32)
    # One plane is 64 KiB as float32; eight times the slices may not cost one plane more.
    assert large < small + 64 * 1024


@pytest.mark.parametrize(("lo", "hi"), [(-1, 1), (0, 6), (3, 2)])
def test_planes_that_do_not_exist_are_refused(tmp_path, rng, lo, hi):
    reader = opened(stack(rng), tmp_path)
    with pytest.raises(ShapeError, match="no such planes"):
        reader.read(lo, hi)


def test_an_empty_piece_is_empty(tmp_path, rng):
    reader = opened(stack(rng), tmp_path)
    assert reader.read(2, 2).shape == (0, 6, 8)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (8192, 8192)])
def test_smallest_and_largest_images(tmp_path, rng, shape):
    images = stack(rng, slices=1, shape=shape)
    reader = opened(images, tmp_path)
    assert reader.header.shape == (1, *shape)
    assert np.array_equal(reader.read(0, 1)[0], images[0].pixel_array.astype(np.float32) - 1024)


def test_damaged_compressed_pixels_are_a_format_error_without_names(tmp_path, rng, capfd):
    source = pydicom.data.get_testdata_file("MR_small_jpeg_ls_lossless.dcm")
    ds = pydicom.dcmread(source)
    data = bytearray(ds.PixelData)
    # End-of-image marks: a random stream decodes without complaint once in a few hundred times.
    data[60:2000] = b"\xff\xd9" * 970
    ds.PixelData = bytes(data)
    path = tmp_path / "plantedname_4711.dcm"
    ds.save_as(path)
    reader = read_one([path])
    with pytest.raises(FormatError, match="cannot be decoded .*JPEG-LS") as caught:
        reader.read(0, 1)
    assert not any(word in str(caught.value).lower() for word in PLANTED)
    assert not any(word in "".join(capfd.readouterr()).lower() for word in PLANTED)


def test_damaged_run_lengths_are_a_format_error(tmp_path, rng):
    # A decoder that is installed beside pydicom's panics on these, past every `except Exception`.
    source = pydicom.dcmread(pydicom.data.get_testdata_file("MR_small_RLE.dcm"))
    data = bytearray(source.PixelData)
    path = tmp_path / "a.dcm"
    messages = []
    for _ in range(30):
        start = int(rng.integers(80, len(data) - 200))
        damaged = bytearray(data)
        damaged[start : start + 100] = rng.bytes(100)
        source.PixelData = bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source.save_as(path)
        try:
            read_one([path]).read(0, 1)
        except FormatError as error:
            messages.append(str(error))
    assert messages
    assert all("cannot be decoded" in message for message in messages)


def test_a_file_that_vanishes_is_retryable(tmp_path, rng):
    reader = opened(stack(rng), tmp_path)
    reader.header.source.files[2].unlink()
    reader.read(0, 2)
    with pytest.raises(RetryableError, match="cannot be read .*No such file") as caught:
        reader.read(2, 3)
    assert not any(word in str(caught.value).lower() for word in PLANTED)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
def test_windows_agree_with_pydicom(tmp_path, rng, function):
    images = stack(rng, slices=3)
    for ds in images:
        ds.WindowCenter, ds.WindowWidth = ["300", "40"], ["1500", "80"]
        if function:
            ds.VOILUTFunction = function
    reader = opened(images, tmp_path)
    window = display_window(reader.header)
    assert (window.center, window.width) == (300.0, 1500.0)
    ours = window.grey(reader.read(1, 2)[0])
    theirs = apply_windowing(apply_rescale(images[1].pixel_array, images[1]), images[1])
    # pydicom maps to the range of the stored integers, here all 16 bits after the rescale.
    span = theirs.min(), theirs.max()
    low, high = -32768 - 1024, 32767 - 1024
    assert low <= span[0] <= span[1] <= high
    assert np.allclose(ours, (theirs - low) / (high - low), atol=1e-6)


def test_a_voi_lookup_table_agrees_with_pydicom(tmp_path, rng):
    images = stack(rng, slices=1, modality="MR", dtype="u2")
    set_pixels(images[0], rng.integers(0, 300, (6, 8)).astype("u2"))
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTExplanation = [256, 20, 12], "bone"
    table.LUTData = [int(v) for v in np.sort(rng.integers(0, 4096, 256))]
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    images[0].VOILUTSequence = Sequence([table])
    reader = opened(images, tmp_path)
    ours = display_window(reader.header).grey(reader.read(0, 1)[0])
    theirs = apply_voi(images[0].pixel_array, images[0])
    assert np.allclose(ours, theirs / 4095, atol=1e-6)


@pytest.mark.parametrize("width", [None, "0", "-5"])
def test_without_a_usable_window_there_is_none(tmp_path, rng, width):
    images = stack(rng, slices=1)
    if width is None:
        del images[0].WindowWidth
    else:
        images[0].WindowWidth = width
    assert display_window(opened(images, tmp_path).header) is None


def test_a_volume_in_memory_has_no_dicom_window():
    assert display_window(Volume.from_array(np.zeros((1, 2, 2))).header) is None
