"""What an installed user gets: dependencies that keep torch as it is, a wheel that is whole, and an install that needs
neither a compiler nor the repository."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
GPL = ("pylibjpeg-libjpeg",)


def names(requirements: list[str]) -> set[str]:
    """Normalised distribution names."""
    return {re.match(r"[A-Za-z0-9._-]+", text)[0].lower().replace("_", "-") for text in requirements}


def closure(roots: set[str]) -> set[str]:
    """Installed distributions that `roots` need, over any marker: more than pip would take, never less."""
    seen: set[str] = set()
    todo = list(roots)
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        seen.add(name)
        todo += names([text for text in requires if "extra ==" not in text])
    return seen


def test_all_is_every_extra_but_cuda_and_encoders():
    (entry,) = EXTRAS["all"]
    listed = re.fullmatch(r"medseq\[(.+)\]", entry)[1].split(",")
    assert set(listed) == set(EXTRAS) - {"all", "cuda", "encoders"}


def test_nothing_in_all_or_dev_brings_torchvision():
    # It replaces a CPU build of torch by a CUDA build of another version, without a word.
    wanted = {"dependencies": PROJECT["dependencies"], **EXTRAS}
    for extra, requirements in wanted.items():
        if extra not in ("all", "cuda", "encoders"):
            assert not {"torchvision", "timm", "torchaudio"} & closure(names(requirements)), extra
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("torchvision")


def test_torch_is_the_one_that_was_asked_for():
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert importlib.metadata.version("torch").partition("+")[0] == pinned


def test_no_package_is_under_the_gpl():
    for requirements in (PROJECT["dependencies"], *EXTRAS.values()):
        assert not names(requirements) & set(GPL)
    assert not closure(names(PROJECT["dependencies"]) | names(EXTRAS["dicom"])) & set(GPL)


def test_constraints_pin_everything_that_setup_installs():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in pins), "local paths or open ranges"
    direct = names(PROJECT["dependencies"]) | names(EXTRAS["dicom"]) | names(EXTRAS["mri"]) | names(EXTRAS["dev"])
    assert direct <= names(pins)


def test_the_folder_above_the_repository_is_no_part_of_medseq():
    # An editable install that maps the data folders does that: any script beside the repository becomes medseq.<name>.
    locations = importlib.util.find_spec("medseq").submodule_search_locations
    assert {Path(location).name for location in locations} == {"medseq"}


def build_wheel(folder: Path, **environment: str) -> tuple[Path, str]:
    """Build a wheel with the tools of this environment; the wheel and the builder's words."""
    # A copy without build products: the source tree stays as it is, and two builds do not meet.
    source = folder / "source"
    ignore = shutil.ignore_patterns(".*", "build", "runs", "dist", "__pycache__", "tests", "docs")
    shutil.copytree(ROOT, source, ignore=ignore)
    scripts = sysconfig.get_path("scripts")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel, done.stdout + done.stderr


def install(wheel: Path, folder: Path) -> Path:
    """A fresh environment with the wheel alone; everything else is borrowed from this one."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel],
        check=True,
        timeout=120,
    )
    # Behind the wheel on the path. Its own .pth files are not read, so the editable medseq in it stays out of sight.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))[0]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    return install(wheel, tmp_path_factory.mktemp("env"))


def medseq(binaries: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the installed command far from the repository."""
    command = [binaries / "python", binaries / "medseq", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def test_the_wheel_holds_code_data_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    for path in ("medseq/cli/main.py", "medseq/inference/report.css", "medseq/_share/configs/restore/tiny.yaml"):
        assert path in inside
    assert any(name.startswith("medseq/_share/data_manifests/") for name in inside)
    assert any(re.match(r"medseq/ops/_C\..*(so|pyd)$", name) for name in inside)
    for bundle in (path.parent for path in (ROOT / "medseq" / "zoo").glob("*/bundle.yaml")):
        for file in ("bundle.yaml", "model.safetensors", "metadata.json", "README.md"):
            assert f"medseq/zoo/{bundle.name}/{file}" in inside
    tops = {name.split("/")[0] for name in inside}
    assert tops == {"medseq", next(name for name in tops if name.endswith(".dist-info"))}
    assert not [name for name in inside if "/csrc/" in name or name.endswith((".pyc", ".ckpt"))]


def test_the_tree_and_the_wheel_agree(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.endswith(".py") and "_share" not in name}
    tree = {path.relative_to(ROOT).as_posix() for path in (ROOT / "medseq").rglob("*.py")}
    assert inside == tree


def test_an_installed_medseq_runs_from_anywhere(installed, tmp_path):
    where = subprocess.run(
        [installed / "python", "-c", "import medseq; print(medseq.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    ).stdout
    assert where.startswith(str(installed.parent))
    done = medseq(installed, tmp_path, "zoo")
    assert done.returncode == 0, done.stderr
    assert "ct-denoise" in done.stdout
    done = medseq(installed, tmp_path, "data", "list")
    assert done.returncode == 0, done.stderr


def test_an_installed_medseq_trains_by_the_name_of_a_shipped_configuration(installed, tmp_path):
    done = medseq(installed, tmp_path, "fit", "restore", "--config", "restore/tiny", "--trainer.fast_dev_run", "1")
    assert done.returncode == 0, done.stderr


def test_an_installed_medseq_runs_its_kernels(installed, tmp_path):
    done = medseq(installed, tmp_path, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compiled kernel" in done.stdout


def test_without_a_compiler_the_install_succeeds_and_doctor_says_so(tmp_path):
    wheel, _ = build_wheel(tmp_path, CC="/bin/false", CXX="/bin/false")
    assert wheel.name.endswith("py3-none-any.whl")
    binaries = install(wheel, tmp_path / "env")
    done = medseq(binaries, tmp_path, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compiled kernel" not in done.stdout
    assert "installed without a C++ compiler" in done.stdout
    done = medseq(binaries, tmp_path, "fit", "restore", "--config", "restore/tiny", "--trainer.fast_dev_run", "1")
    assert done.returncode == 0, done.stderr
