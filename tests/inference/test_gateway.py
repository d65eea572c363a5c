"""Routes, the spool and the gateway's loop, with a model that is replaced by a copy; no network."""

import json
import os
import time
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from medseq.errors import BundleError, InputError, ManifestError, RetryableError
from medseq.inference.gateway import Gateway
from medseq.inference.gateway_status import StatusServer, render_metrics
from medseq.inference.routes import Routes, load_routes
from medseq.inference.spool import Spool

ROUTES = """
format: 1
destinations:
  archive: {url: "dicom://PACS@10.0.0.5:104", commit: true}
routes:
  - name: chest
    when: {Modality: CT, BodyPart: CHEST, SeriesDescription: "(?i)low.?dose"}
    bundle: ct-denoise
    parameters: {strength: 0.8}
    destination: archive
  - name: any ct
    when: {Modality: CT, Manufacturer: "Syn*", AETitle: ct-1}
    bundle: ct-other
  - {name: head, when: {Modality: MR}, bundle: mr-denoise}
"""


def routes(text=ROUTES, **replaced):
    import yaml

    return Routes.model_validate({**yaml.safe_load(text), **replaced})


LOCAL = {"destinations": {}, "routes": [{"name": "all", "when": {"Modality": "CT"}, "bundle": "any"}]}


@pytest.mark.parametrize(
    ("values", "name", "reason"),
    [
        ({"Modality": "CT", "BodyPart": "chest", "SeriesDescription": "x LOW DOSE"}, "chest", "route chest"),
        ({"Modality": "CT", "BodyPart": "CHEST", "Manufacturer": "SYNTHETIC", "AETitle": "CT-1"}, "any ct", "any ct"),
        ({"Modality": "CT", "Manufacturer": "Synthetic", "AETitle": "CT-11"}, None, "no route matches"),
        ({"Modality": "MR"}, "head", "route head"),
        ({}, None, "no route matches"),
    ],
)
def test_the_first_route_that_matches_wins(values, name, reason):
    decision = routes().decide(values)
    assert (decision.route.name if decision.route else None) == name
    assert reason in decision.reason
    # Every route that was passed over says which condition failed.
    assert all(" is not " in step for _, step in decision.steps[: -1 if name else None])


def test_what_medseq_made_does_not_come_round_again():
    decision = routes().decide({"Modality": "MR"}, ours=True)
    assert decision.route is None
    assert "not processed again" in decision.reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("format: 1", "format: 2"), "format"),
        (("bundle: ct-denoise", "bundel: ct-denoise"), "bundel"),
        (("Modality: CT, BodyPart", "Modalty: CT, BodyPart"), "when.Modalty"),
        (("low.?dose", "(low"), "no regular expression"),
        (("destination: archive", "destination: nowhere"), "no such destination: nowhere"),
        (("name: head", "name: chest"), "the same name"),
        (("name: head", "name: ../head"), "name"),
        (("dicom://PACS@10.0.0.5:104", "https://x/y"), "commit needs a dicom:// address"),
        (("routes:", "routes: ["), "cannot be read"),
    ],
)
def test_a_wrong_routes_file_names_its_mistake(tmp_path, change, message):
    path = tmp_path / "routes.yaml"
    path.write_text(ROUTES)
    assert len(load_routes(path).routes) == 3
    assert change[0] in ROUTES
    path.write_text(ROUTES.replace(*change, 1))
    with pytest.raises(ManifestError, match=message):
        load_routes(path)


@pytest.fixture
def clock():
    return SimpleNamespace(now=time.time() + 5)


@pytest.fixture
def arrive(tmp_path, make, rng):
    """Put a study into the spool as the receiver would."""

    def put(spool, study="a", modality="CT", slices=2):
        folder = spool.incoming / (study * 20) / f"series{modality}"
        make.series(folder, make.head(rng, slices, 8), modality=modality)

    return put


def gateway_on(spool, clock, predict, rules=None, **more):
    def copy(bundle, source, out, **words):
        predict.calls.append((bundle, sorted(path.name for path in source.rglob("*.dcm")), words))
        if predict.error:
            raise predict.error
        (out / "item").mkdir(parents=True, exist_ok=True)
        (out / "item" / "result.nii.gz").write_bytes(b"x")
        return SimpleNamespace(exit_code=predict.code, counts={"failed": int(predict.code == 3)})

    rules = rules or Routes.model_validate({"format": 1, **LOCAL})
    return Gateway(spool, rules, predict=copy, clock=lambda: clock.now, quiet_s=60, wait_s=10, **more)


@pytest.fixture
def predict():
    return SimpleNamespace(calls=[], error=None, code=0)


