"""Quality of a restoration bundle against doing nothing and classical methods.

Run: `python benchmarks/quality_restore.py ct-denoise` (or `mr-denoise`, or the path of a bundle).

Two tables a bundle, never mixed: the training head's held-out block, and other patients. Noise is simulated, and the
reference is the image as it was acquired, noise of its own included. Exits with 1 if the bar is not met: on other
patients PSNR and SSIM above the best classical method (CT at a quarter of the dose, MR at 6 % noise), and an original
left alone.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from baselines import Denoiser, available, tune
from restore_cases import Case, head_cases, inner_half, low_dose, noisy_mr, other_ct_cases, other_mr_cases

from medseq.data.content import mr_slices
from medseq.data.transforms import apply_chain, fit_chain, invert_chain
from medseq.inference.bundle import Bundle, load_bundle
from medseq.inference.evaluate import Table, dump
from medseq.inference.fidelity import Fidelity
from medseq.inference.tiling import apply_tiled
from medseq.ops.quality import in_window, psnr, rmse, ssim

WINDOW = (-160.0, 240.0)
FULL = (-1024.0, 3072.0)
PRESETS = {
    "brain": (0, 80),
    "subdural": (-50, 150),
    "soft tissue": (-160, 240),
    "lung": (-1350, 150),
    "bone": (-450, 1050),
}
DOSES = (0.5, 0.25, 0.1)
NOISES = (0.03, 0.06, 0.09)
# A quarter of a minute a slice: at the claimed level only.
SLOW = ("BM3D",)


def network(bundle: Bundle) -> Denoiser:
    """The bundle's model as `medseq predict` runs it, without files around it."""
    model, chain = bundle.build_model(), bundle.transforms()
    settings = bundle.config.inference
    tile = (settings.tile, settings.tile) if isinstance(settings.tile, int) else settings.tile

    def restore(noisy: np.ndarray, sd: float, spacing_mm: float) -> np.ndarray:
        image = torch.from_numpy(np.ascontiguousarray(noisy, dtype=np.float32))[None, None]
        params = fit_chain(chain, noisy[None], None, (spacing_mm, spacing_mm))
        stages = apply_chain(chain, image, params)
        with torch.inference_mode():
            output = apply_tiled(model, stages[-1], tile=tile, overlap=settings.overlap, blend=settings.blend)
        return invert_chain(chain, output, stages, params)[0, 0].numpy()

    return restore


def scores(result: np.ndarray, case: Case, modality: str) -> dict[str, float]:
    """PSNR, SSIM and RMSE; for CT in the window and over the full range."""
    if modality == "MR":
        top = float(np.percentile(case.image, 99.9))
        return {
            "PSNR": psnr(result, case.image, top),
            "SSIM": ssim(result, case.image, top),
            "RMSE %": 100 * rmse(result, case.image) / top,
        }
    out = {}
    for name, (low, high) in (("window", WINDOW), ("full", FULL)):
        image, reference = in_window(result, (low, high)), in_window(case.image, (low, high))
        out[f"PSNR {name}"] = psnr(image, reference, high - low)
        out[f"SSIM {name}"] = ssim(image, reference, high - low)
        out[f"RMSE HU {name}"] = rmse(image, reference)
    return out


def degrade(case: Case, level: float, modality: str) -> tuple[np.ndarray, float]:
    """The degraded slice and the sd of its noise."""
    if modality == "MR":
        return noisy_mr(case, level)
    noisy = low_dose(case, level)
    return noisy, float((noisy - case.image)[inner_half(case.image)].std())


def measure(title: str, cases: list[Case], level: float, methods: dict[str, Denoiser], modality: str) -> Table:
    """All methods on all cases at one noise level."""
    table = Table(title)
    for case in cases:
        noisy, sd = degrade(case, level, modality)
        for name, method in methods.items():
            start = time.process_time()
            result = method(noisy, sd, case.spacing_mm)
            seconds = time.process_time() - start
            values = scores(result, case, modality)
            values["s / 512²"] = seconds * 512**2 / case.image.size
            table.add(name, case.name, case.patient, values)
    return table


def fed_the_original(cases: list[Case], restore: Denoiser) -> Table:
    """What the model does to images as they were acquired."""
    table = Table("Fed the original image, no noise added: it should change little, shift nothing, carry no edges")
    for case in cases:
        result = restore(case.image, 0.0, case.spacing_mm)
        fidelity = Fidelity()
        fidelity.update(case.image, result, None)
        found = fidelity.metrics()
        values = {
            "RMS change / own noise sd": found["residual_over_noise"],
            "own noise sd": found["noise_sd_before"],
            "|edge correlation|": abs(found["edge_correlation"]),
        }
        if case.image.min() < -500:
            for name, (low, high) in PRESETS.items():
                inside = (case.image >= low) & (case.image <= high)
                values[f"|shift| {name} HU"] = abs(float((result - case.image)[inside].mean())) if inside.any() else 0.0
        table.add("bundle", case.name, case.patient, values)
    return table


