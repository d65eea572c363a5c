"""medseq's operators on the CPU against the alternatives and against the machine's own limits, in one process.

Run: `python benchmarks/bench_ops.py` (some minutes); `--only scan cross ...` runs parts and keeps the other parts of
benchmarks/results/bench_ops.json. Exits with 1 if a claim is not met.

Contestants of a comparison run in turn, round by round; figures are ratios of medians, in CPU time of the process with
one thread unless they are about threads. The README quotes from the JSON file.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from bench_wkv import machine, recurrence
from ops_layers import part_conv, part_layer
from ops_measure import Claim, agree, exponent, interleaved, limit_contestants, peak_bytes
from ops_peers import mambapy_scan, materialised_cross_scan, reference_scan, with_gradients
from torch import Tensor

from medseq.ops import bi_wkv, cross_selective_scan, selective_scan
from medseq.ops.backend import compiled_kernels
from medseq.ops.selective_scan import chunked, naive

RESULTS = Path(__file__).parent / "results" / "bench_ops.json"
# Multiply-adds that a state needs, its exponential included.
FORWARD_OPERATIONS = 10
BACKWARD_OPERATIONS = 17


def scan_inputs(batch: int, dim: int, length: int, state: int, seed: int = 0) -> list[Tensor]:
    """u, delta, A, B, C, D as a Mamba layer has them: step sizes around 0.05, rates 1 to `state`."""
    generator = torch.Generator().manual_seed(seed)
    u, delta = (torch.randn(batch, dim, length, generator=generator) for _ in range(2))
    B, C = (torch.randn(batch, state, length, generator=generator) for _ in range(2))
    A = -torch.arange(1.0, state + 1).repeat(dim, 1)
    return [u, delta.sub_(3), A, B, C, torch.ones(dim)]


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Ours, on the arguments that every contestant takes."""
    return selective_scan(u, delta, A, B, C, D, delta_softplus=True)


def operator_calls(tensors: list[Tensor]):
    """The bare operator forward, and its backward from the states that forward kept."""
    u, delta, A, B, C, D = tensors
    inputs = (u, delta, A, B.unsqueeze(1), C.unsqueeze(1), D, None, None, True, None)
    y, _, kept = torch.ops.medseq.selective_scan(*inputs, False, True)
    forward = lambda: torch.ops.medseq.selective_scan(*inputs, False, False)  # noqa: E731
    return forward, lambda: torch.ops.medseq.selective_scan_backward(y, None, *inputs, kept, False)


def part_limits(rounds: int) -> tuple[list[Claim], dict]:
    """The main figure: states per second as a fraction of what the machine can do, N = 16."""
    shape = (1, 1024, 1000, 16)
    forward, backward = operator_calls(scan_inputs(*shape))
    states = shape[1] * shape[2] * shape[3]
    runs, work = limit_contestants()
    times = interleaved(runs | {"forward": forward, "backward": backward}, rounds)
    own = {name: work[name] / times[name]["median"] for name in work}
    ahead, back = (states / times[name]["median"] for name in ("forward", "backward"))
    rates = f"{own['exp2'] / 1e9:.2f} Gexp2/s (torch {own['torch.exp2'] / 1e9:.2f}), {own['fma'] / 1e9:.1f} Gfma/s"
    print(
        f"  machine: {rates}, triad {own['triad'] / 1e9:.1f} GB/s; ours {ahead / 1e9:.2f}, {back / 1e9:.2f} Gstates/s"
    )
    data = {"shape": shape, "limits": own, "states_per_second": {"forward": ahead, "backward": back}, "times": times}
    data["of_torch_exp2"] = ahead / own["torch.exp2"]
    data["of_arithmetic_floor"] = {
        "forward": ahead * FORWARD_OPERATIONS / own["fma"],
        "backward": back * BACKWARD_OPERATIONS / own["fma"],
    }
    return [
        Claim("forward, N = 16: states/s over the machine's exp2/s", ahead / own["exp2"], 0.75, unit=""),
        Claim(
            "backward, N = 16: states/s over its arithmetic floor",
            data["of_arithmetic_floor"]["backward"],
            0.45,
            unit="",
        ),
        Claim("backward over forward", ahead / back, 2.3, at_least=False),
    ], data


