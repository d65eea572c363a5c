"""Damaged files end in a result or in a reason, in bounded time and memory, whatever the damage; see `campaign`."""

import random

import pytest

from tests.fuzz import campaign
from tests.fuzz.campaign import MOST_S, Child, plan, prepare, run
from tests.fuzz.child import MOST_BYTES
from tests.fuzz.entries import ENTRIES
from tests.fuzz.mutate import mutate


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    prepare(folder)
    return folder


def judged(place, count, seed):
    tally = run(place, plan(count, seed))
    print(f"seed {seed}: {sum(tally.fates.values())} mutants in {tally.seconds:.0f} s, {tally.peak_mib:.0f} MiB")
    assert tally.crashes == [], "repeat one: python -m tests.fuzz.campaign --repeat SEED"
    assert {kind for kind, _ in tally.fates} == set(ENTRIES)
    # Mutants that are all refused, or all read, test nothing.
    for kind in ("dicom", "nifti", "kspace-h5", "mrd", "npy", "bag"):
        assert min(tally.fates[kind, "result"], tally.fates[kind, "refused"]) > 0, kind
    assert max(tally.slowest.values()) < MOST_S
    assert tally.peak_mib * 2**20 < MOST_BYTES


def test_a_thousand_mutants(place, seed):
    judged(place, 1000, seed)


@pytest.mark.slow
def test_twenty_thousand_mutants(place, seed):
    judged(place, 20_000, seed)


def test_a_mutant_is_its_seed(place):
    names = ("x.dcm", "x.yaml", "x.h5", "x.nii", "x.safetensors")
    data = (place / "seeds" / "dicom" / "MR_small" / "MR_small.dcm").read_bytes()
    for name in names[:2]:
        one, two, other = (mutate(data, name, random.Random(f"{name}{k}")) for k in (1, 1, 2))
        assert one == two != other


@pytest.mark.parametrize(
    ("kind", "entry", "expected"),
    [
        ("dies", "import os; os.abort()", "died with -6"),
        ("raises", "raise KeyError('x')", "KeyError"),
        ("hangs", "import time; time.sleep(99)", "no answer"),
        ("eats", "bytearray(3 << 30)", "MemoryError"),
    ],
)
def test_crashes_are_seen(place, monkeypatch, kind, entry, expected):
    """The judge itself: an entry that misbehaves is a crash, with the words of what happened."""
    if kind == "hangs":
        monkeypatch.setattr(campaign, "_PATIENCE_S", 5.0)
        monkeypatch.setattr(campaign, "_STARVED_S", 5.0)
    start = (
        "import sys\nfrom tests.fuzz import child\n"
        f"def entry(folder):\n    {entry}\n    return 'result'\n"
        "child.ENTRIES['manifest'] = entry\nchild.main()\n"
    )
    monkeypatch.setattr(campaign, "CHILD", ["-c", start])
    child = Child(place / "seeds", place / "work")
    try:
        _, answer = child.ask({"kind": "manifest", "seed": "manifest/0/0"})
        assert answer["fate"] == "crash"
        assert expected in answer["error"]
    finally:
        child.close()
