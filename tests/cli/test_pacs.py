"""`medseq pacs` without an archive: routes explained, dead jobs, the gateway's process, and what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from medseq.cli.main import app
from medseq.inference.spool import Spool
from medseq.io.pacs import connect, parse_remote
from tests.io.synthetic import PLANTED, save, stack

ROUTES = """
format: 1
routes:
  - {name: heads, when: {Modality: MR, BodyPart: HEAD}, bundle: mr-denoise}
  - {name: all ct, when: {Modality: CT, SeriesDescription: thin}, bundle: ct-denoise}
"""


@pytest.fixture
def routes(tmp_path):
    path = tmp_path / "routes.yaml"
    path.write_text(ROUTES)
    return path


@pytest.fixture
def rng(seed):
    import numpy as np

    return np.random.default_rng(seed)


def call(*arguments):
    return CliRunner().invoke(app, ["pacs", *map(str, arguments)])


def test_route_explains_each_series_without_identifiers(routes, tmp_path, rng):
    images = stack(rng, slices=2)
    images[0].SeriesDescription = images[1].SeriesDescription = "thin Plantedname"
    save(images, tmp_path / "in")
    save(stack(rng, slices=1, modality="PT"), tmp_path / "in")
    done = call("route", routes, "--explain", tmp_path / "in")
    assert done.exit_code == 0
    assert "heads: Modality is not 'MR'" in done.output
    assert "all ct: matches" in done.output
    assert "no route matches" in done.output
    assert not [mark for mark in PLANTED if mark in done.output.lower()]
    answer = json.loads(call("route", routes, "--explain", tmp_path / "in", "--json").stdout)
    assert sorted(str(row["bundle"]) for row in answer["series"]) == ["None", "ct-denoise"]
    assert "Plantedname" in call("route", routes, "--explain", tmp_path / "in", "--show-identifiers").output


def test_dead_jobs_are_listed_and_put_back(tmp_path):
    spool = Spool(tmp_path)
    (spool.incoming / ("a" * 20)).mkdir()
    job = spool.claim("a" * 20)
    job.reason = "the archive: does not answer"
    spool.move(job, "dead")
    assert f"{job.name}  the archive: does not answer" in call("retry", tmp_path, "--list").output
    assert call("retry", tmp_path, "nonsense").exit_code == 2
    assert call("retry", tmp_path).exit_code == 0
    assert [one.name for one in spool.jobs("work")] == [job.name]
    assert call("retry", tmp_path).exit_code == 2
    assert call("retry", tmp_path / "nowhere").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["echo", "ftp://x"], "not an archive's address"),
        (["pull", "http://127.0.0.1:1/x", "OUT"], "what shall be fetched"),
        (["pull", "dicom://A@127.0.0.1:1", "OUT", "--study", "1.2"], "C-MOVE needs a port"),
        (["listen", "SPOOL", "--routes", "nowhere.yaml"], "routes file cannot be read"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, arguments, message):
    done = call(*[str(tmp_path / a) if a in ("OUT", "SPOOL") else a for a in arguments])
    assert done.exit_code == 2
    assert message in done.output


def test_the_gateway_runs_until_it_is_told_to_stop(routes, tmp_path, rng):
    command = [sys.executable, "-m", "medseq.cli.main", "pacs", "listen", str(tmp_path / "spool")]
    command += ["--routes", str(routes), "--port", "0", "--min-free-gb", "0", "--quiet-seconds", "0", "--ae", "GATE"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        port = re.search(r"as GATE on port (\d+)", process.stderr.readline())[1]
        paths = save(stack(rng, slices=1, modality="PT"), tmp_path / "in")
        pushed = call("push", f"dicom://GATE@127.0.0.1:{port}", paths[0], "--no-resume")
        assert pushed.exit_code == 0, pushed.output
        connect(parse_remote(f"dicom://GATE@127.0.0.1:{port}")).echo()
        deadline = time.monotonic() + 60
        while not list((tmp_path / "spool" / "done").iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "stopped: 1 studies done, 0 given up" in said
    assert not [mark for mark in PLANTED if mark in said.lower()]
    (job,) = (tmp_path / "spool" / "done").iterdir()
    assert json.loads((job / "job.json").read_text())["decisions"][0]["reason"] == "no route matches"
