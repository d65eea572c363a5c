"""One row a restoration task: reference, degraded (simulated), a classical method, bundle, and what the bundle changed.

Run: `python benchmarks/restore_picture.py` (two minutes). Writes docs/images/restore.png, of slices no training saw.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import pet_counts
import super_resolution
from baselines import METHODS
from quality_restore import WINDOW, degrade, network
from restore_cases import other_ct_cases, other_mr_cases

from medseq.inference.bundle import load_bundle

TARGET = Path("docs/images/restore.png")
# Their rows are stored from back to front (ImageOrientationPatient 1 0 0 0 -1 0).
UPSIDE_DOWN = ("abdomen",)


class Row(NamedTuple):
    """Images of one task, in one window."""

    name: str
    words: str
    rival: str
    window: tuple[float, float]
    images: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    reversed_grey: bool = False


def noise_row(name: str, case_name: str, level: float, words: str) -> Row:
    """CT or MR noise: non-local means with the true noise as the rival."""
    bundle = load_bundle(name)
    modality = bundle.config.input.modality[0]
    cases = other_ct_cases() if modality == "CT" else other_mr_cases()
    case = next(case for case in cases if case.name == case_name)
    noisy, sd = degrade(case, level, modality)
    window = WINDOW if modality == "CT" else (0.0, float(np.percentile(case.image, 99.5)))
    images = (case.image, noisy, METHODS["NLM"][0](noisy, sd, 0.9), network(bundle)(noisy, sd, case.spacing_mm))
    if case_name in UPSIDE_DOWN:
        images = tuple(np.flipud(image) for image in images)
    return Row(name, words, "NLM", window, images)


def sr_row(name: str, case_name: str) -> Row:
    """Super-resolution: zero filling is the degraded image, total variation the rival."""
    bundle = load_bundle(name)
    factor = bundle.config.output.scale_factor
    case = next(case for case in other_mr_cases() if case.name == case_name)
    low, reference = super_resolution.degrade(case.image, factor)
    images = (
        reference,
        super_resolution.zero_filling(low, factor),
        super_resolution.total_variation(low, factor, 0.002 * factor),
        super_resolution.upscaler(bundle)(low, factor),
    )
    return Row(name, f"x{factor}, zero-filled", "TV", (0.0, float(np.percentile(reference, 99.5))), images)


def pet_row(name: str, fraction: float) -> Row:
    """A simulated head with a part of the counts: a Gaussian filter is the rival."""
    case, low, sd = pet_counts.scans(fraction)[3]
    images = (case.image, low, pet_counts.gaussian(low, sd, 1.4), network(load_bundle(name))(low, sd, case.spacing_mm))
    words = f"1/{round(1 / fraction)} of the counts"
    return Row(name, words, "Gaussian", (0.0, float(np.percentile(case.image, 99.5))), images, reversed_grey=True)


def main() -> None:
    """All rows."""
    torch.set_num_threads(1)
    rows = [
        noise_row("ct-denoise", "abdomen", 0.25, "quarter dose"),
        noise_row("mr-denoise", "head, FLAIR", 0.06, "6 % noise"),
        sr_row("mr-sr-x2", "head, PD, slice 14"),
        sr_row("mr-sr-x4", "head, PD, slice 14"),
        pet_row("pet-lowcount", 0.1),
    ]
    figure, axes = plt.subplots(len(rows), 5, figsize=(11, 2.25 * len(rows)))
    for line, row in zip(axes, rows, strict=True):
        around = (row.window[1] - row.window[0]) / 10
        pictures = (*row.images, row.images[3] - row.images[1])
        for axis, image, title in zip(
            line, pictures, ("reference", row.words, row.rival, row.name, f"change, ±{around:.3g}"), strict=True
        ):
            low, high = (-around, around) if title.startswith("change") else row.window
            grey = "gray_r" if row.reversed_grey and not title.startswith("change") else "gray"
            axis.imshow(_square(image), cmap=grey, vmin=low, vmax=high)
            axis.set_title(title, fontsize=8)
            axis.set_axis_off()
    figure.tight_layout(pad=0.3)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(TARGET, dpi=75)


def _square(image: np.ndarray) -> np.ndarray:
    side = min(image.shape)
    top, left = ((size - side) // 2 for size in image.shape)
    return image[top : top + side, left : left + side]


if __name__ == "__main__":
    main()
