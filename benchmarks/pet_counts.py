"""Low-count PET for `quality_restore.py`: simulated scans of heads and a body that no training saw, and their tables.

The heads are Colin27, another person than the template of the training, classified by T1 intensity, and a macaque; the
body is drawn. What is taken up is drawn too: nobody was scanned. The scanner (6 mm, OSEM of 4 x 8 with 4 mm filter, a
million counts) lies within the training's range, as another hospital's would. The reference is the scan at full counts;
its noise is independent of the input's. Classical methods are told the true noise, and their strengths were tuned on
the training's template, scanned by the same scanner; the network is told nothing.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from baselines import METHODS, Denoiser
from restore_cases import Case

from medseq.data.pet_bank import simulate_slice
from medseq.data.pet_uptake import Head, Uptake, brain_uptake, drawn_uptake
from medseq.data.simulate_pet import PETScanner
from medseq.inference.evaluate import Table
from medseq.ops.quality import psnr, rmse, ssim

__all__ = ["COUNTS", "classical", "compare", "fed_the_original", "scans"]

COUNTS = (1 / 4, 1 / 10, 1 / 20)
PIXEL_MM = 2.0
SCANNER = PETScanner(fwhm_mm=6.0, counts=1e6, filter_mm=4.0)
_SLICES: dict[Head, tuple[float, ...]] = {"colin27": (0.15, 0.3, 0.45, 0.6, 0.75, 0.9), "inia19": (0.4, 0.6)}
_NAMES = {"colin27": "Colin27", "inia19": "macaque"}


def objects(seed: int = 5) -> dict[str, tuple[str, Uptake]]:
    """Name -> (whose it is, uptake) of every slice."""
    out: dict[str, tuple[str, Uptake]] = {}
    for head, places in _SLICES.items():
        for at in places:
            generator = torch.Generator().manual_seed(seed + round(1000 * at))
            uptake = brain_uptake(head, 128, PIXEL_MM, generator, at=at, plain=True)
            out[f"{_NAMES[head]} at {at:g}"] = _NAMES[head], uptake
    for number in range(3):
        out[f"drawn body {number + 1}"] = (
            "drawn",
            drawn_uptake(128, PIXEL_MM, torch.Generator().manual_seed(90 + number)),
        )
    return out


def scans(fraction: float) -> list[tuple[Case, np.ndarray, float]]:
    """The scan at full counts, that at a fraction of them, and the sd of its noise within the body."""
    out = []
    for index, (name, (whose, uptake)) in enumerate(objects().items()):
        rng = np.random.default_rng([index, round(1e4 * fraction)])
        full, low, again = simulate_slice(uptake, PIXEL_MM, SCANNER, [1.0, fraction, fraction], rng)
        body = uptake.body.numpy() > 0.5
        sd = float((low - again)[body].std() / np.sqrt(2))
        out.append((Case(name, whose, full, PIXEL_MM), low, sd))
    return out


def gaussian(noisy: np.ndarray, sd: float, strength: float) -> np.ndarray:
    """A Gaussian filter of `strength` pixels: what is used in the clinic."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(noisy, strength)


# Noise of PET is correlated: strengths go far beyond those for white noise.
GRIDS: dict[str, tuple[Callable[[np.ndarray, float, float], np.ndarray], Sequence[float]]] = {
    "nothing": (METHODS["nothing"][0], (1.0,)),
    "Gaussian": (gaussian, (0.6, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0, 2.4)),
    "NLM": (METHODS["NLM"][0], (0.5, 0.7, 0.9, 1.1, 1.4, 1.8, 2.4)),
    "TV": (METHODS["TV"][0], (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)),
    "wavelet": (METHODS["wavelet"][0], (1.0, 1.5, 2.2, 3.0, 4.5, 6.0)),
}


def classical(fraction: float) -> tuple[dict[str, Denoiser], dict[str, float]]:
    """The classical methods, tuned by RMSE on the training's template, scanned like the tests, and their strengths."""
    pairs = []
    for number in range(5):
        generator = torch.Generator().manual_seed(400 + number)
        uptake = brain_uptake("mni152", 128, PIXEL_MM, generator, at=0.1 + 0.2 * number)
        rng = np.random.default_rng([11, number, round(1e4 * fraction)])
        full, low, again = simulate_slice(uptake, PIXEL_MM, SCANNER, [1.0, fraction, fraction], rng)
        pairs.append((low, full, float((low - again)[uptake.body.numpy() > 0.5].std() / np.sqrt(2))))
    methods: dict[str, Denoiser] = {}
    strengths: dict[str, float] = {}
    for name, (method, grid) in GRIDS.items():
        errors = {s: np.mean([rmse(method(low, sd, s), full) for low, full, sd in pairs]) for s in grid}
        strengths[name] = min(errors, key=errors.__getitem__)
        methods[name] = partial(_with_strength, method, strengths[name])
    return methods, strengths


def compare(fraction: float, methods: dict[str, Denoiser]) -> Table:
    """All methods on all slices at one fraction of the counts."""
    cases = scans(fraction)
    whose = {case.patient for case, _, _ in cases}
    table = Table(
        f"Simulated PET of other objects, {fraction:.3g} of the counts: n = {len(cases)} slices of {len(whose)} objects"
    )
    table.note = "range: 99.9th percentile of each reference; RMSE in SUV; everything simulated, no patient was scanned"
    for case, low, sd in cases:
        top = float(np.percentile(case.image, 99.9))
        for name, method in methods.items():
            start = time.process_time()
            result = method(low, sd, case.spacing_mm)
            seconds = time.process_time() - start
            values = {
                "PSNR": psnr(result, case.image, top),
                "SSIM": ssim(result, case.image, top),
                "RMSE SUV": rmse(result, case.image),
                "s / 512²": seconds * 512**2 / case.image.size,
            }
            table.add(name, case.name, case.patient, values)
    return table


def fed_the_original(restore: Callable[[np.ndarray, float, float], np.ndarray]) -> Table:
    """What the model does to scans at full counts, beside their true noise, which two scans of one object tell."""
    table = Table("Fed the scan at full counts: it should change little and shift nothing")
    for index, (name, (whose, uptake)) in enumerate(objects().items()):
        one, two = simulate_slice(uptake, PIXEL_MM, SCANNER, [1.0, 1.0], np.random.default_rng([7, index]))
        body = uptake.body.numpy() > 0.5
        change = restore(one, 0.0, PIXEL_MM) - one
        noise = float((one - two)[body].std() / np.sqrt(2))
        slope = np.hypot(*np.gradient(one))
        values = {
            "RMS change / own noise sd": float(np.sqrt(np.mean(change[body] ** 2))) / noise,
            "own noise sd, SUV": noise,
            "|edge correlation|": abs(float(np.corrcoef(change[body], slope[body])[0, 1])) if change.any() else 0.0,
            "|shift| of the mean, %": 100 * abs(float(change[body].mean())) / float(one[body].mean()),
        }
        table.add("bundle", name, whose, values)
    return table


def _with_strength(
    method: Callable[[np.ndarray, float, float], np.ndarray],
    strength: float,
    noisy: np.ndarray,
    sd: float,
    spacing_mm: float,
) -> np.ndarray:
    return method(noisy, sd, strength)
