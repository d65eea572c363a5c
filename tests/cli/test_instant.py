"""Looking around is instant: help and the list of models load no torch and take a fraction of a second."""

import subprocess
import sys

import pytest

COMMANDS = [
    "predict",
    "check",
    "deidentify",
    "pacs",
    "review",
    "run",
    "demo",
    "fit",
    "validate",
    "test",
    "benchmark",
    "info",
    "bundle",
    "convert",
    "export",
    "zoo",
    "doctor",
    "data",
    "wsi",
]

# The limit is for a quiet machine; CPU time, unlike wall time, hardly grows when the cores are shared.
CPU_SECONDS = 0.7

PROBE = """
import atexit, sys, time
def tell():
    heavy = [name for name in ("torch", "monai", "pytorch_lightning", "numpy") if name in sys.modules]
    print(f"\\nPROBE {time.process_time():.3f} {','.join(heavy) or '-'}", file=sys.stderr)
atexit.register(tell)
sys.argv = ["medseq", *sys.argv[1:]]
from medseq.cli.main import main
main()
"""


def probe(*arguments: str) -> tuple[int, str, float, list[str]]:
    """Exit code, standard output, CPU seconds and heavy modules of one command in a fresh process."""
    command = [sys.executable, "-c", PROBE, *arguments]
    best = None
    # The first run may compile byte code; a loaded machine may disturb one: the least of three is the command's own.
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith("PROBE "), done.stderr
        _, seconds, heavy = line.split(" ")
        answer = (done.returncode, done.stdout, float(seconds), [name for name in heavy.split(",") if name != "-"])
        best = answer if best is None or answer[2] < best[2] else best
        if best[2] < CPU_SECONDS:
            break
    return best


@pytest.mark.parametrize(
    "command",
    [[], *([name] for name in COMMANDS), ["data", "list"], ["fit", "restore"], ["wsi", "extract"]],
    ids=" ".join,
)
def test_help_is_instant(command):
    code, text, seconds, heavy = probe(*command, "--help")
    assert code == 0
    assert "Usage: medseq" in text
    assert heavy == []
    assert seconds < CPU_SECONDS


def test_the_list_of_commands_above_is_complete():
    from typer.main import get_command

    from medseq.cli.main import app

    assert sorted(get_command(app).commands) == sorted(COMMANDS)


@pytest.mark.parametrize("arguments", [["zoo"], ["zoo", "--json"]], ids=" ".join)
def test_zoo_is_instant(arguments):
    code, text, seconds, heavy = probe(*arguments)
    assert code == 0
    assert "ct-denoise" in text
    assert "mr-denoise" in text
    assert "torch" not in heavy
    assert seconds < CPU_SECONDS


def test_an_unknown_task_is_refused_before_anything_is_loaded():
    code, _, seconds, heavy = probe("fit", "segmentation")
    assert code == 2
    assert heavy == []
    assert seconds < CPU_SECONDS
