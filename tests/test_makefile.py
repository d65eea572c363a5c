"""The developer's commands: help prints itself, and every link between the documents leads somewhere."""

import importlib.util
import re
import subprocess

import pytest


def make(repo_root, *arguments):
    return subprocess.run(["make", *arguments], cwd=repo_root, capture_output=True, text=True, timeout=30, check=False)


def test_help_lists_every_target_and_is_what_plain_make_does(repo_root):
    text = (repo_root / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)[1].split())
    done = make(repo_root, "help")
    assert done.returncode == 0
    assert set(re.findall(r"^  make ([a-z-]+) ", done.stdout, re.MULTILINE)) == phony
    assert make(repo_root).stdout == done.stdout
    assert {"setup", "check", "test", "docs", "release-check", "demo", "bench", "soak", "system-test-deps"} <= phony


def test_continuous_integration_runs_the_same_targets(repo_root):
    assert re.findall(r"^stage ([a-z-]+)", (repo_root / ".ci" / "run").read_text(), re.MULTILINE) == [
        "system-test-deps",
        "setup",
        "check",
        "test",
    ]


def test_the_probe_says_what_the_machine_allows(repo_root):
    # With no packages asked for, nothing is installed.
    done = subprocess.run([repo_root / ".ci" / "system_deps"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("mount", "unshare", "apt"):
        assert re.search(rf"^probe {name}\b.*: (works|not allowed here|not needed)", done.stdout, re.MULTILINE), name


@pytest.fixture
def links(repo_root):
    spec = importlib.util.spec_from_file_location("check_links", repo_root / ".ci" / "check_links.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_link_that_leads_nowhere_is_found(links, tmp_path):
    (tmp_path / "other.md").write_text("# One heading: here\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[good](other.md) [good](other.md#one-heading-here) [far](https://example.org/x) ![p](gone.png)\n"
        "[bad](other.md#two)\n```\n[not a link](nowhere.md)\n```\n[self](#top) <b>\n# Top\n"
    )
    bad = links.broken_links(page)
    assert [line.split(": ", 1)[1] for line in bad] == ["no file gone.png", "no heading #two in other.md"]
