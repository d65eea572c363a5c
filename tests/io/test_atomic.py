import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medseq.errors import OutputError, RetryableError
from medseq.io import atomic
from medseq.io.atomic import clear, discard, partial_path, publish, written


def test_partial_is_hidden_and_beside_the_target(tmp_path):
    partial = partial_path(tmp_path / "result.nii.gz")
    assert partial.parent == tmp_path
    assert partial.name == ".result.nii.gz.partial"


def test_publish_replaces_a_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    partial = clear(target)
    partial.write_text("new")
    publish(partial, target)
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_publish_replaces_a_full_folder(tmp_path):
    target = tmp_path / "series"
    target.mkdir()
    (target / "old").write_text("old")
    partial = clear(target)
    partial.mkdir()
    (partial / "new").write_text("new")
    publish(partial, target)
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["series"]


def test_clear_removes_what_a_killed_process_left(tmp_path):
    target = tmp_path / "deep" / "series"
    partial = clear(target)
    partial.mkdir()
    (partial / "half").write_text("half")
    assert clear(target) == partial
    assert not partial.exists()


@pytest.mark.parametrize(
    ("number", "kind", "remedy"),
    [
        (errno.ENOSPC, RetryableError, "free space"),
        (errno.EIO, RetryableError, "run again"),
        (errno.EACCES, OutputError, "choose a folder"),
        (errno.EROFS, OutputError, "choose a folder"),
    ],
)
def test_os_errors_become_permanent_or_retryable_without_the_path(number, kind, remedy):
    with pytest.raises(kind, match=remedy) as caught, written("the output folder"):
        raise OSError(number, os.strerror(number), "/data/DOE_JANE/1.dcm")
    assert "DOE" not in str(caught.value)
    assert errno.errorcode[number] in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_target_below_a_file_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        clear(tmp_path / "file" / "result.nii")


def test_discard_of_nothing_is_nothing(tmp_path):
    discard(tmp_path / "absent")
    assert not list(tmp_path.iterdir())


_WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
import medseq.io.atomic as atomic
from medseq.io.nifti import NiftiWriter
from medseq.io.volume import Volume
import numpy as np

target, moment = Path(sys.argv[1]), sys.argv[2]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "rename":
    os.replace = die
else:
    os.fsync = die
volume = Volume.from_array(np.zeros((2, 3, 4), np.float32))
writer = NiftiWriter(target)
writer.begin(volume.header)
writer.write(0, volume.read(0, 2))
writer.commit()
"""


@pytest.mark.parametrize("moment", ["rename", "fsync"])
def test_a_process_killed_before_the_rename_leaves_nothing_visible(tmp_path, moment):
    target = tmp_path / "result.nii"
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", _WRITE_AND_DIE, str(target), moment], env={**os.environ, "PYTHONPATH": root}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == []
    clear(target)
    assert os.listdir(tmp_path) == []


def test_names_in_a_staging_folder_are_forced_when_it_moves(tmp_path, monkeypatch):
    """The contents at once, every list of names before the folder has its final place."""
    forced, plain = [], atomic.fsync
    monkeypatch.setattr(atomic, "fsync", lambda path: (forced.append(path), plain(path)))
    stage, out = tmp_path / "stage" / "item", tmp_path / "out"
    out.mkdir()
    with atomic.names_forced_later():
        for name in ("result.nii", "result/0001.dcm"):
            target = stage / name.replace("result/", "series/")
            atomic.publish_bytes(atomic.clear(target), target, b"x")
        assert forced == []
    atomic.fsync_below(stage)
    assert forced == [stage / "series"]
    atomic.publish(stage, out / "item")
    assert forced == [stage / "series", stage, out]
    # Afterwards, and in other threads, names are forced as ever.
    atomic.publish_bytes(atomic.clear(out / "a"), out / "a", b"x")
    assert forced[-1] == out
