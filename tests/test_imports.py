"""Importing is cheap and needs the base dependencies only."""

import re
import subprocess
import sys
import tomllib

import pytest

import medseq

EXTRA_MODULES = {
    # Import names of the extras' packages where they differ from the distribution's name.
    "dicom": ["pydicom", "highdicom", "openjpeg", "rle", "gdcm", "pynetdicom", "dicomweb_client", "dicomanonymizer"],
    "wsi": ["openslide", "tifffile", "imagecodecs", "zarr"],
    "mri": ["ismrmrd", "sigpy"],
    "review": ["streamlit", "plotly"],
    "distributed": ["ray"],
    "export": ["onnx", "onnxruntime", "onnxscript", "huggingface_hub", "mlcroissant"],
    "cuda": ["mamba_ssm", "causal_conv1d"],
    "encoders": ["timm", "torchvision"],
    "dev": ["pytest", "hypothesis", "beartype", "SimpleITK", "mambapy", "playwright", "triton", "nilearn", "nanobind"],
}
# scikit-image depends on it, so a base installation has it too.
IN_BASE = {"tifffile"}

IMPORT_ALL = """
import importlib, pkgutil, sys
blocked = set({blocked!r})

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
import medseq
names = [info.name for info in pkgutil.walk_packages(medseq.__path__, "medseq.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False)


def test_every_module_imports_with_the_base_dependencies_alone():
    blocked = sorted({name for names in EXTRA_MODULES.values() for name in names} - IN_BASE)
    done = run(IMPORT_ALL.format(blocked=blocked))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_the_list_of_extras_above_is_complete(repo_root):
    extras = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras) == {*EXTRA_MODULES, "all"}


@pytest.mark.parametrize(
    "module",
    [
        "medseq",
        "medseq.errors",
        "medseq.cli.main",
        "medseq.inference",
        "medseq.inference.discover",
        "medseq.inference.ledger",
        "medseq.inference.predictor",
        "medseq.inference.report",
        "medseq.inference.zoo",
        "medseq.io",
        "medseq.io.dicom",
        "medseq.io.nifti",
        "medseq.io.privacy",
        "medseq.io.volume",
    ],
)
def test_importing_loads_no_torch(module):
    heavy = ("torch", "monai", "pytorch_lightning", "skimage", "sklearn", "scipy")
    done = run(f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_predicting_does_not_import_lightning_or_monai():
    done = run(
        "import sys, medseq.inference.restore; print('pytorch_lightning' in sys.modules, 'monai' in sys.modules)"
    )
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_the_version_is_the_packaging_files(repo_root):
    text = (repo_root / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.+)"$', text, re.MULTILINE)[1] == medseq.__version__
