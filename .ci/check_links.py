"""Follow every relative link of the repository's Markdown files; exit 1 where one leads nowhere."""

import re
import subprocess
import sys
from pathlib import Path

LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+\s+(.*?)\s*$", re.MULTILINE)

# Pages that docs/build_pages.py makes when the site is built.
MADE = ("cli.md", "cards.md", "architecture.md", "changelog.md", "contributing.md", "security.md")


def anchors(text: str) -> set[str]:
    """Heading anchors as GitHub makes them: lower case, words joined by dashes, punctuation gone."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}


def broken_links(page: Path) -> list[str]:
    """Links of `page` whose file or heading does not exist; addresses of other machines are not followed."""
    bad = []
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if name in MADE and page.parent.name == "docs":
            continue
        if not file.exists():
            bad.append(f"{page}: no file {name}")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
            bad.append(f"{page}: no heading #{anchor} in {file.name}")
    return bad


def main() -> int:
    """Check every tracked page."""
    names = subprocess.run(["git", "ls-files", "*.md"], check=True, capture_output=True, text=True).stdout.split()
    bad = [line for name in names for line in broken_links(Path(name))]
    print("\n".join(bad) if bad else f"links of {len(names)} pages: all lead somewhere")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
