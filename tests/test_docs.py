"""Pages for people: their links lead somewhere, and the options that they name exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medseq.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
# Made when the site is built, see docs/build_pages.py.
MADE = ("cli.md", "cards.md", "architecture.md", "changelog.md", "contributing.md", "security.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert [
        link for link in links if "://" not in link and not (page.parent / link).exists() and link not in MADE
    ] == []


def test_the_recon_page_names_options_configurations_and_flags_that_exist():
    text = (ROOT / "docs" / "recon.md").read_text()
    predict = (ROOT / "medseq" / "cli" / "predict.py").read_text()
    known = set(re.findall(r"--[a-z-]+", predict))
    assert set(re.findall(r"`(--[a-z-]+)", text)) <= known
    for config in re.findall(r"--config (recon/\w+)", text):
        assert (ROOT / "configs" / f"{config}.yaml").is_file()
    for script in re.findall(r"python (benchmarks/\w+\.py)", text):
        assert (ROOT / script).is_file()
    source = "".join(
        path.read_text() for folder in ("io", "inference") for path in (ROOT / "medseq" / folder).glob("*.py")
    )
    flags = text[text.index("## Flags") : text.index("## What to believe")]
    for code in re.findall(r"`([a-z][a-z-]+)`", flags):
        assert f'"{code}"' in source, code


def test_the_page_of_slides_names_what_exists():
    text = (ROOT / "docs" / "wsi.md").read_text()
    source = "".join(path.read_text() for path in (ROOT / "medseq").rglob("*.py"))
    for option in set(re.findall(r"`(--[a-z-]+)", text)):
        assert f'"{option}"' in source, option
    for code in re.findall(r"`([a-z][a-z-]+)`", text[text.index("## Flags") :]):
        assert f'"{code}"' in source, code
    for module, name in re.findall(r"`(mil_\w+)\.(\w+)`", text):
        assert re.search(rf"^class {name}\b", (ROOT / "medseq" / "models" / f"{module}.py").read_text(), re.MULTILINE)


def test_the_page_of_restoration_names_what_exists():
    text = (ROOT / "docs" / "restore.md").read_text()
    source = "".join(path.read_text() for path in (ROOT / "medseq").rglob("*.py"))
    for option in set(re.findall(r"`(--[a-z-]+)", text)):
        assert f'"{option}"' in source, option
    for config in re.findall(r"(restore/[a-z0-9_]+)`? ", text):
        assert (ROOT / "configs" / f"{config}.yaml").is_file(), config
    for script in re.findall(r"(benchmarks/\w+\.py)", text):
        assert (ROOT / script).is_file(), script
    shipped = {path.name for path in (ROOT / "medseq" / "zoo").iterdir()}
    assert set(re.findall(r"^\| `([a-z0-9-]+)`", text, re.MULTILINE)) <= shipped
    for code in re.findall(r"`([a-z_]+)`", text[text.index("## Flags") : text.index("## What to believe")]):
        assert f'"{code}"' in source, code


@pytest.mark.parametrize("page", ["recon", "restore", "wsi"])
def test_a_task_page_fits_two_screens(page):
    assert len((ROOT / "docs" / f"{page}.md").read_text().splitlines()) <= 100


def blocks(language: str) -> list[tuple[str, int, str]]:
    """Fenced code of one language in the pages: page, number and text."""
    found = []
    for page in PAGES:
        fences = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        found += [(page.name, number, text) for number, text in enumerate(fences)]
    return found


PYTHON, SHELL = blocks("python"), blocks("sh")


@pytest.mark.parametrize(("page", "number", "text"), PYTHON, ids=[f"{page}-{number}" for page, number, _ in PYTHON])
def test_python_blocks_run(page, number, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(text, f"{page}:{number}", "exec"), {"__name__": "__main__"})
    assert "import" in text


@pytest.mark.parametrize(("page", "number", "text"), SHELL, ids=[f"{page}-{number}" for page, number, _ in SHELL])
def test_shell_blocks_run(page, number, text, tmp_path, monkeypatch):
    # In this process: importing torch anew for every line would take most of the time.
    monkeypatch.chdir(tmp_path)
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "medseq", line
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, f"{line}\n{done.output}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_shown_exist_with_their_options(page):
    from typer.main import get_command

    for line in re.findall(r"^medseq .*$|`medseq [^`]*`", page.read_text(), re.MULTILINE):
        words = shlex.split(line.strip("`").replace("'", ""), comments=True)[1:]
        command = get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        if hasattr(command, "commands"):
            assert not [word for word in words if re.fullmatch(r"[a-z][a-z-]+", word)], line
            continue
        known = {option for parameter in command.params for option in parameter.opts}
        through = command.context_settings.get("ignore_unknown_options")
        unknown = [
            word for word in words if word.startswith("--") and word.partition("=")[0].rstrip(").,") not in known
        ]
        assert through or unknown == [], f"{line}: {unknown}"


def test_the_site_builds_without_a_warning_and_asks_nobody(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert {"cli.html", "cards.html", "architecture.html", "faq.html"} <= {page.name for page in pages}
    for page in pages:
        loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?://[^\">\s]+)", page.read_text())
        assert loaded == [], page.name
    text = (tmp_path / "site" / "cli.html").read_text()
    assert "medseq wsi extract" in text
    assert "torch-export" in text
