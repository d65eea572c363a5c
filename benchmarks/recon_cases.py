"""The scans that reconstructions are judged on: simulated acquisitions of other heads, and BART's analytic phantom.

No head here was used in training. Heads are simulated from single real slices: the slice is the object, on a grid twice
as fine as the scan, seen by random Biot-Savart coils (`medseq.data.simulate`). The phantom's k-space is computed
analytically by BART, so that no grid stands behind it at all.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bart_runner import bart, from_bart
from restore_cases import other_mr_cases
from torch import Tensor
from torch.nn import functional as F

from medseq.cli.demo_recon import sample_slice
from medseq.data.sampling import draw_pattern
from medseq.data.simulate import simulate_scan
from medseq.ops.coils import sens_reduce
from medseq.ops.espirit import estimate_maps

HEADS = ("head, MPRAGE", "head, FLAIR", "head, PD, slice 6", "head, PD, slice 10", "head, PD, slice 14")
COILS, NOISE = 8, 0.02
# Sampling kind, acceleration, share of the calibration region (of columns, or of the area).
CONDITIONS = {
    "equispaced lines, 4x": ("equispaced", 4.0, 0.08),
    "equispaced lines, 8x": ("equispaced", 8.0, 0.08),
    "Poisson points, 4x": ("poisson", 4.0, 0.02),
    "Poisson points, 8x": ("poisson", 8.0, 0.02),
}


@dataclass(frozen=True)
class Scan:
    """A fully sampled acquisition, centred and unitary.

    Attributes:
        name: Of the case.
        patient: Whose it is, a pseudonym.
        kspace: ``(1, coil, row, col)`` with noise.
        clean: The same without.
        noise_sd: ``sqrt(E |n|^2)`` of a sample.
    """

    name: str
    patient: str
    kspace: Tensor
    clean: Tensor
    noise_sd: float


@dataclass(frozen=True)
class Case:
    """A scan undersampled.

    Attributes:
        scan: What was measured in full.
        masked: ``(1, coil, row, col)``, zero where nothing was measured.
        mask: ``(1, 1, row or 1, col)``.
        maps: ESPIRiT maps from the measured samples alone; every method gets these.
        reference: The noisy full data combined with them ``(row, col)``: what a real reference is.
        truth: The noise-free data combined with them.
        support: Where the maps and the reference are not background.
    """

    scan: Scan
    masked: Tensor
    mask: Tensor
    maps: Tensor
    reference: np.ndarray
    truth: np.ndarray
    support: np.ndarray


def head_scans(large: bool = True) -> list[Scan]:
    """Simulated scans: each slice at half its resolution, and one at its own (the slice interpolated)."""
    cases = {case.name: case for case in other_mr_cases()}
    scans = []
    for number, name in enumerate(HEADS):
        image = torch.from_numpy(cases[name].image)
        scans.append(_scan(image, name, cases[name].patient, number))
    # The demo's slice, of 2 mm pixels, interpolated to be the object of a scan of the same size.
    image = torch.from_numpy(np.ascontiguousarray(sample_slice()))[None, None]
    grown = F.interpolate(image, scale_factor=2, mode="bicubic", align_corners=False)[0, 0]
    scans.append(_scan(grown.clamp_min(0), "head, EPI", "head, EPI", 50))
    if large:
        image = torch.from_numpy(cases[HEADS[0]].image)
        grown = F.interpolate(image[None, None], scale_factor=2, mode="bicubic", align_corners=False)[0, 0]
        scans.append(_scan(grown.clamp_min(0), "head, MPRAGE, 192 x 192", cases[HEADS[0]].patient, 99))
    return scans


def _scan(image: Tensor, name: str, patient: str, seed: int) -> Scan:
    image = image / torch.quantile(image[image > 0], 0.95)
    noisy, clean = (
        simulate_scan(image, COILS, noise, torch.Generator().manual_seed(4000 + seed)) for noise in (NOISE, 0.0)
    )
    return Scan(name, patient, noisy.kspace[None], clean.kspace[None], NOISE)


def phantom_scan(size: int = 128) -> Scan:
    """BART's analytic Shepp-Logan k-space of eight coils, with noise added here."""
    kspace = torch.from_numpy(from_bart(np.swapaxes(bart(f"phantom -k -s {COILS} -x {size}"), 0, 2)))[None]
    from medseq.ops.coils import rss
    from medseq.ops.fourier import ifft2c

    clean = kspace / torch.quantile(rss(ifft2c(kspace)).flatten(), 0.95)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5), dtype=clean.dtype)
    return Scan("analytic phantom", "phantom", clean + NOISE * noise, clean, NOISE)


def undersample(scan: Scan, condition: str, seed: int = 1) -> Case:
    """One scan under one condition."""
    kind, acceleration, center = CONDITIONS[condition]
    shape = (scan.kspace.shape[-2], scan.kspace.shape[-1])
    mask = draw_pattern(kind, shape, acceleration, center, torch.Generator().manual_seed(seed))[None]
    masked = torch.where(mask, scan.kspace, 0)
    maps = estimate_maps(masked, mask, "espirit")
    reference, truth = (sens_reduce(k, maps)[0].numpy() for k in (scan.kspace, scan.clean))
    bright = np.abs(truth) > 0.05 * np.percentile(np.abs(truth), 95)
    support = bright & (maps[0] != 0).any(dim=0).numpy()
    return Case(scan, masked, mask, maps, reference, truth, support)


def picture(path: Path, rows: dict[str, list[np.ndarray]], names: list[str]) -> None:
    """Images of several methods (rows) and cases (columns) in one PNG, each case in its own window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    count = len(names)
    figure, axes = plt.subplots(len(rows), count, figsize=(2.4 * count, 2.4 * len(rows)), squeeze=False)
    first = next(iter(rows.values()))
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        for axis, image, top in zip(line, images, first, strict=True):
            axis.imshow(np.abs(image), cmap="gray", vmin=0, vmax=float(np.abs(top).max()))
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(label, fontsize=8)
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
