"""Writing in a thread: the same pieces in the same order, errors where the result is awaited, nobody waits in vain."""

import threading
from contextlib import contextmanager

import numpy as np
import pytest

from medseq.errors import OutputError
from medseq.inference.background import BackgroundWriter


class Slow:
    """Writes when it is let."""

    clipped = 7

    def __init__(self, error_at=None):
        self.said, self.let, self.error_at = [], threading.Event(), error_at

    def begin(self, header):
        self.said.append(("begin", header, threading.get_ident()))

    def write(self, lo, planes):
        self.let.wait(10)
        if lo == self.error_at:
            raise OutputError("no space")
        self.said.append(("write", lo, float(planes.sum())))

    def commit(self):
        self.said.append(("commit",))
        return ["file"]

    def abort(self):
        self.said.append(("abort",))


@pytest.fixture
def opened():
    return []


@pytest.fixture
def around(opened):
    @contextmanager
    def context():
        opened.append(1)
        yield

    return context


def test_pieces_are_written_in_order_while_the_caller_goes_on(around, opened):
    slow = Slow()
    writer = BackgroundWriter(slow, around)
    writer.begin("header")
    planes = np.ones((1, 2, 2), np.float32)
    writer.write(0, planes)
    # Whoever hands a piece over may use its memory again.
    planes[:] = 5
    assert len(slow.said) == 1
    slow.let.set()
    for lo in range(1, 6):
        writer.write(lo, planes)
    assert writer.commit() == ["file"]
    assert slow.said[0][:2] == ("begin", "header")
    assert slow.said[0][2] == threading.get_ident()
    assert slow.said[1:] == [("write", 0, 4.0), *(("write", lo, 20.0) for lo in range(1, 6)), ("commit",)]
    assert writer.clipped == 7
    assert opened, "others may compute while this one waits"
    writer.abort()
    assert slow.said[-1] == ("abort",)


@pytest.mark.parametrize("error_at", [0, 3])
def test_what_goes_wrong_is_raised_once_the_result_is_awaited(around, error_at):
    slow = Slow(error_at)
    slow.let.set()
    writer = BackgroundWriter(slow, around)
    writer.begin(None)

    def all_of_it():
        for lo in range(4):
            writer.write(lo, np.ones((1, 2, 2)))
        writer.commit()

    with pytest.raises(OutputError, match="no space"):
        all_of_it()
    writer.abort()
    assert [words[0] for words in slow.said].count("commit") == 0
    assert slow.said[-1] == ("abort",)
    assert not [thread for thread in threading.enumerate() if thread.name == "writer"]


def test_a_volume_that_cannot_be_begun_says_so_at_once(around):
    slow = Slow()
    slow.begin = lambda header: (_ for _ in ()).throw(OutputError("another grid"))
    writer = BackgroundWriter(slow, around)
    with pytest.raises(OutputError, match="another grid"):
        writer.begin(None)
    writer.abort()
    assert not [thread for thread in threading.enumerate() if thread.name == "writer"]
