"""Bags are written whole or not at all, and a killed writer loses at most the append it was at."""

import os
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from medseq.errors import InputError, OutputError, RetryableError, ShapeError
from medseq.io.bag_write import BagWriter

ABOUT = {"encoder": "stain-stats", "mpp": 0.5, "patch_size_level0": 512, "slide_id": "slide-1", "patient_id": "p-1"}


def batch(rng, rows, dim=6, dtype="f4"):
    return rng.normal(size=(rows, dim)).astype(dtype), rng.integers(0, 90_000, (rows, 2))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_the_file_is_what_trident_writes(tmp_path, rng, dtype):
    writer = BagWriter(tmp_path / "new" / "a.h5", 6, attributes={"patch_size": 256, "overlap": 0}, **ABOUT)
    parts = [batch(rng, rows, dtype=dtype) for rows in (3, 1, 5)]
    for features, coords in parts:
        writer.append(features, coords)
    writer.append(*batch(rng, 0, dtype=dtype))
    assert (writer.done, names(tmp_path / "new")) == (9, ["a.h5.part"])
    assert writer.commit() == tmp_path / "new" / "a.h5"
    assert names(tmp_path / "new") == ["a.h5"]
    with h5py.File(tmp_path / "new" / "a.h5") as file:
        assert np.array_equal(file["features"][()], np.concatenate([features for features, _ in parts]))
        assert file["features"].dtype == np.dtype(dtype)
        assert np.array_equal(file["coords"][()], np.concatenate([coords for _, coords in parts]))
        assert file["coords"].dtype == np.int64
        assert dict(file["features"].attrs) == {"name": "slide-1", "encoder": "stain-stats"}
        wanted = {"name": "slide-1", "mpp": 0.5, "patch_size_level0": 512, "patch_size": 256, "overlap": 0}
        assert dict(file["coords"].attrs) == wanted
        assert dict(file.attrs) == {"slide_id": "slide-1", "patient_id": "p-1"}


