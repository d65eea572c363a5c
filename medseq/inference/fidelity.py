"""How far a result moved from its input, gathered plane by plane: metrics, and flags where a bundle's limits break.

Nothing here needs a clean reference; these numbers guard against a model that shifts values, invents edges or is fed
what it never saw. All are in native units of the volume unless said otherwise.
"""

from collections.abc import Sequence

import numpy as np

from medseq.errors import BundleError
from medseq.inference.bundle_schema import CheckSpec, Range
from medseq.inference.predictor import Flag
from medseq.ops.quality import noise_sd

__all__ = ["METRICS", "Fidelity", "check_flags"]

METRICS = {
    "mean_shift": "mean of result - input",
    "residual_sd": "standard deviation of result - input",
    "residual_over_noise": "root mean square of result - input, over the input's noise sd",
    "max_change": "largest |result - input|",
    "noise_sd_before": "noise sd of the input (MAD of the diagonal Haar band, mean over planes)",
    "noise_sd_after": "noise sd of the result, estimated likewise",
    "edge_correlation": "correlation of result - input with the result's gradient magnitude",
    "out_of_range": "share of input pixels outside the bundle's valid_range",
    "low_band_change": "root mean square of what changed below the acquired resolution, over that of the input",
    "uncertainty": "standard deviation of the result over flips and quarter turns, mean over pixels",
    "clipped": "share of result pixels that did not fit the stored integer range",
}
# Rows that are looked at together: bounds the memory of one huge plane.
_BAND = 1024


class Fidelity:
    """Sums over the planes of one item; memory does not grow with their number.

    Args:
        valid_range: The bundle's range of input values, or None.
        factor: Super-resolution only: the result's grid over the acquired one's; adds the metric ``low_band_change``.
    """

    def __init__(self, valid_range: Range | None = None, factor: int = 1) -> None:
        self._low = -np.inf if valid_range is None or valid_range.min is None else valid_range.min
        self._high = np.inf if valid_range is None or valid_range.max is None else valid_range.max
        self._pixels = self._outside = 0
        self._peak, self._factor = 0.0, factor
        # Sums of squares of the change and of the input on the acquired grid.
        self._low_band = np.zeros(2)
        self._spread: float | None = None
        # Sums of d, d^2, g, g^2 and d*g over valid pixels: d = result - input, g = gradient magnitude of the result.
        self._sums = np.zeros(5)
        self._noise: tuple[float, float] = (0.0, 0.0)
        self._planes = 0

    def update(
        self, before: np.ndarray, after: np.ndarray, valid: np.ndarray | None, spread: np.ndarray | None = None
    ) -> None:
        """Add one plane ``(row, col)``; `spread` is the result's uncertainty, if it was asked for."""
        if valid is not None and not valid.any():
            return
        self._planes += 1
        self._noise = (self._noise[0] + noise_sd(before, valid), self._noise[1] + noise_sd(after, valid))
        if spread is not None:
            self._spread = (self._spread or 0.0) + float(spread[... if valid is None else valid].sum(dtype=np.float64))
        if self._factor > 1:
            self._low_band += _low_band_power(before, after, valid, self._factor)
        for lo in range(0, before.shape[0], _BAND):
            hi = min(lo + _BAND, before.shape[0])
            mask = np.ones((hi - lo, before.shape[1]), dtype=bool) if valid is None else valid[lo:hi]
            values = before[lo:hi][mask]
            change = after[lo:hi][mask].astype(np.float64) - values
            slope = _gradient_magnitude(after, lo, hi)[mask].astype(np.float64)
            self._pixels += values.size
            self._outside += int(np.count_nonzero((values < self._low) | (values > self._high)))
            self._peak = max(self._peak, float(np.abs(change).max(initial=0.0)))
            self._sums += (change.sum(), change @ change, slope.sum(), slope @ slope, change @ slope)

    def metrics(self, clipped: int = 0) -> dict[str, float]:
        """`METRICS`; zeros if no plane had a valid pixel.

        ``low_band_change`` is there for super-resolution only, ``uncertainty`` if it was asked for.
        """
        n, planes = max(self._pixels, 1), max(self._planes, 1)
        mean_d, mean_dd, mean_g, mean_gg, mean_dg = self._sums / n
        var_d, var_g = max(mean_dd - mean_d**2, 0.0), max(mean_gg - mean_g**2, 0.0)
        spread = float(np.sqrt(var_d * var_g))
        before, after = self._noise[0] / planes, self._noise[1] / planes
        found = {
            "mean_shift": float(mean_d),
            "residual_sd": float(np.sqrt(var_d)),
            "residual_over_noise": float(np.sqrt(mean_dd)) / before if before > 0 else 0.0,
            "max_change": self._peak,
            "noise_sd_before": before,
            "noise_sd_after": after,
            "edge_correlation": float(mean_dg - mean_d * mean_g) / spread if spread > 0 else 0.0,
            "out_of_range": self._outside / n,
            "clipped": clipped / n,
        }
        if self._factor > 1:
            changed, kept = self._low_band
            found["low_band_change"] = float(np.sqrt(changed / kept)) if kept > 0 else 0.0
        if self._spread is not None:
            found["uncertainty"] = self._spread / n
        return found


