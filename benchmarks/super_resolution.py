"""Super-resolution for `quality_restore.py`: classical ways to enlarge an image, and the tables against other people.

The low resolution is simulated: the middle of a real slice's k-space, as a magnitude image on its own grid. Every
method gets that image and the factor. The strengths of those that have one were tuned on validation slabs of the
training heads, by RMSE. An upscaler is ``(low (row, col), factor) -> (row * factor, col * factor)``.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from restore_cases import Case, other_mr_cases
from torch.nn import functional as F

from medseq.data.content import mr_slices
from medseq.data.degrade_mr import low_resolution
from medseq.data.transforms import apply_chain, fit_chain, invert_chain
from medseq.inference.bundle import Bundle
from medseq.inference.evaluate import Table
from medseq.inference.tiling import apply_tiled
from medseq.ops import resolution
from medseq.ops.quality import psnr, rmse, ssim

__all__ = ["CLASSICAL", "classical", "compare", "degrade", "judge_fidelity", "upscaler"]

Upscaler = Callable[[np.ndarray, int], np.ndarray]


def zero_filling(low: np.ndarray, factor: int) -> np.ndarray:
    """What scanners do: k-space surrounded by zeros."""
    fine = resolution.zero_fill(_tensor(low), (low.shape[0] * factor, low.shape[1] * factor))
    return fine.numpy()[0, 0].clip(min=0)


def bicubic(low: np.ndarray, factor: int) -> np.ndarray:
    """Cubic convolution (Keys, 1981; a = -0.75)."""
    return F.interpolate(_tensor(low), scale_factor=factor, mode="bicubic", align_corners=False).numpy()[0, 0]


def lanczos(low: np.ndarray, factor: int, amount: float, radius: float = 1.0) -> np.ndarray:
    """Lanczos-3 (Duchon, 1979), then an unsharp mask of `amount` with a Gaussian of `radius` fine pixels."""
    from PIL import Image
    from scipy.ndimage import gaussian_filter

    size = (low.shape[1] * factor, low.shape[0] * factor)
    fine = np.asarray(Image.fromarray(low.astype(np.float32)).resize(size, Image.Resampling.LANCZOS))
    return (fine + amount * (fine - gaussian_filter(fine, radius))).clip(min=0)


def total_variation(low: np.ndarray, factor: int, weight: float, steps: int = 20) -> np.ndarray:
    """Total variation with the acquired k-space kept: denoising steps and projections in turn.

    Reference:
        Block, Uecker & Frahm, Suppression of MRI truncation artifacts using total variation constrained data
        extrapolation, Int. J. Biomed. Imaging 2008; here by alternating projections.
    """
    from skimage.restoration import denoise_tv_chambolle

    scale = float(np.percentile(low, 99)) or 1.0
    acquired = _tensor(low) / scale
    shape = (low.shape[0] * factor, low.shape[1] * factor)
    fine = resolution.zero_fill(acquired, shape)
    for _ in range(steps):
        smooth = _tensor(denoise_tv_chambolle(fine.numpy()[0, 0], weight=weight, max_num_iter=20))
        fine = smooth + resolution.zero_fill(acquired - resolution.truncate_kspace(smooth, low.shape), shape)
    return scale * fine.numpy()[0, 0].clip(min=0)


CLASSICAL: dict[str, tuple[Callable[..., np.ndarray], Sequence[float]]] = {
    "zero filling": (zero_filling, ()),
    "bicubic": (bicubic, ()),
    "Lanczos + unsharp": (lanczos, (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)),
    "TV": (total_variation, (0.001, 0.002, 0.004, 0.008, 0.016, 0.03)),
}


def upscaler(bundle: Bundle) -> Upscaler:
    """The bundle's model as `medseq predict` runs it, without files around it."""
    model, chain, settings = bundle.build_model(), bundle.transforms(), bundle.config.inference
    tile = (settings.tile, settings.tile) if isinstance(settings.tile, int) else settings.tile

    def enlarge(low: np.ndarray, factor: int) -> np.ndarray:
        image = resolution.zero_fill(_tensor(low), (low.shape[0] * factor, low.shape[1] * factor))
        params = fit_chain(chain, image.numpy()[0], None, (1.0, 1.0))
        stages = apply_chain(chain, image, params)
        with torch.inference_mode():
            output = apply_tiled(model, stages[-1], tile=tile, overlap=settings.overlap, blend=settings.blend)
        return invert_chain(chain, output, stages, params)[0, 0].numpy()

    return enlarge


def degrade(image: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """The low resolution of a slice, and the slice cut to a multiple of the factor."""
    rows, cols = (side - side % factor for side in image.shape)
    reference = np.ascontiguousarray(image[:rows, :cols])
    return low_resolution(torch.from_numpy(reference), factor).numpy(), reference


def classical(factor: int) -> tuple[dict[str, Upscaler], dict[str, float]]:
    """The classical methods, tuned on slices of the validation slabs, and their strengths."""
    slices = mr_slices("val").slices
    pairs = [degrade(slices[i].numpy(), factor) for i in range(0, len(slices), max(1, len(slices) // 4))]
    methods, strengths = {}, {}
    for name, (method, grid) in CLASSICAL.items():
        methods[name] = method
        if grid:
            errors = {s: np.mean([rmse(method(low, factor, s), reference) for low, reference in pairs]) for s in grid}
            strengths[name] = min(errors, key=errors.__getitem__)
            methods[name] = partial(_with_strength, method, strengths[name])
    return methods, strengths


def compare(factor: int, methods: dict[str, Upscaler]) -> tuple[Table, Table]:
    """All methods on slices of other people: scores, and how much of the acquired band moved."""
    cases: list[Case] = other_mr_cases()
    n = f"n = {len(cases)} slices, {len({case.patient for case in cases})} patients"
    table = Table(f"Other patients, x{factor} from simulated k-space truncation: {n}")
    table.note = "range: 99.9th percentile of each reference"
    moved = Table("Root mean square of (truncated result - input), per cent of the input's")
    for case in cases:
        low, reference = degrade(case.image, factor)
        top = float(np.percentile(reference, 99.9))
        for name, method in methods.items():
            start = time.process_time()
            result = method(low, factor)
            seconds = time.process_time() - start
            values = {
                "PSNR": psnr(result, reference, top),
                "SSIM": ssim(result, reference, top),
                "RMSE %": 100 * rmse(result, reference) / top,
                "s / 512²": seconds * 512**2 / reference.size,
            }
            table.add(name, case.name, case.patient, values)
            back = resolution.truncate_kspace(_tensor(result), low.shape).numpy()[0, 0]
            moved.add(name, case.name, case.patient, {"%": 100 * rmse(back, low) / float(np.sqrt(np.mean(low**2)))})
    return table, moved


def judge_fidelity(moved: Table, name: str, limit: float = 2.0) -> list[str]:
    """The acquired band stays within `limit` per cent on every slice."""
    values = moved.values(name, "%")
    case = max(values, key=values.__getitem__)
    print(f"claim: acquired band moved <= {limit:g} %: worst {values[case]:.3f} % ({case})")
    return [] if values[case] <= limit else [f"acquired band moved by {values[case]:.3f} % on {case}"]


def _with_strength(method: Callable[..., np.ndarray], strength: float, low: np.ndarray, factor: int) -> np.ndarray:
    return method(low, factor, strength)


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None, None]
