"""Time and memory of RecurrentVarNet and CIRIM against a straightforward evaluation of the same weights.

Straightforward is what the equations say, one torch call after the other as the original toolkits write them: every
gate a convolution of its own on concatenated inputs, images in torch's default layout, every Fourier transform
shifted there and back in both directions, both transforms two-dimensional. Both sides run without gradients, in one
process, one after the other, and must agree before they are timed.

Run: `python benchmarks/bench_recon.py` (paper sizes, minutes), or `--rows 128 --cols 128 --steps 2` for less.
Exits with 1 if a ratio is above the claim.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from medseq.models.recon_cirim import CIRIM
from medseq.models.recon_recurrent_varnet import RecurrentVarNet
from medseq.ops.coils import sens_expand, sens_reduce

CLAIM = 0.8
RESULT = Path("benchmarks/results/bench_recon.json")


def conv(x: Tensor, layer: torch.nn.Conv2d, kind: str = "replicate") -> Tensor:
    """Pad, then convolve."""
    d = layer.dilation[0]
    pad = d * (layer.kernel_size[0] - 1) // 2
    return F.conv2d(F.pad(x, (pad,) * 4, mode=kind) if pad else x, layer.weight, layer.bias, dilation=d)


def channels(x: Tensor) -> Tensor:
    """Complex image -> real and imaginary channel."""
    return torch.stack([x.real, x.imag], 1)


def gru(x: Tensor, h: Tensor, unit: torch.nn.Module) -> Tensor:
    """Three convolutions of concatenated input and state."""
    weights = [torch.cat([a, b], 1) for a, b in zip(unit.ih.weight.chunk(3), unit.hh.weight.chunk(3), strict=True)]
    bias = unit.ih.bias.chunk(3)
    both = torch.cat([x, h], 1)
    r = torch.sigmoid(F.conv2d(both, weights[0], bias[0]))
    z = torch.sigmoid(F.conv2d(both, weights[1], bias[1]))
    n = torch.tanh(F.conv2d(torch.cat([x, r * h], 1), weights[2], bias[2]))
    return (1 - z) * n + z * h


def varnet(model: RecurrentVarNet, y: Tensor, mask: Tensor, maps: Tensor) -> Tensor:
    """RecurrentVarNet, straightforward: its k-space."""
    x = channels(sens_expand(sens_reduce(y, maps), torch.ones_like(maps[:, :1]))[:, 0])
    seen = []
    for layer in model.initializer.convs:
        x = torch.relu(conv(x, layer))
        seen.append(x)
    x = torch.cat(seen[-model.initializer.multiscale :], 1)
    states = [torch.relu(conv(x, head)) for head in model.initializer.heads]
    k = y
    for block, size in zip(model.regularisers, model.step_sizes, strict=True):
        x = channels(sens_reduce(k, maps))
        for layer, unit in enumerate(block.units):
            states[layer] = gru(torch.relu(conv(x, block.convs[layer])), states[layer], unit)
            x = torch.relu(states[layer])
        x = conv(x, block.convs[-1])
        update = torch.complex(x[:, 0], x[:, 1])
        k = k - size * torch.where(mask, k - y, 0) + sens_expand(update, maps)
    return k


def cirim(model: CIRIM, y: Tensor, mask: Tensor, maps: Tensor) -> Tensor:
    """CIRIM, straightforward: its image."""
    x = sens_reduce(y, maps)
    for machine in model.cascades:
        states = [torch.zeros(())] * len(machine.units)
        for _ in range(model.time_steps):
            u = sens_reduce(torch.where(mask, sens_expand(x, maps) - y, 0), maps)
            u = torch.cat([channels(x), channels(u)], 1)
            for level, unit in enumerate(machine.units):
                u = torch.relu(conv(torch.relu(conv(u, machine.convs[level])), unit.ih) + unit.hh * states[level])
                states[level] = u
            u = conv(u, machine.final)
            x = x + torch.complex(u[:, 0], u[:, 1])
    return x


def scan(coils: int, rows: int, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """A random acquisition with every fourth column and a centre."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(1, coils, rows, cols, dtype=torch.complex64, generator=generator)
    maps /= torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    mask = torch.zeros(1, 1, 1, cols, dtype=torch.bool)
    mask[..., ::4], mask[..., cols // 2 - cols // 24 : cols // 2 + cols // 24] = True, True
    image = torch.randn(1, rows, cols, dtype=torch.complex64, generator=generator)
    return sens_expand(image, maps) * mask, mask, maps


def timed(function, repeats: int) -> tuple[float, Tensor]:
    """Smallest CPU time of `repeats` calls, and the result."""
    best, result = float("inf"), torch.empty(0)
    for _ in range(repeats):
        start = time.process_time()
        result = function()
        best = min(best, time.process_time() - start)
    return best, result


def main() -> int:
    """Run, print, write and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rows", 320), ("cols", 320), ("coils", 15), ("steps", 8), ("cascades", 5), ("repeats", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--network", choices=("RecurrentVarNet", "CIRIM"), help="this one only")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT}")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    y, mask, maps = scan(args.coils, args.rows, args.cols)
    networks: dict[str, tuple] = {
        "RecurrentVarNet": (RecurrentVarNet(args.steps).eval(), varnet, lambda out: out.kspace),
        "CIRIM": (CIRIM(args.cascades, args.steps).eval(), cirim, lambda out: out.image),
    }
    networks = {name: parts for name, parts in networks.items() if args.network in (None, name)}
    rows = []
    with torch.inference_mode():
        for name, (model, straightforward, pick) in networks.items():
            slow, wanted = timed(lambda: straightforward(model, y, mask, maps), args.repeats)  # noqa: B023
            fast, found = timed(lambda: pick(model(y, mask, maps)), args.repeats)  # noqa: B023
            error = float((found - wanted).abs().max() / wanted.abs().max())
            assert error < 1e-5, f"{name}: results differ by {error:.1e} of the maximum"
            rows.append(
                {"network": name, "straightforward_s": slow, "ours_s": fast, "ratio": fast / slow, "error": error}
            )
            print(
                f"{name:16s} {slow:7.2f} s -> {fast:7.2f} s CPU, ratio {fast / slow:.2f}, differ by {error:.1e}",
                flush=True,
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    met = all(row["ratio"] <= CLAIM for row in rows)
    print(f"claim: ratio <= {CLAIM}: {met}; peak of the whole run {peak:.0f} MiB")
    if args.write:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout
        about = {"commit": commit.strip(), "machine": platform.machine(), "torch": torch.__version__, **vars(args)}
        RESULT.write_text(json.dumps({**about, "n": args.repeats, "peak_mib": peak, "rows": rows}, indent=1) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
