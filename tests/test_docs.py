"""Pages for people: their links lead somewhere, and the options that they name exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


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
