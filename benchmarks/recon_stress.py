"""Simulated scans that differ from the training the way real ones do: the shipped model against `bart pics` on each.

    python benchmarks/recon_stress.py [mri-recon] [--heads other|tuning] [--only NAME …]

Each variant changes one thing: phase, noise that is correlated between coils, oversampling, folding, partial Fourier,
zero-padding, masks, matrix, coils, units. Every scan is undersampled about eightfold by a Poisson disc and judged twice
inside the object: with the maps of `bart ecalib` for both (complex NRMSE against the noisy full data combined by them),
and each with its own maps, ours ESPIRiT, theirs ecalib (NRMSE of magnitudes against the noise-free root sum of
squares). BART takes the best of eight weights on the test data themselves. ``tuning`` heads are those that test-time
choices may look at; ``other`` ones are for reporting.
"""

import argparse
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bart_runner import bart, bart_timed, from_bart, pics_sign, to_bart
from torch import Tensor
from torch.nn import functional as F

from medseq.data.coil_fields import coil_maps, smooth_field
from medseq.data.simulate import acquire, add_phase
from medseq.inference.bundle import load_bundle
from medseq.inference.evaluate import Table, dump, restored
from medseq.inference.recon_slice import prepare_slice, reconstruct_slice
from medseq.io.kspace import KSpaceSlice
from medseq.ops.coils import divide_or_zero, rss
from medseq.ops.fourier import ifft2c
from medseq.ops.masks import poisson_disc_mask
from medseq.ops.recon_quality import scaled_nrmse

WEIGHTS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)


@dataclass(frozen=True)
class Variant:
    """How a scan is made; the defaults are those of the training.

    Attributes:
        shape: Matrix.
        coils: Receivers.
        noise: Of a coil's pixel, part of the image's 95th percentile.
        steep: Off-resonance: two spots of several turns of phase, and a steep ramp.
        correlated: Noise correlated between the coils, and unequal.
        field: Part of the rows that the object fills (readout oversampling).
        folded: Part of the columns that are wrapped round at each side.
        one_sided: Part of the columns missing on one side.
        padded: Part of both axes that was measured, zeros around it.
        crop_corner: Nothing outside the inscribed ellipse.
        center: Calibration disc, part of the area.
        acceleration: In the region measured.
        unit: Factor on all samples.
        filtered: A Hann-like filter over k-space.
    """

    shape: tuple[int, int] = (128, 128)
    coils: int = 8
    noise: float = 0.02
    steep: bool = False
    correlated: bool = False
    field: float = 1.0
    folded: float = 0.0
    one_sided: float = 0.0
    padded: float = 1.0
    crop_corner: bool = False
    center: float = 0.02
    acceleration: float = 8.0
    unit: float = 1.0
    filtered: bool = False


VARIANTS = {
    "as trained": Variant(),
    "180 x 230, 6 coils": Variant(shape=(180, 230), coils=6, center=0.01, acceleration=8.0),
    "230 x 180, 8 coils, no corners": Variant(shape=(230, 180), coils=8, center=0.01, crop_corner=True),
    "180 x 230, 12 coils, steep phase": Variant(shape=(180, 230), coils=12, center=0.012, steep=True),
    "steep phase": Variant(steep=True),
    "correlated noise": Variant(correlated=True),
    "readout oversampled": Variant(shape=(192, 128), field=0.6),
    "folded": Variant(folded=0.12),
    "partial Fourier": Variant(one_sided=0.3, acceleration=6.0),
    "zero-padded": Variant(shape=(160, 160), padded=0.75, acceleration=6.0),
    "no corners": Variant(crop_corner=True),
    "small centre": Variant(center=0.01),
    "4 coils, 5x": Variant(coils=4, acceleration=5.0),
    "32 coils": Variant(coils=32),
    "little noise": Variant(noise=0.004),
    "much noise": Variant(noise=0.06),
    "units of 1e-6": Variant(unit=1e-6),
    "units of 1e6": Variant(unit=1e6),
    "filtered": Variant(filtered=True),
}


