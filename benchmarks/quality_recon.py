"""Reconstruction quality of every method on the same undersampled scans of other heads, against BART.

    python benchmarks/quality_recon.py [mri-recon] [--variants runs/recon_variants] [--quick] [--only NAME …]

--only runs some methods and puts their rows into the results that are there: the scans are the same every time.

All methods get the same samples and the same ESPIRiT maps. The regularised ones may choose their weight from a list by
the score on the test cases themselves, which favours them. NRMSE is the smallest over one complex factor, inside the
support; PSNR, SSIM and NMSE are fastMRI's, on magnitudes. Exits 1 unless the shipped model beats `bart pics`.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bart_runner import bart_timed, from_bart, pics_sign, to_bart
from recon_cases import CONDITIONS, Case, head_scans, phantom_scan, picture, undersample

from medseq.inference.bundle import load_bundle
from medseq.inference.evaluate import Table, dump, restored
from medseq.inference.recon_adapt import adapt_network
from medseq.inference.recon_slice import Prepared, reconstruct_slice
from medseq.models.recon_classical import GRAPPA, POCS, CGSense, L1Wavelet, TotalVariation, ZeroFilled
from medseq.models.recon_modl import OrientationAverage
from medseq.ops.coils import sens_expand, sens_reduce
from medseq.ops.kspace_noise import kspace_noise_sd
from medseq.ops.recon_quality import data_residual, fastmri_scores, scaled_nrmse

Method = Callable[[Case], tuple[np.ndarray, float]]
PICS_WEIGHTS = (0.001, 0.002, 0.005, 0.01, 0.02)
WAVELET_WEIGHTS = (0.001, 0.002, 0.005, 0.01, 0.02)
SIGPY_WEIGHTS = (0.001, 0.003, 0.01)
GRAPPA_WEIGHTS = (1e-4, 1e-3, 1e-2)


def network(net: torch.nn.Module) -> Method:
    """A network of the package, scaled as the predictor does."""

    def run(case: Case) -> tuple[np.ndarray, float]:
        start = time.process_time()
        part = Prepared(case.masked, case.mask, case.maps, kspace_noise_sd(case.masked, case.mask))
        image = reconstruct_slice(net, part).image
        return image, time.process_time() - start

    return run


def pics(weight: float) -> Method:
    """``bart pics`` with l1-wavelet regularisation, 100 iterations."""

    def run(case: Case) -> tuple[np.ndarray, float]:
        data = [to_bart(x[0].numpy()) for x in (case.masked, case.maps)]
        outputs, seconds = bart_timed(f"pics -S -i 100 -R W:6:0:{weight}", *data)
        return from_bart(outputs[0]) * pics_sign(*case.reference.shape), seconds

    return run


def sigpy_wavelet(weight: float) -> Method:
    """L1-wavelet reconstruction by sigpy, 50 iterations, of data whose zero-filled image has the maximum 1."""

    def run(case: Case) -> tuple[np.ndarray, float]:
        import sigpy.mri.app

        start = time.process_time()
        peak = float(sens_reduce(case.masked, case.maps).abs().max())
        app = sigpy.mri.app.L1WaveletRecon(
            case.masked[0].numpy() / peak,
            case.maps[0].numpy(),
            weight,
            weights=case.mask[0].expand_as(case.masked[0]).numpy().astype(np.float32),
            max_iter=50,
            show_pbar=False,
        )
        return app.run() * peak, time.process_time() - start

    return run


def adapted(net: torch.nn.Module) -> Method:
    """The shipped model, adapted to each scan by its own samples first."""

    def run(case: Case) -> tuple[np.ndarray, float]:
        start = time.process_time()
        part = Prepared(case.masked, case.mask, case.maps, kspace_noise_sd(case.masked, case.mask))
        image = reconstruct_slice(adapt_network(net, part)[0], part).image
        return image, time.process_time() - start

    return run


def score(case: Case, image: np.ndarray) -> dict[str, float]:
    """All scores of one image; the magnitude is first scaled to the reference, since methods shrink differently.

    Networks that return a root sum of squares are judged on magnitudes alone, and have no data residual.
    """
    reference, truth, whole = case.reference, case.truth, bool(np.abs(image.imag).max() > 0)
    if not whole:
        reference, truth = np.abs(reference), np.abs(truth)
    inside = np.where(case.support, image, 0)
    factor = np.vdot(inside, reference) / max(np.vdot(inside, inside).real, 1e-30)
    magnitude = np.abs(factor * image)[None] * case.support
    values = fastmri_scores(magnitude, np.abs(case.reference)[None] * case.support)
    predicted = sens_expand(torch.from_numpy(image.astype(np.complex64))[None], case.maps).numpy()
    return {
        "NRMSE": scaled_nrmse(image, reference, case.support),
        "NRMSE to truth": scaled_nrmse(image, truth, case.support),
        "SSIM": values["fastmri_ssim"],
        "PSNR": values["fastmri_psnr"],
        "NMSE": values["fastmri_nmse"],
        "data residual": data_residual(predicted, case.masked.numpy(), case.mask.numpy()) if whole else float("nan"),
    }


def variants(folder: Path) -> dict[str, list[torch.nn.Module]]:
    """Networks trained by recon_variants.py: name -> one a seed."""
    from recon_variants import build
    from safetensors.torch import load_file

    found: dict[str, list[torch.nn.Module]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        name = json.loads(path.with_suffix(".json").read_text())["name"]
        net = build(name)
        net.load_state_dict(load_file(path))
        found.setdefault(name, []).append(net.eval())
    return found


def rows_of(methods: dict[str, list[Method]], case: Case, table: Table, images: dict[str, list[np.ndarray]]) -> None:
    """Every method on one case; of several weights the best NRMSE counts, of several seeds the mean."""
    for name, choices in methods.items():
        results = [method(case) for method in choices]
        values = [{**score(case, image), "s": seconds} for image, seconds in results]
        if "weight" in name:
            best = int(np.argmin([v["NRMSE"] for v in values]))
            values, results = [values[best]], [results[best]]
        mean = {key: float(np.mean([v[key] for v in values])) for key in values[0]}
        table.add(name, case.scan.name, case.scan.patient, mean)
        images.setdefault(name, []).append(results[0][0])


def judge(tables: list[Table], mine: str, theirs: str) -> list[str]:
    """NRMSE of the shipped model below that of `bart pics` in every table."""
    failures = []
    for table in tables:
        a, b = (table.summary(name, "NRMSE").mean for name in (mine, theirs))
        delta = table.difference("NRMSE", mine, theirs)
        print(
            f"claim: {table.title}: NRMSE {a:.4f} against {b:.4f}: "
            f"{delta.mean:+.4f} [{delta.low:+.4f}, {delta.high:+.4f}]"
        )
        if not a < b:
            failures.append(f"{table.title}: {mine} {a:.4f}, {theirs} {b:.4f}")
    return failures


def main() -> int:
    """Run, print, write and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="mri-recon", help="zoo name or path")
    parser.add_argument("--variants", type=Path, default=Path("runs/recon_variants"))
    parser.add_argument("--quick", action="store_true", help="two scans, the shipped model and BART; no file written")
    parser.add_argument("--only", nargs="+", default=[], help="methods to run again, into the results that are there")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS), help="with --only")
    parser.add_argument("--picture", type=Path, help="write a PNG of the 8x Poisson results")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quality_recon"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundle = load_bundle(arguments.bundle)
    net = bundle.build_model(torch.device("cpu"))
    methods: dict[str, list[Method]] = {
        "zero-filled": [network(ZeroFilled())],
        "CG-SENSE": [network(CGSense())],
        "GRAPPA, best weight": [network(GRAPPA(regularisation=x, image="complex")) for x in GRAPPA_WEIGHTS],
        "POCS": [network(POCS())],
        "TV, best weight": [network(TotalVariation(weight)) for weight in WAVELET_WEIGHTS],
        "L1-wavelet by sigpy, best weight": [sigpy_wavelet(weight) for weight in SIGPY_WEIGHTS],
        "L1-wavelet, best weight": [network(L1Wavelet(weight)) for weight in WAVELET_WEIGHTS],
        "bart pics, best weight": [pics(weight) for weight in PICS_WEIGHTS],
    }
    if arguments.quick:
        methods = {name: methods[name] for name in ("zero-filled", "bart pics, best weight")}
    else:
        methods |= {name: [network(x) for x in nets] for name, nets in variants(arguments.variants).items()}
    # The bundle is a network mixed with compressed sensing; its parts stand beside it.
    methods["mri-recon, network, one view"] = [network(net.net)]
    methods["mri-recon, network, 8 views"] = [network(OrientationAverage(net.net, 8).eval())]
    methods["mri-recon"] = [network(net)]
    methods["mri-recon, adapted"] = [adapted(net)]
    if arguments.only:
        methods = {name: methods[name] for name in arguments.only}
    else:
        # Minutes for every scan: only where it is asked for.
        methods.pop("mri-recon, adapted")
    earlier = restored(json.loads(arguments.out.with_suffix(".json").read_text())) if arguments.only else {}
    scans = [*head_scans(not arguments.quick)[: 2 if arguments.quick else None], phantom_scan()]
    tables = []
    for condition in CONDITIONS:
        heads, phantom = (
            earlier.get(title, Table(title)).without(arguments.only if condition in arguments.conditions else ())
            for title in (f"Other heads, {condition}", f"Analytic phantom, {condition}")
        )
        images: dict[str, list[np.ndarray]] = {}
        again = condition in arguments.conditions
        cases = [undersample(scan, condition) for scan in scans] if again else []
        for case in cases:
            table = phantom if case.scan.patient == "phantom" else heads
            rows_of(methods, case, table, images)
        for table in (heads, phantom):
            print(table.markdown(against="bart pics, best weight"))
        tables += [heads, phantom]
        if arguments.picture and condition == "Poisson points, 8x":
            picture(arguments.picture, {"reference": [c.reference for c in cases], **images}, [s.name for s in scans])
    failures = judge(tables, "mri-recon", "bart pics, best weight")
    if not arguments.quick:
        about = {
            "script": "benchmarks/quality_recon.py",
            "bundle": bundle.config.name,
            "bundle_hash": bundle.hash,
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread",
            "torch": torch.__version__,
            "failures": failures,
        }
        if arguments.only:
            about["rows run again or added"] = arguments.only
        arguments.out.with_suffix(".json").write_text(dump(tables, about))
        head = "# Reconstruction\n\nSimulated scans of other heads; made by `python benchmarks/quality_recon.py`.\n\n"
        parts = [table.markdown(against="bart pics, best weight") for table in tables]
        arguments.out.with_suffix(".md").write_text(head + "\n".join(parts))
    for failure in failures:
        print("NOT MET:", failure)
    print("claim met" if not failures else f"{len(failures)} claims not met")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
