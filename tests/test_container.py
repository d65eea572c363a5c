"""The container, without an engine: its file is linted and read, and its steps are run where it would run them."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from medseq.inference.routes import load_routes

ROOT = Path(__file__).resolve().parents[1]
INSTALL = ROOT / "container" / "install.sh"


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile in order, continued lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE))
    pairs = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(name, " ".join(rest.split())) for name, rest in pairs]


def of(name: str) -> list[str]:
    return [rest for word, rest in instructions() if word == name]


def copied() -> list[str]:
    """What the build stage takes from the repository."""
    return [source for rest in of("COPY") if "--from" not in rest for source in shlex.split(rest)[:-1]]


def test_it_ends_without_root_with_a_check_and_the_command():
    names = [name for name, _ in instructions()]
    assert of("USER") == ["10001:10001"]
    # Nothing runs as root after it.
    assert "RUN" not in names[names.index("USER") :]
    assert of("ENTRYPOINT") == ['["medseq"]']
    (check,) = of("HEALTHCHECK")
    assert '["medseq", "zoo", "--json"]' in check
    assert sum(name == "FROM" for name in names) == 2
    assert "TORCH_INDEX" in of("ARG"), "no default: an address in the file would be somebody's registry"
    assert not re.search(r"https?://", (ROOT / "Dockerfile").read_text())


def test_what_is_copied_exists_and_is_let_through():
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert [path for path in copied() if not (ROOT / path).exists()] == []
    assert set(copied()) == let_through


def rehearse(tmp_path, **environment) -> list[str]:
    """Run the installation with a pip that writes down what it is asked."""
    pip, python = tmp_path / "pip", tmp_path / "python"
    pip.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/log\n')
    # Making the environment itself takes seconds and is Python's own business.
    python.write_text(f'#!/bin/sh\ntest "$*" = "-m venv {tmp_path}/venv"\n')
    for script in (pip, python):
        script.chmod(0o755)
    done = subprocess.run(
        [INSTALL, ROOT, tmp_path / "venv"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python), "PIP": str(pip), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return (tmp_path / "log").read_text().splitlines()


def test_torch_comes_first_alone_and_from_its_index(tmp_path):
    pinned = re.search(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]
    first, second, last = rehearse(tmp_path, TORCH_INDEX="file:///index")
    assert first == f"install --no-cache-dir --index-url file:///index {pinned}"
    assert second == (f"install --no-cache-dir --constraint {ROOT}/constraints.txt {ROOT}[dicom,wsi,mri,review,export]")
    assert last == "check"


def test_cuda_adds_its_kernels_and_an_empty_index_is_none(tmp_path):
    lines = rehearse(tmp_path, TORCH_INDEX="", CUDA="1", EXTRAS="dicom")
    assert "--index-url" not in lines[0]
    assert lines[1].endswith("[dicom]")
    assert lines[2].endswith("--no-build-isolation mamba-ssm causal-conv1d")


def test_a_step_that_fails_stops_the_installation(tmp_path):
    done = subprocess.run(
        [INSTALL, ROOT, tmp_path / "venv"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": "true", "PIP": "false"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0


@pytest.mark.slow
def test_the_same_steps_work_in_a_clean_environment(tmp_path):
    # Takes minutes and two gigabytes, and asks the package index.
    source, venv = tmp_path / "src", tmp_path / "venv"
    for name in copied():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile)(ROOT / name, target)
    for stray in [*source.rglob("*.so"), *source.rglob("__pycache__")]:
        shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
    subprocess.run([source / "container" / "install.sh", source, venv], check=True, timeout=1800)
    listed = subprocess.run([venv / "bin" / "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "torchvision" not in listed
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert re.search(rf"^torch\s+{re.escape(pinned)}", listed, re.MULTILINE)
    done = subprocess.run([venv / "bin" / "medseq", "doctor"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "compiled kernel" in done.stdout


@pytest.fixture
def services():
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


def test_services_listen_on_this_machine_and_name_commands_that_exist(services):
    from typer.main import get_command

    from medseq.cli.main import app

    assert set(services) == {"archive", "gateway", "review"}
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    listen = services["gateway"]["command"]
    command = get_command(app).commands["pacs"].commands["listen"]
    known = {option for parameter in command.params for option in parameter.opts}
    assert listen[:2] == ["pacs", "listen"]
    assert {word for word in listen if word.startswith("--")} <= known
    assert services["review"]["command"][0] == "review"
    # The page is not reached from elsewhere before signing in is set up.
    assert services["review"]["network_mode"] == "host"
    assert "--address" not in services["review"]["command"]


def test_the_gateway_knows_the_archive(services):
    import json

    routes = load_routes(ROOT / "container" / "routes.yaml")
    archive = json.loads((ROOT / "container" / "orthanc.json").read_text())
    assert routes.destinations["archive"].url == f"dicom://{archive['DicomAet']}@archive:{archive['DicomPort']}"
    title, host, port = archive["DicomModalities"]["medseq"]
    assert (title, host) == ("MEDSEQ", "gateway")
    assert str(port) in services["gateway"]["command"]
