"""Train the reconstruction networks and their scan-block variants alike: same steps, same data, several seeds.

    python benchmarks/recon_variants.py [--steps 400] [--seeds 1 2 3] [--only NAME …] [--table]

The networks are those of configs/recon, shrunk alike so that all of them train on one CPU core in an hour or two; their
order among each other is what is asked, not what they reach at full size. Finished runs below --out are kept, so the
script goes on where it stopped. --table judges them on other heads and writes benchmarks/results/recon_variants.md;
`quality_recon.py` sets them beside the other methods.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import save_file

from medseq.cli.share import find_config
from medseq.data.recon import SimulatedBrain
from medseq.inference.bundle_classes import build_class
from medseq.inference.bundle_schema import ClassSpec
from medseq.tasks.recon import ReconDataModule, ReconTask
from medseq.tasks.recon_loss import ReconLoss

# What is shrunk, for all variants of an architecture alike.
SMALL: dict[str, dict[str, Any]] = {
    "CIRIM": {"num_cascades": 2, "time_steps": 4, "channels": [32, 32]},
    "RecurrentVarNet": {"num_steps": 4, "channels": 32, "num_layers": 2, "initializer_channels": [16, 16, 32, 32]},
    "VarNet": {"num_cascades": 5, "channels": 10, "pools": 3},
    "ReconUNet": {"channels": 24, "pools": 3},
}
VARIANTS = {
    "U-Net": "recon/unet_brain",
    "VarNet": "recon/varnet_brain",
    "CIRIM": "recon/cirim_brain",
    "CIRIM, SS2D": "recon/cirim_ss2d_brain",
    "CIRIM, ReWKV": "recon/cirim_rewkv_brain",
    "RecurrentVarNet": "recon/recurrent_varnet_brain",
    "RecurrentVarNet, SS2D": "recon/recurrent_varnet_ss2d_brain",
    "RecurrentVarNet, ReWKV": "recon/recurrent_varnet_rewkv_brain",
}
SHAPE, COILS = (64, 64), 4


def build(name: str) -> torch.nn.Module:
    """The shrunk network of a variant, without a sensitivity network: maps are given to all."""
    import yaml

    spec = yaml.safe_load(find_config(VARIANTS[name]).read_text())["model"]["net"]
    small = SMALL[spec["class_path"].rpartition(".")[2]]
    arguments = {**spec.get("init_args", {}), **small}
    arguments.pop("sens_net", None)
    return build_class(ClassSpec(class_path=spec["class_path"], init_args=arguments), where=name)


def train(name: str, seed: int, steps: int, out: Path) -> None:
    """Train one variant; weights and a JSON beside each other."""
    target = out / f"{VARIANTS[name].rpartition('/')[2]}-{seed}.safetensors"
    if target.exists():
        return
    pl.seed_everything(seed, verbose=False)
    net = build(name)
    task = ReconTask(
        net, ReconLoss(l1=1.0, ssim=1.0), lr=1e-3, min_lr=1e-5, warmup_steps=20, ema_decay=0.98, clip_norm=1.0
    )
    data = SimulatedBrain(steps, seed=seed, shapes=[SHAPE], coils=[COILS], noisy_target=True)
    val = SimulatedBrain(8, seed=1000, shapes=[SHAPE], coils=[COILS])
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    started = time.process_time()
    trainer.fit(task, ReconDataModule(data, val))
    seconds = time.process_time() - started
    out.mkdir(parents=True, exist_ok=True)
    facts = {
        "name": name,
        "seed": seed,
        "steps": steps,
        "cpu_seconds": seconds,
        "parameters": sum(p.numel() for p in net.parameters()),
        "val": {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")},
    }
    save_file({key: value.contiguous() for key, value in task.ema.state_dict().items()}, target.with_suffix(".part"))
    target.with_suffix(".json").write_text(json.dumps(facts, indent=1))
    target.with_suffix(".part").rename(target)
    print(json.dumps(facts), flush=True)


def table(out: Path) -> str:
    """Scores on other heads, mean and standard deviation over seeds; parameters; seconds of training and of a slice."""
    from quality_recon import network, score, variants
    from recon_cases import head_scans, undersample

    conditions = ("equispaced lines, 4x", "Poisson points, 4x")
    cases = {condition: [undersample(scan, condition) for scan in head_scans(False)] for condition in conditions}
    facts = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    n = len(cases[conditions[0]])
    lines = [
        f"NRMSE, simulated scans of other heads, n = {n}, mean ± sd over seeds; {facts[0]['steps']} steps each.",
        "",
        f"| network | {' | '.join(conditions)} | parameters | training, CPU s | a slice, CPU s | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, nets in variants(out).items():
        own = [entry for entry in facts if entry["name"] == name]
        cells, seconds = [], []
        for condition in conditions:
            means = []
            for net in nets:
                results = [(case, *network(net)(case)) for case in cases[condition]]
                means.append(statistics.mean(score(case, image)["NRMSE"] for case, image, _ in results))
                seconds += [time for _, _, time in results]
            cells.append(f"{statistics.mean(means):.4f} ± {statistics.stdev(means) if len(means) > 1 else 0:.4f}")
        training = statistics.mean(entry["cpu_seconds"] for entry in own)
        row = [name, *cells, f"{own[0]['parameters']}", f"{training:.0f}", f"{statistics.mean(seconds):.2f}", len(nets)]
        lines.append("| " + " | ".join(str(cell) for cell in row) + " |")
    return "\n".join(lines)


def main() -> None:
    """Seed by seed, so that an interrupted run has all variants of the first ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("runs/recon_variants"))
    parser.add_argument("--table", action="store_true", help="judge what is trained instead of training")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table:
        text = table(arguments.out)
        print(text)
        head = "# Reconstruction networks trained alike\n\nMade by `python benchmarks/recon_variants.py --table`.\n\n"
        Path("benchmarks/results/recon_variants.md").write_text(head + text + "\n")
        return
    for seed in arguments.seeds:
        for name in arguments.only:
            train(name, seed, arguments.steps, arguments.out)


if __name__ == "__main__":
    main()
