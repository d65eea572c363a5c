"""Training data for reconstruction: typed batches, and data sets that simulate scans or undersample real ones."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from medseq.data.anatomy import brain_image
from medseq.data.coil_fields import uniform
from medseq.data.recon_scale import sense_scale
from medseq.data.sampling import PatternBank, draw_pattern
from medseq.data.seeded import SeededDataset
from medseq.data.simulate import Scan, imperfect_maps, simulate_scan
from medseq.errors import InputError

__all__ = ["PhantomScans", "ReconBatch", "ReconSample", "SimulatedBrain", "collate"]


class ReconBatch(NamedTuple):
    """One training batch, divided by `scale`; centred, unitary Fourier convention.

    Attributes:
        masked_kspace: ``(batch, coil, row, col)``, zero where nothing was measured.
        mask: ``(batch, 1, row or 1, col)``, True where measured.
        sens_maps: ``(batch, coil, row, col)``, or None.
        target: Complex images ``(batch, row, col)``.
        scale: What k-space and target were divided by, ``(batch,)``.
        recon_shape: Size in which results are judged: the centre of the image.
        case_id: Where each sample came from.
    """

    masked_kspace: Complex[Tensor, "batch coil row col"]
    mask: Tensor
    sens_maps: Complex[Tensor, "batch coil row col"] | None
    target: Complex[Tensor, "batch row col"]
    scale: Float[Tensor, " batch"]
    recon_shape: tuple[int, int]
    case_id: list[str]


class ReconSample(NamedTuple):
    """One element of a `ReconBatch`, without its batch axis."""

    masked_kspace: Tensor
    mask: Tensor
    sens_maps: Tensor | None
    target: Tensor
    scale: float
    recon_shape: tuple[int, int]
    case_id: str


def collate(samples: Sequence[ReconSample]) -> ReconBatch:
    """Stack samples of one size.

    Raises:
        InputError: Sizes differ; a batch size of 1 takes any.
    """
    shapes = {tuple(sample.masked_kspace.shape) for sample in samples}
    if len(shapes) > 1:
        raise InputError("samples of different sizes in one batch", found=sorted(shapes), remedy="use batch_size 1")
    rows = samples[0].masked_kspace.shape[-2]
    # Line and point patterns can meet in one batch.
    tall = any(sample.mask.shape[-2] == rows for sample in samples)
    masks = [s.mask.expand(1, rows, -1) if tall else s.mask for s in samples]
    maps = [s.sens_maps for s in samples if s.sens_maps is not None]
    return ReconBatch(
        torch.stack([s.masked_kspace for s in samples]),
        torch.stack(masks),
        torch.stack(maps) if len(maps) == len(samples) else None,
        torch.stack([s.target for s in samples]),
        torch.tensor([s.scale for s in samples], dtype=torch.float32),
        samples[0].recon_shape,
        [s.case_id for s in samples],
    )


def undersample(scan: Scan, pattern: Tensor, maps: Tensor, case_id: str, *, noisy_target: bool) -> ReconSample:
    """A sample from a fully sampled scan; only measured data decide its scale."""
    masked = torch.where(pattern, scan.kspace, 0)
    scale = float(sense_scale(masked[None], pattern[None], maps[None])[0])
    target = scan.noisy if noisy_target else scan.image
    return ReconSample(
        masked / scale, pattern, maps, target / scale, scale, (target.shape[0], target.shape[1]), case_id
    )


class SimulatedBrain(SeededDataset[ReconSample]):
    """Simulated multi-coil scans of training heads, undersampled at random; see `medseq.data.simulate`.

    Args:
        length: Samples an epoch.
        seed: See `SeededDataset`.
        shapes: Matrix sizes; each sample draws one.
        shape_weights: How often each is drawn; None for equally often.
        coils: Numbers of receivers to draw from; repeat one to weigh it.
        noise: Range of the noise of a coil's pixel as a part of the image's 95th percentile, log-uniform.
        noisy_target: Targets are combined from noisy coils, as references of real scans are.
        two_dimensional: Share of patterns that undersample both axes.
    """

    def __init__(
        self,
        length: int = 500,
        seed: int = 0,
        shapes: Sequence[tuple[int, int]] = ((96, 128), (112, 144), (128, 128), (128, 160), (160, 208)),
        shape_weights: Sequence[float] | None = None,
        coils: Sequence[int] = (1, 4, 6, 8, 8, 8, 8, 10, 12),
        noise: tuple[float, float] = (0.006, 0.06),
        noisy_target: bool = True,
        two_dimensional: float = 0.65,
    ) -> None:
        super().__init__(length, seed)
        if shape_weights is not None and len(shape_weights) != len(shapes):
            raise InputError("one weight a shape", found=len(shape_weights), wanted=len(shapes))
        self.shapes = [(int(rows), int(cols)) for rows, cols in shapes]
        self.shape_weights = torch.tensor(shape_weights if shape_weights else [1.0] * len(shapes))
        self.coils, self.noise, self.noisy_target = list(coils), noise, noisy_target
        self.patterns = PatternBank(two_dimensional=two_dimensional)

    def draw(self, generator: torch.Generator) -> ReconSample:
        """See `SeededDataset.draw`."""
        shape = self.shapes[int(torch.multinomial(self.shape_weights, 1, generator=generator))]
        coils = self.coils[int(torch.randint(len(self.coils), (), generator=generator))]
        low, high = torch.tensor(self.noise).log().tolist()
        noise = float(torch.tensor(uniform((low, high), generator)).exp())
        scan = simulate_scan(brain_image(shape, generator), coils, noise, generator)
        maps = imperfect_maps(scan, generator)
        pattern = self.patterns.draw(shape, generator)
        return undersample(scan, pattern, maps, "simulated brain", noisy_target=self.noisy_target)


class PhantomScans(SeededDataset[ReconSample]):
    """Simulated scans of drawn ellipses, all of one size; needs no download: for tests and the tiny configuration.

    Args:
        length: Samples an epoch.
        seed: See `SeededDataset`.
        shape: Matrix size.
        coils: Receivers.
        acceleration: Of a Gaussian line pattern.
        noise: See `SimulatedBrain`.
    """

    # Every sample is another phantom.
    independent = True

    def __init__(
        self,
        length: int = 16,
        seed: int = 0,
        shape: tuple[int, int] = (32, 32),
        coils: int = 4,
        acceleration: float = 3.0,
        noise: float = 0.01,
    ) -> None:
        super().__init__(length, seed)
        self.shape, self.coils, self.acceleration, self.noise = shape, coils, acceleration, noise

    def draw(self, generator: torch.Generator) -> ReconSample:
        """See `SeededDataset.draw`."""
        scan = simulate_scan(ellipses(self.shape, generator), self.coils, self.noise, generator)
        pattern = draw_pattern("gaussian1d", self.shape, self.acceleration, 0.12, generator)
        return undersample(scan, pattern, scan.sens_maps, "phantom", noisy_target=False)


def ellipses(shape: tuple[int, int], generator: torch.Generator, fine: int = 2) -> Float[Tensor, "fine_row fine_col"]:
    """A bright ellipse with others inside: a head of sorts."""
    rows, cols = fine * shape[0], fine * shape[1]
    y = torch.linspace(-1, 1, rows)[:, None]
    x = torch.linspace(-1, 1, cols)
    image = torch.sigmoid((1 - torch.sqrt((y / 0.85) ** 2 + (x / 0.7) ** 2)) * 40)
    for _ in range(5):
        cy, cx, high, wide, level = (uniform((-1, 1), generator) for _ in range(5))
        high, wide = 0.1 + 0.15 * (1 + high), 0.1 + 0.15 * (1 + wide)
        distance = torch.sqrt(((y - 0.45 * cy) / high) ** 2 + ((x - 0.4 * cx) / wide) ** 2)
        image = image * (1 + 0.6 * level * torch.sigmoid((1 - distance) * 20))
    return image
