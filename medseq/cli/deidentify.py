"""`medseq deidentify`: a copy of a folder without identifiers."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from medseq.cli.console import AsJson, Quiet, Verbose, print_json, progress_bar, say

__all__ = ["deidentify"]


def deidentify(
    input: Annotated[Path, typer.Argument(help="File or folder: DICOM, NIfTI, raw MR data, tiled TIFF slides.")],
    output: Annotated[Path, typer.Argument(help="Folder for the copy and deidentify.json.")],
    dates: Annotated[
        Literal["shift", "remove"],
        typer.Option("--dates", help="Move every date by the patient's own number of days, or empty them."),
    ] = "shift",
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", help="characteristics (sex, age, size, weight), device, or uids; repeatable."),
    ] = None,
    burned_in: Annotated[
        Literal["refuse", "keep"],
        typer.Option("--burned-in", help="Images whose pixels may show text: leave out, or take as they are."),
    ] = "refuse",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Copy a folder without identifiers (DICOM PS3.15 basic profile). Needs a secret salt in MEDSEQ_SALT.

    The same salt gives the same pseudonyms and shifts of dates. Faces in head volumes remain.
    Exit code 0: all cleaned; 2: nothing to do; 3: some files refused or damaged (deidentify.json says which and why).
    """
    from medseq.inference.deidentify import REPORT, deidentify_folder

    with progress_bar("deidentify", quiet=quiet or as_json) as progress:
        summary = deidentify_folder(
            input, output, dates=dates, keep=keep or (), burned_in=burned_in == "keep", progress=progress
        )
    if as_json:
        print_json({"counts": summary.counts, "exit_code": summary.exit_code, "files": summary.files})
    else:
        words = ", ".join(f"{count} {state}" for state, count in summary.counts.items() if count)
        say(words, quiet=quiet and summary.exit_code == 0)
        for note, count in _notes(summary.files).items():
            say(f"{count} files: {note}", quiet=quiet)
        say(f"report: {output / REPORT}", quiet=quiet)
    raise typer.Exit(summary.exit_code)


def _notes(files: list[dict]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in files:
        for note in row.get("notes", ()):
            counts[note] = counts.get(note, 0) + 1
    return counts
