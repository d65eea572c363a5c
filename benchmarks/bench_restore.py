"""Time of the restoration networks: against the naive recurrence, against a U-Net of equal FLOPs, and layer by layer.

Run: `python benchmarks/bench_restore.py` (some minutes, one thread; `--sizes 128` for less), on a quiet machine;
`--write` keeps the figures in benchmarks/results. Exits with 1 if results differ or a claim is not met:

- the operator (bidirectional WKV, cross scan) takes less than a quarter of a forward pass;
- a forward pass at 128 x 128 is at least 15 times as fast as with the recurrence written out token by token;
- it takes at most 1.5 times as long as a convolutional U-Net of equal FLOPs.

The light network runs at every size, the paper's at 128 x 128 and, with `--paper`, at every size: about 37 GMAC for
128 x 128. Times are CPU seconds of this process, medians of interleaved rounds.
"""

import argparse
import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
from bench_wkv import recurrence
from ops_measure import Claim, agree, interleaved
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medseq.models.restore_rwkv import restore_rwkv, restore_rwkv_light
from medseq.models.restore_unet import RestoreUNet
from medseq.models.restore_vmamba_unet import RestoreVMambaUNet
from medseq.nn import rwkv, ss2d
from medseq.ops import backends
from medseq.ops.cross_scan import naive as naive_scan

RESULTS = Path(__file__).parent / "results" / "bench_restore.json"
LIGHT = {"dim": 16, "num_blocks": (1, 1, 2, 2), "num_refinement_blocks": 0, "shuffle": 2}
_OPERATORS = {"bi_wkv": rwkv, "cross_selective_scan": ss2d}


def networks() -> dict[str, Callable[[], nn.Module]]:
    """Name -> network, random weights."""
    return {
        "Restore-RWKV, light": lambda: restore_rwkv_light(1, 1).deployed(),
        "VMamba U-Net, light": lambda: RestoreVMambaUNet(1, 1, **LIGHT).deployed(),
    }


@contextmanager
def replaced(operators: dict[str, Callable]):
    """The operators of the layers, exchanged for a while."""
    kept = {name: getattr(_OPERATORS[name], name) for name in operators}
    for name, function in operators.items():
        setattr(_OPERATORS[name], name, function)
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(_OPERATORS[name], name, function)


def token_by_token() -> dict[str, Callable]:
    """The operators as their equations say, a token after the other."""

    def wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, convention: str = "exact") -> Tensor:
        return recurrence(w, u, k, v, unbound=True)

    def scan(x, delta, A, B, C, D=None, delta_bias=None, delta_softplus=False, **keywords):
        directions = keywords.get("directions", "cross")
        return naive_scan.forward(x, delta, A, B, C, D, delta_bias, delta_softplus, directions)[0]

    return {"bi_wkv": wkv, "cross_selective_scan": scan}


def flops(model: nn.Module, image: Tensor) -> int:
    """Multiplications and additions of the convolutions and matrix products of a forward pass."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(image)
    return counter.get_total_flops()


def equal_unet(wanted: int, image: Tensor) -> tuple[nn.Module, int]:
    """The U-Net of this suite at the width whose FLOPs come closest, and those."""
    found = []
    for width in range(8, 72, 4):
        model = RestoreUNet(1, 1, (width, 2 * width, 3 * width)).eval()
        found.append((abs(flops(model, image) - wanted), width))
    width = min(found)[1]
    model = RestoreUNet(1, 1, (width, 2 * width, 3 * width)).eval()
    return model, flops(model, image)


def shares(model: nn.Module, image: Tensor) -> dict[str, float]:
    """Part of a forward pass that each kind of layer takes, the operator apart from the layer around it."""
    spent: dict[str, float] = defaultdict(float)
    stack: list[float] = []

    def before(*_):
        stack.append(time.process_time())

    def after(module, *_):
        spent[type(module).__name__] += time.process_time() - stack.pop()

    def counted(name: str, function: Callable) -> Callable:
        def run(*arguments, **keywords):
            start = time.process_time()
            result = function(*arguments, **keywords)
            spent[name] += time.process_time() - start
            return result

        return run

    leaves = [m for m in model.modules() if not list(m.children())]
    handles = [h for m in leaves for h in (m.register_forward_pre_hook(before), m.register_forward_hook(after))]
    own = {name: counted(name, getattr(module, name)) for name, module in _OPERATORS.items()}
    with replaced(own), torch.inference_mode():
        model(image)
        spent.clear()
        start = time.process_time()
        for _ in range(3):
            model(image)
        total = time.process_time() - start
    for handle in handles:
        handle.remove()
    out = {name: seconds / total for name, seconds in sorted(spent.items(), key=lambda item: -item[1])}
    return out | {"everything else": 1 - sum(out.values())}


def part_size(side: int, rounds: int, paper: bool) -> tuple[list[Claim], dict]:
    """Every network at one size."""
    image = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    claims, data = [], {}
    built = {name: make().eval() for name, make in networks().items()}
    if paper or side <= 128:
        built["Restore-RWKV, paper"] = restore_rwkv(1, 1).deployed().eval()
    for name, model in built.items():
        unet, unet_flops = equal_unet(flops(model, image), image) if "light" in name else (None, 0)
        with torch.inference_mode():
            contestants = {"ours": lambda m=model: m(image)}
            if unet is not None:
                contestants["U-Net"] = lambda m=unet: m(image)
            times = interleaved(contestants, rounds)
            naive = None
            if side <= 128 and "light" in name:
                wanted = model(image)
                with replaced(token_by_token()):
                    agree(model(image), wanted)
                    naive = interleaved({"naive": lambda m=model: m(image)}, 1)["naive"]["median"]
        found = shares(model, image)
        operator = sum(found.get(key, 0.0) for key in _OPERATORS)
        claims.append(Claim(f"{name}, {side}²: operator's share of a forward pass", operator, 0.25, at_least=False))
        ours = times["ours"]["median"]
        if naive is not None:
            claims.append(Claim(f"{name}, {side}²: over the recurrence token by token", naive / ours, 15.0))
        if unet is not None:
            ratio = ours / times["U-Net"]["median"]
            claims.append(Claim(f"{name}, {side}²: time over a U-Net of equal FLOPs", ratio, 1.5, at_least=False))
        data[name] = {
            "times": times,
            "naive": naive,
            "shares": found,
            "flops": flops(model, image),
            "U-Net flops": unet_flops,
        }
        print(
            f"{name}, {side} x {side}: {ours:.3f} s; " + ", ".join(f"{k} {v:.0%}" for k, v in list(found.items())[:6])
        )
    return claims, data


def main() -> int:
    """Run, print, write and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--paper", action="store_true", help="the paper's network at every size: minutes")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    claims, data = [], {}
    for side in arguments.sizes:
        more, data[str(side)] = part_size(side, arguments.rounds, arguments.paper)
        claims += more
    for claim in claims:
        print(claim.row())
    about = {
        "script": "benchmarks/bench_restore.py",
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "backends": {name: choice["cpu"].name for name, choice in backends().items()},
        "n": arguments.rounds,
        "claims": [
            {"what": claim.what, "value": claim.value, "goal": claim.goal, "met": claim.met} for claim in claims
        ],
    }
    if arguments.write:
        RESULTS.write_text(json.dumps(about | {"sizes": data}, indent=1) + "\n")
    return 0 if all(claim.met for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
