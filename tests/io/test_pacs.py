"""Addresses, headers, bandwidth, retries, and the receiver: what it takes, refuses and keeps. No archive needed."""

import gc
import json
import socket
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage, Verification

from medseq.errors import FormatError, InputError, RetryableError
from medseq.io.pacs import Instance, Tls, connect, parse_remote, request_headers
from medseq.io.pacs_facts import series_facts
from medseq.io.pacs_receiver import Receiver, uid_name
from medseq.io.pacs_transfer import Pace, image_path, pull, push, retried
from tests.io.synthetic import PLANTED, save, stack


@pytest.mark.parametrize(
    ("text", "kind", "host", "port", "ae"),
    [
        ("https://pacs.example/dicom-web/", "web", "pacs.example", 0, "ANY-SCP"),
        ("dicom://ORTHANC@127.0.0.1:4242", "dimse", "127.0.0.1", 4242, "ORTHANC"),
        ("dicom+tls://A-B@host:2762", "dimse", "host", 2762, "A-B"),
    ],
)
def test_addresses(text, kind, host, port, ae):
    remote = parse_remote(text)
    assert (remote.kind, remote.host, remote.port, remote.ae) == (kind, host, port, ae)
    assert (remote.tls is not None) == text.startswith("dicom+tls")
    assert "pacs.example" not in repr(remote).replace("host='pacs.example'", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://host/x", "not an archive's address"),
        ("host:104", "not an archive's address"),
        ("dicom://A@host", "no port"),
        ("dicom://AVERYLONGTITLE12345@host:104", "not an AE title"),
        ("https://me:secret@host/x", "no credentials in an address"),
        ("dicom://A@host:99999999", "not an archive's address"),
    ],
)
def test_wrong_addresses_are_refused_and_not_repeated(text, message):
    with pytest.raises(InputError, match=message) as error:
        parse_remote(text)
    assert "secret" not in str(error.value)


def test_headers_come_from_the_environment_and_never_travel_in_the_clear(monkeypatch):
    monkeypatch.setenv("MEDSEQ_PACS_HEADERS", "Authorization: Bearer a:b\nX-Site: one\n")
    wanted = {"Authorization": "Bearer a:b", "X-Site": "one"}
    assert request_headers(parse_remote("https://pacs.example/x")) == wanted
    assert request_headers(parse_remote("http://127.0.0.1:8042/x")) == wanted
    with pytest.raises(InputError, match="in the clear"):
        request_headers(parse_remote("http://pacs.example/x"))
    monkeypatch.setenv("MEDSEQ_PACS_HEADERS", "Bearer secret")
    with pytest.raises(InputError, match="not a request header") as error:
        request_headers(parse_remote("https://pacs.example/x"))
    assert "secret" not in str(error.value)


