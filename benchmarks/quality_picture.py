"""The typical and the worst case of `quality_restore.py`'s claim, as a picture: look at it before believing a number.

Run: `python benchmarks/quality_picture.py ct-denoise` (or `mr-denoise`) after `quality_restore.py`, whose table picks
the cases (median and lowest PSNR gain over doing nothing, other patients). Writes
benchmarks/results/quality_restore_<bundle>.png: original, noisy (simulated), best classical method, bundle, and what
the bundle changed in a window of a tenth of the width.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from baselines import Denoiser, tune
from quality_restore import WINDOW, degrade, network, validation_pairs
from restore_cases import Case, other_ct_cases, other_mr_cases

from medseq.inference.bundle import load_bundle
from medseq.ops.quality import in_window

RESULTS = Path("benchmarks/results")
CLASSICAL = "TV"


def picked(name: str, level: str) -> dict[str, str]:
    """Case names of the median and the worst gain in the table of the claim."""
    tables = json.loads((RESULTS / f"quality_restore_{name}.json").read_text())["tables"]
    table = next(t for t in tables if t["title"].startswith("Other patients") and f"{level}:" in t["title"])
    metric = "PSNR window" if name.startswith("ct") else "PSNR"
    values = {(s["method"], s["case"]): s[metric] for s in table["scores"]}
    gains = {case: values[name, case] - values["nothing", case] for method, case in values if method == name}
    ranked = sorted(gains, key=gains.__getitem__)
    return {"typical": ranked[len(ranked) // 2], "worst": ranked[0]}


def row(case: Case, level: float, modality: str, methods: list[Denoiser]) -> list[np.ndarray]:
    """Original, noisy, results and the last result's change."""
    noisy, sd = degrade(case, level, modality)
    results = [method(noisy, sd, case.spacing_mm) for method in methods]
    return [case.image, noisy, *results, results[-1] - noisy]


def main() -> None:
    """Two rows: typical and worst."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", default="ct-denoise")
    bundle = load_bundle(parser.parse_args().bundle)
    torch.set_num_threads(1)
    ct = bundle.config.input.modality[0] == "CT"
    modality, level, words = ("CT", 0.25, "dose 0.25") if ct else ("MR", 0.06, "noise 6%")
    cases = {case.name: case for case in (other_ct_cases() if ct else other_mr_cases())}
    pairs = validation_pairs(modality, level)
    classical, _ = tune(CLASSICAL, pairs, (lambda x: in_window(x, WINDOW)) if ct else (lambda x: x), rician=not ct)
    figure, axes = plt.subplots(2, 5, figsize=(15, 6.4))
    chosen = picked(bundle.config.name, "dose 0.25" if ct else "noise 6% of the 99th percentile")
    for line, (kind, name) in zip(axes, chosen.items(), strict=True):
        images = row(cases[name], level, modality, [classical, network(bundle)])
        low, high = WINDOW if ct else (0.0, float(np.percentile(images[0], 99.5)))
        titles = [f"{kind}: {name}", f"simulated {words}", CLASSICAL, bundle.config.name, "change"]
        for axis, image, title in zip(line, images, titles, strict=True):
            around = (high - low) / 10
            limits = (-around, around) if title == "change" else (low, high)
            axis.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1])
            axis.set_title(title if title != "change" else f"change, ±{around:.3g}", fontsize=10)
            axis.set_axis_off()
    figure.tight_layout(pad=0.4)
    figure.savefig(RESULTS / f"quality_restore_{bundle.config.name}.png", dpi=70)


if __name__ == "__main__":
    main()
