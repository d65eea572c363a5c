"""Many mutants, a table of what became of them, and every crash by its seed.

Run: `python -m tests.fuzz.campaign --count 20000 --output benchmarks/results/fuzz.md`
"""

import argparse
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.fuzz.entries import NEEDS_TORCH
from tests.fuzz.seeds import write_seeds

ROOT = Path(__file__).resolve().parents[2]
# Of a thousand mutants.
SHARES = {
    "dicom": 230,
    "nifti": 150,
    "kspace-h5": 100,
    "mrd": 80,
    "npy": 80,
    "cfl": 50,
    "bag": 50,
    "bag-array": 70,
    "svs": 40,
    "archive": 40,
    "manifest": 30,
    "routes": 30,
    "bundle": 20,
    "predict-dicom": 10,
    "predict-nifti": 8,
    "predict-kspace": 6,
    "predict-bag": 6,
}
CHILD = ["-m", "tests.fuzz.child"]
MOST_S = 10.0  # of a processor; a machine that does other things, too, must not make a verdict
_PATIENCE_S = 60.0
# A child that was not given its ten seconds of a processor in this time hangs without computing.
_STARVED_S = 600.0
_FRESH = 3000  # mutants of one child: what leaks in libraries is theirs


@dataclass
class Tally:
    """What became of the mutants.

    Attributes:
        fates: (format, fate) -> mutants.
        crashes: Format, seed, what was damaged, what happened.
        slowest: Seconds of a processor, by format.
        peak_mib: Largest resident memory of a child.
        seconds: Wall time.
    """

    fates: Counter[tuple[str, str]] = field(default_factory=Counter)
    crashes: list[dict[str, str]] = field(default_factory=list)
    slowest: dict[str, float] = field(default_factory=dict)
    peak_mib: float = 0.0
    seconds: float = 0.0


