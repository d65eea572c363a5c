"""What a release needs: a wheel and a source archive, a list of everything it brings, and licences that fit.

Writes build/release/: the two archives, sbom.json (CycloneDX) and licences.md; exit 1 where something does not fit.
"""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "release"
WHEEL_LIMIT = 80_000_000
# Copyleft that reaches programs which use it; the lesser GPL is met by dynamic linking.
REFUSED = re.compile(r"(?<!lesser )(?<!library )(\bA?GPL\b|GNU (Affero )?General Public)", re.IGNORECASE)
LESSER = re.compile(r"\bLGPL|lesser general public|library general public", re.IGNORECASE)
# Under several licences of which one may be chosen, or only used to build and test, never shipped or imported.
EXPLAINED = {
    "docutils": "public domain, two modules under other licences that are not used",
    "text-unidecode": "Artistic licence or GPL, the user's choice",
}


def names(requirements: list[str]) -> set[str]:
    """Normalised names of distributions, those of other extras left out."""
    found = set()
    for text in requirements:
        match = re.match(r"[A-Za-z0-9._-]+", text)
        if match and "extra ==" not in text:
            found.add(match[0].lower().replace("_", "-").replace(".", "-"))
    return found


def licence(name: str) -> str:
    """What a distribution says of its own licence."""
    about = importlib.metadata.metadata(name)
    classifiers = [text.rpartition(" :: ")[2] for text in about.get_all("Classifier") or [] if "License" in text]
    # Some put the whole text where its name belongs.
    stated = about.get("License-Expression") or (about.get("License") or "").strip().partition("\n")[0]
    return "; ".join(dict.fromkeys(filter(None, [stated[:80], *classifiers]))) or "not stated"


def refused(text: str) -> bool:
    """Whether a licence is the GPL, and not the lesser one or a choice of which another may be taken."""
    parts = re.split(r";|\bOR\b", text)
    return all(REFUSED.search(part) and not LESSER.search(part) for part in parts if part.strip())


def closure(extra: str) -> dict[str, str]:
    """Every installed distribution that ``medseq[extra]`` brings, with its licence."""
    wanted = importlib.metadata.requires("medseq") or []
    base = names([text for text in wanted if "extra ==" not in text])
    todo = [*base, *names([text.partition(";")[0] for text in wanted if re.search(rf"extra == .{extra}.", text)])]
    found: dict[str, str] = {}
    while todo:
        name = todo.pop()
        if name in found or name == "medseq":
            continue
        try:
            found[name] = licence(name)
            todo += names(importlib.metadata.requires(name) or [])
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def shipped() -> dict[str, str]:
    """What users install: every extra but those for developers and for CUDA."""
    extras = importlib.metadata.metadata("medseq").get_all("Provides-Extra") or []
    found: dict[str, str] = {}
    for extra in set(extras) - {"dev", "docs", "all", "cuda", "encoders"}:
        found |= closure(extra)
    return found


def check_licences() -> list[str]:
    """Write the report; the packages that do not fit."""
    found = shipped()
    rows = [f"| {name} | {text} | {EXPLAINED.get(name, '')} |" for name, text in sorted(found.items())]
    OUT.mkdir(parents=True, exist_ok=True)
    head = ["# Licences of what medseq brings", "", "| package | licence | remark |", "|---|---|---|"]
    (OUT / "licences.md").write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")
    return [f"{name}: {text}" for name, text in sorted(found.items()) if refused(text) and name not in EXPLAINED]


def build() -> list[str]:
    """Build the two archives from what is here, without a network; what is wrong with them."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(OUT), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return ["build failed:", *(done.stdout + done.stderr).splitlines()[-20:]]
    wheels, sources = sorted(OUT.glob("*.whl")), sorted(OUT.glob("*.tar.gz"))
    wrong = [f"{wheel.name}: {wheel.stat().st_size} bytes" for wheel in wheels if wheel.stat().st_size > WHEEL_LIMIT]
    return wrong + ([] if wheels and sources else ["an archive is missing"])


def bill_of_materials() -> list[str]:
    """Write what is installed here as CycloneDX."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--of", "JSON", "-o", str(OUT / "sbom.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [] if done.returncode == 0 else ["cyclonedx-py failed:", *done.stderr.splitlines()[-5:]]


def main() -> int:
    """Do all three."""
    wrong = [*check_licences(), *bill_of_materials(), *build()]
    print("\n".join(wrong) if wrong else f"release: {', '.join(sorted(path.name for path in OUT.iterdir()))}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