def test_a_study_waits_until_it_is_quiet_and_is_done_once(tmp_path, clock, predict, arrive):
    spool = Spool(tmp_path / "spool")
    gateway = gateway_on(spool, clock, predict)
    arrive(spool)
    assert not gateway.step()
    clock.now += 61
    assert gateway.step()
    assert not gateway.step()
    (job,) = spool.jobs("done")
    assert predict.calls == [
        ("any", ["slice0000.dcm", "slice0001.dcm"], {"device": "cpu", "retry_failed": True, "new_run": True})
    ]
    # What comes later is a job of its own.
    arrive(spool, slices=1)
    clock.now += 61
    assert gateway.step()
    assert [one.name[-6:] for one in spool.jobs("done")] == ["000001", "000002"]
    assert gateway.counters.studies_done == 2


def test_after_a_restart_senders_get_the_time_to_come_again(tmp_path, clock, predict, arrive):
    spool = Spool(tmp_path / "spool")
    arrive(spool)
    # The gateway was down for an hour, in the middle of a study.
    clock.now += 3600
    gateway = gateway_on(spool, clock, predict)
    assert not gateway.step()
    clock.now += 59
    assert not gateway.step()
    clock.now += 2
    assert gateway.step()
    # A clock that was set back does not hold a study for ever.
    arrive(spool, "b")
    clock.now -= 86400
    assert gateway.step()


def test_series_that_no_route_takes_are_left_with_a_reason(tmp_path, clock, predict, arrive, make):
    spool = Spool(tmp_path / "spool")
    arrive(spool, modality="CT")
    arrive(spool, modality="MR")
    (spool.incoming / ("a" * 20) / "seriesMR" / "note.dcm").write_text("no DICOM")
    gateway = gateway_on(spool, clock, predict)
    clock.now += 61
    gateway.step()
    (job,) = spool.jobs("done")
    assert sorted(row["reason"] for row in job.decisions) == ["no route matches", "not a DICOM file", "route all"]
    assert len(list((job.folder / "in").rglob("slice*.dcm"))) == 2
    assert gateway.counters.series_skipped == 2
    text = (job.folder / "job.json").read_text()
    assert not [mark for mark in make.planted if mark in text]


def test_a_study_of_scouts_alone_is_done_with_a_reason(tmp_path, clock, predict, arrive):
    import pydicom

    spool = Spool(tmp_path / "spool")
    arrive(spool)
    for path in spool.incoming.rglob("*.dcm"):
        ds = pydicom.dcmread(path)
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        ds.save_as(path)
    gateway = gateway_on(spool, clock, predict)
    clock.now += 61
    gateway.step()
    (job,) = spool.jobs("done")
    assert [row["reason"] for row in job.decisions] == ["a scout (localizer), not part of the volume"]
    assert predict.calls == []


def test_trouble_that_may_pass_is_tried_again_later_and_then_given_up(tmp_path, clock, predict, arrive, caplog, make):
    spool = Spool(tmp_path / "spool")
    gateway = gateway_on(spool, clock, predict, attempts=3)
    arrive(spool)
    predict.error = RetryableError("does not answer")
    clock.now += 61
    assert gateway.step()
    assert not gateway.step()  # waits 10 s
    clock.now += 11
    assert gateway.step()
    clock.now += 11
    assert not gateway.step()  # waits 20 s
    clock.now += 11
    assert gateway.step()
    (job,) = spool.jobs("dead")
    assert "does not answer" in job.reason
    assert not [mark for mark in make.planted if mark in caplog.text]
    predict.error = None
    assert spool.retry([job.name]) == [job.name]
    assert gateway.step()
    assert len(spool.jobs("done")) == 1
    assert len(predict.calls) == 4


@pytest.mark.parametrize("how", ["bundle", "items"])
def test_trouble_that_stays_is_given_up_at_once(tmp_path, clock, predict, arrive, how):
    spool = Spool(tmp_path / "spool")
    gateway = gateway_on(spool, clock, predict)
    arrive(spool)
    predict.error, predict.code = (BundleError("no such bundle"), 0) if how == "bundle" else (None, 3)
    clock.now += 61
    gateway.step()
    (job,) = spool.jobs("dead")
    assert ("no such bundle" if how == "bundle" else "1 items failed") in job.reason
    # Another route after the repair: what had been sorted is sorted anew.
    predict.error, predict.code = None, 0
    spool.retry()
    rules = Routes.model_validate({"format": 1, "routes": [{"name": "new", "bundle": "other"}]})
    assert gateway_on(spool, clock, predict, rules).step()
    assert predict.calls[-1][:2] == ("other", ["slice0000.dcm", "slice0001.dcm"])
    with pytest.raises(InputError, match="no such dead job"):
        spool.retry(["a"])


