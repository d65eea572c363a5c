"""Do lesions survive? Discs of 3, 5 and 10 mm and a pair of lines, put into real slices before they are degraded.

For every object each place is degraded twice, with and without it. At every place the statistic is the mean within the
disc minus the mean of the ring around it, less the same of the clean slice without a disc:

    contrast   mean difference of the statistic with and without, in per cent of what was put in
    d'         that difference over the statistic's sd without a disc: how surely it is seen through the noise
    FWHM       width of the mean difference image, across the middle of the disc, in mm
    modulation (peaks - valley) / peaks of the mean difference image of two lines, across them

A method that smooths raises d' of large discs and loses contrast, width and modulation of small ones.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pet_counts
import torch
from restore_cases import Case, inner_half, low_dose, noisy_mr, other_ct_cases, other_mr_cases
from super_resolution import Upscaler

from medseq.data.degrade import rician_noise
from medseq.data.degrade_mr import low_resolution
from medseq.data.simulate_pet import acquire_pet, reconstruct_pet
from medseq.inference.evaluate import Table

__all__ = ["Trial", "ct_trials", "markdown", "measure", "mr_trials", "pet_trials", "sr_trials", "upscaled"]

DISCS_MM = (3.0, 5.0, 10.0)
LINES_MM = 2.0
Restore = Callable[[np.ndarray, float, float], np.ndarray]


class Trial(NamedTuple):
    """One object at one place.

    Attributes:
        kind: ``3 mm`` and so on, or ``lines``.
        added: What was put in, in native units, on the grid of the result.
        clean: The slice without it.
        degraded: The degraded slices with it and without it.
        sd: Of the noise.
        spacing_mm: Pixel size of the result.
        place: Row and column of the middle.
        patient: Whose slice.
    """

    kind: str
    added: np.ndarray
    clean: np.ndarray
    degraded: tuple[np.ndarray, np.ndarray]
    sd: float
    spacing_mm: float
    place: tuple[int, int]
    patient: str


def ct_trials(contrast_hu: float = 20.0, dose: float = 0.25) -> list[Trial]:
    """Discs darker than soft tissue in other patients' CT at a quarter of the dose (simulated)."""
    trials = []
    for case in other_ct_cases():
        # A disc of 20 HU changes no ray's noise.
        noise = low_dose(case, dose) - case.image
        sd, plain = float(noise[inner_half(case.image)].std()), case.image + noise
        for kind, added, place in _objects(case, case.image > -150, -contrast_hu):
            pair = (case.image + added + noise, plain)
            trials.append(Trial(kind, added, case.image, pair, sd, case.spacing_mm, place, case.patient))
    return trials


def mr_trials(contrast: float = 0.15, fraction: float = 0.06) -> list[Trial]:
    """Discs darker by 15 % of the 99th percentile in other people's MR with 6 % Rician noise (simulated)."""
    trials = []
    for case in small(other_mr_cases()):
        top = float(np.percentile(case.image[case.image > 0], 99))
        plain = noisy_mr(case, fraction)[0]
        for kind, added, place in _objects(case, case.image > 0.3 * top, -contrast * top):
            # The same noise as without the object.
            generator = torch.Generator().manual_seed(7)
            noisy = rician_noise((case.image + added).clip(0), fraction * top, generator).astype(np.float32)
            pair = (noisy, plain)
            trials.append(Trial(kind, added, case.image, pair, fraction * top, case.spacing_mm, place, case.patient))
    return trials


def sr_trials(factor: int, contrast: float = 0.15) -> list[Trial]:
    """The same discs in MR whose k-space is cut, without noise of its own."""
    trials = []
    for case in small(other_mr_cases()):
        rows, cols = (side - side % factor for side in case.image.shape)
        cut = Case(case.name, case.patient, np.ascontiguousarray(case.image[:rows, :cols]), case.spacing_mm)
        top = float(np.percentile(cut.image[cut.image > 0], 99))
        plain = low_resolution(torch.from_numpy(cut.image), factor).numpy()
        for kind, added, place in _objects(cut, cut.image > 0.3 * top, -contrast * top):
            image = torch.from_numpy((cut.image + added).clip(0).astype(np.float32))
            pair = (low_resolution(image, factor).numpy(), plain)
            trials.append(Trial(kind, added, cut.image, pair, 0.0, cut.spacing_mm, place, cut.patient))
    return trials


