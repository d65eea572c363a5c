"""Discrete time for survival: the bins that a model's hazards are for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medseq.errors import InputError

__all__ = ["SurvivalBins"]


@dataclass(frozen=True)
class SurvivalBins:
    """Time bins ``[edge_k, edge_k+1)``.

    The inner edges are the quantiles of the follow-up of those whose event was seen, as MambaMIL and its forerunners
    take them. Two things differ: the quantiles come from the training part alone, where the original looks at all
    cases; and the outer edges are -inf and inf, where the original widens the range that it saw by 1e-6, so that a case
    of another part always has a bin. For the cases that the edges come from the bins are the same.

    Attributes:
        inner: Edges between the bins, in months, rising.

    Reference:
        Chen et al., Whole Slide Images are 2D Point Clouds, arXiv:2107.13048 (quartiles of the uncensored).
    """

    inner: tuple[float, ...]

    @classmethod
    def fit(
        cls, months: Sequence[float] | np.ndarray, event: Sequence[bool] | np.ndarray, bins: int = 4
    ) -> "SurvivalBins":
        """Bins with equally many events of the training part.

        Args:
            months: ``(cases,)`` follow-up.
            event: ``(cases,)`` whether the event was seen.
            bins: Their number.

        Raises:
            InputError: Everyone is censored, or too few different times of events.
        """
        months, event = np.asarray(months, np.float64), np.asarray(event, bool)
        if bins < 2:
            raise InputError("survival needs bins", found=bins, wanted="2 or more")
        if not event.any():
            raise InputError(
                "every case of the training part is censored",
                where="survival bins",
                found=f"0 events in {len(event)} cases",
                wanted=f"at least {bins}",
                remedy="put cases with events into the training part",
            )
        edges = np.quantile(months[event], np.linspace(0, 1, bins + 1)[1:-1])
        # An edge at the first event leaves a bin without events, whose hazard would be learnt from nobody.
        if (np.diff(edges) <= 0).any() or edges[0] <= months[event].min():
            raise InputError(
                "too few different times of events for the bins",
                where="survival bins",
                found=f"{len(np.unique(months[event]))} times, edges {', '.join(f'{edge:g}' for edge in edges)}",
                wanted=f"{bins} bins that each have an event",
                remedy="ask for fewer bins",
            )
        return cls(tuple(float(edge) for edge in edges))

    @property
    def count(self) -> int:
        """Number of bins."""
        return len(self.inner) + 1

    def index(self, months: float | np.ndarray) -> np.ndarray:
        """The bin of each time: a time on an edge belongs to the later bin."""
        return np.searchsorted(np.asarray(self.inner), months, side="right")
