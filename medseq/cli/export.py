"""`medseq export`: a bundle in the formats that others use."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from medseq.cli.console import AsJson, Quiet, Verbose, print_json, say
from medseq.errors import InputError

__all__ = ["export"]


def export(
    bundle: Annotated[str, typer.Argument(help="Name of a shipped bundle, or a path.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not be in use.")],
    to: Annotated[
        Literal["onnx", "monai", "hf", "torch-export"],
        typer.Option(
            "--to", help="onnx and torch-export: the network as a graph; monai, hf: a folder that runs there."
        ),
    ],
    size: Annotated[
        str, typer.Option("--size", metavar="ROWS,COLS", help="Size of images in a graph; it is fixed there.")
    ] = "256,256",
    trust_package: Annotated[
        list[str] | None, typer.Option("--trust-package", help="Also build classes of this package; repeatable.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a bundle as ONNX, MONAI bundle, Hugging Face folder or program of torch.export.

    A graph is compared with the network on fresh inputs first. The way back: medseq convert hf FOLDER BUNDLE.
    """
    rows, cols = _size(size)
    from medseq.inference.bundle import load_bundle
    from medseq.inference.export import export_bundle

    report = export_bundle(load_bundle(bundle, trust_packages=trust_package or ()), to, folder, size=(rows, cols))
    if as_json:
        print_json({**vars(report), "parity": vars(report.parity) if report.parity else None})
        return
    say(f"{bundle} as {to}: {report.folder} ({len(report.files)} files)", quiet=quiet)
    for name, value in report.facts.items():
        say(f"  {name.replace('_', ' ')}: {value}", quiet=quiet)
    if report.parity is not None:
        p = report.parity
        say(
            f"  largest difference from the network: {p.difference:.2g} over {p.inputs} inputs;"
            f" {1000 * p.seconds_exported:.0f} ms there, {1000 * p.seconds:.0f} ms here",
            quiet=quiet,
        )


def _size(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if not 1 <= len(parts) <= 2 or not all(part.strip().isdigit() for part in parts):
        raise InputError("not a size", where="--size", found=text, wanted="ROWS,COLS, such as 256,256")
    return int(parts[0]), int(parts[-1])
