"""What worker processes are made of: the gate, plain values, shared weights, and discovery that forgets headers."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from medseq.errors import BundleError, MemoryLimitError
from medseq.inference.discover import discover
from medseq.inference.gated import Gate, GatedPredictor
from medseq.inference.ledger_schema import OutputRow
from medseq.inference.outputs import Identity, Layout
from medseq.inference.plain_errors import as_error, refusal
from medseq.inference.predictor import Estimate, Flag, Prediction
from medseq.inference.restore import RestorePredictor
from medseq.inference.shared_weights import shared_weights
from medseq.inference.wire import result_from_plain, result_to_plain, task_from_plain, task_to_plain
from medseq.inference.worker import ItemResult, ItemTask


class Witness:
    """A predictor that notes who computes, with a reader that takes its time."""

    accepts = frozenset({"volume"})

    def __init__(self):
        self.computing, self.most, self.reading = 0, 0, 0.0

    def estimate(self, header):
        return Estimate(1000, 0.0)

    def predict(self, reader, sink, *, should_stop):
        for number in range(5):
            reader.read(number, number + 1)
            self.computing += 1
            self.most = max(self.most, self.computing)
            time.sleep(0.02)
            self.computing -= 1
        return Prediction(())


class SlowReader:
    header = "a header"

    def __init__(self):
        self.open, self.most = 0, 0

    def read(self, lo, hi):
        self.open += 1
        self.most = max(self.most, self.open)
        time.sleep(0.02)
        self.open -= 1


def test_one_item_computes_while_another_is_read():
    witness, reader, gate = Witness(), SlowReader(), Gate()
    guarded = GatedPredictor(witness, gate)
    lanes = [
        threading.Thread(target=guarded.predict, args=(reader, None), kwargs={"should_stop": bool}) for _ in range(2)
    ]
    started = time.perf_counter()
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    taken = time.perf_counter() - started
    assert witness.most == 1, "the model is never used twice at once"
    # One after the other it is 2 x 5 x (20 + 20) ms = 400 ms; overlapped, 220 ms and what the machine adds.
    assert taken < 0.36


def test_a_reader_used_by_another_thread_leaves_the_gate_alone():
    gate = Gate()
    with gate.held():
        other = threading.Thread(target=lambda: gate.open().__enter__())
        other.start()
        other.join()
        assert gate._lock.locked()


def test_what_does_not_fit_is_not_begun_and_says_by_how_much():
    guarded = GatedPredictor(Witness(), Gate(), memory=999)
    with pytest.raises(MemoryLimitError, match=r"needs more memory than it may take \(found 0.00 GB"):
        guarded.predict(SlowReader(), None, should_stop=bool)


def test_a_smaller_predictor_says_so_and_computes_the_same(make, mr_bundle, rng):
    from medseq.io.volume import Volume

    volume = Volume.from_array(rng.normal(500, 50, (2, 150, 140)).astype(np.float32), modality="MR", units="1")
    predictor = RestorePredictor(mr_bundle, tile=256)
    smaller = predictor.smaller(volume.header).smaller(volume.header)
    assert (smaller._params.batch, smaller._params.tile) == (1, (75, 70))
    assert smaller.smaller(volume.header).smaller(volume.header) is None
    assert smaller.estimate(volume.header).peak_bytes < predictor.estimate(volume.header).peak_bytes
    assert predictor._params.tile == (256, 256)


def test_tasks_and_results_survive_as_json(tmp_path):
    identity = Identity("n", "b" * 64, "p" * 64, "0.1", "2026-01-02T03:04:05Z")
    task = ItemTask(
        *("a" * 16, "dicom", ("x/1.dcm", "x/2.dcm"), tmp_path / "in", tmp_path / "out", "id", identity, "HU"),
        params={"tile": [64, 64], "modality": None},
        work=".work/1",
        memory=5,
        smaller=1,
    )
    again = task_from_plain(json.loads(json.dumps(task_to_plain(task))))
    assert again == task
    assert again.stage == tmp_path / "out" / ".work" / "1" / ("a" * 16)
    result = ItemResult(
        (OutputRow("result", "a/r", "0" * 64, 1),),
        Layout("a" * 16, "id", "dicom", "x/1.dcm"),
        {"mean_shift": 0.25},
        (Flag("code", "text", "info"),),
        *(1.5, 200.0, "d" * 64),
    )
    assert result_from_plain(json.loads(json.dumps(result_to_plain(result)))) == result
    error = BundleError("what", where="w", found=1, wanted=2, remedy="r")
    assert str(as_error(json.loads(json.dumps(refusal(error))))) == str(error)
    assert type(as_error({"type": "SystemExit", "what": "x"})).__name__ == "BackendError"


def test_weights_are_mapped_once_and_give_the_same_numbers(make, tmp_path, rng):
    half = make.bundle(tmp_path / "full", modality=("MR",), units="1")
    with shared_weights(half) as shared:
        path = shared.mapped
        plain, mapped = half.build_model(), shared.build_model()
        for (name, one), (_, two) in zip(plain.state_dict().items(), mapped.state_dict().items(), strict=True):
            assert torch.equal(one, two), name
        places = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
        spans = [tuple(int(end, 16) for end in place[0].split("-")) for place in places]
        assert spans, "the file is mapped, not read"
        floats = [value for value in mapped.state_dict().values() if value.is_floating_point()]
        assert all(any(lo <= value.data_ptr() < hi for lo, hi in spans) for value in floats)
        assert path.parent.stat().st_mode & 0o077 == 0
    assert not path.exists()


def test_discovery_holds_headers_of_one_series_at_a_time(make, tmp_path, rng, monkeypatch):
    from medseq.io import dicom

    for name in "abc":
        make.series(tmp_path / "in" / name, make.head(rng, 3, 16))
    make.series(tmp_path / "in" / "far" / "a", make.head(rng, 2, 16), series="1.2.3", name="x")
    make.series(tmp_path / "in" / "near", make.head(rng, 2, 16), series="1.2.3", positions=[4, 6], name="y")
    asked, plain = [], dicom.group_dicom
    monkeypatch.setattr(dicom, "group_dicom", lambda paths: asked.append(len(paths)) or plain(paths))
    found = discover(tmp_path / "in")
    assert next(found).state == "queued"
    assert asked == [3], "nothing of the others is held yet"
    assert sorted(len(item.files) for item in found) == [3, 3, 4]
    assert sorted(asked) == [3, 3, 3, 4]
