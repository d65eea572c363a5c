"""Pages that are made when the documentation is built: from the command line, the model cards and the root's documents.

A hook of MkDocs. Links that lead out of ``docs/`` lead to files of the repository, which the pages do not hold: their
text stays, the link goes.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = {
    "architecture.md": "ARCHITECTURE.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the made pages."""
    from mkdocs.structure.files import File

    pages = {name: (ROOT / source).read_text("utf-8") for name, source in DOCUMENTS.items()}
    pages |= {"cli.md": command_line(), "cards.md": cards()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Keep the text of links that lead out of the pages, and turn those to other documents of the root around."""
    made = {source: name for name, source in DOCUMENTS.items()}

    def inside(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        path, _, anchor = target.partition("#")
        if "://" in target or not path:
            return match[0]
        name = path.removeprefix("../").removeprefix("docs/")
        if name in made:
            return f"{image}[{text}]({made[name]}{'#' * bool(anchor)}{anchor})"
        if files.get_file_from_path(name) is not None:
            return f"{image}[{text}]({name}{'#' * bool(anchor)}{anchor})"
        return match[0] if files.get_file_from_path(path) is not None else text

    return markdown if page.file.src_uri.startswith("api/") else LINK.sub(inside, markdown)


def cards() -> str:
    """The cards of the shipped models, one below the other."""
    text = ["# Model cards\n\nEvery model that ships. Research use only, not for diagnosis.\n"]
    for path in sorted((ROOT / "medseq" / "zoo").glob("*/README.md")):
        # One level down, outside code.
        text.append(re.sub(r"^#", "##", path.read_text("utf-8"), flags=re.MULTILINE))
    return "\n".join(text)


def command_line() -> str:
    """Every command with its arguments and options, from the program itself."""
    import typer
    from typer.main import get_command

    from medseq.cli.main import app

    lines = ["# Command line", "", "Made from the program. Exit codes: 0 ok, 1 a bug, 2 usage or nothing found,"]
    lines += ["3 some inputs failed, 130 interrupted.", ""]
    context = typer.Context(get_command(app), info_name="medseq")
    for name, command in sorted(get_command(app).commands.items()):  # type: ignore[attr-defined]
        lines += _command(name, command, typer.Context(command, info_name=name, parent=context), 2)
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any, context: Any, level: int) -> list[str]:
    usage = command.get_usage(context).removeprefix("Usage: ")
    lines = [f"{'#' * level} {context.command_path}", "", (command.help or "").strip(), ""]
    children = getattr(command, "commands", None)
    if children:
        import typer

        for child, inner in sorted(children.items()):
            lines += _command(child, inner, typer.Context(inner, info_name=child, parent=context), level + 1)
        return lines
    lines += ["```text", usage, "```", "", "| | |", "|---|---|"]
    for parameter in command.params:
        words = getattr(parameter, "help", None) or ""
        shown = " ".join(parameter.opts) if parameter.opts[0].startswith("-") else parameter.name.upper()
        lines.append(f"| `{shown}` | {' '.join(words.split()).replace('|', chr(92) + '|')} |")
    return [*lines, ""]
