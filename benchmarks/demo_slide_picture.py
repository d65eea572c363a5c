"""The slide of the demo, its heat map and its highest patches, from build/demo: writes docs/images/slide.png."""

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from medseq.io.slide_open import open_slide
from medseq.io.slide_resample import read_scaled

TARGET = Path("docs/images/slide.png")


def main(demo: Path) -> None:
    """Three pictures side by side."""
    (slide_path,) = (path for path in (demo / "input/wsi").iterdir() if path.is_file())
    (item,) = (path.parent for path in (demo / "out/wsi").glob("*/overlay.png"))
    with open_slide(slide_path) as slide:
        width, height = slide.dims[0]
        scale = height / 800
        tissue = read_scaled(slide, 0, 0, (scale, scale), round(width / scale), 800)
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), width_ratios=(1, 1, 2.3))
    pictures = (tissue, plt.imread(item / "overlay.png"), plt.imread(item / "attention.png"))
    for axis, picture, title in zip(axes, pictures, ("slide", "attention", "highest patches"), strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    figure.tight_layout(pad=0.4)
    figure.savefig(TARGET, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/demo"))
