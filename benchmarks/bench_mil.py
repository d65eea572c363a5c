"""MambaMIL on the CPU: against the same model on other scans, against other heads, and on bags of a million patches.

Run: `python benchmarks/bench_mil.py` (some ten minutes); `--only speed heads scale` runs parts and keeps the others of
benchmarks/results/bench_mil.json. Exits with 1 if a claim is not met.

Features are random numbers: time and memory do not depend on them. Contestants run in turn; figures are ratios of
medians of the process's CPU time, one thread. Memory and the large bags are measured in processes of their own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from bench_wkv import machine
from ops_measure import Claim, agree, exponent, interleaved, peak_bytes
from ops_peers import mambapy_scan, reference_scan
from torch import Tensor, nn
from torch.nn import functional as F

from medseq.inference.mil_stream import stream_bag
from medseq.io.features import read_chunks
from medseq.io.features_open import open_bag
from medseq.models.mil_abmil import ABMIL
from medseq.models.mil_mamba import MambaMIL
from medseq.models.mil_transmil import TransMIL
from medseq.nn.mamba import Mamba

RESULTS = Path(__file__).parent / "results" / "bench_mil.json"
DIM = 1024
SIZES = (31_250, 125_000, 1_000_000)
HEADS: dict[str, Callable[[], nn.Module]] = {
    "MambaMIL, SRMamba": MambaMIL,
    "MambaMIL, Mamba": lambda: MambaMIL(mixer=Mamba),
    "TransMIL": TransMIL,
    "ABMIL": ABMIL,
}


def per_token(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: None, bias: Tensor, **_
) -> Tensor:
    """The scan as a loop over tokens, called as ours is."""
    return reference_scan(u, delta + bias[:, None], A, B, C, D)


def parallel(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: None, bias: Tensor, **_
) -> Tensor:
    """The parallel scan of mambapy, called as ours is."""
    return mambapy_scan(u.mT, delta.mT + bias, A, B.mT, C.mT, D).mT


@contextmanager
def scans_by(function: Callable[..., Tensor]) -> Iterator[None]:
    """All scans of SRMamba by another function."""
    with mock.patch("medseq.nn.srmamba.selective_scan", function):
        yield


def bag(n: int) -> Tensor:
    """Random features."""
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(n))


def forward(model: nn.Module, x: Tensor, scan: Callable[..., Tensor] | None = None) -> Callable[[], Tensor]:
    """A call that scores one bag."""

    def run() -> Tensor:
        with torch.inference_mode():
            if scan is None:
                return model(x).logits
            with scans_by(scan):
                return model(x).logits

    return run


def step(model: nn.Module, x: Tensor, scan: Callable[..., Tensor] | None = None) -> Callable[[], Tensor]:
    """A call that runs one training step without the update: loss and all gradients; returns one of them."""

    def loss() -> Tensor:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(x).logits, torch.zeros(1, dtype=torch.long)).backward()
        return next(model.parameters()).grad

    def run() -> Tensor:
        if scan is None:
            return loss()
        with scans_by(scan):
            return loss()

    return run


def part_speed(rounds: int) -> tuple[list[Claim], dict]:
    """The default model (4.2 M parameters, SRMamba, 2 layers) on our scan and on others."""
    model = MambaMIL(dropout=0.0).eval()
    data: dict = {"parameters": sum(p.numel() for p in model.parameters())}
    claims = []
    cases = (
        ("forward, 10 000 patches, over a loop over tokens", forward, 10_000, per_token, 8, 1),
        ("training step, 128 patches, over a loop over tokens", step, 128, per_token, 40, rounds),
        ("training step, 2 000 patches, over mambapy's scan", step, 2000, parallel, 10, min(rounds, 3)),
    )
    for label, call, n, scan, goal, times in cases:
        x = bag(n)
        agree(call(model, x)(), call(model, x, scan)())
        found = interleaved({"medseq": call(model, x), "peer": call(model, x, scan)}, times)
        data[label] = found
        claims.append(Claim(label, found["peer"]["median"] / found["medseq"]["median"], goal))
    own = interleaved({"medseq": step(model, bag(10_000))}, 2)["medseq"]
    data["training step, 10 000 patches"] = own
    print(
        f"  training step at 10 000 patches: {own['median']:.1f} s, forward alone "
        f"{data[cases[0][0]]['medseq']['median']:.1f} s"
    )
    return claims, data


def part_heads(rounds: int) -> tuple[list[Claim], dict]:
    """Other heads on one bag of 10 000 patches: time, and memory beyond the weights and the bag."""
    x = bag(10_000)
    models = {name: make().eval() for name, make in HEADS.items()}
    times = interleaved({name: forward(model, x) for name, model in models.items()}, min(rounds, 3))
    rows = {}
    for name, model in models.items():
        peak = {kind: own_process("--peak", name, kind)["peak_bytes"] for kind in ("forward", "step")}
        rows[name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "forward_s": times[name]["median"],
            "forward_peak_mb": peak["forward"] / 1e6,
            "step_peak_mb": peak["step"] / 1e6,
        }
        row = rows[name]
        print(
            f"  {name:20} {row['parameters'] / 1e6:5.2f} M  {row['forward_s']:6.2f} s"
            f"  {row['forward_peak_mb']:6.0f} MB forward  {row['step_peak_mb']:6.0f} MB training step"
        )
    return [], {"n": 10_000, "heads": rows, "times": times}


def part_scale(rounds: int) -> tuple[list[Claim], dict]:
    """Streamed bags of float16 features in a file, SRMamba in two passes a layer."""
    rows = []
    for n in SIZES:
        rows.append(own_process("--stream", str(n), "float32"))
        print(f"  {n:9,} patches: {rows[-1]['cpu_s']:7.1f} s CPU, {rows[-1]['rss_gb']:.2f} GB resident", flush=True)
    half = own_process("--stream", str(SIZES[1]), "bfloat16")
    change = float(np.abs(np.subtract(half["logits"], rows[1]["logits"])).max())
    print(f"  tokens in bfloat16 between layers, {SIZES[1]:,} patches: logits change by {change:.1e}")
    power = exponent([row["n"] for row in rows], [row["cpu_s"] for row in rows])
    return [
        Claim("time of streamed bags, power of their size", power, 1.05, at_least=False, unit=""),
        Claim("resident memory at 1 000 000 x 1024", rows[-1]["rss_gb"], 3, at_least=False, unit="GB"),
    ], {"rows": rows, "bfloat16": half, "bfloat16_logit_change": change}


def own_process(*arguments: str) -> dict:
    """What a fresh process of this script prints as JSON."""
    found = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def peak(name: str, kind: str) -> dict:
    """Memory of one call, in this process."""
    model, x = HEADS[name]().eval(), bag(10_000)
    call = forward(model, x) if kind == "forward" else step(model, x)
    return {"peak_bytes": peak_bytes(call)}


def stream(n: int, scratch_dtype: str) -> dict:
    """One bag from its file, in this process."""
    model = MambaMIL().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # The same weights in every process, so that logits can be compared.
        for weight in (layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)):
            weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bag.npy")
        rng = np.random.default_rng(0)
        piece = rng.standard_normal((8192, DIM), np.float32).astype(np.float16)
        stored = np.lib.format.open_memmap(path, "w+", np.float16, (n, DIM))
        for lo in range(0, n, len(piece)):
            stored[lo : lo + len(piece)] = piece[: n - lo]
        del stored
        found = open_bag(path)
        pieces = read_chunks(found, 8192)
        start = time.process_time()
        out = stream_bag(model, lambda lo, hi: next(pieces), n, scratch=Path(folder), scratch_dtype=scratch_dtype)
        seconds = time.process_time() - start
    assert out is not None
    # Not ru_maxrss: a process inherits that of the one it was forked from.
    status = Path("/proc/self/status").read_text()
    rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return {"n": n, "cpu_s": seconds, "rss_gb": rss * 1024 / 1e9, "logits": out.logits[0].tolist()}


PARTS = {"speed": part_speed, "heads": part_heads, "scale": part_scale}


def main() -> int:
    """Measure, print, write the JSON; 0 if every claim is met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--stream", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak or options.stream:
        answer = peak(*options.peak) if options.peak else stream(int(options.stream[0]), options.stream[1])
        print(json.dumps(answer))
        return 0
    report = json.loads(options.output.read_text()) if options.output.exists() else {}
    met = True
    for name in options.only:
        print(f"{name}: {PARTS[name].__doc__}", flush=True)
        claims, data = PARTS[name](options.rounds)
        for claim in claims:
            print(claim.row(), flush=True)
            met &= claim.met
        report[name] = {"machine": machine(), "claims": [{**vars(c), "met": c.met} for c in claims], "data": data}
        options.output.write_text(json.dumps({part: report[part] for part in PARTS if part in report}, indent=1) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
