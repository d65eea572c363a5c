"""Quality of a restoration bundle against doing nothing and classical methods.

Run: `python benchmarks/quality_restore.py ct-denoise` (or `mr-denoise`, `mr-sr-x2`, `mr-sr-x4`, `pet-lowcount`, or the
path of a bundle); `--lesions` makes the table of what becomes of small lesions instead.

Two tables a bundle, never mixed: the training head's held-out block, and other patients. Noise is simulated, and the
reference is the image as it was acquired, noise of its own included. Exits with 1 if the bar is not met: on other
patients PSNR and SSIM above the best classical method (CT at a quarter of the dose, MR at 6 % noise), and an original
left alone. A super-resolution bundle has one table and one bar: PSNR and SSIM above the best classical method on other
patients, the acquired frequencies kept.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import lesions
import pet_counts
import super_resolution
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


class Test(NamedTuple):
    """One table: a set of cases at one noise level."""

    title: str
    note: str
    level: float
    cases: list[Case]
    others: bool


def tests_of(modality: str, levels: Sequence[float]) -> list[Test]:
    """The tables of a modality, level by level."""
    ct = modality == "CT"
    sets = {"Same head, held-out block": head_cases("test")[::2] if ct else []}
    sets["Other patients"] = other_ct_cases() if ct else other_mr_cases()
    note = f"window {WINDOW} HU, full {FULL} HU" if ct else "range: 99.9th percentile of each reference"
    tests = []
    for level in levels:
        amount = f"dose {level:g}" if ct else f"Rician noise {level:.0%} of the 99th percentile"
        for name, cases in sets.items():
            if cases:
                n = f"n = {len(cases)} slices, {len({case.patient for case in cases})} patients"
                title = f"{name}, simulated {amount}: {n}"
                tests.append(Test(title, note, level, cases, name == "Other patients"))
    return tests


def classical(modality: str, level: float, slow: bool) -> tuple[dict[str, Denoiser], dict[str, tuple[float, float]]]:
    """The classical methods, tuned for one level, and their strengths."""
    limit: Callable[[np.ndarray], np.ndarray] = (lambda x: in_window(x, WINDOW)) if modality == "CT" else (lambda x: x)
    pairs, methods, strengths = validation_pairs(modality, level), {}, {}
    for name in available():
        if slow or name not in SLOW:
            methods[name], strengths[f"{name} at {level}"] = tune(name, pairs, limit, rician=modality == "MR")
    return methods, strengths


def run_all(bundle: Bundle, rivals: dict[str, Denoiser], quick: bool) -> tuple[list[Table], list[str], dict]:
    """Every table, what is not met, and the strengths of the classical methods."""
    name, modality = bundle.config.name, bundle.config.input.modality[0]
    levels, claimed = (DOSES, 0.25) if modality == "CT" else (NOISES, 0.06)
    tables, failures, strengths, methods, restore = [], [], {}, {}, network(bundle)
    for test in tests_of(modality, (claimed,) if quick else levels):
        if not any(key.endswith(f" at {test.level}") for key in strengths):
            methods, found = classical(modality, test.level, test.level == claimed)
            strengths |= found
        table = measure(test.title, test.cases, test.level, methods | rivals | {name: restore}, modality)
        table.note = test.note
        tables.append(table)
        print(table.markdown(against="nothing"), flush=True)
        if test.others and modality == "CT" and test.level == 0.5:
            failures += judge_full_dose(table, name)
        if test.others and test.level == claimed:
            failures += judge(table, name, list(methods))
            checks = fed_the_original(test.cases, restore)
    tables.append(checks)
    print(checks.markdown())
    return tables, failures + judge_original(checks, modality), strengths


def run_super_resolution(bundle: Bundle, rivals: dict[str, Bundle]) -> tuple[list[Table], list[str], dict]:
    """The two tables of a bundle that enlarges, what is not met, and the strengths of the classical methods."""
    name, factor = bundle.config.name, bundle.config.output.scale_factor
    methods, strengths = super_resolution.classical(factor)
    networks = {key: super_resolution.upscaler(value) for key, value in ({name: bundle} | rivals).items()}
    table, moved = super_resolution.compare(factor, methods | networks)
    print(table.markdown(against="zero filling"), moved.markdown(), sep="\n", flush=True)
    failures = judge(table, name, list(methods)) + super_resolution.judge_fidelity(moved, name)
    return [table, moved], failures, strengths


def run_pet(bundle: Bundle, rivals: dict[str, Denoiser], quick: bool) -> tuple[list[Table], list[str], dict]:
    """The tables of a PET bundle, what is not met at a tenth of the counts, and the classical methods' strengths."""
    name, tables, failures, strengths = bundle.config.name, [], [], {}
    restore = network(bundle)
    for fraction in (0.1,) if quick else pet_counts.COUNTS:
        methods, found = pet_counts.classical(fraction)
        strengths |= {f"{key} at {fraction:g}": value for key, value in found.items()}
        table = pet_counts.compare(fraction, methods | rivals | {name: restore})
        print(table.markdown(against="nothing"), flush=True)
        tables.append(table)
        if fraction == 0.1:
            failures += judge(table, name, list(methods))
    checks = pet_counts.fed_the_original(restore)
    print(checks.markdown())
    return [*tables, checks], failures + judge_original(checks, "PT"), strengths


