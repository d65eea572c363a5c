"""`medseq demo`: real images, degraded by simulation, restored by the shipped models, and judged against a claim.

A slide is scored as well (`medseq.cli.demo_wsi`).

Leaves FOLDER/{input,truth,out}. The images come inside Python packages; none of them is in the training data of a
shipped model (tests/cli/test_demo.py compares hashes).
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medseq.cli.console import AsJson, Quiet, Verbose, print_json, progress_bar, say
from medseq.cli.demo_recon import ACCELERATION, SOURCE, run_recon
from medseq.cli.demo_wsi import WSIResult, demo_wsi
from medseq.cli.share import package_file
from medseq.errors import InputError, OutputError

if TYPE_CHECKING:
    import numpy as np

    from medseq.io.volume import VolumeHeader, VolumeReader

__all__ = ["CT", "MR", "MRI", "Claim", "demo", "sample_file"]

SEED = 2024
DOSE = 0.25
MR_NOISE = 0.06
_MARK = ".medseq-demo"
# NIfTI does not say what it shows; raw data is what it is.
_MODALITY: dict[str, Literal["CT", "MR"] | None] = {"CT": "CT", "MR": "MR", "MRI": None}


@dataclass(frozen=True)
class Claim:
    """What one task of the demo promises.

    Attributes:
        task: Modality of its images, and its name in the output.
        bundle: Shipped model.
        sources: Images to use, best first, as (module that carries it, path inside, what it is).
        gain_db: PSNR gain that must be reached.
    """

    task: Literal["CT", "MR", "MRI"]
    bundle: str
    sources: tuple[tuple[str, str, str], ...]
    gain_db: float


CT = Claim(
    "CT",
    "ct-denoise",
    (
        # Not 693_UNCI.dcm of the same package: that is this slice after 339:1 lossy compression, all flat blocks.
        ("data_store", "data/693_UNCR.dcm", "real head CT, 512 x 512, from pydicom-data"),
        ("pydicom", "data/test_files/CT_small.dcm", "real CT, 128 x 128, from pydicom (pydicom-data is not installed)"),
    ),
    gain_db=2.0,
)
MR = Claim(
    "MR",
    "mr-denoise",
    (("pydicom", "data/test_files/examples_overlay.dcm", "real abdominal MR, 300 x 484, from pydicom, as NIfTI"),),
    gain_db=1.0,
)


MRI = Claim("MRI", "mri-recon", (SOURCE,), gain_db=6.0)


@dataclass(frozen=True)
class Result:
    """Measured against the claim; n = 1 image."""

    task: str
    image: str
    degradation: str
    psnr_before: float
    psnr_after: float
    ssim_before: float
    ssim_after: float
    data_range: str
    claimed_gain_db: float
    report: str

    @property
    def gain_db(self) -> float:
        """PSNR gain in dB."""
        return self.psnr_after - self.psnr_before

    @property
    def met(self) -> bool:
        """Whether the claim holds."""
        return self.gain_db >= self.claimed_gain_db

    def verdict(self) -> dict[str, Any]:
        """What follows from the numbers."""
        return {"gain_db": self.gain_db, "met": self.met}

    def line(self) -> str:
        """One line for people."""
        verdict = "met" if self.met else "NOT MET"
        return (
            f"{self.task}: {self.image}; {self.degradation}; n = 1; {self.data_range}\n"
            f"    PSNR {self.psnr_before:.2f} -> {self.psnr_after:.2f} dB, SSIM {self.ssim_before:.4f} -> "
            f"{self.ssim_after:.4f}; gain {self.gain_db:+.2f} dB, claimed >= {self.claimed_gain_db:g} dB: {verdict}\n"
            f"    report: {self.report}"
        )


def demo(
    folder: Annotated[Path, typer.Argument(help="Where inputs, truth and results go.")] = Path("build/demo"),
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Denoise a CT and an MR image, reconstruct an MR scan, score a slide, and check the claims. About a minute."""
    started = time.perf_counter()
    _fresh(folder)
    results: list[Result | WSIResult] = []
    for run in (_demo_ct, _demo_mr, _demo_mri, _demo_wsi):
        results.append(run(folder, quiet or as_json))
        say(results[-1].line(), quiet=as_json)
    if as_json:
        print_json([{**asdict(result), **result.verdict()} for result in results])
    say(f"Simulated degradations, research use only. {time.perf_counter() - started:.0f} s", quiet=quiet or as_json)
    if not all(result.met for result in results):
        raise typer.Exit(3)


def sample_file(claim: Claim) -> tuple[Path, str]:
    """The best image of a claim that is installed here, and what it is.

    Raises:
        InputError: None is.
    """
    for module, inside, what in claim.sources:
        if path := package_file(module, inside):
            return path, what
    raise InputError("the demo's images are not installed", where=claim.task, remedy="pip install 'medseq[dicom]'")


