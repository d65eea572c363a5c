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
    "export": ["onnx", "onnxruntime", "onnxscript", "huggingface_hub", "mlcroissant", "fire"],
    "docs": ["mkdocs", "mkdocstrings"],
    "cuda": ["mamba_ssm", "causal_conv1d"],
    "encoders": ["timm", "torchvision"],
    "dev": [
        "build",
        "cyclonedx_py",
        "pytest",
        "hypothesis",
        "beartype",
        "SimpleITK",
        "mambapy",
        "playwright",
        "triton",
        "nilearn",
        "nanobind",
    ],
}
# scikit-image depends on it, so a base installation has it too.
IN_BASE = {"tifffile"}

IMPORT_ALL = """
import importlib, pkgutil, sys
blocked = set({blocked!r})

class Without:
    # As if the packages were not installed: every finder knows nothing of them.
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *arguments):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, *arguments)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import medseq
for info in pkgutil.walk_packages(medseq.__path__, "medseq."):
    try:
        importlib.import_module(info.name)
    except ModuleNotFoundError as error:
        print(info.name, error.name)
    else:
        print(info.name, "ok")
"""


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False)


def test_every_module_imports_with_the_base_dependencies_alone():
    blocked = sorted({name for names in EXTRA_MODULES.values() for name in names} - IN_BASE)
    done = run(IMPORT_ALL.format(blocked=blocked))
    assert done.returncode == 0, done.stderr
    results = dict(line.split() for line in done.stdout.splitlines())
    assert sum(result == "ok" for result in results.values()) > 50
    failed = {name: why for name, why in results.items() if why != "ok"}
    # Behind a face that says what to install, modules may need what the extra brings.
    assert results["medseq.io.dicom"] == results["medseq.io.deidentify"] == "ok"
    # So may an operator's GPU kernels, which medseq.ops.backend imports when a CUDA tensor arrives.
    behind = re.compile(r"medseq\.io\.(dicom|deidentify|pacs)_\w+|medseq\.ops\.(\w+\.)?(triton|mamba_ssm)\w*")
    assert {name: why for name, why in failed.items() if not behind.fullmatch(name)} == {}
    assert all(why.partition(".")[0] in blocked for why in failed.values())


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
        "medseq.inference.review_service",
        "medseq.inference.zoo",
        "medseq.io",
        "medseq.io.bag_table",
        "medseq.io.bag_write",
        "medseq.io.deidentify",
        "medseq.io.dicom",
        "medseq.io.features_open",
        "medseq.io.nifti",
        "medseq.io.privacy",
        "medseq.io.slide_open",
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