def run_lesions(bundle: Bundle) -> list[Table]:
    """What becomes of small lesions and of two lines, degraded and restored."""
    name, factor = bundle.config.name, bundle.config.output.scale_factor
    if factor > 1:
        methods = super_resolution.classical(factor)[0] | {name: super_resolution.upscaler(bundle)}
        restore = {key: lesions.upscaled(method, factor) for key, method in methods.items()}
        title, trials = f"MR, x{factor} from simulated k-space truncation", lesions.sr_trials(factor)
    elif bundle.config.input.modality[0] == "PT":
        restore = pet_counts.classical(0.1)[0] | {name: network(bundle)}
        title, trials = "simulated PET, a tenth of the counts", lesions.pet_trials()
    elif bundle.config.input.modality[0] == "CT":
        restore = classical("CT", 0.25, slow=False)[0] | {name: network(bundle)}
        title, trials = "CT, a quarter of the dose (simulated), discs of -20 HU", lesions.ct_trials()
    else:
        restore = classical("MR", 0.06, slow=False)[0] | {name: network(bundle)}
        title, trials = "MR, 6 % Rician noise (simulated), discs of -15 %", lesions.mr_trials()
    return [lesions.measure(f"Inserted discs and lines: {title}", trials, restore)]


def add_rivals(stem: Path, modality: str, rivals: dict[str, Denoiser]) -> tuple[list[Table], dict]:
    """The tables of an earlier run with rows for further bundles, and what else its file says."""
    about = json.loads(stem.with_suffix(".json").read_text())
    tables = []
    for old in about.pop("tables"):
        table = Table(old["title"])
        table.note = old["note"]
        for score in old["scores"]:
            case = score["case"]
            values = {key: value for key, value in score.items() if key not in ("method", "case", "patient")}
            if score["method"] not in rivals:
                table.add(score["method"], case, score["patient"], values)
        tables.append(table)
    by_title = {table.title: table for table in tables}
    for test in tests_of(modality, DOSES if modality == "CT" else NOISES):
        extra = measure(test.title, test.cases, test.level, rivals, modality)
        for score in extra.scores:
            by_title[test.title].add(score.method, score.case, score.patient, score.values)
        print(by_title[test.title].markdown(against="nothing"), flush=True)
    return tables, about


def write(stem: Path, bundle: Bundle, tables: list[Table], about: dict) -> None:
    """The tables as JSON and as Markdown."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(dump(tables, about))
    head = f"# {bundle.config.name}\n\nBundle {bundle.hash[:12]}; made by `python benchmarks/quality_restore.py`.\n\n"
    parts = [table.markdown(against=_against(table)) for table in tables]
    stem.with_suffix(".md").write_text(head + "\n".join(parts))


def _against(table: Table) -> str | None:
    """The row that gains are told against, if the table is about gains."""
    return next(
        (name for name in ("nothing", "zero filling") if name in table.methods and "PSNR" in str(table.metrics)), None
    )


def main() -> int:
    """Run, print, write and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", default="ct-denoise", help="zoo name or path")
    parser.add_argument("--rival", action="append", default=[], help="NAME=BUNDLE: another bundle as a further row")
    parser.add_argument("--add", action="store_true", help="only the rivals: add their rows to the files of a full run")
    parser.add_argument("--lesions", action="store_true", help="the table of inserted discs and lines alone")
    parser.add_argument("--quick", action="store_true", help="one noise level, no file written")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    bundle = load_bundle(arguments.bundle)
    stem = arguments.out / f"quality_restore_{bundle.config.name}"
    others = {name: load_bundle(path) for name, _, path in (r.partition("=") for r in arguments.rival)}
    enlarges = bundle.config.output.scale_factor > 1
    rivals = {} if enlarges else {name: network(other) for name, other in others.items()}
    if arguments.add and enlarges:
        parser.error("--add is for denoising: run super-resolution with --rival instead, it takes a minute")
    if arguments.add:
        tables, about = add_rivals(stem, bundle.config.input.modality[0], rivals)
        if about["bundle_hash"] != bundle.hash:
            parser.error(f"{stem}.json is of another bundle: run without --add first")
        write(stem, bundle, tables, about)
        return 0
    if arguments.lesions:
        tables = run_lesions(bundle)
        print(lesions.markdown(tables[0]))
        stem.with_name(f"{stem.name}_lesions.md").write_text(lesions.markdown(tables[0]))
        stem.with_name(f"{stem.name}_lesions.json").write_text(dump(tables, {"bundle_hash": bundle.hash}))
        return 0
    if enlarges:
        tables, failures, strengths = run_super_resolution(bundle, others)
    elif bundle.config.input.modality[0] == "PT":
        tables, failures, strengths = run_pet(bundle, rivals, arguments.quick)
    else:
        tables, failures, strengths = run_all(bundle, rivals, arguments.quick)
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
        write(stem, bundle, tables, about)
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