def check_flags(metrics: dict[str, float], checks: Sequence[CheckSpec], valid_range: Range | None) -> list[Flag]:
    """Flags for every limit of the bundle that is broken; input outside `valid_range` and clipping always count.

    Raises:
        BundleError: A check has an unknown name.
    """
    flags, named = [], {check.name for check in checks}
    for check in checks:
        if check.name not in METRICS:
            raise BundleError("unknown fidelity check", found=check.name, wanted=", ".join(METRICS))
        if check.name not in metrics:  # the uncertainty, where nobody asked for it
            continue
        value = metrics[check.name]
        if abs(value) > check.max:
            text = f"{METRICS[check.name]}: {value:.4g} {check.unit}, limit {check.max:g}".replace(" 1,", ",")
            flags.append(Flag(check.name, text))
    if "out_of_range" not in named and metrics["out_of_range"] > 0 and valid_range is not None:
        share = 100 * metrics["out_of_range"]
        span = f"{_end(valid_range.min)} to {_end(valid_range.max)}"
        flags.append(Flag("out_of_range", f"{share:.3g} % of the input lies outside the model's valid range, {span}"))
    if "clipped" not in named and metrics["clipped"] > 0:
        share = 100 * metrics["clipped"]
        flags.append(Flag("clipped", f"{share:.3g} % of the result did not fit the stored integer range"))
    return flags


def _low_band_power(
    before: np.ndarray, after: np.ndarray, valid: np.ndarray | None, factor: int
) -> tuple[float, float]:
    """Sums of squares on the acquired grid: of the change, and of the input."""
    import torch

    from medseq.ops.resolution import truncate_kspace

    shape = (before.shape[0] // factor, before.shape[1] // factor)
    change = after - before if valid is None else np.where(valid, after - before, 0.0)
    pair = torch.from_numpy(np.stack([change, before]).astype(np.float32))
    changed, kept = truncate_kspace(pair, shape).double().square().sum(dim=(1, 2)).tolist()
    return changed, kept


def _gradient_magnitude(plane: np.ndarray, lo: int, hi: int) -> np.ndarray:
    """Of rows ``lo .. hi-1``, by forward differences that repeat the last row and column."""
    rows = plane[lo : min(hi + 1, plane.shape[0])]
    if rows.shape[0] == hi - lo:
        rows = np.concatenate([rows, rows[-1:]])
    down = np.diff(rows, axis=0)
    right = np.diff(rows[:-1], axis=1, append=rows[:-1, -1:])
    return np.hypot(down, right)


def _end(value: float | None) -> str:
    return "open" if value is None else f"{value:g}"
