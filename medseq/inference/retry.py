"""What follows a failure: another attempt, when and how, or the end. Pure decisions, no clock, no ledger.

| code            | tried again in this run        | by a later run | why                                       |
|-----------------|--------------------------------|----------------|-------------------------------------------|
| retry, io       | after 1, 5, 25 s               | yes            | a share or a disk that hesitates          |
| memory          | alone, with smaller tiles      | yes            | it may fit                                |
| killed, lost    | alone in a worker, after 1, 5 s| yes            | somebody else may have ended the process  |
| crash           | alone in a worker, after 1, 5 s| if asked       | the item may do it, or its neighbour      |
| timeout         | once, alone in a worker        | if asked       | the machine may have been busy            |
| disk-full       | no                             | yes            | nobody frees space within seconds         |
| any other       | no                             | if asked       | the input, or a bug: it will fail again   |
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["LATER_CODES", "Step", "next_step"]

# Failures whose cause lies outside the input: a later run tries these items again by itself.
LATER_CODES = ("retry", "disk-full", "memory", "io", "killed", "lost")

_WAITING = ("retry", "io")
_DEATHS = ("crash", "killed", "lost", "timeout")
_FIRST_S, _GROWTH, _LONGEST_S = 1.0, 5.0, 300.0


@dataclass(frozen=True)
class Step:
    """Another attempt.

    Attributes:
        delay_s: Seconds to wait before it.
        alone: Not beside other items: of the same ``worker``, or of the whole ``run`` (all memory for one).
        smaller: With a smaller footprint than before (tiles, batch).
    """

    delay_s: float
    alone: Literal["no", "worker", "run"] = "no"
    smaller: bool = False


def next_step(code: str, tries: int, retries: int, *, blamed: bool = True) -> Step | None:
    """The next attempt, or None: the item has failed.

    Args:
        code: Reason code of the failure.
        tries: Attempts of this run so far, the failed one included, >= 1.
        retries: How many more than one are allowed.
        blamed: The item is known to be the cause; False where a worker died over several.
    """
    if tries > (min(retries, 1) if code == "timeout" else retries):
        return None
    delay = min(_FIRST_S * _GROWTH ** (tries - 1), _LONGEST_S)
    if code == "memory":
        # One that was only near is given the whole machine first: smaller tiles change the last digit of a result.
        return Step(0.0, "run", smaller=blamed or tries > 1)
    if code in _DEATHS:
        return Step(delay, "worker")
    return Step(delay) if code in _WAITING else None
