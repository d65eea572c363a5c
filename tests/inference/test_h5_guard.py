"""A file that hangs the HDF5 library costs itself, not the run that found it."""

import time

import h5py
import ismrmrd
import numpy as np
import pytest

from medseq.errors import FormatError
from medseq.inference import h5_guard
from medseq.inference.discover import discover
from medseq.inference.h5_guard import require_openable
from tests.io.kspace_synthetic import header_xml


@pytest.fixture
def scan(tmp_path, rng):
    path = tmp_path / "in" / "scan.h5"
    path.parent.mkdir()
    dataset = ismrmrd.Dataset(str(path), "dataset", create_if_needed=True)
    dataset.write_xml_header(header_xml((16, 16, 1), (16, 16, 1), (9.0, 9.0, 1.0), (9.0, 9.0, 1.0)).encode())
    for ky in range(16):
        line = ismrmrd.Acquisition.from_array(rng.normal(size=(2, 16)).astype(np.complex64))
        line.center_sample, line.idx.kspace_encode_step_1 = 8, ky
        line.read_dir[:], line.phase_dir[:], line.slice_dir[:] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
        dataset.append_acquisition(line)
    dataset.close()
    return path


def hang(path):
    """Objects of no size in the global heap: the library steps over the first one for ever."""
    data = bytearray(path.read_bytes())
    at = data.index(b"GCOL", data.index(b"GCOL") + 4) + 16
    data[at : at + 600] = bytes(600)
    path.write_bytes(data)


def test_a_file_that_hangs_the_library_is_refused_and_others_are_found(scan, monkeypatch):
    monkeypatch.setattr(h5_guard, "_PATIENCE_S", 4.0)
    good = scan.with_name("good.h5")
    good.write_bytes(scan.read_bytes())
    hang(scan)
    require_openable(good, "kspace")
    started = time.monotonic()
    with pytest.raises(FormatError, match="damaged so that the HDF5 library hangs or dies of it; copy the file again"):
        require_openable(scan, "kspace")
    assert time.monotonic() - started < 30
    states = {item.files[0].relpath: (item.state, item.reason_code) for item in discover(scan.parent, "kspace")}
    assert states == {"good.h5": ("queued", None), "scan.h5": ("failed", "format")}


def test_what_opening_says_is_said_here(tmp_path):
    path = tmp_path / "PLANTEDNAME.h5"
    with h5py.File(path, "w") as file:
        file["image"] = np.ones(3)
    for reads, message in (("kspace", "keys: image"), ("bag", "no 'features' in this file")):
        with pytest.raises(FormatError, match=message) as caught:
            require_openable(path, reads)
        assert "PLANTEDNAME" not in str(caught.value)


def test_a_guard_that_was_killed_is_started_again(scan):
    require_openable(scan, "kspace")
    h5_guard._guard._process.kill()
    h5_guard._guard._process.wait()
    with pytest.raises(FormatError, match="hangs or dies"):
        require_openable(scan, "kspace")
    require_openable(scan, "kspace")


def test_other_files_are_not_asked_about(tmp_path, monkeypatch):
    monkeypatch.setattr(h5_guard._guard, "ask", lambda order, patience_s: pytest.fail("asked"))
    path = tmp_path / "a.npy"
    np.save(path, np.ones(3))
    require_openable(path, "kspace")
    require_openable(tmp_path / "missing.h5", "bag")
