"""CONTRIBUTING.md is true: in a copy of the tree a model is two new files, a data set one, and nothing else changes."""

import filecmp
import shutil
import subprocess
import sys

import pytest

MODEL = '''"""Three convolutions and a residual, to show how a model is added."""

import torch
from torch import Tensor, nn

__all__ = ["Shallow"]


class Shallow(nn.Module):
    """``image + net(image)``.

    Args:
        width: Channels inside.
    """

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, image: Tensor, condition: Tensor | None = None) -> Tensor:
        """Restore ``(batch, 1, row, col)``."""
        return image + self.net(image)


def tiny() -> dict[str, nn.Module]:
    """A small instance, for tests."""
    return {"shallow": Shallow(4)}


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward`."""
    return {"image": torch.randn(2, 1, 9, 12)}
'''
CONFIG = """# medseq fit restore --config restore/shallow_phantoms
# Expected: nothing worth reporting; simulated phantoms
model:
  net: {class_path: medseq.models.restore_shallow.Shallow, init_args: {width: 8}}
  bundle:
    name: shallow
    version: 0.0.1
    task: restore
    input: {kind: volume, modality: [CT], units: HU}
    output: {kind: volume, units: HU}
data:
  train: {class_path: medseq.data.restore.PhantomPairs, init_args: {length: 4}}
  val: {class_path: medseq.data.restore.PhantomPairs, init_args: {length: 4}}
trainer: {max_epochs: 1, accelerator: cpu}
"""
MANIFEST = """title: Ours
licence: ours
get: on our disk
cite: nobody
what: two scans
reader: medseq.io.nifti.open_nifti
folders:
  - {path: ours, pattern: "*.nii", subject: '(P[0-9]+)', role: train}
"""
# The copy, not the tree that the environment's editable install points to.
RUN = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "scikit_build" not in type(finder).__module__.lower()
                    and "editable" not in type(finder).__module__.lower()]
sys.path.insert(0, ".")
import medseq
assert medseq.__file__.startswith(sys.argv[1]), medseq.__file__
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory, repo_root):
    target = tmp_path_factory.mktemp("copy") / "medseq"
    skipped = shutil.ignore_patterns(".*", "build", "runs", "dist", "__pycache__", "golden", "results", "zoo", "*.so")
    shutil.copytree(repo_root, target, ignore=skipped)
    return target


def run_tests(copy, *arguments):
    command = [sys.executable, "-c", RUN, str(copy), *arguments]
    return subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=500, check=False)


def test_a_model_and_a_data_set_are_new_files_only(copy, repo_root):
    new = {
        "medseq/models/restore_shallow.py": MODEL,
        "configs/restore/shallow_phantoms.yaml": CONFIG,
        "data_manifests/ours.yaml": MANIFEST,
    }
    for name, text in new.items():
        assert not (copy / name).exists()
        (copy / name).write_text(text)
    swept = ["tests/models/test_all_models.py", "tests/test_configs.py", "tests/io/test_manifest_schema.py"]
    done = run_tests(copy, *swept, "-k", "shallow or croissant or reader")
    assert done.returncode == 0, done.stdout + done.stderr
    # The sweeps found them: several tests of the model, three of the configuration, two of the manifests.
    assert int(done.stdout.split(" passed")[0].split()[-1]) >= 8, done.stdout
    changed = [
        path.relative_to(copy).as_posix()
        for path in copy.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not same(path, repo_root / path.relative_to(copy))
    ]
    assert sorted(changed) == sorted(new)


def test_a_model_that_breaks_the_contract_is_found(copy):
    broken = MODEL.replace("return image + self.net(image)", "return (image + self.net(image)).sum(0, keepdim=True)")
    assert broken != MODEL
    (copy / "medseq" / "models" / "restore_broken.py").write_text(broken)
    done = run_tests(copy, "tests/models/test_all_models.py", "-k", "broken")
    (copy / "medseq" / "models" / "restore_broken.py").unlink()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "restore_broken" in done.stdout


def same(one, other):
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


def test_the_page_names_files_that_exist(repo_root):
    text = (repo_root / "CONTRIBUTING.md").read_text()
    for name in ("tests/models/test_all_models.py", "tests/test_configs.py", "tests/test_contributing.py"):
        assert name in text
        assert (repo_root / name).is_file()
    # One page.
    assert len(text.splitlines()) <= 50
