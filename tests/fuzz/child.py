"""One process that takes many mutants, within 2 GiB of address space: lines of JSON in, lines of JSON out.

Not part of the test's own process: a mutant may end this one, and that is what it is for.
"""

import faulthandler
import hashlib
import importlib
import json
import random
import resource
import shutil
import sys
import time
import traceback
import warnings
from pathlib import Path

from medseq.errors import MedseqError
from tests.fuzz.entries import ENTRIES, NEEDS_TORCH
from tests.fuzz.mutate import mutate

MOST_BYTES = 2 << 30


def make(seeds: Path, target: Path, kind: str, seed: str) -> str:
    """Write a mutant as a folder; returns what was damaged."""
    draw = random.Random(seed)
    case = draw.choice(sorted((seeds / kind).iterdir()))
    shutil.copytree(case, target)
    path = draw.choice(sorted(path for path in target.rglob("*") if path.is_file() and path.stat().st_size))
    path.write_bytes(mutate(path.read_bytes(), path.name, draw))
    if path.suffix == ".safetensors" and draw.random() < 0.8:
        # Whoever damages weights on purpose writes their hash, too.
        config = target / "bundle.yaml"
        lines = config.read_text().splitlines()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines = [f"  sha256: {digest}" if line.startswith("  sha256:") else line for line in lines]
        config.write_text("\n".join(lines) + "\n")
    return f"{case.name}/{path.relative_to(target)}"


def judge(kind: str, folder: Path) -> tuple[str, str]:
    """Fate of a mutant, and the error where it is a crash."""
    try:
        return ENTRIES[kind](folder), ""
    except MedseqError:
        return "refused", ""
    except MemoryError:
        return "crash", f"MemoryError in {_place()}"
    except BaseException as error:  # noqa: BLE001  (whatever comes out is the finding)
        return "crash", f"{type(error).__name__}: {str(error)[:300]} in {_place()}"


def _place() -> str:
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [frame for frame in frames if "medseq" in Path(frame.filename).parts]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(ours[-3:]))


def _peak_mib() -> float:
    """The largest resident memory of this process; `ru_maxrss` of a child begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    seeds, work = Path(sys.argv[1]), Path(sys.argv[2])
    faulthandler.enable()
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    for line in sys.stdin:
        order = json.loads(line)
        shutil.rmtree(work, ignore_errors=True)
        what = make(seeds, work / "in", order["kind"], order["seed"])
        # Before it is judged: whoever finds this process dead knows what it had.
        print(json.dumps({"begun": what}), flush=True)
        if order["kind"] in NEEDS_TORCH:
            # Loading torch is nobody's damage.
            importlib.import_module("medseq.inference.restore")
        started = time.process_time()
        fate, error = judge(order["kind"], work / "in")
        seconds = time.process_time() - started
        peak = _peak_mib()
        print(json.dumps({"fate": fate, "error": error, "seconds": seconds, "peak_mib": peak}), flush=True)


if __name__ == "__main__":
    main()
