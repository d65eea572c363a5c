"""The gateway between a scanner and an archive, killed while it receives, predicts and pushes: nothing lost or doubled.

Scanner and archive are of this test, the gateway is the command in a process of its own, killed by SIGKILL. The scanner
does what scanners do: an image that was not acknowledged is sent again.
"""

import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager

import psutil
import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, StoragePresentationContexts, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification

from medseq.errors import MedseqError
from medseq.inference.spool import Spool
from medseq.io.pacs import connect, parse_remote
from tests.inference.conftest import save_tiny_bundle
from tests.io.synthetic import save, stack

SLICES = 4
WORDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Archive:
    """Keeps headers of what it is sent, counts every arrival, and answers what it has."""

    def __init__(self):
        self.kept, self.arrivals, self.on_store = {}, Counter(), lambda number: None
        self._lock = threading.Lock()

    def store(self, event):
        ds = event.dataset
        with self._lock:
            self.arrivals[ds.SOPInstanceUID] += 1
            self.kept[ds.SOPInstanceUID] = (ds.StudyInstanceUID, ds.SeriesInstanceUID)
            number = sum(self.arrivals.values())
        # After it is kept and before it is acknowledged: the worst moment for a sender to die.
        self.on_store(number)
        return 0x0000

    def find(self, event):
        query = event.identifier
        with self._lock:
            kept = [(*names, image) for image, names in self.kept.items()]
        level = {"STUDY": 1, "SERIES": 2, "IMAGE": 3}[query.QueryRetrieveLevel]
        asked = [query.get(word) for word in WORDS]
        fits = {row[:level] for row in kept if all(a in (None, "", name) for a, name in zip(asked, row, strict=True))}
        for row in sorted(fits):
            answer = Dataset()
            answer.QueryRetrieveLevel = query.QueryRetrieveLevel
            for word, name in zip(WORDS[:level], row, strict=True):
                setattr(answer, word, name)
            yield 0xFF00, answer

    @contextmanager
    def listening(self, port):
        entity = AE("ARCHIVE")
        for context in (*StoragePresentationContexts, Verification, StudyRootQueryRetrieveInformationModelFind):
            entity.add_supported_context(getattr(context, "abstract_syntax", context))
        handlers = [(evt.EVT_C_STORE, self.store), (evt.EVT_C_FIND, self.find)]
        server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        try:
            yield self
        finally:
            entity.shutdown()
            server.server_close()


class Listener:
    """The command, started again whenever it was killed."""

    def __init__(self, place, port, quiet_s):
        routes = place / "routes.yaml"
        self._command = [sys.executable, "-m", "medseq.cli.main", "pacs", "listen", str(place / "spool")]
        self._command += ["--routes", str(routes), "--port", str(port), "--quiet-seconds", str(quiet_s)]
        self._command += ["--min-free-gb", "0"]
        self.kills, self._lock = Counter(), threading.Lock()
        self._log = (place / "gateway.log").open("wb")
        self._start()

    def _start(self):
        self._process = subprocess.Popen(self._command, stdout=self._log, stderr=self._log)

    def kill(self, phase):
        with self._lock:
            for child in psutil.Process(self._process.pid).children(recursive=True):
                child.kill()
            self._process.kill()
            self._process.wait()
            self.kills[phase] += 1
            self._start()

    def close(self):
        self._process.kill()
        self._process.wait()
        self._log.close()


def scan(address, paths, on_sent):
    """Send images one by one until each is acknowledged."""
    left = list(paths)
    deadline = time.monotonic() + 120
    while left:
        assert time.monotonic() < deadline, "the gateway never came back"
        try:
            [stored] = connect(parse_remote(address), local_ae="SCANNER").store(left[:1])
        except MedseqError:
            time.sleep(0.2)
            continue
        if stored.problem is None:
            left.pop(0)
            on_sent(len(paths) - len(left))


def one_study(place, archive, gateway, address, rng, draw, phase):
    """Send a study and kill the gateway in a phase of its work; returns the images sent."""
    images = stack(rng, slices=SLICES, shape=(16, 16))
    paths = save(images, place / f"study{images[0].StudyInstanceUID[-6:]}")
    killed = threading.Event()

    def kill():
        if not killed.is_set():
            killed.set()
            gateway.kill(phase)

    moment = draw.randrange(1, SLICES)
    before = sum(archive.arrivals.values())

    def while_pushing(number):
        if number == before + moment:
            threading.Thread(target=kill).start()
            time.sleep(0.5)

    archive.on_store = while_pushing if phase == "pushing" else lambda number: None
    scan(address, paths, lambda sent: kill() if phase == "receiving" and sent == moment else None)
    spool, deadline = Spool(place / "spool"), time.monotonic() + 120
    known = {ds.SOPInstanceUID for ds in images}
    while True:
        assert time.monotonic() < deadline, (phase, (place / "gateway.log").read_text()[-2000:])
        if phase == "predicting" and not killed.is_set() and list(spool.root.glob("work/*/results/*/.work/*/*")):
            kill()
        if phase == "whenever" and not killed.is_set():
            time.sleep(draw.uniform(0, 8))
            kill()
        if known <= finished(spool) and (killed.is_set() or phase == "predicting"):
            return known
        time.sleep(0.02)


def finished(spool):
    """UIDs of images in jobs that are done."""
    paths = spool.root.glob("done/*/routed/*/**/*.dcm")
    return {pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID for path in paths}


def through_kills(place, rng, seed, phases):
    save_tiny_bundle(place / "bundle")
    ours, theirs = free_port(), free_port()
    (place / "routes.yaml").write_text(
        "format: 1\n"
        f'destinations: {{archive: {{url: "dicom://ARCHIVE@127.0.0.1:{theirs}"}}}}\n'
        f"routes: [{{name: all, when: {{Modality: CT}}, bundle: {place}/bundle, destination: archive}}]\n"
    )
    draw, sent = random.Random(seed), set()
    with Archive().listening(theirs) as archive:
        # Longer than a busy machine takes between two images.
        gateway = Listener(place, ours, quiet_s=5)
        try:
            for phase in phases:
                sent |= one_study(place, archive, gateway, f"dicom://MEDSEQ@127.0.0.1:{ours}", rng, draw, phase)
        finally:
            gateway.close()
    spool = Spool(place / "spool")
    print(f"seed {seed}: killed {dict(gateway.kills)}")
    assert sum(gateway.kills.values()) >= len(phases) - phases.count("predicting")
    # Every image that was acknowledged was computed, in one job, and its result arrived once.
    assert finished(spool) == sent
    assert (spool.jobs("work"), spool.jobs("dead"), spool.waiting()) == ([], [], {})
    assert len(spool.jobs("done")) == len(phases)
    assert len(archive.kept) == len(sent)
    assert set(archive.arrivals.values()) == {1}
    assert len({series for _, series in archive.kept.values()}) == len(phases)


def test_a_gateway_that_is_killed_in_each_phase_loses_and_doubles_nothing(tmp_path, rng, seed):
    through_kills(tmp_path, rng, seed, ["receiving", "predicting", "pushing", "whenever"])


@pytest.mark.slow
def test_a_gateway_under_forty_kills(tmp_path, rng, seed):
    through_kills(tmp_path, rng, seed, ["receiving", "predicting", "pushing", "whenever"] * 10)