def part_scan(rounds: int) -> tuple[list[Claim], dict]:
    """selective_scan against the per-token loop and mambapy's parallel scan."""
    data = {}

    def compare(label: str, ours, peer) -> float:
        times = interleaved({"medseq": ours, "peer": peer}, rounds)
        data[label] = times
        return times["peer"]["median"] / times["medseq"]["median"]

    def turned(tensors: list[Tensor]) -> list[Tensor]:
        u, delta, A, B, C, D = tensors
        return [u.mT.contiguous(), delta.mT.contiguous(), A, B.mT.contiguous(), C.mT.contiguous(), D]

    wide, middle, thin = (scan_inputs(*s) for s in ((1, 1024, 1000, 16), (1, 768, 1024, 16), (2, 96, 16384, 1)))
    agree(scan(*wide), reference_scan(*wide))
    agree(scan(*thin).mT, mambapy_scan(*turned(thin)))
    reference = compare("forward, per-token", lambda: scan(*wide), lambda: reference_scan(*wide))
    arguments = (*wide[:3], *(x.unsqueeze(1) for x in wide[3:5]), wide[5], None, None, True, None)
    pure = compare("chunked", lambda: chunked.forward(*arguments), lambda: reference_scan(*wide))
    both = compare("both, mambapy", with_gradients(scan, middle), with_gradients(mambapy_scan, turned(middle)))
    peer = turned(thin)
    ahead = compare("forward N=1, mambapy", lambda: scan(*thin), lambda: mambapy_scan(*peer))
    back = compare("both N=1, mambapy", with_gradients(scan, thin), with_gradients(mambapy_scan, peer))
    return [
        Claim("forward (1,1024,1000,16) over a per-token loop", reference, 30, stretch=36),
        Claim("forward and backward (1,768,1024,16) over mambapy", both, 45, stretch=60),
        Claim("forward (2,96,16384,1) over mambapy", ahead, 10, stretch=12),
        Claim("forward and backward (2,96,16384,1) over mambapy", back, 8, stretch=10),
        Claim("pure torch, forward (1,1024,1000,16) over a per-token loop", pure, 5),
    ], data


def part_cross(rounds: int) -> tuple[list[Claim], dict]:
    """The fused scan over an image against a bare scan of the same size and against copies, scan and sum."""
    claims, data = [], {}
    for state, fold in ((16, 1.2), (1, 1.6)):
        batch, channel, side = 1, 96, 128
        flat = scan_inputs(batch, 4 * channel, side * side, state)
        x = flat[0][:, :channel].reshape(batch, channel, side, side).contiguous()
        generator = torch.Generator().manual_seed(1)
        B, C = (torch.randn(batch, 4, state, side * side, generator=generator) for _ in range(2))
        delta = flat[1].view(batch, 4, channel, side * side)
        image = [t.unflatten(-1, (side, side)) for t in (delta, B, C)]
        fused = [x, image[0], flat[2], image[1], image[2], flat[5]]
        copies = [x, delta, flat[2], B, C, flat[5]]
        bare = [flat[0], flat[1], flat[2], B, C, flat[5]]
        run = lambda x, delta, A, B, C, D: cross_selective_scan(x, delta, A, B, C, D, delta_softplus=True)  # noqa: E731
        for way, wrap in (("forward", lambda f, t: lambda: f(*t)), ("forward and backward", with_gradients)):
            contestants = {"fused": wrap(run, fused), "bare": wrap(scan, bare)}
            contestants["copies"] = wrap(materialised_cross_scan, copies)
            times = interleaved(contestants, rounds)
            data[f"{way}, N = {state}"] = times
            own = times["fused"]["median"]
            label = f"fused 2-D {way}, (1,96,128,128,{state})"
            claims.append(Claim(f"{label}, over a bare scan", own / times["bare"]["median"], 1.05, at_least=False))
            claims.append(Claim(f"copies, scan, sum over {label}", times["copies"]["median"] / own, fold))
    return claims, data


