"""The batch engine against loops over the same files, its overhead an item, its ledger, and its memory.

Run: `python benchmarks/bench_run.py` (six minutes on two quiet cores), `--volumes 12` for a look. Every
measurement runs in a process of its own, with a light network (one level, four channels), so that the engine's share is
as large as it gets. A rate is that between the first and the last finished item: starting workers is told apart.

    loop     for file: open, predict, write; one process of one or two threads, no ledger, no hashes, no report
    bare     the same predictor on arrays in memory, writing nothing; one process of one thread
    engine   `predict_folder` with one or two workers of one thread each

Exits with 1 if a claim is not met.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

RESULT = Path("benchmarks/results/bench_run.json")
CLAIMS = {
    "two workers / loop of one thread": (">=", 1.7),
    "two workers / loop of two threads": (">=", 1.15),
    "one worker / bare model": (">=", 0.95),
    "overhead an item, ms": ("<=", 15.0),
    "ledger at 100 000 items, share of the time": ("<=", 0.02),
    "peak memory, 2 000 / 10 items": ("<=", 1.1),
}
WORDS: dict[str, Any] = {"modality": "MR", "created_utc": "2026-01-02T03:04:05Z"}


def save_light_bundle(folder: Path) -> None:
    """A small convolutional network with random weights."""
    import torch

    from medseq.inference.bundle import save_bundle
    from medseq.models.restore_unet import RestoreUNet

    init = {"in_channels": 1, "out_channels": 1, "dims": [8, 16], "num_blocks": [1, 1]}
    model = RestoreUNet(**init)
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            # A network that changes nothing would be no work for those who compare.
            weight.copy_(0.1 * torch.randn(weight.shape, generator=drawn))
    config = {
        "name": folder.name,
        "version": "1",
        "task": "restore",
        "model": {"class_path": "medseq.models.restore_unet.RestoreUNet", "init_args": init},
        "input": {"kind": "volume", "modality": ["MR"], "units": "1", "channels": 1},
        "preprocess": [{"class_path": "medseq.data.transforms.RobustScale"}],
        "inference": {"tile": 512, "overlap": 0.25, "batch": 4},
        "output": {"kind": "volume", "units": "1"},
    }
    save_bundle(folder, config, model.state_dict(), metadata={"intended_use": "benchmark"}, card="# Light\n")


def write_volumes(folder: Path, count: int, slices: int, side: int) -> None:
    """Simulated heads with noise, int16, not compressed."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(count)
    axis = np.linspace(-1, 1, side)
    inside = np.where(axis[:, None] ** 2 + axis**2 < 0.7, 500.0, 20.0)[..., None]
    for number in range(count):
        volume = inside + 20 * generator.standard_normal((side, side, slices))
        nib.save(nib.Nifti1Image(volume.astype(np.int16), np.diag([1.0, 1.0, 3.0, 1.0])), folder / f"{number:05d}.nii")


# --- what runs in a process of its own; each returns numbers


def loop(bundle: str, source: str, target: str, threads: str) -> dict[str, float]:
    """A plain loop over files."""
    import torch

    from medseq.inference.bundle import load_bundle
    from medseq.inference.restore import RestorePredictor
    from medseq.io.nifti import NiftiWriter, open_nifti

    torch.set_num_threads(int(threads))
    predictor = RestorePredictor(load_bundle(Path(bundle)))

    def once(path: Path) -> None:
        folder = Path(target, path.stem)
        folder.mkdir(parents=True)
        reader = open_nifti(path, modality="MR", units="1")
        predictor.predict(reader, FolderSink(folder, NiftiWriter))

    return {"rate": rate(once, sorted(Path(source).iterdir()))}


def bare(bundle: str, source: str, target: str) -> dict[str, float]:
    """The predictor on arrays in memory."""
    import torch

    from medseq.inference.bundle import load_bundle
    from medseq.inference.restore import RestorePredictor
    from medseq.io.nifti import open_nifti
    from medseq.io.volume import Volume

    torch.set_num_threads(1)
    predictor = RestorePredictor(load_bundle(Path(bundle)))
    volumes = []
    for path in sorted(Path(source).iterdir()):
        reader = open_nifti(path, modality="MR", units="1")
        volumes.append(Volume(reader.header, reader.read(0, reader.header.planes)))
    return {"rate": rate(lambda volume: predictor.predict(volume, NoSink()), volumes)}


def engine(bundle: str, source: str, target: str, workers: str) -> dict[str, float]:
    """The batch engine; rate, start-up and time of the whole call."""
    import torch

    from medseq.inference import predict_folder

    # Of this process, where there are no workers.
    torch.set_num_threads(1)
    finished: list[float] = []
    started = time.perf_counter()
    summary = predict_folder(
        bundle,
        source,
        target,
        workers=int(workers),
        progress=lambda done, total, text: finished.append(time.perf_counter()) if text else None,
        **WORDS,
    )
    assert summary.exit_code == 0, summary
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "rate": (len(finished) - 1) / (finished[-1] - finished[0]),
        "start_s": finished[0] - started,
        "seconds": time.perf_counter() - started,
        "peak_mib": peak,
    }


