"""Before and after, from what `make demo` left in build/demo: writes docs/images/demo.png."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from medseq.inference.ledger import Ledger
from medseq.io.dicom import group_dicom, open_dicom
from medseq.io.nifti import open_nifti

DEMO, TARGET = Path("build/demo"), Path("docs/images/demo.png")
# Half the width and height of the part that is shown, around the middle of the slice.
PART = 0.26


def plane(path: Path) -> np.ndarray:
    """First plane of a NIfTI file, or of the DICOM series that a file belongs to."""
    if path.name.endswith(".nii.gz"):
        return open_nifti(path).read(0, 1)[0]
    stacks, _, _ = group_dicom([path])
    return open_dicom(stacks[0]).read(0, 1)[0]


def result(task: str, source: str) -> np.ndarray:
    """The first plane that was made from the input `source`."""
    out = DEMO / "out" / task
    with Ledger(out / "run.sqlite", read_only=True) as ledger:
        for item in ledger.items("done"):
            if ledger.files(item.id)[0].relpath.startswith(source):
                paths = [out / row.relpath for row in ledger.outputs(item.id) if row.role == "result"]
                return plane(sorted(paths)[0])
    raise SystemExit(f"no result for {source}: run make demo first")


def middle(image: np.ndarray) -> np.ndarray:
    """The part of the slice that is shown."""
    rows, cols = (slice(int(n * (0.5 - PART)), int(n * (0.5 + PART))) for n in image.shape)
    return image[rows, cols]


def main() -> None:
    """Two rows of three: noisy input, result, original."""
    ct = [plane(DEMO / "input/ct/low_dose/0001.dcm"), result("ct", "low_dose"), plane(DEMO / "truth/ct/0001.dcm")]
    mr = [plane(DEMO / "input/mr/noisy.nii.gz"), result("mr", "noisy"), plane(DEMO / "truth/mr/image.nii.gz")]
    figure, axes = plt.subplots(2, 3, figsize=(9, 6.2))
    words = (
        ("CT, simulated 1/4 dose", "ct-denoise", "original"),
        ("MR, simulated noise 6 %", "mr-denoise", "original"),
    )
    limits = ((-160.0, 240.0), (0.0, float(np.percentile(mr[2], 99.5))))
    for row, images, titles, (low, high) in zip(axes, (ct, mr), words, limits, strict=True):
        for axis, image, title in zip(row, images, titles, strict=True):
            axis.imshow(middle(image), cmap="gray", vmin=low, vmax=high)
            axis.set_title(title, fontsize=10)
            axis.set_axis_off()
    figure.tight_layout(pad=0.4)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(TARGET, dpi=80)


if __name__ == "__main__":
    main()
