"""The cases of `orthanc_cases.py`, run in a network namespace: Orthanc 1.10 listens on every address of the machine.

One process runs them all, so that the interpreter starts once; each is reported here under its own name.
"""

import ast
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("orthanc_cases.py")
NAMES = [node.name for node in ast.parse(CASES.read_text()).body if getattr(node, "name", "").startswith("test_")]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> dict[str, str]:
    """Name of a case -> empty if it passed, else what it said."""
    results = tmp_path_factory.mktemp("orthanc") / "results.xml"
    pytest_call = f"exec {sys.executable} -m pytest -q -p no:cacheprovider --junitxml={results} {CASES}"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", f"ip link set lo up; {pytest_call}"],
        cwd=CASES.parents[2],
        env={**os.environ, "MEDSEQ_TEST_NAMESPACE": "1", "CI": "false"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert results.exists(), f"make system-test-deps\n{done.stdout}\n{done.stderr}"
    said: dict[str, str] = {}
    for case in ET.parse(results).getroot().iter("testcase"):
        trouble = [child.get("message", "") + (child.text or "") for child in case if child.tag != "properties"]
        # A case with parameters passes if it passes with all of them.
        name = case.get("name").partition("[")[0]
        said[name] = said.get(name, "") + "\n".join(text for text in trouble if text)
    return said


@pytest.mark.parametrize("name", NAMES)
def test_case(outcome, name):
    assert name in outcome
    if outcome[name]:
        pytest.fail(outcome[name], pytrace=False)


def test_there_are_cases():
    assert len(NAMES) >= 10
