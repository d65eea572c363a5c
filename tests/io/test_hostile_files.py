"""What the fuzzer found, as small files: each is refused with a reason, within bounded memory."""

import struct
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pydicom.data
import pytest
import tifffile

from medseq.errors import FormatError, ManifestError
from medseq.io.features_open import open_bag
from medseq.io.features_table import read_bag_csv
from medseq.io.kspace_open import open_kspace_items
from medseq.io.manifest import read_manifest
from medseq.io.plain_text import plain_json, plain_yaml
from medseq.io.slide_directory import require_sound
from medseq.io.slide_open import open_slide
from tests.io.kspace_synthetic import header_xml
from tests.io.slide_synthetic import write_svs

LIMITED = """
import resource, sys
from pathlib import Path
from medseq.errors import MedseqError
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    {code}
except MedseqError as error:
    sys.stdout.write(f"{{type(error).__name__}}: {{error}}")
"""


def limited(code, path):
    """What `code` says of the file `path`, in a process of 1 GiB."""
    script = LIMITED.format(code=code)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_dicom_element_longer_than_memory(tmp_path):
    data = bytearray(Path(pydicom.data.get_testdata_file("CT_small.dcm")).read_bytes())
    # An explicit length of an early element: UN, two reserved bytes, four gigabytes.
    at = data.index(b"\x08\x00\x16\x00UI")
    data[at + 4 : at + 12] = b"UN\0\0" + struct.pack("<I", 0xFFFFFFF0)
    path = tmp_path / "long.dcm"
    path.write_bytes(data)
    code = "from medseq.inference.discover import discover\n    items = list(discover(Path(sys.argv[1])))\n"
    code += "    sys.stdout.write(f'{items[0].state}: {items[0].reason}')"
    said = limited(code, tmp_path)
    assert said.startswith(("failed: ", "skipped: ")), said


def kspace(path, **more):
    with h5py.File(path, "w") as file:
        file["kspace"] = np.ones((1, 2, 8, 8), np.complex64)
        for name, value in more.items():
            file[name] = value
    return path


def test_a_header_that_is_no_text(tmp_path):
    path = kspace(tmp_path / "a.h5", ismrmrd_header=np.arange(3))
    with pytest.raises(FormatError, match=r"the ISMRMRD header is no text \(wanted one string\)"):
        open_kspace_items(path)
    path = kspace(tmp_path / "b.h5", ismrmrd_header=7)
    with pytest.raises(FormatError, match="ISMRMRD header is not XML"):
        open_kspace_items(path)


def test_data_sets_that_are_written_by_nobody_and_larger_than_memory(tmp_path):
    path = kspace(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file.create_dataset("ismrmrd_header", (1 << 40,), "S10", chunks=True)
    with pytest.raises(FormatError, match="header is no text"):
        open_kspace_items(path)
    path = tmp_path / "bag.h5"
    with h5py.File(path, "w") as file:
        file["features"] = np.ones((5, 3), np.float32)
        file.create_dataset("coords", (1 << 40, 2), "i8", chunks=True)
    with pytest.raises(FormatError, match=r"features and coords disagree \(found 5 features, 1099511627776 coords"):
        open_bag(path)


def test_k_space_that_was_never_written(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", (100_000, 100, 512, 512), "c8", chunks=(782, 2, 8, 8))
    with pytest.raises(FormatError, match=r"cut short or damaged \(found 0 bytes, wanted 20971520000000 bytes\)"):
        open_kspace_items(path)


def test_an_ismrmrd_header_larger_than_memory(tmp_path):
    import ismrmrd

    path = tmp_path / "a.h5"
    dataset = ismrmrd.Dataset(str(path), "dataset", create_if_needed=True)
    dataset.write_xml_header(header_xml((8, 8, 1), (8, 8, 1), (8, 8, 1), (8, 8, 1)).encode())
    dataset.append_acquisition(ismrmrd.Acquisition.from_array(np.ones((2, 8), np.complex64)))
    dataset.close()
    with h5py.File(path, "r+") as file:
        del file["dataset/xml"]
        file.create_dataset("dataset/xml", (1 << 40,), "S10", chunks=True)
    with pytest.raises(FormatError, match="header is no text"):
        open_kspace_items(path)


@pytest.mark.parametrize("header", [b"{'descr': '<c8', 'shape': (2,\n", b"((((((((((\n", b"{'descr':\n", b"\x00\xff\n"])
def test_a_numpy_header_that_is_no_python(tmp_path, header):
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64))
    with pytest.raises(FormatError, match="not a numpy file|cut short"):
        open_kspace_items(path)


def test_a_label_beyond_64_bits(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1e300,bag,1,2\n")
    with pytest.raises(FormatError, match="the label is no whole number"):
        read_bag_csv(path)


def test_a_row_of_blanks_in_a_table(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("0,bag,1,2\n0,bag, \n0,bag,3,4\n")
    with pytest.raises(FormatError, match=r"row 2.*1 features, wanted 2"):
        read_bag_csv(path)


def svs(tmp_path, rng):
    path = write_svs(tmp_path / "a.svs", rng.integers(0, 255, (512, 512, 3), dtype=np.uint8))
    with tifffile.TiffFile(path) as tiff:
        return path, {tag.code: tag.valueoffset for tag in tiff.pages[0].tags}


def test_a_tile_longer_than_its_slide(tmp_path, rng):
    """GLib ends a process that asks it for four gigabytes in vain; OpenSlide asks for what the header says."""
    path, places = svs(tmp_path, rng)
    with open_slide(path) as slide:
        slide.region(0, 0, 0, 64, 64)
    data = bytearray(path.read_bytes())
    data[places[325] : places[325] + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"the slide's directory is damaged \(found a tile outside of the file\)"):
        open_slide(path)


def test_a_slide_whose_directories_go_round(tmp_path, rng):
    path, _ = svs(tmp_path, rng)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        assert len(tiff.pages) == 2
        first, second = (page.offset for page in tiff.pages)
        count = struct.unpack("<H", data[second : second + 2])[0]
    after = second + 2 + 12 * count
    data[after : after + 4] = struct.pack("<I", first)
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"directory is damaged \(found a directory that leads outside of the file"):
        require_sound(path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "a: " * 5000,
        "&a [*a, *a]",
        "when: 2001-99-99",
        "a: 1\na: 2",
        "{[1]: 2}",
        "!!python/object/apply:os.getcwd []",
        "\0",
        "x" * (1 << 21),
    ],
)
def test_yaml_of_a_stranger(tmp_path, text):
    with pytest.raises(ValueError, match=r"^.{3,200}$"):
        plain_yaml(text)
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(ManifestError, match="not YAML"):
        read_manifest(path)


def test_plain_yaml_and_json_are_what_they_say():
    assert plain_yaml("a: [1, 2.5, null, x]") == {"a": [1, 2.5, None, "x"]}
    assert plain_json(b'{"a": [1]}') == {"a": [1]}
    with pytest.raises(ValueError, match="nested too deeply"):
        plain_json("[" * 100_000)
