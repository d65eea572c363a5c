"""The outer shape of the command line: exit codes, one readable line for an error, answers alone on standard output."""

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from medseq import __version__
from medseq.cli.console import Verbose
from medseq.cli.main import MedseqGroup, app
from medseq.errors import FormatError

runner = CliRunner()


@pytest.fixture
def small_app():
    """The real error handling around commands that fail in known ways."""
    small = typer.Typer(cls=MedseqGroup, pretty_exceptions_enable=False)

    @small.command()
    def refuse(verbose: Verbose = False) -> None:
        raise FormatError("the file is cut off", where="file-0123456789.dcm", found="3 bytes", remedy="copy it again")

    @small.command()
    def break_down() -> None:
        raise ZeroDivisionError("bug")

    @small.command()
    def interrupt() -> None:
        raise KeyboardInterrupt

    return small


def test_version():
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout == f"medseq {__version__}\n"


def test_without_arguments_help_is_shown():
    result = runner.invoke(app, [])
    assert "predict" in result.output
    assert result.exit_code == 2


@pytest.mark.parametrize("arguments", [["frobnicate"], ["predict"], ["predict", "a", "b", "c", "--no-such-option"]])
def test_usage_errors_exit_with_2(arguments):
    assert runner.invoke(app, arguments).exit_code == 2


def test_a_refusal_is_one_line_and_exit_code_2(small_app):
    result = runner.invoke(small_app, ["refuse"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "medseq: file-0123456789.dcm: the file is cut off (found 3 bytes); copy it again\n"


def test_verbose_adds_the_traceback(small_app):
    result = runner.invoke(small_app, ["refuse", "--verbose"])
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("copy it again\n")


def test_a_bug_is_not_dressed_up(small_app):
    result = runner.invoke(small_app, ["break-down"])
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_an_interrupt_exits_with_130(small_app):
    assert runner.invoke(small_app, ["interrupt"]).exit_code == 130


def test_the_console_script_is_installed():
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="medseq")
    assert script.value == "medseq.cli.main:main"


def test_a_bug_exits_with_1_without_local_variables():
    # Tracebacks are for developers; the values in them may belong to patients.
    code = (
        "import medseq.cli.main as m\n"
        "@m.app.command('explode')\n"
        "def explode():\n"
        "    patient = 'DOE' + '^JANE'\n"
        "    raise RuntimeError('bug')\n"
        "import sys; sys.argv = ['medseq', 'explode']; m.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "RuntimeError: bug" in done.stderr
    assert "DOE^JANE" not in done.stderr