def part_wkv(rounds: int) -> tuple[list[Claim], dict]:
    """bi_wkv against the recurrence, and the rate of both conventions at 16 times the length."""

    def inputs(length: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        w, u = (torch.randn(96, generator=generator) / length for _ in range(2))
        return [w, u, *(torch.randn(1, length, 96, generator=generator) for _ in range(2))]

    def calls(length: int, convention: str):
        """The bare operator forward and backward: no memory from autograd between them."""
        tensors = inputs(length)
        backward = torch.ops.medseq.bi_wkv_backward
        return lambda: bi_wkv(*tensors, convention), lambda: backward(tensors[3], *tensors, convention)

    short = inputs(4096)
    times = interleaved({"medseq": lambda: bi_wkv(*short), "recurrence": lambda: recurrence(*short)}, rounds)
    lengths = {}
    for convention in ("exact", "chunk64"):
        near, far = calls(4096, convention), calls(65536, convention)
        runs = {"forward 4096": near[0], "forward 65536": far[0], "backward 4096": near[1], "backward 65536": far[1]}
        lengths[convention] = interleaved(runs, 2 * rounds)
    # The recurrence trains for half a minute; once is enough to tell a factor of a thousand.
    ours = interleaved({"medseq": with_gradients(bi_wkv, short)}, rounds)["medseq"]
    start = time.process_time()
    with_gradients(recurrence, short)()
    trained = time.process_time() - start
    forward = times["recurrence"]["median"] / times["medseq"]["median"]
    data = {"forward": times, "lengths": lengths, "both": {"medseq": ours, "recurrence": trained}}
    claims = [
        Claim("bi_wkv (1,4096,96) forward over the recurrence", forward, 150, stretch=250),
        Claim("bi_wkv forward and backward over the recurrence", trained / ours["median"], 1000, stretch=1500),
    ]
    for convention, seconds in lengths.items():
        for way in ("forward", "backward"):
            # The least time: 65536 tokens are in no cache, and neighbours on the machine share its memory.
            rate = 16 * seconds[f"{way} 4096"]["least"] / seconds[f"{way} 65536"]["least"]
            claims.append(Claim(f"bi_wkv {convention} {way}, tokens/s at 65536 over 4096", rate, 0.75, unit=""))
    return claims, data


def part_scaling(rounds: int) -> tuple[list[Claim], dict]:
    """Time and memory from 1 000 to 256 000 tokens."""
    lengths = [1000, 4000, 16_000, 64_000, 256_000]
    data: dict[str, list] = {"lengths": lengths, "forward": [], "both": [], "bytes": []}
    for length in lengths:
        tensors = scan_inputs(1, 64, length, 16)
        both = with_gradients(scan, tensors)
        times = interleaved({"forward": lambda: scan(*tensors), "both": both}, rounds)  # noqa: B023
        for name in ("forward", "both"):
            data[name].append(times[name]["median"])
        data["bytes"].append(peak_bytes(both))
    # Below some megabytes the allocator's own pages are what is seen.
    fits = {name: exponent(lengths, data[name]) for name in ("forward", "both")}
    fits["bytes"] = exponent(lengths[2:], data["bytes"][2:])
    data["exponents"] = fits
    labels = {"forward": "forward time", "both": "forward and backward time", "bytes": "peak memory of training"}
    return [
        Claim(f"{labels[name]}, 1k to 256k tokens, exponent of the length", value, 1.1, at_least=False, unit="")
        for name, value in fits.items()
    ], data


def part_memory(rounds: int) -> tuple[list[Claim], dict]:
    """Peaks: beyond the inputs, of a million tokens, and of training in pure torch."""
    # The first backward of a process loads parts of torch, which is not the scan's memory.
    with_gradients(scan, scan_inputs(1, 8, 64, 16))()
    tensors = scan_inputs(1, 1024, 4096, 16)
    size = tensors[0].numel() * 4
    kept = size * 16 / 64
    gy = torch.ones_like(tensors[0])

    def train() -> None:
        needing = [x.requires_grad_() for x in tensors]
        torch.autograd.grad(scan(*needing), needing, gy)

    extra = (peak_bytes(train) - kept) / size
    million = probe("forward", 256, 1_000_000, "cpu")
    pure = probe("train", 1024, 10_000, "chunked")
    return [
        Claim("training, peak beyond the inputs and kept states, in sizes of u", extra, 4, at_least=False),
        Claim("forward, L = 1 000 000, D = 256, N = 16, whole process", million / 1e9, 4, at_least=False, unit="GB"),
        Claim(
            "pure torch trains L = 10 000, D = 1024, N = 16, whole process", pure / 1e9, 4, at_least=False, unit="GB"
        ),
    ], {"train_sizes_of_u": extra, "million_bytes": million, "chunked_train_bytes": pure}


def probe(mode: str, dim: int, length: int, backend: str) -> int:
    """Peak resident bytes of a process of its own that runs one scan."""
    code = f"""
import os, resource, sys
os.environ["MEDSEQ_BACKEND"] = "{backend}"
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from bench_ops import scan, scan_inputs
torch.set_num_threads(1)
tensors = scan_inputs(1, {dim}, {length}, 16)
if "{mode}" == "train":
    scan(*(x.requires_grad_() for x in tensors)).sum().backward()
else:
    scan(*tensors)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def part_accuracy(rounds: int) -> tuple[list[Claim], dict]:
    """Error against float64 over the error of the same formula in plain float32 torch."""
    tensors = scan_inputs(1, 64, 128, 16)
    tensors[1] += 2

    def definition(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        return naive.selective_scan(u, delta, A, B.unsqueeze(1), C.unsqueeze(1), D, None, None, True, None)[0]

    truth = with_gradients(definition, [x.double() for x in tensors])()
    ours, plain = with_gradients(scan, tensors)(), with_gradients(definition, tensors)()
    ratios = {}
    for name, want, a, b in zip(("y", "gu", "gdelta", "gA", "gB", "gC", "gD"), truth, ours, plain, strict=True):
        error, theirs = ((x.double() - want).square().mean().sqrt().item() for x in (a, b))
        ratios[name] = error / theirs
    return [
        Claim(
            "root mean square error over that of plain float32, worst of y and gradients",
            max(ratios.values()),
            2,
            at_least=False,
        )
    ], ratios


def part_threads(rounds: int) -> tuple[list[Claim], dict]:
    """Two threads against one, by the wall clock: needs a machine that is otherwise idle."""
    tensors = scan_inputs(1, 1024, 2000, 16)
    forward, backward = operator_calls(tensors)

    def with_threads(count: int, run):
        def call() -> None:
            torch.set_num_threads(count)
            run()

        return call

    contestants = {
        f"{way} {count}": with_threads(count, run)
        for way, run in (("forward", forward), ("backward", backward))
        for count in (1, 2)
    }
    times = interleaved(contestants, rounds, time.perf_counter)
    torch.set_num_threads(1)
    return [
        Claim(f"{way}, two threads over one", times[f"{way} 1"]["least"] / times[f"{way} 2"]["least"], 1.8)
        for way in ("forward", "backward")
    ], times


PARTS = {
    "limits": part_limits,
    "scan": part_scan,
    "cross": part_cross,
    "wkv": part_wkv,
    "conv": part_conv,
    "layer": part_layer,
    "scaling": part_scaling,
    "memory": part_memory,
    "accuracy": part_accuracy,
    "threads": part_threads,
}


def main() -> int:
    """Measure, print, write the JSON; 0 if every claim is met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if compiled_kernels() is None:
        sys.exit("the compiled kernels are not installed: there is nothing to measure")
    torch.set_num_threads(1)
    report = json.loads(options.output.read_text()) if options.output.exists() else {}
    met = True
    for name in options.only:
        print(f"{name}: {PARTS[name].__doc__.splitlines()[0]}", flush=True)
        claims, data = PARTS[name](options.rounds)
        for claim in claims:
            print(claim.row(), flush=True)
            met &= claim.met
        figures = [{**vars(claim), "met": claim.met} for claim in claims]
        report[name] = {"machine": machine(), "claims": figures, "data": data}
        # After every part: a run that is cut short keeps what it has.
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({part: report[part] for part in PARTS if part in report}, indent=1) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
