"""The names that users build on: a name that goes, or comes, is seen here before it is seen by them.

Written by ``python tests/test_public_api.py``; the policy is in docs/deprecation.md.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SNAPSHOT = ROOT / "tests" / "public_api.txt"


def documented_modules() -> list[str]:
    """The modules that the Python pages of the documentation show."""
    names = {
        name
        for page in (ROOT / "docs" / "api").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    }
    return sorted(name if module_path(name).is_file() else name.rpartition(".")[0] for name in names)


def module_path(name: str) -> Path:
    path = ROOT / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def public_names(module: str) -> list[str]:
    for node in ast.parse(module_path(module).read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value))
    raise AssertionError(f"{module} has no __all__")


def present() -> str:
    modules = {*documented_modules(), "medseq", "medseq.ops", "medseq.inference"}
    return "".join(f"{module}: {', '.join(public_names(module))}\n" for module in sorted(modules))


def test_the_public_names_are_those_that_were_agreed():
    assert present() == SNAPSHOT.read_text(), "if this is meant: python tests/test_public_api.py, and a changelog line"


def test_every_public_name_can_be_imported():
    import importlib

    for line in SNAPSHOT.read_text().splitlines():
        module, _, names = line.partition(": ")
        loaded = importlib.import_module(module)
        assert [name for name in names.split(", ") if name and not hasattr(loaded, name)] == [], module


def test_types_travel_with_the_package():
    assert (ROOT / "medseq" / "py.typed").is_file()


if __name__ == "__main__":
    SNAPSHOT.write_text(present())
