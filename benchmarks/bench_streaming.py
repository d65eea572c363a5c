"""Peak memory of `medseq predict` against the number of slices: volumes are streamed, so it must not grow.

Run: `python benchmarks/bench_streaming.py`. Every size runs in a process of its own, from a NIfTI file on disk to the
written result; the peak is the process's largest resident set. Exits with 1 if eight times the slices need more than
a tenth more memory.
"""

import json
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

SLICES, SIDE, LIMIT = (10, 80), 256, 1.10
RESULT = Path("benchmarks/results/bench_streaming.json")


def write_volume(path: Path, slices: int) -> None:
    """A simulated head-sized cylinder in HU with noise, int16."""
    generator = np.random.default_rng(slices)
    axis = np.linspace(-1, 1, SIDE)
    inside = axis[:, None] ** 2 + axis**2 < 0.7
    volume = np.where(inside, 40.0, -1000.0)[..., None] + 10 * generator.standard_normal((SIDE, SIDE, slices))
    nib.save(nib.Nifti1Image(volume.astype(np.int16), np.diag([0.7, 0.7, 2.0, 1.0])), path)


def predict_once(source: str, target: str) -> None:
    """The child process: one prediction by the shipped CT bundle at one thread, its peak in MiB on stdout."""
    import torch

    from medseq.inference import predict_folder

    torch.set_num_threads(1)
    summary = predict_folder("ct-denoise", source, target, modality="CT")
    assert summary.exit_code == 0, summary
    print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> int:
    """Run all sizes, print, write and judge."""
    peaks = {}
    for slices in SLICES:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "in")
            source.mkdir()
            write_volume(source / "volume.nii.gz", slices)
            child = [sys.executable, __file__, str(source), str(Path(folder, "out"))]
            text = subprocess.run(child, check=True, capture_output=True, text=True).stdout
        peaks[slices] = float(text.rpartition("PEAK")[2])
        print(f"{slices:4d} slices of {SIDE} x {SIDE}: peak {peaks[slices]:.0f} MiB", flush=True)
    ratio = peaks[SLICES[-1]] / peaks[SLICES[0]]
    about = {"machine": platform.machine(), "side": SIDE, "peak_mib": peaks, "ratio": ratio, "limit": LIMIT}
    RESULT.write_text(json.dumps(about, indent=1) + "\n")
    met = ratio <= LIMIT
    print(f"claim: {SLICES[-1]} slices need {ratio:.3f}x the memory of {SLICES[0]}, limit {LIMIT}:", met)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main() if len(sys.argv) == 1 else predict_once(*sys.argv[1:]))
