"""Which number of an item stands in the worklist, and what it means in words. No torch."""

from collections.abc import Mapping
from typing import Literal

__all__ = ["Task", "key_number", "task_of", "uncertainty"]

Task = Literal["restore", "recon", "mil"]
_TASKS: dict[str, Task] = {"dicom": "restore", "nifti": "restore", "kspace": "recon", "bag": "mil", "slide": "mil"}


def task_of(kind: str, hint: str = "") -> Task:
    """The task of an item by its kind; for what is no input, the task of its run."""
    fallback: Task = "restore"
    if hint in ("restore", "recon", "mil"):
        fallback = hint  # type: ignore[assignment]
    return _TASKS.get(kind, fallback)


def key_number(task: Task, metrics: Mapping[str, float]) -> tuple[float | None, str | None]:
    """The number that decides what to look at first, and its text; None where the run did not say.

    Restoration: gain in PSNR where a reference was given, else the share of noise that was removed. Reconstruction:
    disagreement with the measured data, in units of the noise. Slides: probability of the class that was called, with
    its interval if there is one, or the risk.
    """
    return {"restore": _restored, "recon": _reconstructed, "mil": _scored}[task](metrics)


def uncertainty(metrics: Mapping[str, float]) -> float | None:
    """Mean spread of the result over flips and turns, in its own units."""
    return metrics.get("uncertainty")


def _restored(metrics: Mapping[str, float]) -> tuple[float | None, str | None]:
    if "psnr_before" in metrics and "psnr_after" in metrics:
        gain = metrics["psnr_after"] - metrics["psnr_before"]
        return gain, f"PSNR {gain:+.1f} dB"
    before, after = metrics.get("noise_sd_before"), metrics.get("noise_sd_after")
    if before and after is not None:
        change = 100 * (after / before - 1)
        return change, f"noise {change:+.0f} %"
    return None, None


def _reconstructed(metrics: Mapping[str, float]) -> tuple[float | None, str | None]:
    residual, acceleration = metrics.get("residual_over_noise"), metrics.get("acceleration")
    if residual is None:
        return None, None
    text = f"misfit {residual:.2f} x noise"
    return residual, text if acceleration is None else f"{text}, {acceleration:.1f}-fold"


def _scored(metrics: Mapping[str, float]) -> tuple[float | None, str | None]:
    if "risk" in metrics:
        return metrics["risk"], f"risk {metrics['risk']:.2f}" + _interval(metrics, "risk")
    if "call" not in metrics:
        return None, None
    name = f"probability_{int(metrics['call'])}"
    if name not in metrics:
        return None, None
    return metrics[name], f"class {int(metrics['call'])}: {metrics[name]:.2f}" + _interval(metrics, name)


def _interval(metrics: Mapping[str, float], name: str) -> str:
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
