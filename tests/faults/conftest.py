"""Volumes, and a model that does to its process whatever the pixels ask for."""

import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

CREATED = "2026-01-02T03:04:05Z"
# The largest value of a volume tells the model what to do.
SEGFAULT, HANG, EAT, EXIT, OOM = 30001, 30002, 30003, 30004, 30005

MODEL = f'''
import ctypes, os, time
import torch

class Obedient(torch.nn.Module):
    """Adds a weight to the image, slowly; some images make it misbehave."""

    def __init__(self, delay_s=0.0):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(1))
        self.delay_s = delay_s

    def forward(self, image):
        order = int(image.max())
        if "OBEDIENT_LOG" in os.environ:
            with open(os.environ["OBEDIENT_LOG"], "a") as log:
                log.write(f"{{image.sum()}}\\n")
        time.sleep(self.delay_s)
        if order == {SEGFAULT}:
            ctypes.string_at(0)
        if order == {HANG}:
            time.sleep(3600)
        if order == {EXIT}:
            os._exit(7)
        if order == {OOM} and image.shape[-1] > 64:
            raise MemoryError
        if order == {EAT} and image.shape[-1] > 64:
            hoard = []
            while True:
                hoard.append(bytearray(os.urandom(1 << 20)) * 64)
        return image + self.shift
'''


@pytest.fixture(scope="session")
def obedient(tmp_path_factory):
    """Makes bundles of the model above; their package must be trusted."""
    import torch

    from medseq.inference.bundle import save_bundle

    folder = tmp_path_factory.mktemp("packages")
    (folder / "obedient.py").write_text(MODEL)
    sys.path.insert(0, str(folder))

    def make(target: Path, delay_s: float = 0.0, tile: int = 512):
        config = {
            "name": target.name,
            "version": "1.0",
            "task": "restore",
            "model": {"class_path": "obedient.Obedient", "init_args": {"delay_s": delay_s}},
            "input": {"kind": "volume", "modality": ["MR"], "units": "1", "channels": 1},
            "preprocess": [],
            "inference": {"tile": tile, "overlap": 0.25, "batch": 1},
            "output": {"kind": "volume", "units": "1"},
        }
        metadata = {"intended_use": "tests", "training_data": [], "metrics": {}}
        state = {"shift": torch.full((1,), 3.0)}
        trust = ("obedient",)
        return save_bundle(target, config, state, metadata=metadata, card="# A test\n", trust_packages=trust)

    yield make
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def make(obedient) -> SimpleNamespace:
    return SimpleNamespace(bundle=obedient, volume=write_volume, tree=tree, created=CREATED, orders=ORDERS)


ORDERS = SimpleNamespace(segfault=SEGFAULT, hang=HANG, eat=EAT, exit=EXIT, oom=OOM)


def write_volume(
    path: Path, rng: np.random.Generator, *, slices: int = 2, size: int = 32, order: int | None = None
) -> Path:
    """A NIfTI of random integers; `order` is its largest value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = rng.integers(0, 1000, (size, size, slices)).astype(np.int16)
    if order is not None:
        array[size // 2, size // 2, :] = order
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 3.0, 1.0])), path)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of the results in a folder: not of ledger and reports, which tell times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in ("report", "previous") and path.parent != folder
    }


@pytest.fixture
def rng(seed) -> np.random.Generator:
    return np.random.default_rng(seed)