def test_a_killed_gateway_is_continued_by_the_next(tmp_path, clock, predict, arrive):
    spool = Spool(tmp_path / "spool")
    arrive(spool)
    job = spool.claim("a" * 20)
    # Killed between the renames of routing, and before job.json.
    (job.folder / "job.json").unlink()
    inner = job.folder / "routed" / "all" / "seriesCT"
    inner.mkdir(parents=True)
    os.rename(job.folder / "in" / "seriesCT" / "slice0000.dcm", inner / "slice0000.dcm")
    # Killed between making the job's folder and moving the study.
    (spool.root / "work" / f"{'b' * 20}-000001").mkdir()
    gateway = gateway_on(Spool(tmp_path / "spool"), clock, predict)
    assert gateway.step()
    assert gateway.step()
    assert not gateway.step()
    assert [call[1] for call in predict.calls] == [["slice0000.dcm", "slice0001.dcm"]]
    assert len(spool.jobs("done")) == 2


def test_an_interrupted_prediction_leaves_its_job_and_ends_the_loop(tmp_path, clock, predict, arrive):
    spool = Spool(tmp_path / "spool")
    arrive(spool)
    gateway = gateway_on(spool, clock, predict)
    predict.code = 130
    clock.now += 61
    gateway.run(lambda: False, idle_s=0)
    assert len(spool.jobs("work")) == 1
    predict.code = 0
    assert gateway_on(spool, clock, predict).step()
    assert len(spool.jobs("done")) == 1


def test_finished_studies_are_purged_and_dead_ones_are_not(tmp_path, clock, predict, arrive):
    spool = Spool(tmp_path / "spool")
    gateway = gateway_on(spool, clock, predict, purge_after_s=3600)
    arrive(spool)
    clock.now += 61
    gateway.step()
    predict.error = BundleError("no such bundle")
    arrive(spool, "b")
    clock.now += 61
    gateway.step()
    clock.now += 3000
    gateway.step()
    assert len(spool.jobs("done")) == 1
    clock.now += 3601
    gateway.step()
    assert spool.jobs("done") == []
    assert len(spool.jobs("dead")) == 1
    # A number is not given twice, though the folder is gone.
    assert gateway.counters.purged == 1


def test_a_nearly_full_disk_pauses_the_gateway(tmp_path, clock, predict, arrive):
    spool = Spool(tmp_path / "spool")
    gateway = gateway_on(spool, clock, predict, min_free_bytes=1 << 60)
    arrive(spool)
    clock.now += 61
    assert not gateway.step()
    assert gateway.counters.paused
    with StatusServer(gateway, 0) as server, pytest.raises(HTTPError, match="503"):
        urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=5)
    gateway.min_free_bytes = 0
    assert gateway.step()


def test_status_pages_hold_numbers_and_no_identifiers(tmp_path, clock, predict, arrive, make):
    spool = Spool(tmp_path / "spool")
    gateway = gateway_on(spool, clock, predict)
    arrive(spool)
    gateway.received("a" * 20, 1234)
    clock.now += 61
    gateway.step()
    arrive(spool, "b")
    with StatusServer(gateway, 0) as server:
        with urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            text = answer.read().decode()
        with urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=5) as answer:
            assert answer.read() == b"ok\n"
        clock.now += 7200
        with pytest.raises(HTTPError, match="503"):
            urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=5)
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"http://127.0.0.1:{server.port}/etc/passwd", timeout=5)
    assert len(text.splitlines()) == len(render_metrics(gateway).splitlines())
    values = dict(line.split() for line in text.splitlines() if not line.startswith("#"))
    assert values["medseq_studies_done_total"] == "1"
    assert values["medseq_bytes_received_total"] == "1234"
    assert values["medseq_studies_incoming"] == "1"
    assert not [mark for mark in (*make.planted, "aaaa", "bbbb") if mark in text]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"destinations": {"a": {"url": "dicom://A@h:1", "commit": True}}}, "commitment needs the receiver"),
        ({"destinations": {"a": {"url": "smb://x"}}}, "destination a: not an archive's address"),
        ({"routes": [{"name": "x", "bundle": "y", "parameters": {"output": "/etc"}}]}, "no such parameter"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(tmp_path, rules, message):
    with pytest.raises(InputError, match=message):
        Gateway(Spool(tmp_path), Routes.model_validate({"format": 1, **LOCAL, **rules}))


def test_a_damaged_job_file_is_reported(tmp_path):
    spool = Spool(tmp_path)
    folder = spool.root / "dead" / f"{'a' * 20}-000001"
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps({"nonsense": 1}))
    with pytest.raises(InputError, match="job.json makes no sense"):
        spool.jobs("dead")