def validation_pairs(modality: str, level: float) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """A few (noisy, clean, sd) for tuning the classical methods; no test image among them."""
    if modality == "CT":
        cases = head_cases("val")[::4]
    else:
        slices = mr_slices("val").slices
        cases = [Case(f"val {i}", "val", slices[i].numpy(), 1.0) for i in range(0, len(slices), len(slices) // 3)]
    return [(noisy, case.image, sd) for case in cases for noisy, sd in [degrade(case, level, modality)]]


def main() -> int:
    """Run, print, write and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", default="ct-denoise", help="zoo name or path")
    parser.add_argument("--rival", action="append", default=[], help="NAME=BUNDLE: another bundle as a further row")
    parser.add_argument("--quick", action="store_true", help="one noise level, no file written")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    bundle = load_bundle(arguments.bundle)
    modality = bundle.config.input.modality[0]
    levels, claimed = (DOSES, 0.25) if modality == "CT" else (NOISES, 0.06)
    others = other_ct_cases() if modality == "CT" else other_mr_cases()
    own = head_cases("test")[::2] if modality == "CT" else []
    limit: Callable[[np.ndarray], np.ndarray] = (lambda x: in_window(x, WINDOW)) if modality == "CT" else (lambda x: x)

    restore = network(bundle)
    tables, failures, strengths = [], [], {}
    for level in (claimed,) if arguments.quick else levels:
        pairs = validation_pairs(modality, level)
        methods: dict[str, Denoiser] = {}
        for name in available():
            if name in SLOW and level != claimed:
                continue
            methods[name], strengths[f"{name} at {level}"] = tune(name, pairs, limit, rician=modality == "MR")
        methods |= {name: network(load_bundle(path)) for name, _, path in (r.partition("=") for r in arguments.rival)}
        methods[bundle.config.name] = restore
        amount = f"dose {level:g}" if modality == "CT" else f"Rician noise {level:.0%} of the 99th percentile"
        for title, cases in (("Same head, held-out block", own), ("Other patients", others)):
            if not cases:
                continue
            patients = len({case.patient for case in cases})
            table = measure(
                f"{title}, simulated {amount}: n = {len(cases)} slices, {patients} patients",
                cases,
                level,
                methods,
                modality,
            )
            table.note = (
                f"window {WINDOW} HU, full {FULL} HU"
                if modality == "CT"
                else "range: 99.9th percentile of each reference"
            )
            tables.append(table)
            print(table.markdown(against="nothing"), flush=True)
            if title == "Other patients" and modality == "CT" and level == 0.5:
                failures += judge_full_dose(table, bundle.config.name)
            if title == "Other patients" and level == claimed:
                failures += judge(table, bundle.config.name, [m for m in methods if m in available()])
    checks = fed_the_original(others, restore)
    tables.append(checks)
    print(checks.markdown())
    failures += judge_original(checks, modality)

    if not arguments.quick:
        about = {
            "script": "benchmarks/quality_restore.py",
            "bundle": bundle.config.name,
            "bundle_hash": bundle.hash,
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread",
            "torch": torch.__version__,
            "strengths": strengths,
            "failures": failures,
        }
        arguments.out.mkdir(parents=True, exist_ok=True)
        stem = arguments.out / f"quality_restore_{bundle.config.name}"
        stem.with_suffix(".json").write_text(dump(tables, about))
        head = (
            f"# {bundle.config.name}\n\nBundle {bundle.hash[:12]}; made by `python benchmarks/quality_restore.py`.\n\n"
        )
        stem.with_suffix(".md").write_text(
            head
            + "\n".join(
                table.markdown(against="nothing") if len(table.methods) > 1 else table.markdown() for table in tables
            )
        )
    for failure in failures:
        print("NOT MET:", failure)
    print("claim met" if not failures else f"{len(failures)} claims not met")
    return 1 if failures else 0


def judge(table: Table, name: str, classical: list[str]) -> list[str]:
    """PSNR and SSIM (in the window) above the best classical method."""
    failures = []
    for metric in table.metrics[:2]:
        best = table.best(metric, classical)
        mine, theirs = table.summary(name, metric).mean, table.summary(best, metric).mean
        delta = table.difference(metric, name, best)
        interval = f"{delta.mean:+.3f} [{delta.low:+.3f}, {delta.high:+.3f}]"
        print(f"claim: {metric} {mine:.3f} against {best} {theirs:.3f}: {interval}")
        if mine <= theirs:
            failures.append(f"{metric}: {name} {mine:.3f}, {best} {theirs:.3f}")
    return failures


def judge_full_dose(table: Table, name: str) -> list[str]:
    """No loss on a full-dose scan.

    Dose 1 adds no noise, so that a gain over it is not defined. A scan at the full dose of the acquired image, taken as
    the object, has as much added noise as half the dose adds to the acquired image: that is this table.
    """
    delta = table.difference("PSNR window", name, "nothing")
    interval = f"[{delta.low:+.3f}, {delta.high:+.3f}]"
    print(f"claim: PSNR gain at full-dose noise >= 0: {delta.mean:+.3f} {interval}")
    return [] if delta.mean >= 0 else [f"PSNR gain at full-dose noise {delta.mean:+.3f}"]


def judge_original(table: Table, modality: str) -> list[str]:
    """Limits on what an original may change; every patient counts."""
    limits = {"RMS change / own noise sd": 0.5, "|edge correlation|": 0.1}
    limits |= {metric: 1.0 for metric in table.metrics if metric.endswith("HU") and metric.startswith("|shift|")}
    failures = []
    for metric, limit in limits.items():
        values = table.values("bundle", metric)
        case = max(values, key=values.__getitem__)
        print(f"claim: {metric} <= {limit}: worst {values[case]:.3f} ({case})")
        if values[case] > limit:
            failures.append(f"{metric} {values[case]:.3f} on {case}, limit {limit}")
    return failures


if __name__ == "__main__":
    sys.exit(main())
