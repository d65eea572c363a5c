"""Methods x cases -> a table with means, standard deviations and paired bootstrap intervals.

Every benchmark of medseq goes through here, so that n is always said, and a difference always has an interval that is
paired (same cases for both methods) and drawn over patients (slices of one patient are not independent).
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medseq.errors import InputError

__all__ = ["Difference", "Score", "Summary", "Table", "dump", "restored"]


@dataclass(frozen=True)
class Score:
    """What one method reached on one case.

    Attributes:
        method: Name of the method.
        case: Name of the case; every method is run on every case.
        patient: Whose case it is: the unit that is resampled.
        values: Metric -> value.
    """

    method: str
    case: str
    patient: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Summary:
    """Mean over cases, standard deviation over cases (ddof 1; nan for one), number of cases and of patients."""

    mean: float
    sd: float
    n: int
    patients: int


@dataclass(frozen=True)
class Difference:
    """Mean of a - b over cases, and the 95 % percentile interval of a bootstrap over patients.

    With one patient there is nothing to resample: the interval is nan.
    """

    mean: float
    low: float
    high: float
    patients: int


@dataclass
class Table:
    """Scores of several methods on the same cases.

    Args:
        title: Says what the cases are, and what is simulated.
        note: One line of convention: data range, noise, n.
    """

    title: str
    note: str = ""
    scores: list[Score] = field(default_factory=list)

    def add(self, method: str, case: str, patient: str, values: Mapping[str, float]) -> None:
        """Add one score; a method has one a case."""
        if any(s.method == method and s.case == case for s in self.scores):
            raise InputError("case is scored twice", where=f"{self.title}: {method}", found=case)
        self.scores.append(Score(method, case, patient, dict(values)))

    @property
    def methods(self) -> list[str]:
        """Methods in the order they came."""
        return list(dict.fromkeys(score.method for score in self.scores))

    @property
    def metrics(self) -> list[str]:
        """Metrics in the order they came."""
        return list(dict.fromkeys(name for score in self.scores for name in score.values))

    def values(self, method: str, metric: str) -> dict[str, float]:
        """Case -> value.

        Raises:
            InputError: The method has no such metric.
        """
        found = {s.case: s.values[metric] for s in self.scores if s.method == method and metric in s.values}
        if not found:
            raise InputError("no such score", where=self.title, found=f"{method}/{metric}", wanted=self.methods)
        return found

    def summary(self, method: str, metric: str) -> Summary:
        """Mean, sd and n of one method."""
        values = list(self.values(method, metric).values())
        patients = {s.patient for s in self.scores if s.method == method}
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        return Summary(float(np.mean(values)), sd, len(values), len(patients))

    def difference(self, metric: str, a: str, b: str, *, draws: int = 10_000, seed: int = 0) -> Difference:
        """Paired difference a - b.

        Args:
            metric: Which metric.
            a: One method.
            b: Another, scored on the same cases.
            draws: Bootstrap resamples.
            seed: Of the resampling.

        Raises:
            InputError: The two were not scored on the same cases.
        """
        first, second = self.values(a, metric), self.values(b, metric)
        if first.keys() != second.keys():
            raise InputError(
                "methods were scored on different cases",
                where=f"{self.title}: {metric}",
                found=sorted(first.keys() ^ second.keys())[:5],
            )
        owner = {score.case: score.patient for score in self.scores}
        groups: dict[str, list[float]] = {}
        for case in first:
            groups.setdefault(owner[case], []).append(first[case] - second[case])
        sums = np.array([sum(group) for group in groups.values()])
        sizes = np.array([len(group) for group in groups.values()])
        mean = float(sums.sum() / sizes.sum())
        if len(groups) < 2:
            return Difference(mean, float("nan"), float("nan"), len(groups))
        picks = np.random.default_rng(seed).integers(len(groups), size=(draws, len(groups)))
        resampled = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
        low, high = np.percentile(resampled, [2.5, 97.5])
        return Difference(mean, float(low), float(high), len(groups))

    def best(self, metric: str, among: Iterable[str], *, larger: bool = True) -> str:
        """The method with the best mean."""
        return (max if larger else min)(among, key=lambda method: self.summary(method, metric).mean)

    def markdown(self, *, against: str | None = None, digits: int = 3) -> str:
        """A table of mean ± sd; with `against`, the first metric's paired difference and interval as a last column."""
        metrics = self.metrics
        head = ["method", *metrics] + ([f"Δ {metrics[0]} vs {against} [95 % CI]"] if against else [])
        lines = [f"**{self.title}**", "", self.note, "", _row(head), _row(["---"] * len(head))]
        for method in self.methods:
            cells = [method]
            for metric in metrics:
                try:
                    found = self.summary(method, metric)
                except InputError:
                    cells.append("-")
                    continue
                cells.append(f"{found.mean:.{digits}g}" + (f" ± {found.sd:.2g}" if found.n > 1 else ""))
            if against:
                delta = self.difference(metrics[0], method, against)
                cells.append(f"{delta.mean:+.2f} [{delta.low:+.2f}, {delta.high:+.2f}]" if method != against else "")
            lines.append(_row(cells))
        return "\n".join(lines) + "\n"

    def latex(self, *, digits: int = 3) -> str:
        """A tabular environment of mean ± sd."""
        metrics = self.metrics
        lines = [rf"\begin{{tabular}}{{l{'r' * len(metrics)}}}", " & ".join(["method", *metrics]) + r" \\ \hline"]
        for method in self.methods:
            found = [self.summary(method, metric) for metric in metrics]
            cells = [f"${s.mean:.{digits}g} \\pm {s.sd:.2g}$" for s in found]
            lines.append(" & ".join([method, *cells]) + r" \\")
        return "\n".join([*lines, r"\end{tabular}"]) + "\n"

    def csv(self) -> str:
        """One line a score."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["method", "case", "patient", *self.metrics])
        for s in self.scores:
            writer.writerow([s.method, s.case, s.patient, *(s.values.get(metric, "") for metric in self.metrics)])
        return out.getvalue()

    def without(self, methods: Iterable[str]) -> "Table":
        """The same table, some methods left out."""
        left = set(methods)
        return Table(self.title, self.note, [score for score in self.scores if score.method not in left])

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "title": self.title,
            "note": self.note,
            "scores": [{"method": s.method, "case": s.case, "patient": s.patient, **s.values} for s in self.scores],
        }


def dump(tables: Sequence[Table], about: Mapping[str, Any]) -> str:
    """Several tables and what they were made with, as JSON; infinities and nan as null."""

    def clean(value: Any) -> Any:
        if isinstance(value, float) and not np.isfinite(value):
            return None
        if isinstance(value, Mapping):
            return {key: clean(entry) for key, entry in value.items()}
        return [clean(entry) for entry in value] if isinstance(value, list | tuple) else value

    content = {**about, "tables": [table.as_dict() for table in tables]}
    return json.dumps(clean(content), indent=1, allow_nan=False) + "\n"


def restored(content: Mapping[str, Any]) -> dict[str, Table]:
    """Title -> table, from what `dump` wrote; null is nan again."""
    tables = {}
    for entry in content["tables"]:
        table = Table(entry["title"], entry["note"])
        for score in entry["scores"]:
            values = {key: value for key, value in score.items() if key not in ("method", "case", "patient")}
            values = {key: float("nan") if value is None else value for key, value in values.items()}
            table.add(score["method"], score["case"], score["patient"], values)
        tables[table.title] = table
    return tables


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
