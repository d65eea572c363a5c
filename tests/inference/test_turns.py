"""Who computes next, and what follows a failure: decisions without clocks and processes."""

import pytest

from medseq.errors import InputError
from medseq.inference.crew import Report, Seat
from medseq.inference.retry import LATER_CODES, Step, next_step
from medseq.inference.staffing import available_cores, parse_bytes, plan_staff
from medseq.inference.turns import Turn, Turns


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def failed(item, code, blamed=True):
    return Report(item, "w1", None, code, "x", blamed)


BOTH = [Seat("w1", alone=True), Seat("w2", alone=True)]


@pytest.mark.parametrize(
    ("code", "delays"),
    [
        ("io", [1.0, 5.0, 25.0]),
        ("retry", [1.0, 5.0, 25.0]),
        ("crash", [1.0, 5.0, 25.0]),
        ("killed", [1.0, 5.0, 25.0]),
        ("memory", [0.0, 0.0, 0.0]),
        ("timeout", [1.0]),
        ("disk-full", []),
        ("format", []),
        ("input", []),
        ("bug", []),
    ],
)
def test_retries_by_class_of_error(code, delays):
    steps = []
    while (step := next_step(code, len(steps) + 1, retries=3)) is not None:
        steps.append(step)
    assert [step.delay_s for step in steps] == delays
    assert next_step(code, 1, retries=0) is None
    assert (code in LATER_CODES) == (code in ("io", "retry", "memory", "disk-full", "killed"))


def test_the_longest_delay_is_bounded():
    assert next_step("io", 50, retries=99).delay_s == 300


def test_only_what_is_known_to_be_too_large_is_made_smaller_at_once():
    assert next_step("memory", 1, 3) == Step(0.0, "run", smaller=True)
    assert next_step("memory", 1, 3, blamed=False) == Step(0.0, "run", smaller=False)
    assert next_step("memory", 2, 3, blamed=False).smaller


def test_without_trouble_every_seat_takes_the_next_item(clock):
    turns = Turns(2, clock)
    assert turns.next(BOTH, []) == Turn(BOTH[0], None)
    assert turns.next([], ["a"]) is None


def test_an_item_waits_for_its_time_while_others_go_on(clock):
    turns = Turns(2, clock)
    assert turns.failed(failed("a", "io"))
    assert turns.waiting()
    assert turns.next(BOTH, []) == Turn(BOTH[0], None)
    clock.now += 1.1
    turn = turns.next(BOTH, [])
    assert turn == Turn(BOTH[0], "a")
    turns.started(turn)
    assert not turns.waiting()
    turns.done("a")
    assert turns.trouble("a").tries == 0


def test_after_its_last_try_an_item_has_failed(clock):
    turns = Turns(1, clock)
    assert turns.failed(failed("a", "crash"))
    assert not turns.failed(failed("a", "crash"))
    assert not turns.waiting()


def test_a_suspect_is_alone_in_its_worker(clock):
    turns = Turns(2, clock)
    turns.failed(failed("a", "crash"))
    clock.now += 2
    half = [Seat("w1", alone=False), Seat("w2", alone=False)]
    # The first worker is left to become empty, the second goes on.
    assert turns.next(half, ["x", "y"]) == Turn(half[1], None)
    turn = turns.next(BOTH, [])
    turns.started(turn)
    assert turns.next([Seat("w1", alone=False), BOTH[1]], ["a"]) == Turn(BOTH[1], None)
    assert turns.next([Seat("w1", alone=False)], ["a"]) is None
    turns.done("a")
    assert turns.next([Seat("w1", alone=False)], []) is not None


def test_what_needs_all_memory_has_the_run_to_itself(clock):
    turns = Turns(2, clock)
    turns.failed(failed("a", "memory"))
    assert turns.next(BOTH, ["x"]) is None, "the others end first"
    turn = turns.next(BOTH, [])
    assert turn.item_id == "a"
    turns.started(turn)
    assert turns.next([BOTH[1]], ["a"]) is None
    assert turns.trouble("a").smaller == 1
    turns.given_back("a")
    assert turns.waiting()
    assert turns.next(BOTH, []).item_id == "a"


@pytest.mark.parametrize(
    ("given", "cores", "queued", "available", "expected"),
    [
        ({}, 8, 1000, 64 << 30, (8, 1)),
        ({}, 8, 5, 64 << 30, (0, 8)),
        ({}, 8, 1000, 3 << 30, (2, 4)),
        ({}, 1, 1000, 64 << 30, (0, 1)),
        ({"isolated": True}, 8, 3, 64 << 30, (1, 8)),
        ({"device": "cuda"}, 8, 1000, 64 << 30, (1, 8)),
        ({"requested": 3}, 8, 1, 64 << 30, (3, 2)),
        ({"requested": 0}, 8, 1000, 64 << 30, (0, 8)),
    ],
)
def test_a_sensible_number_of_workers(given, cores, queued, available, expected, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    words = {"requested": None, "device": "cpu", "isolated": False, "max_memory": None, "weights": 0, **given}
    staff = plan_staff(words.pop("requested"), queued=queued, cores=cores, available=available, **words)
    assert (staff.workers, staff.threads) == expected


@pytest.mark.parametrize(
    ("said", "threads"), [("1", 1), ("3", 3), ("16", 8), ("2,4", 2), ("", 8), ("all", 8), ("0", 8)]
)
def test_threads_are_those_that_the_environment_allows(said, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    staff = plan_staff(1, device="cpu", queued=9, isolated=False, max_memory=None, weights=0, cores=8)
    assert staff.threads == threads


def test_memory_is_divided_among_workers():
    words = {"device": "cpu", "queued": 9, "isolated": True, "weights": 0, "cores": 4, "available": 64 << 30}
    staff = plan_staff(4, max_memory=4 << 30, **words)
    assert staff.room.whole == (4 << 30) - 4 * (450 << 20)
    assert staff.room.share == staff.room.whole // 4
    with pytest.raises(InputError, match=r"the memory is not enough for the workers \(found 1.07 GB for 4"):
        plan_staff(4, max_memory=1 << 30, **words)


def test_sizes_are_read():
    assert parse_bytes("8G") == parse_bytes("8 GiB") == parse_bytes(8 << 30) == 8 << 30
    assert parse_bytes("1.5m") == 3 << 19
    assert parse_bytes(None) is None
    for wrong in ("", "G", "8X", "-1G", "0"):
        with pytest.raises(InputError, match="not a size"):
            parse_bytes(wrong)
    assert available_cores() >= 1