def test_a_pace_books_bytes_of_all_threads_together():
    now, slept = [0.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    pace = Pace(1000, clock=lambda: now[0], sleep=sleep)
    for _ in range(4):
        pace.spend(500)
    assert now[0] == pytest.approx(2.0)  # 2000 bytes at 1000 a second
    now[0] += 100
    pace.spend(500)
    assert slept[-1] == pytest.approx(0.5)  # silence is not saved up
    with pytest.raises(InputError, match="must be positive"):
        Pace(0)


def test_only_errors_that_may_pass_are_repeated():
    waits, calls = [], []

    def fails(error, times):
        def call():
            calls.append(1)
            if len(calls) <= times:
                raise error
            return "ok"

        return call

    assert retried(fails(RetryableError("busy"), 2), wait_s=1, sleep=waits.append) == "ok"
    assert waits == [1, 2]
    calls.clear()
    with pytest.raises(RetryableError, match="busy"):
        retried(fails(RetryableError("busy"), 9), attempts=3, sleep=waits.append)
    assert len(calls) == 3
    calls.clear()
    with pytest.raises(InputError, match="no"):
        retried(fails(InputError("no"), 9), sleep=waits.append)
    assert len(calls) == 1


def client(receiver, ae="SCANNER", tls=None):
    scheme = "dicom+tls" if tls else "dicom"
    return connect(parse_remote(f"{scheme}://{receiver.ae_title}@localhost:{receiver.port}", tls=tls), local_ae=ae)


def test_what_arrives_is_kept_whole_under_names_without_identifiers(tmp_path, rng):
    images = stack(rng, slices=3)
    paths, heard = save(images, tmp_path / "in"), []
    with Receiver(tmp_path / "out", port=0, on_stored=lambda *what: heard.append(what)) as receiver:
        client(receiver).echo()
        answers = client(receiver, "CT-1").store(paths)
    assert [answer.problem for answer in answers] == [None] * 3
    for ds in images:
        path = image_path(tmp_path / "out", Instance(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID))
        got = pydicom.dcmread(path)
        assert got.PixelData == ds.PixelData
        assert got.file_meta.SourceApplicationEntityTitle == "CT-1"
        assert got.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert [study for study, _ in heard] == [uid_name(images[0].StudyInstanceUID)] * 3
    assert not list((tmp_path / "out" / ".arriving").iterdir())
    assert not [mark for mark in PLANTED if mark in str(list((tmp_path / "out").rglob("*"))).lower()]
    (facts,), left = series_facts((tmp_path / "out").rglob("*.dcm"))
    assert left == []
    assert facts.values["AETitle"] == "CT-1"
    assert facts.values["BodyPart"] == "HEAD"


def test_callers_that_are_not_allowed_are_refused(tmp_path):
    with Receiver(tmp_path, port=0, callers=["CT-1"]) as receiver:
        client(receiver, "CT-1").echo()
        with pytest.raises(InputError, match="our AE title is not known there"):
            client(receiver, "CT-2").echo()


def test_a_full_disk_refuses_images_and_says_so(tmp_path, rng):
    paths = save(stack(rng, slices=1), tmp_path / "in")
    with Receiver(tmp_path / "out", port=0, min_free_bytes=1 << 60) as receiver:
        assert receiver.paused
        with pytest.raises(RetryableError, match="status A700"):
            client(receiver).store(paths)
        assert receiver.refused == 1
    assert not list((tmp_path / "out").rglob("*.dcm"))


def test_an_image_that_contradicts_itself_is_refused(tmp_path, rng):
    ds = stack(rng, slices=1)[0]
    del ds.SeriesInstanceUID
    path = tmp_path / "bad.dcm"
    ds.save_as(path, enforce_file_format=True)
    with Receiver(tmp_path / "out", port=0) as receiver:
        assert [one.problem for one in client(receiver).store([path])] == ["status C000"]
    assert not list((tmp_path / "out").rglob("*.dcm"))


def test_associations_are_limited(tmp_path):
    with Receiver(tmp_path, port=0, max_associations=2) as receiver:
        entity = AE("SCANNER")
        entity.add_requested_context(Verification)
        held = [entity.associate("127.0.0.1", receiver.port, ae_title="MEDSEQ") for _ in range(2)]
        assert all(one.is_established for one in held)
        with pytest.raises(RetryableError, match=r"no association free|does not answer"):
            client(receiver).echo()
        for one in held:
            one.release()


def test_several_senders_at_once_lose_nothing(tmp_path, rng):
    folders = [save(stack(rng, slices=4), tmp_path / f"in{n}") for n in range(3)]
    with Receiver(tmp_path / "out", port=0) as receiver:
        threads = [threading.Thread(target=client(receiver).store, args=(paths,)) for paths in folders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 12


def test_a_compressed_image_is_sent_uncompressed_where_the_archive_takes_no_other(tmp_path, rng):
    from pydicom.uid import RLELossless
    from pynetdicom import evt

    got = []

    def store(event):
        got.append((str(event.context.transfer_syntax), event.dataset.PixelData))
        return 0x0000

    images = stack(rng, slices=1, shape=(16, 16))
    truth = images[0].PixelData
    images[0].compress(RLELossless, generate_instance_uid=False)
    path = save(images, tmp_path)[0]
    entity = AE("PLAIN")
    entity.add_supported_context(CTImageStorage, [ExplicitVRLittleEndian])
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    archive = connect(parse_remote(f"dicom://PLAIN@127.0.0.1:{server.server_address[1]}"))
    answers = archive.store([path])
    images[0].SOPClassUID = images[0].file_meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
    images[0].save_as(tmp_path / "mr.dcm", enforce_file_format=True)
    with pytest.raises(InputError, match="none of the services"):
        archive.store([tmp_path / "mr.dcm"])
    server.shutdown()
    server.server_close()
    assert [one.problem for one in answers] == [None]
    assert got == [(str(ExplicitVRLittleEndian), truth)]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for localhost, by the openssl that every Debian has."""
    folder = tmp_path_factory.mktemp("tls")
    key, pem = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        + ["-keyout", key, "-out", pem, "-days", "2", "-subj", "/CN=localhost"]
        + ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )
    return Tls(ca=pem, certificate=pem, key=key)


# pynetdicom 3.0 does not close a socket whose shutdown fails: the collector does, and says so.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <s:pytest.PytestUnraisableExceptionWarning")
def test_tls_both_ways(certificate, tmp_path, rng):
    paths = save(stack(rng, slices=1), tmp_path / "in")
    with Receiver(tmp_path / "out", port=0, tls=certificate) as receiver:
        assert [one.problem for one in client(receiver, tls=certificate).store(paths)] == [None]
        # Without a certificate, with one that nobody signed, and in the clear.
        for tls in (Tls(ca=certificate.ca), Tls()):
            with pytest.raises(RetryableError, match="does not answer"):
                client(receiver, tls=tls).echo()
        with pytest.raises(RetryableError, match="does not answer"):
            connect(parse_remote(f"dicom://MEDSEQ@localhost:{receiver.port}", timeout_s=2)).echo()
        # Who connects and says nothing does not keep others waiting.
        with socket.create_connection(("127.0.0.1", receiver.port)):
            client(receiver, tls=certificate).echo()
    gc.collect()
    with pytest.raises(InputError, match="TLS server needs a certificate"):
        Receiver(tmp_path, port=0, tls=Tls()).start()
    with pytest.raises(InputError, match="TLS files cannot be used"):
        client(SimpleNamespace(ae_title="A", port=1), tls=Tls(ca=Path("/nowhere"))).echo()


def test_one_failed_transfer_does_not_stop_the_others(tmp_path, rng):
    class Fake:
        def instances(self, study, series=None):
            return []

        def store(self, paths):
            raise FormatError("broken")

    paths = save(stack(rng, slices=2), tmp_path)
    summary, answers = push(Fake(), paths, wait_s=0)
    assert answers == []
    assert summary.exit_code == 3
    assert summary.failures == [("2 files", "broken")]
    with pytest.raises(InputError, match="at least one transfer"):
        push(Fake(), paths, parallel=0)


def test_a_dimse_pull_needs_a_receiver(tmp_path):
    archive = connect(parse_remote("dicom://A@127.0.0.1:1"))
    archive.instances = lambda study, series=None: [Instance("1", "2", "3")]
    with pytest.raises(InputError, match="C-MOVE needs a receiver"):
        pull(archive, ["1"], tmp_path)


def test_no_network_library_is_needed_to_name_an_archive():
    import sys

    code = "import sys, medseq.io.pacs as p; p.parse_remote('dicom://A@h:1');"
    code += "print(json.dumps([m for m in ('pynetdicom', 'requests', 'pydicom') if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