def _fresh(folder: Path) -> None:
    """An empty folder; only one that an earlier demo made is emptied."""
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).is_file():
        raise OutputError("the folder holds something else", remedy="give an empty or new folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARK).touch()


def _demo_ct(folder: Path, quiet: bool) -> Result:
    import numpy as np
    import torch

    from medseq.data.degrade import CTScanner, low_dose_ct

    path, what = sample_file(CT)
    truth = _open_dicom([path])
    clean = truth.read(0, 1)[0]
    generator = torch.Generator().manual_seed(SEED)
    with progress_bar("simulate low dose", quiet=quiet) as progress:
        noisy = low_dose_ct(clean, truth.header.spacing_mm[1], DOSE, generator, CTScanner(angles=400))
        progress(1, 1, "")
    for name in ("input/ct/original", "truth/ct"):
        (folder / name).mkdir(parents=True)
        shutil.copy(path, folder / name / "0001.dcm")
    _write_dicom(folder / "input/ct/low_dose", truth.header, noisy[None])

    report, results = _predict(CT, folder, "ct", quiet)
    restored = _open_dicom(results["low_dose"]).read(0, 1)[0]
    low, high = -160.0, 240.0
    before, after, target = (np.clip(image, low, high) for image in (noisy, restored, clean))
    degradation = f"simulated {DOSE:g} of the dose"
    return _judge(CT, what, degradation, before, after, target, high - low, f"window {low:g}..{high:g} HU", report)


def _demo_mr(folder: Path, quiet: bool) -> Result:
    import numpy as np
    import torch

    from medseq.data.degrade import rician_noise
    from medseq.io.nifti import open_nifti

    path, what = sample_file(MR)
    truth = _open_dicom([path])
    clean = truth.read(0, truth.header.planes)
    level = float(np.percentile(clean[clean > 0], 99))
    noisy = rician_noise(clean, MR_NOISE * level, torch.Generator().manual_seed(SEED))
    _write_nifti(folder / "truth/mr/image.nii.gz", truth.header, clean)
    _write_nifti(folder / "input/mr/noisy.nii.gz", truth.header, noisy)

    report, results = _predict(MR, folder, "mr", quiet)
    restored = open_nifti(results["noisy.nii.gz"][0], modality="MR").read(0, truth.header.planes)
    degradation = f"simulated Rician noise, sd {MR_NOISE:.0%} of the 99th percentile"
    words = f"range 0..{level:g} (99th percentile)"
    return _judge(MR, what, degradation, noisy[0], restored[0], clean[0], level, words, report)


def _demo_mri(folder: Path, quiet: bool) -> Result:
    before, after, target, report = run_recon(folder, MRI.bundle, SEED, quiet=quiet)
    top = float(target.max())
    degradation = f"simulated 8-coil scan, {ACCELERATION}-fold undersampled at random points; before = zero-filled"
    return _judge(MRI, SOURCE[2], degradation, before, after, target, top, "range 0..maximum", report)


def _demo_wsi(folder: Path, quiet: bool) -> WSIResult:
    return demo_wsi(folder, SEED, quiet=quiet)


def _predict(claim: Claim, folder: Path, name: str, quiet: bool) -> tuple[str, dict[str, list[Path]]]:
    """Run the bundle; the report, and for each input file or its folder the files of its result."""
    from medseq.inference.ledger import Ledger
    from medseq.inference.run import predict_folder

    source, out = folder / "input" / name, folder / "out" / name
    with progress_bar(f"predict {claim.bundle}", quiet=quiet) as progress:
        summary = predict_folder(claim.bundle, source, out, modality=_MODALITY[claim.task], progress=progress)
    if summary.exit_code != 0:
        raise OutputError("the prediction failed", where=claim.task, found=summary.counts, remedy="see the report")
    found: dict[str, list[Path]] = {}
    with Ledger(out / "run.sqlite", read_only=True) as ledger:
        for item in ledger.items("done"):
            first = Path(ledger.files(item.id)[0].relpath)
            found[first.parts[0]] = [out / row.relpath for row in ledger.outputs(item.id) if row.role == "result"]
    return str(summary.report_path), found


def _judge(
    claim: Claim,
    image: str,
    degradation: str,
    before: "np.ndarray",
    after: "np.ndarray",
    target: "np.ndarray",
    data_range: float,
    range_words: str,
    report: str,
) -> Result:
    from medseq.ops.quality import psnr, ssim

    def score(metric: Callable[..., Any], candidate: "np.ndarray") -> float:
        return float(metric(candidate, target, data_range=data_range))

    return Result(
        task=claim.task,
        image=image,
        degradation=degradation,
        psnr_before=score(psnr, before),
        psnr_after=score(psnr, after),
        ssim_before=score(ssim, before),
        ssim_after=score(ssim, after),
        data_range=range_words,
        claimed_gain_db=claim.gain_db,
        report=report,
    )


def _open_dicom(paths: list[Path]) -> "VolumeReader":
    from medseq.io.dicom import group_dicom, open_dicom

    stacks, skipped, broken = group_dicom(paths)
    if len(stacks) != 1 or skipped or broken:
        raise InputError("one readable DICOM series was expected", found=len(stacks))
    return open_dicom(stacks[0])


def _write_dicom(folder: Path, header: "VolumeHeader", planes: "np.ndarray") -> None:
    from medseq import __version__
    from medseq.io.dicom import DicomSeriesWriter

    writer = DicomSeriesWriter(
        folder,
        bundle_name="simulated-low-dose",
        bundle_hash=f"dose-{DOSE}",
        params_hash=f"seed-{SEED}",
        version=__version__,
        role="result",
        created_utc="2024-01-01T00:00:00+00:00",
        description="RUO simulated low dose",
    )
    writer.begin(header)
    writer.write(0, planes)
    writer.commit()


def _write_nifti(path: Path, header: "VolumeHeader", planes: "np.ndarray") -> None:
    import numpy as np

    from medseq.io.nifti import NiftiWriter

    path.parent.mkdir(parents=True)
    writer = NiftiWriter(path, dtype=np.dtype(np.float32))
    writer.begin(header)
    writer.write(0, planes)
    writer.commit()