def pet_trials(fraction: float = 0.1, contrast: float = 0.5) -> list[Trial]:
    """Discs with half as much uptake again in simulated PET with a tenth of the counts, independent counts a scan."""
    trials, spacing = [], pet_counts.PIXEL_MM
    for index, (name, (whose, uptake)) in enumerate(pet_counts.objects().items()):
        suv, body = uptake.suv.numpy(), uptake.body.numpy()
        rng = np.random.default_rng([3, index])
        plain, again = (_pet(suv, body, fraction, rng) for _ in range(2))
        sd = float((plain - again)[body > 0.5].std() / np.sqrt(2))
        level = float(np.median(suv[suv > 0.3 * suv.max()]))
        for kind, added, place in _objects(Case(name, whose, suv, spacing), suv > 0.5 * level, contrast * level):
            pair = (_pet(suv + added, body, fraction, rng), plain)
            trials.append(Trial(kind, added, suv, pair, sd, spacing, place, whose))
    return trials


def _pet(suv: np.ndarray, body: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    scan = acquire_pet(suv, body, pet_counts.PIXEL_MM, pet_counts.SCANNER, rng, fraction=fraction)
    return reconstruct_pet(scan, pet_counts.SCANNER)


def small(cases: list[Case]) -> list[Case]:
    """The cases of up to 600 pixels a side: a larger one takes a minute for every object."""
    return [case for case in cases if max(case.image.shape) <= 600]


def measure(title: str, trials: Sequence[Trial], methods: dict[str, Restore]) -> Table:
    """Scores with the objects as cases; the columns are described at the top of the file."""
    table = Table(title)
    table.note = (
        f"n = {len(trials) // (len(DISCS_MM) + 1)} places in {len({t.patient for t in trials})} patients or objects"
    )
    for name, method in methods.items():
        for kind in dict.fromkeys(trial.kind for trial in trials):
            table.add(name, kind, "pooled", _scores([trial for trial in trials if trial.kind == kind], method))
    return table


def _scores(trials: Sequence[Trial], method: Restore) -> dict[str, float]:
    with_it, without, patches = [], [], []
    # Trials of one slice share its image without an object.
    empties: dict[int, np.ndarray] = {}
    for trial in trials:
        image, plain = trial.degraded
        seen = method(image, trial.sd, trial.spacing_mm)
        if id(plain) not in empties:
            empties[id(plain)] = method(plain, trial.sd, trial.spacing_mm)
        empty = empties[id(plain)]
        statistic = _statistic(trial)
        base = statistic(trial.clean)
        full = statistic(trial.clean + trial.added) - base
        with_it.append((statistic(seen) - base) / full)
        without.append((statistic(empty) - base) / full)
        patches.append(_patch(seen - empty, trial) / trial.added.flat[np.abs(trial.added).argmax()])
    gain, patch = float(np.mean(with_it) - np.mean(without)), np.mean(patches, axis=0)
    scores = {"contrast %": 100 * gain, _D: gain / max(float(np.std(without, ddof=1)), 1e-6)}
    if trials[0].kind == "lines":
        return scores | {"modulation %": 100 * _modulation(patch)}
    return scores | {"FWHM mm": _fwhm(patch[_REACH])}


def markdown(table: Table) -> str:
    """Rows are methods, columns what became of each object."""
    head = [f"{d:g} mm disc: contrast %, d', FWHM mm" for d in DISCS_MM] + [f"lines of {LINES_MM:g} mm: modulation %"]
    lines = [
        f"**{table.title}**",
        "",
        table.note,
        "",
        f"| method | {' | '.join(head)} |",
        "| --- |" + " --- |" * len(head),
    ]
    for name in table.methods:
        of = {score.case: score.values for score in table.scores if score.method == name}
        cells = [
            f"{of[k]['contrast %']:.0f}, {of[k][_D]:.1f}, {of[k]['FWHM mm']:.1f}"
            for k in (f"{d:g} mm" for d in DISCS_MM)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {of['lines']['modulation %']:.0f} |")
    return "\n".join(lines) + "\n"


def upscaled(method: Upscaler, factor: int) -> Restore:
    """An upscaler as a method of `measure`."""
    return lambda low, sd, spacing_mm: method(low, factor)


# Pixels from the middle of a patch to its edge; patches are drawn on quarter millimetres.
_REACH = 48
_STEP_MM = 0.25
_D = "d'"


def _objects(case: Case, tissue: np.ndarray, contrast: float, places: int = 2):
    """Kind, image to add, place: every object at the calmest places of a slice, 15 mm apart."""
    for row, col in _places(case, tissue, places):
        y, x = ((np.arange(side) - at) * case.spacing_mm for side, at in zip(case.image.shape, (row, col), strict=True))
        for diameter in DISCS_MM:
            distance = np.hypot(y[:, None], x[None])
            edge = ((diameter / 2 - distance) / case.spacing_mm + 0.5).clip(0, 1)
            yield f"{diameter:g} mm", (contrast * edge).astype(np.float32), (row, col)
        across = (LINES_MM / 2 - np.abs(np.abs(x) - LINES_MM)) / case.spacing_mm + 0.5
        along = (7.0 - np.abs(y)) / case.spacing_mm + 0.5
        yield "lines", (contrast * across.clip(0, 1)[None] * along.clip(0, 1)[:, None]).astype(np.float32), (row, col)


def _places(case: Case, tissue: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Where the slice is calmest within 8 mm, all of it tissue."""
    from scipy.ndimage import binary_erosion, gaussian_filter

    reach = max(2, round(8.0 / case.spacing_mm))
    inside = binary_erosion(tissue, iterations=reach)
    if not inside.any():
        inside = binary_erosion(tissue, iterations=max(1, reach // 2))
    image = case.image.astype(np.float64)
    width = reach / 2
    calm = gaussian_filter(image**2, width) - gaussian_filter(image, width) ** 2
    calm[~inside] = np.inf
    found: list[tuple[int, int]] = []
    rows, cols = np.ogrid[: image.shape[0], : image.shape[1]]
    while len(found) < count and np.isfinite(calm).any():
        row, col = np.unravel_index(int(np.argmin(calm)), calm.shape)
        found.append((int(row), int(col)))
        calm[np.hypot(rows - row, cols - col) * case.spacing_mm < 15.0] = np.inf
    return found


def _statistic(trial: Trial) -> Callable[[np.ndarray], float]:
    rows, cols = np.ogrid[: trial.clean.shape[0], : trial.clean.shape[1]]
    distance = np.hypot(rows - trial.place[0], cols - trial.place[1]) * trial.spacing_mm
    radius = LINES_MM if trial.kind == "lines" else float(trial.kind.split()[0]) / 2
    inside = distance <= max(radius, 0.75 * trial.spacing_mm)
    outer = max(radius, trial.spacing_mm) + trial.spacing_mm
    ring = (distance > outer) & (distance <= outer + 3.0)
    return lambda image: float(image[inside].mean() - image[ring].mean())


def _patch(image: np.ndarray, trial: Trial) -> np.ndarray:
    """The image around the place, on quarter millimetres."""
    from scipy.ndimage import map_coordinates

    offset = np.arange(-_REACH, _REACH + 1) * (_STEP_MM / trial.spacing_mm)
    rows, cols = np.meshgrid(trial.place[0] + offset, trial.place[1] + offset, indexing="ij")
    return map_coordinates(image.astype(np.float64), [rows, cols], order=1, mode="nearest")


def _fwhm(profile: np.ndarray) -> float:
    """Width at half of the middle value, in mm; to the edge of the patch where it never falls that far."""
    peak = float(profile[_REACH - 2 : _REACH + 3].mean())
    if peak <= 0:
        return float("nan")
    below = np.flatnonzero(profile < peak / 2)
    left, right = below[below < _REACH], below[below > _REACH]
    ends = (left[-1] if len(left) else 0, right[0] if len(right) else len(profile) - 1)
    return float(ends[1] - ends[0] - 1) * _STEP_MM


def _modulation(patch: np.ndarray) -> float:
    """How deep the valley between two lines is, of the mean over 6 mm along them; 0 where there is none."""
    half = round(3.0 / _STEP_MM)
    profile = patch[_REACH - half : _REACH + half + 1].mean(axis=0)
    away = round(LINES_MM / _STEP_MM)
    peaks = 0.5 * (profile[_REACH - away] + profile[_REACH + away])
    return float(max(0.0, (peaks - profile[_REACH]) / peaks)) if peaks > 0 else 0.0