class Child:
    """A process of `tests.fuzz.child`."""

    def __init__(self, seeds: Path, work: Path) -> None:
        # The decoders of libraries talk; only the last words of one that dies are of interest.
        self.log = tempfile.TemporaryFile()
        arguments = [sys.executable, *CHILD, str(seeds), str(work)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, cwd=ROOT, env=environment
        )
        self._rest = b""
        self.taken = 0

    def ask(self, order: dict[str, str]) -> tuple[str, dict[str, Any]]:
        """What was damaged, and the answer; an answer of fate ``crash`` if the process died or said nothing."""
        self.taken += 1
        assert self.process.stdin is not None
        what = "?"
        try:
            self._cpu = self._seconds()
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
            what = str(self._line()["begun"])
            return what, self._line()
        except TimeoutError:
            self.process.kill()
            self.process.wait()
            error = f"no answer, after {MOST_S:g} s of a processor or {_STARVED_S:g} s in all"
        except (BrokenPipeError, EOFError):
            error = f"the process died with {self.process.wait()}: {self._last_words()}"
        return what, {"fate": "crash", "error": error, "seconds": 0.0, "peak_mib": 0.0}

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # what it never read
        self.log.close()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        begun = time.monotonic()
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self.process.stdout], [], [], _PATIENCE_S)
            if not ready:
                if self._seconds() - self._cpu > MOST_S or time.monotonic() - begun >= _STARVED_S:
                    raise TimeoutError
                continue
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            if not piece:
                raise EOFError
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        # A library that prints to standard output does not speak for the child.
        return json.loads(line) if line.startswith(b"{") else self._line()

    def _seconds(self) -> float:
        """Seconds of a processor that the child took so far."""
        try:
            times = psutil.Process(self.process.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def _last_words(self) -> str:
        self.log.seek(0)
        text = self.log.read().decode("utf-8", "replace")
        start = text.rfind("Fatal Python error")
        return text[start if start >= 0 else -600 :][:900]


def plan(count: int, seed: int) -> list[tuple[str, str]]:
    """Format and seed of each mutant, in blocks of a thousand of all formats; those that need torch end their block."""
    orders = [
        (number // share, kind in NEEDS_TORCH, kind, f"{kind}/{seed}/{number}")
        for kind, share in SHARES.items()
        for number in range(max(1, round(count * share / 1000)))
    ]
    orders.sort(key=lambda order: order[:2])
    return [order[2:] for order in orders]


def run(folder: Path, orders: list[tuple[str, str]], keep: Path | None = None, most_s: float = 1e9) -> Tally:
    """Judge mutants in child processes.

    Args:
        folder: Holds seeds (see `prepare`) and work.
        orders: See `plan`.
        keep: Where mutants that crash are copied to.
        most_s: Begin no mutant after so many seconds.
    """
    seeds, tally, started = folder / "seeds", Tally(), time.monotonic()
    child, torch = Child(seeds, folder / "work"), False
    try:
        for number, (kind, seed) in enumerate(orders):
            if time.monotonic() - started > most_s:
                break
            needs = kind in NEEDS_TORCH
            if child.process.poll() is not None or child.taken >= _FRESH or needs != torch:
                child.close()
                child, torch = Child(seeds, folder / "work"), needs
            what, answer = child.ask({"kind": kind, "seed": seed})
            if answer["fate"] != "crash" and answer["seconds"] > MOST_S:
                answer |= {"fate": "crash", "error": f"took {answer['seconds']:.1f} s"}
            tally.fates[kind, answer["fate"]] += 1
            tally.slowest[kind] = max(tally.slowest.get(kind, 0.0), answer["seconds"])
            tally.peak_mib = max(tally.peak_mib, answer["peak_mib"])
            if answer["fate"] == "crash":
                tally.crashes.append({"kind": kind, "seed": seed, "what": what, "error": answer["error"]})
                if keep is not None:
                    shutil.copytree(folder / "work" / "in", keep / seed.replace("/", "-"), dirs_exist_ok=True)
                print(f"crash: {seed} ({what}): {answer['error']}", flush=True)
            if number % 500 == 499:
                print(f"{number + 1} of {len(orders)}, {len(tally.crashes)} crashes", flush=True)
    finally:
        child.close()
    tally.seconds = time.monotonic() - started
    return tally


def prepare(folder: Path) -> None:
    """Write seeds and the models that predict."""
    write_seeds(folder / "seeds")
    write_models(folder / "bundles")


def write_models(folder: Path) -> None:
    """Small untrained networks."""
    import torch

    from medseq.inference.bundle import save_bundle
    from medseq.models.mil_abmil import ABMIL
    from medseq.models.recon_unet import ReconUNet
    from tests.inference.conftest import save_tiny_bundle
    from tests.inference.test_recon_folder import save

    save_tiny_bundle(folder / "mr", modality=("MR",), units="1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        sizes = {"channels": 4, "pools": 2}
        save(folder / "recon", ReconUNet(**sizes), "medseq.models.recon_unet.ReconUNet", sizes)
        head = {"in_dim": 6, "d_model": 8, "attention_dim": 4}
        config = {
            "name": "mil",
            "version": "1.0",
            "task": "mil",
            "model": {"class_path": "medseq.models.mil_abmil.ABMIL", "init_args": head},
            "input": {"kind": "bag", "feature_dim": 6},
            "output": {"kind": "scores", "classes": ["no", "yes"]},
        }
        metadata = {"intended_use": "tests"}
        save_bundle(folder / "mil", config, ABMIL(**head).state_dict(), metadata=metadata, card="# A test\n")


def table(tally: Tally, count: int, seed: int) -> str:
    """The report, Markdown."""
    fates = ("result", "refused", "skipped", "crash")
    rows = [
        f"| {kind} | {sum(tally.fates[kind, fate] for fate in fates)} | "
        + " | ".join(str(tally.fates[kind, fate]) for fate in fates)
        + f" | {tally.slowest[kind]:.1f} |"
        for kind in tally.slowest
    ]
    total = sum(tally.fates.values())
    lines = [
        "# Fuzzing",
        "",
        f"`python -m tests.fuzz.campaign --count {count} --seed {seed}`: {total} mutants of real files through the "
        f"product's own ways in, {len(tally.crashes)} crashes. A mutant has {MOST_S:g} s of a processor and 2 GiB of "
        f"address space (`RLIMIT_AS`); the largest resident memory of a child was {tally.peak_mib:.0f} MiB. "
        f"Wall time {tally.seconds / 60:.0f} minutes.",
        "",
        "result = something was read; refused = an item that failed with a reason, or a MedseqError; skipped = "
        "nobody's input any more. `predict-…` are whole runs of `predict_folder` with a small network.",
        "",
        "| format | mutants | result | refused | skipped | crash | slowest, s |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *rows,
    ]
    lines += [""] + [f"- `{one['seed']}` ({one['what']}): {one['error']}" for one in tally.crashes]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no mutant after so long")
    parser.add_argument("--only", nargs="*", help="formats")
    parser.add_argument("--repeat", help="one mutant, by the seed of its crash")
    parser.add_argument("--keep", type=Path, help="folder for mutants that crash")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    orders = plan(arguments.count, arguments.seed)
    if arguments.repeat:
        orders = [(arguments.repeat.partition("/")[0], arguments.repeat)]
    if arguments.only:
        orders = [order for order in orders if order[0] in arguments.only]
    print(f"seed {arguments.seed}, {len(orders)} mutants", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        tally = run(Path(folder), orders, arguments.keep, 60 * arguments.minutes)
    text = table(tally, arguments.count, arguments.seed)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)
    return 1 if tally.crashes else 0


if __name__ == "__main__":
    sys.exit(main())
