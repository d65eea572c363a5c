"""The reconstruction part of `medseq demo`: a real brain slice, scanned by simulation four times too fast."""

from pathlib import Path
from typing import TYPE_CHECKING

from medseq.cli.console import progress_bar
from medseq.cli.share import package_file
from medseq.errors import InputError, OutputError

if TYPE_CHECKING:
    import numpy as np

    from medseq.data.simulate import Scan

__all__ = ["ACCELERATION", "SOURCE", "run_recon", "sample_slice"]

ACCELERATION = 4
COILS = 8
NOISE = 0.02
SOURCE = ("nibabel", "tests/data/example4d.nii.gz", "real head MR (EPI), slice 14, from nibabel")


def sample_slice() -> "np.ndarray":
    """The demo's brain slice ``(row, col)``, 1 = its 95th percentile.

    Raises:
        InputError: The package was installed without its test data.
    """
    import numpy as np

    from medseq.io.nifti import open_nifti

    path = package_file(SOURCE[0], SOURCE[1])
    if path is None:
        raise InputError("the demo's images are not installed", where="MRI", remedy="pip install nibabel")
    image = open_nifti(path, modality="MR").read(13, 14)[0]
    return image / np.percentile(image[image > 0], 95)


def run_recon(
    folder: Path, bundle: str, seed: int, *, quiet: bool
) -> tuple["np.ndarray", "np.ndarray", "np.ndarray", str]:
    """Simulate, reconstruct and compare.

    Args:
        folder: Of the demo; gets ``input/mri``, ``truth/mri`` and ``out/mri``.
        bundle: Shipped model.
        seed: Of coils, noise and pattern.
        quiet: No progress bars.

    Returns:
        Magnitudes ``(row, col)``: zero-filled, reconstructed and true; and the path of the report.
    """
    import numpy as np
    import torch
    from torch.nn import functional as F

    from medseq.data.sampling import draw_pattern
    from medseq.data.simulate import simulate_scan
    from medseq.inference.ledger import Ledger
    from medseq.inference.run import predict_folder
    from medseq.io.nifti import open_nifti
    from medseq.ops.coils import sens_reduce

    generator = torch.Generator().manual_seed(seed)
    image = torch.from_numpy(np.ascontiguousarray(sample_slice()))[None, None]
    object_ = F.interpolate(image, scale_factor=2, mode="bicubic", align_corners=False)[0, 0].clamp_min(0)
    scan = simulate_scan(object_, COILS, NOISE, generator)
    shape = (scan.image.shape[0], scan.image.shape[1])
    pattern = draw_pattern("poisson", shape, ACCELERATION, 0.02, generator)
    masked = torch.where(pattern, scan.kspace, 0)
    _write(folder, masked.numpy(), scan)
    source, out = folder / "input/mri", folder / "out/mri"
    with progress_bar(f"predict {bundle}", quiet=quiet) as progress:
        summary = predict_folder(bundle, source, out, progress=progress)
    if summary.exit_code != 0:
        raise OutputError("the prediction failed", where="MRI", found=summary.counts, remedy="see the report")
    with Ledger(out / "run.sqlite", read_only=True) as ledger:
        (item,) = ledger.items("done")
        (path,) = (out / row.relpath for row in ledger.outputs(item.id) if row.relpath.endswith(".nii.gz"))
    after = open_nifti(path, modality="MR").read(0, 1)[0]
    before = sens_reduce(masked[None], scan.sens_maps[None])[0].abs().numpy()
    return before, after, scan.image.abs().numpy(), str(summary.report_path)


def _write(folder: Path, masked: "np.ndarray", scan: "Scan") -> None:
    """The acquisition as BART keeps it, and the true image as an array."""
    import numpy as np

    from medseq.io.kspace_bart import write_cfl

    (folder / "input/mri").mkdir(parents=True)
    (folder / "truth/mri").mkdir(parents=True)
    write_cfl(folder / "input/mri/scan", np.moveaxis(masked, 0, -1)[None])
    np.save(folder / "truth/mri/image.npy", scan.image.numpy())