@dataclass(frozen=True)
class Head:
    """An image to scan: name, whose it is, magnitudes ``(row, col)``."""

    name: str
    patient: str
    image: Tensor


@dataclass(frozen=True)
class Stressed:
    """One scan: all samples with noise and without, ``(coil, row, col)``, and which are measured, ``(1, row, col)``."""

    full: Tensor
    clean: Tensor
    mask: Tensor


def heads(kind: str) -> list[Head]:
    """``other``: people that no training and no choice has seen. ``tuning``: training heads, a macaque, a CT slice."""
    if kind == "other":
        from recon_cases import HEADS
        from restore_cases import other_mr_cases

        cases = {case.name: case for case in other_mr_cases()}
        names = (HEADS[0], HEADS[1], HEADS[3])
        return [Head(name, cases[name].patient, torch.from_numpy(cases[name].image)) for name in names]
    from medseq.data.example import colin27, cranium_ct, inia19

    colin, monkey, skull = colin27().array, inia19().array, cranium_ct().array
    ct = np.interp(skull[50], (-200, -20, 20, 45, 80, 300, 1500), (0, 0.9, 0.35, 0.8, 0.5, 0.15, 0.02))
    planes = {"Colin27": colin[85], "macaque": monkey[:, monkey.shape[1] // 2], "CT as MR": ct}
    return [Head(name, name, torch.from_numpy(np.ascontiguousarray(x, np.float32))) for name, x in planes.items()]


def scan(head: Head, variant: Variant, seed: int) -> Stressed:
    """Simulate; everything continuous on a grid twice as fine."""
    generator = torch.Generator().manual_seed(seed)
    rows, cols = (2 * n for n in variant.shape)
    object_ = _placed(head.image, (rows, cols), variant)
    maps = coil_maps((rows, cols), variant.coils, generator, (rows / max(rows, cols), cols / max(rows, cols)))
    strength = rss(maps, dim=0)
    maps = divide_or_zero(maps, strength[None])
    image = add_phase(object_, generator) * (strength / strength.mean()) ** 0.6
    if variant.steep:
        image = image * torch.exp(1j * _off_resonance((rows, cols), generator))
    if variant.folded:
        image, maps = _folded(image, maps, variant.folded)
    clean = acquire(image, maps, 0.0, generator).kspace
    full = clean + variant.noise * _noise(clean, variant, generator)
    measured = torch.ones(1, *variant.shape, dtype=torch.bool)
    if variant.padded < 1:
        measured = _block(variant.shape, variant.padded)
    weights = measured * variant.unit
    if variant.filtered:
        y, x = (torch.linspace(-1, 1, n) for n in variant.shape)
        hann = (0.54 + 0.46 * torch.cos(torch.pi * y[:, None])) * (0.54 + 0.46 * torch.cos(torch.pi * x))
        weights = weights * hann
    full, clean = full * weights, clean * weights
    share = float(measured.float().mean())
    mask = poisson_disc_mask(
        variant.shape,
        variant.acceleration,
        variant.center,
        torch.Generator().manual_seed(seed),
        crop_corner=variant.crop_corner,
    ).mask
    if variant.padded < 1:
        small = tuple(round(n * variant.padded) for n in variant.shape)
        inner = poisson_disc_mask(small, variant.acceleration, variant.center / share, torch.Generator().manual_seed(9))
        mask = torch.zeros(1, *variant.shape, dtype=torch.bool)
        mask[measured] = inner.mask.flatten()
    if variant.one_sided:
        mask = mask.clone()
        mask[..., : int(variant.one_sided * variant.shape[1])] = False
    return Stressed(full, clean, mask & measured)


def _placed(image: Tensor, size: tuple[int, int], variant: Variant) -> Tensor:
    """The object on the fine grid, as large as fits into 0.95 of its part of the field of view."""
    image = image / torch.quantile(image[image > 0], 0.95)
    ratio = min(0.95 * size[0] * variant.field / image.shape[0], 0.95 * size[1] / image.shape[1])
    # A folded object is as wide as the field that it is folded into, and the bands at its sides.
    spread = [ratio, size[1] / image.shape[1]] if variant.folded else [ratio, ratio]
    fitted = F.interpolate(image[None, None], scale_factor=spread, mode="bicubic", align_corners=False)[0, 0]
    canvas = torch.zeros(size)
    top, left = (canvas.shape[i] // 2 - fitted.shape[i] // 2 for i in (0, 1))
    canvas[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted.clamp_min(0)
    return canvas


def _off_resonance(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Phase in radians: two spots of about two turns, a smooth field and a ramp."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    phase = 1.2 * smooth_field(size, 5, generator)[0] + 9 * x - 5 * y
    for centre in ((-0.55, 0.05), (0.2, -0.5)):
        distance = ((y - centre[0]) / 0.22) ** 2 + ((x - centre[1]) / 0.22) ** 2
        phase = phase + 12 * torch.exp(-0.5 * distance)
    return phase


def _folded(image: Tensor, maps: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Coil images whose ends are wrapped round: as one 'image' and maps that explain it exactly, per pixel."""
    coil_images = image * maps
    band = int(share * image.shape[1])
    middle = coil_images[..., band:-band].clone()
    middle[..., -band:] += coil_images[..., :band]
    middle[..., :band] += coil_images[..., -band:]
    parts = torch.view_as_real(middle).permute(0, 3, 1, 2)
    grown = F.interpolate(parts, size=image.shape, mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    wrapped = torch.view_as_complex(grown.contiguous())
    strength = rss(wrapped, dim=0)
    return strength.to(image.dtype), divide_or_zero(wrapped, strength[None])


def _noise(like: Tensor, variant: Variant, generator: torch.Generator) -> Tensor:
    """Complex noise, on average of variance 1."""
    noise = torch.randn(like.shape, generator=generator, dtype=like.dtype)
    if not variant.correlated:
        return noise
    mix = torch.eye(variant.coils, dtype=like.dtype) + 0.35 * torch.randn(
        variant.coils, variant.coils, generator=generator, dtype=like.dtype
    )
    mix = mix * (0.5 + torch.rand(variant.coils, 1, generator=generator))
    mix = mix * (variant.coils / mix.abs().square().sum()) ** 0.5
    return torch.einsum("dc,crk->drk", mix, noise)


def _block(shape: tuple[int, int], share: float) -> Tensor:
    block = torch.zeros(1, *shape, dtype=torch.bool)
    small = [round(n * share) for n in shape]
    top, left = (n // 2 - s // 2 for n, s in zip(shape, small, strict=True))
    block[:, top : top + small[0], left : left + small[1]] = True
    return block


def ecalib(kspace: Tensor) -> Tensor:
    """Maps of BART with its defaults ``(coil, row, col)``."""
    return torch.from_numpy(from_bart(bart("ecalib -m 1", to_bart(kspace.numpy()))))


def pics(kspace: Tensor, maps: Tensor, weight: float) -> np.ndarray:
    """``bart pics`` with l1-wavelets."""
    outputs, _ = bart_timed(f"pics -S -i 100 -R W:6:0:{weight}", to_bart(kspace.numpy()), to_bart(maps.numpy()))
    return from_bart(outputs[0]) * pics_sign(*kspace.shape[-2:])


def judge(
    net: torch.nn.Module, case: Stressed, weights: tuple[float, ...]
) -> tuple[dict[str, float], dict[str, float]]:
    """NRMSE of ours and of `bart pics` at its best weight, with the same maps and with each one's own."""
    masked = torch.where(case.mask, case.full, 0)
    theirs = ecalib(masked)
    images = ifft2c(case.full)
    reference = (theirs.conj() * images).sum(0).numpy()
    whole = rss(ifft2c(case.clean), dim=0).numpy()
    inside = np.abs(reference) > 0.05 * np.percentile(np.abs(reference), 95)
    body = whole > 0.05 * np.percentile(whole, 95)
    started = time.process_time()
    given = KSpaceSlice(masked.numpy(), case.mask.numpy(), theirs.numpy())
    own = KSpaceSlice(masked.numpy(), case.mask.numpy())
    results = []
    for part in (given, own):
        results.append(reconstruct_slice(net, prepare_slice(part, "auto", "ortho", torch.device("cpu"))).image)
    seconds = (time.process_time() - started) / 2
    ours = {
        "same maps": scaled_nrmse(results[0], reference, inside),
        "own maps": scaled_nrmse(np.abs(results[1]), whole, body),
        "s": seconds,
    }
    candidates = [pics(masked, theirs, weight) for weight in weights]
    other = {
        "same maps": min(scaled_nrmse(x, reference, inside) for x in candidates),
        "own maps": min(scaled_nrmse(np.abs(x), whole, body) for x in candidates),
        "s": 0.0,
    }
    return ours, other


def _means(table: Table, metric: str) -> tuple[float, float]:
    a, b = (table.summary(method, metric).mean for method in ("mri-recon", "bart pics"))
    return a, b


def _lost(table: Table) -> list[str]:
    pairs = {metric: _means(table, metric) for metric in ("same maps", "own maps")}
    return [f"{table.title}, {metric}: {a:.4f} against {b:.4f}" for metric, (a, b) in pairs.items() if not a < b]


def _row(table: Table) -> str:
    pairs = [_means(table, metric) for metric in ("same maps", "own maps")]
    return f"| {table.title} | " + " | ".join(f"{a:.4f} | {b:.4f} | {a / b:.3f}" for a, b in pairs) + " |"


def _page(tables: dict[str, Table], n: int, kind: str, orientations: int) -> str:
    lines = [
        "# Scans unlike the training",
        "",
        f"Made by `python benchmarks/recon_stress.py`; simulated, NRMSE, n = {n} heads ({kind}), {orientations} views.",
        "",
        "| scan | same maps: mri-recon | `bart pics` | ratio | own maps: mri-recon | `bart pics` | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_row(table) for table in tables.values()),
    ]
    return "\n".join(lines) + "\n"


def _earlier(out: Path | None, bundle_hash: str) -> dict[str, Table]:
    """What an earlier run of the same bundle left."""
    path = None if out is None else out.with_suffix(".json")
    content = json.loads(path.read_text()) if path is not None and path.exists() else {}
    return restored(content) if content.get("bundle_hash") == bundle_hash else {}


def main() -> int:
    """Run, print, write and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="mri-recon", help="zoo name or path")
    parser.add_argument("--heads", choices=("other", "tuning"), default="other")
    parser.add_argument("--quick", action="store_true", help="two heads, two orientations")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path, help="write a table and its numbers there, without suffix")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundle = load_bundle(arguments.bundle)
    net = bundle.build_model(torch.device("cpu"))
    people = heads(arguments.heads)
    if arguments.quick:
        people, net.orientations = people[:2], 2
    tables = _earlier(arguments.out, bundle.hash)
    for name in arguments.only:
        table = Table(name)
        for number, head in enumerate(people):
            ours, theirs = judge(net, scan(head, VARIANTS[name], 100 + number), WEIGHTS)
            table.add("mri-recon", head.name, head.patient, ours)
            table.add("bart pics", head.name, head.patient, theirs)
        tables[name] = table
        print(_row(table), flush=True)
        if arguments.out is not None:
            about = {
                "script": "benchmarks/recon_stress.py",
                "bundle_hash": bundle.hash,
                "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread",
                "heads": [head.name for head in people],
                "orientations": net.orientations,
            }
            # After every scan: a run that is stopped keeps what it has, and the next one adds to it.
            arguments.out.with_suffix(".json").write_text(dump(list(tables.values()), about))
            arguments.out.with_suffix(".md").write_text(_page(tables, len(people), arguments.heads, net.orientations))
    lost = [text for name in arguments.only for text in _lost(tables[name])]
    for text in lost:
        print("NOT MET:", text)
    print(json.dumps({"scans": len(arguments.only), "lost": len(lost)}))
    return 1 if lost else 0


if __name__ == "__main__":
    raise SystemExit(main())