def test_a_writer_continues_where_the_last_one_ended(tmp_path, rng):
    parts = [batch(rng, 4) for _ in range(3)]
    for number, (features, coords) in enumerate(parts):
        writer = BagWriter(tmp_path / "a.h5", 6, **ABOUT)
        assert writer.done == 4 * number
        assert np.array_equal(writer.coords(), np.concatenate([np.empty((0, 2)), *(c for _, c in parts[:number])]))
        writer.append(features, coords)
        writer.close()
    BagWriter(tmp_path / "a.h5", 6, **ABOUT).commit()
    with h5py.File(tmp_path / "a.h5") as file:
        assert np.array_equal(file["features"][()], np.concatenate([features for features, _ in parts]))
    at_once = BagWriter(tmp_path / "b.h5", 6, **ABOUT)
    at_once.append(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    assert at_once.commit().read_bytes() == (tmp_path / "a.h5").read_bytes()


def test_every_cut_of_the_log_leaves_whole_appends(tmp_path, rng):
    parts = [batch(rng, rows, dim=2, dtype="f2") for rows in (2, 3, 1)]
    writer, ends = BagWriter(tmp_path / "a.h5", 2, **ABOUT), []
    part = tmp_path / "a.h5.part"
    ends.append(part.stat().st_size)
    for features, coords in parts:
        writer.append(features, coords)
        ends.append(part.stat().st_size)
    writer.close()
    whole = part.read_bytes()
    for length in range(len(whole) + 1):
        part.write_bytes(whole[:length])
        again = BagWriter(tmp_path / "a.h5", 2, **ABOUT)
        complete = sum(length >= end for end in ends[1:])
        assert again.done == sum(len(features) for features, _ in parts[:complete])
        # What follows is as if nothing had happened.
        for features, coords in parts[complete:]:
            again.append(features, coords)
        again.close()
        assert part.read_bytes() == whole


def test_a_damaged_append_and_what_follows_it_are_dropped(tmp_path, rng):
    writer, part = BagWriter(tmp_path / "a.h5", 6, **ABOUT), tmp_path / "a.h5.part"
    writer.append(*batch(rng, 4))
    end = part.stat().st_size
    writer.append(*batch(rng, 4))
    writer.append(*batch(rng, 4))
    writer.close()
    data = bytearray(part.read_bytes())
    data[int(rng.integers(end + 16, end + 16 + 4 * 6 * 4))] ^= 1
    part.write_bytes(data)
    assert BagWriter(tmp_path / "a.h5", 6, **ABOUT).done == 4


APPEND_FOR_EVER = """
import sys
import numpy as np
from medseq.io.bag_write import BagWriter

rng, writer = np.random.default_rng(0), BagWriter(sys.argv[1], 64, **{about})
while True:
    writer.append(rng.normal(size=(50, 64)).astype("f4"), rng.integers(0, 90_000, (50, 2)))
    print(writer.done, flush=True)
"""


def test_a_killed_process_loses_only_the_append_it_was_at(tmp_path, rng):
    command = [sys.executable, "-c", APPEND_FOR_EVER.format(about=ABOUT), str(tmp_path / "a.h5")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "50\n"
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        said = ["50", *process.stdout.read().split()]
    writer = BagWriter(tmp_path / "a.h5", 64, **ABOUT)
    # It may die between an append and saying so.
    assert writer.done - int(said[-1]) in (0, 50)
    done = writer.done
    writer.commit()
    same = np.random.default_rng(0)
    wanted = [batch(same, 50, dim=64) for _ in range(done // 50)]
    with h5py.File(tmp_path / "a.h5") as file:
        assert np.array_equal(file["features"][()], np.concatenate([features for features, _ in wanted]))
        assert np.array_equal(file["coords"][()], np.concatenate([coords for _, coords in wanted]))


def test_a_commit_that_was_killed_is_repeated(tmp_path, rng, monkeypatch):
    features, coords = batch(rng, 4)
    writer = BagWriter(tmp_path / "a.h5", 6, **ABOUT)
    writer.append(features, coords)
    monkeypatch.setattr("medseq.io.bag_write.publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        writer.commit()
    monkeypatch.undo()
    assert names(tmp_path) == [".a.h5.partial", "a.h5.part"]
    writer.close()
    BagWriter(tmp_path / "a.h5", 6, **ABOUT).commit()
    assert names(tmp_path) == ["a.h5"]


def test_two_writers_of_one_bag_are_one_too_many(tmp_path, rng):
    writer = BagWriter(tmp_path / "a.h5", 6, **ABOUT)
    with pytest.raises(RetryableError, match="written by another process"):
        BagWriter(tmp_path / "a.h5", 6, **ABOUT)
    writer.abort()
    assert names(tmp_path) == []
    writer.abort()
    with pytest.raises(OutputError, match="the bag is closed"):
        writer.append(*batch(rng, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "uni_v1"}, "other settings.*found encoder 'stain-stats'.*wanted encoder 'uni_v1'"),
        ({"mpp": 0.25}, "found mpp 0.5"),
        ({"attributes": {"settings": "b"}}, "found settings 'a'"),
        ({"patient_id": "SMITH"}, "other settings"),
    ],
)
def test_a_log_of_other_settings_is_not_continued(tmp_path, rng, change, message):
    writer = BagWriter(tmp_path / "a.h5", 6, attributes={"settings": "a"}, **ABOUT)
    writer.append(*batch(rng, 1))
    writer.close()
    with pytest.raises(OutputError, match=message) as raised:
        BagWriter(tmp_path / "a.h5", 6, **{**ABOUT, "attributes": {"settings": "a"}, **change})
    assert "SMITH" not in str(raised.value)
    assert BagWriter(tmp_path / "a.h5", 6, attributes={"settings": "a"}, **ABOUT).done == 1


def test_a_file_that_is_no_log_is_left_alone(tmp_path):
    (tmp_path / "a.h5.part").write_bytes(b"somebody's notes")
    with pytest.raises(OutputError, match="another file under the name.*16 bytes"):
        BagWriter(tmp_path / "a.h5", 6, **ABOUT)
    assert (tmp_path / "a.h5.part").read_bytes() == b"somebody's notes"


def test_an_empty_bag_is_an_error(tmp_path):
    writer = BagWriter(tmp_path / "a.h5", 6, **ABOUT)
    with pytest.raises(OutputError, match="no patches.*tissue mask"):
        writer.commit()
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize(
    ("features", "coords", "message"),
    [
        (np.ones((2, 5), "f4"), np.ones((2, 2), int), r"found float32 \(2, 5\).*\(k, 6\) of 'stain-stats'"),
        (np.ones((2, 6), "f8"), np.ones((2, 2), int), "found float64"),
        (np.ones((2, 6), "f2"), np.ones((2, 2), int), "found float16.*wanted float32"),
        (np.ones((2, 6), "f4"), np.ones((3, 2), int), r"coords do not fit.*wanted integers \(2, 2\)"),
        (np.ones((2, 6), "f4"), np.ones((2, 2)), "found float64"),
    ],
)
def test_patches_that_do_not_fit_are_refused(tmp_path, rng, features, coords, message):
    writer = BagWriter(tmp_path / "a.h5", 6, **ABOUT)
    writer.append(*batch(rng, 1))
    with pytest.raises(ShapeError, match=message):
        writer.append(features, coords)
    assert writer.done == 1


def test_features_that_are_no_numbers_are_refused_with_their_rows(tmp_path, rng):
    writer = BagWriter(tmp_path / "a.h5", 6, **ABOUT)
    writer.append(*batch(rng, 10))
    features, coords = batch(rng, 4)
    features[1, 2], features[3, 0] = np.nan, np.inf
    with pytest.raises(InputError, match="encoder 'stain-stats'.*found 2 of 4 patches: rows 11, 13"):
        writer.append(features, coords)
    assert writer.done == 10


@pytest.mark.parametrize(("name", "value"), [("mpp", 0.0), ("mpp", np.nan), ("patch_size_level0", -1)])
def test_sizes_are_positive(tmp_path, name, value):
    with pytest.raises(InputError, match=f"positive.*{name}"):
        BagWriter(tmp_path / "a.h5", 6, **{**ABOUT, name: value})


def test_other_names_and_places_are_refused(tmp_path):
    with pytest.raises(OutputError, match=r"found .pt, wanted .h5"):
        BagWriter(tmp_path / "a.pt", 6, **ABOUT)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written.*EEXIST|ENOTDIR"):
        BagWriter(tmp_path / "file" / "a.h5", 6, **ABOUT)


def test_a_full_disk_loses_nothing(tmp_path, rng, monkeypatch):
    writer = BagWriter(tmp_path / "a.h5", 6, **ABOUT)
    first, second = batch(rng, 4), batch(rng, 4)
    writer.append(*first)
    write, full = os.write, OSError(28, "No space left on device")

    def half(descriptor, view):
        if len(view) < 60:
            raise full
        return write(descriptor, view[: len(view) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(RetryableError, match="ENOSPC.*free space"):
        writer.append(*second)
    monkeypatch.undo()
    assert writer.done == 4
    writer.append(*second)
    writer.commit()
    with h5py.File(tmp_path / "a.h5") as file:
        assert np.array_equal(file["features"][()], np.concatenate([first[0], second[0]]))