def ledger(bundle: str, source: str, target: str) -> dict[str, float]:
    """What the ledger takes an item, with 100 000 of them in it: found, claimed, staged, done."""
    from medseq.inference.ledger import FileRow, Ledger, OutputRow

    count, sample = 100_000, 2_000
    with Ledger(Path(target)) as book:
        started = time.perf_counter()
        with book.batch():
            for number in range(count):
                book.add_item(f"{number:016x}", "nifti", "x", [FileRow(f"folder/{number}.nii", 1, 1)])
        found = (time.perf_counter() - started) / count
        started = time.perf_counter()
        for _ in range(sample):
            item = book.claim("w", 60)
            assert item is not None
            book.hold(item.id)
            book.files(item.id)
            book.stage_outputs(item.id, [OutputRow("result", f"{item.id}/result.nii.gz", "0" * 64, 1)])
            book.finish(
                item.id, "w", seconds=1.0, peak_mb=1.0, input_sha256="0" * 64, metrics={"mean_shift": 0.5}, flags=[]
            )
            book.let_go(item.id)
        return {"ms": 1000 * (found + (time.perf_counter() - started) / sample)}


class NoSink:
    """Writes nothing."""

    def volume(self, role: str) -> "NoSink":
        return self

    def begin(self, header: object) -> None:
        pass

    def write(self, lo: int, planes: np.ndarray) -> None:
        pass

    def commit(self) -> list[Path]:
        return [Path("nothing.nii")]

    def abort(self) -> None:
        pass


class FolderSink:
    """Writes into a folder, as anybody would."""

    def __init__(self, folder: Path, writer: Any) -> None:
        self._folder, self._writer = folder, writer

    def volume(self, role: str) -> Any:
        return self._writer(self._folder / f"{role}.nii.gz")


def rate(once: Any, inputs: Iterable[Any]) -> float:
    """Inputs a second, from the end of the first to that of the last."""
    times = []
    for each in inputs:
        once(each)
        times.append(time.perf_counter())
    return (len(times) - 1) / (times[-1] - times[0])


# --- the table


def measure(name: str, *arguments: object) -> dict[str, float]:
    """Run one of the functions above in a fresh process."""
    child = [sys.executable, __file__, "--child", name, *map(str, arguments)]
    # One worker would take both cores for its operators otherwise: compared is what one thread computes.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if name == "engine" else None
    done = subprocess.run(child, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def table(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """All claims' numbers, and what they were made from."""
    bundle, source, tiny = folder / "light", folder / "in", folder / "tiny"
    save_light_bundle(bundle)
    write_volumes(source, arguments.volumes, arguments.slices, arguments.side)
    write_volumes(tiny, arguments.many, 1, 16)
    write_volumes(folder / "few", 10, 1, 16)
    raw: dict[str, list[dict[str, float]]] = {}
    # In turns, so that a machine that is disturbed for a while disturbs all alike.
    for turn in range(arguments.repeats):
        for name, call in {
            "loop1": ("loop", bundle, source, folder / f"loop1-{turn}", 1),
            "loop2": ("loop", bundle, source, folder / f"loop2-{turn}", 2),
            "bare": ("bare", bundle, source, folder),
            "one": ("engine", bundle, source, folder / f"one-{turn}", 1),
            "two": ("engine", bundle, source, folder / f"two-{turn}", 2),
            "tiny": ("engine", bundle, tiny, folder / f"tiny-{turn}", 0),
            "tiny loop": ("loop", bundle, tiny, folder / f"tinyloop-{turn}", 1),
        }.items():
            raw.setdefault(name, []).append(measure(*call))
            print(f"{name:10s} {raw[name][-1]}", flush=True)
    rates = {name: float(np.median([entry["rate"] for entry in found])) for name, found in raw.items()}
    few = measure("engine", bundle, folder / "few", folder / "few-out", 0)
    book = measure("ledger", bundle, source, folder / "book.sqlite")
    values = {
        "two workers / loop of one thread": rates["two"] / rates["loop1"],
        "two workers / loop of two threads": rates["two"] / rates["loop2"],
        "one worker / bare model": rates["one"] / rates["bare"],
        "overhead an item, ms": 1000 * (1 / rates["tiny"] - 1 / rates["tiny loop"]),
        "ledger at 100 000 items, share of the time": book["ms"] / 1000 * rates["two"],
        "peak memory, 2 000 / 10 items": max(entry["peak_mib"] for entry in raw["tiny"]) / few["peak_mib"],
    }
    return values, {"rates": rates, "runs": raw, "ledger_ms": book["ms"], "few": few}


def main() -> int:
    """Measure, print, write and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", type=int, default=80)
    parser.add_argument("--slices", type=int, default=24)
    parser.add_argument("--side", type=int, default=192)
    parser.add_argument("--many", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        values, detail = table(arguments, Path(folder))
    met = True
    for name, (sign, limit) in CLAIMS.items():
        good = values[name] >= limit if sign == ">=" else values[name] <= limit
        met &= good
        print(f"claim: {name} {sign} {limit:g}: {values[name]:.3f} {'met' if good else 'NOT MET'}")
    about = {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": load,
        "load_after": os.getloadavg()[0],
        **{key: value for key, value in vars(arguments).items() if key != "output"},
        "values": values,
        "claims": {name: f"{sign} {limit:g}" for name, (sign, limit) in CLAIMS.items()},
        "met": bool(met),
        **detail,
    }
    arguments.output.write_text(json.dumps(about, indent=1) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        functions = {"loop": loop, "bare": bare, "engine": engine, "ledger": ledger}
        print(json.dumps(functions[sys.argv[2]](*sys.argv[3:])))
        sys.exit(0)
    sys.exit(main())
