"""The errors that the validator of dicom3tools finds in a DICOM file."""

import shutil
import subprocess
from pathlib import Path


def errors(path: Path) -> set[str]:
    tool = shutil.which("dciodvfy")
    assert tool, "dciodvfy is missing: apt-get install dicom3tools (make system-test-deps)"
    done = subprocess.run([tool, str(path)], capture_output=True, text=True, errors="replace", check=False)
    lines = (done.stdout + done.stderr).splitlines()
    # The first lines name the object class; without them the tool did not run.
    assert any("Image" in line or "Document" in line or line.startswith(("Warning", "Error")) for line in lines), lines
    return {line for line in lines if line.startswith("Error")}
