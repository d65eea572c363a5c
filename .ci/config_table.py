"""configs/README.md: one row for every shipped configuration, from the files themselves.

`python .ci/config_table.py` writes it; with --check it only says whether it is up to date (tests/test_configs.py).
"""

import sys
from pathlib import Path

import yaml

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
HEAD = """# Configurations

Made by `python .ci/config_table.py`. `medseq fit TASK --config NAME` takes these names from anywhere; your own
file starts as a copy. The second line of each file says what to expect and where that was measured.

| name | network | training data | expected |
|---|---|---|---|
"""


def table() -> str:
    """The page's text."""
    rows = []
    for path in sorted(CONFIGS.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        name = path.relative_to(CONFIGS).with_suffix("").as_posix()
        expected = " ".join(line.removeprefix("# ") for line in text.splitlines()[1:6] if line.startswith("# "))
        expected = expected.removeprefix("Expected: ").replace("|", "\\|")
        data = content["data"]["train"]["class_path"].rpartition(".")[2]
        rows.append(f"| {name} | {_network(content['model']['net'])} | {data} | {expected} |")
    return HEAD + "\n".join(rows) + "\n"


def _network(spec: dict) -> str:
    """The innermost network's class, and its mixer where one is named."""
    arguments = spec.get("init_args") or {}
    if isinstance(arguments.get("net"), dict):
        return _network(arguments["net"])
    name = spec["class_path"].rpartition(".")[2]
    mixer = arguments.get("mixer")
    return f"{name}, {mixer['class_path'].rpartition('.')[2]}" if isinstance(mixer, dict) else name


if __name__ == "__main__":
    page = CONFIGS / "README.md"
    if "--check" in sys.argv:
        sys.exit(0 if page.is_file() and page.read_text(encoding="utf-8") == table() else "configs/README.md is stale")
    page.write_text(table(), encoding="utf-8")
