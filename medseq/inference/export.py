"""Hand a bundle on in a format that others use: ONNX, a MONAI bundle, a Hugging Face folder, a program of torch.export.

Every export is a folder that appears whole or not at all, holds the model card, and, but for ONNX, what `from_export`
needs to make the same bundle again. A graph (ONNX, torch.export) is run beside the bundle's network on fresh inputs
before it is published; it is refused where the two differ by more than `TOLERANCE`.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseq.errors import BackendError, BundleError, InputError, OutputError
from medseq.inference.bundle import Bundle, save_bundle
from medseq.io.atomic import whole

if TYPE_CHECKING:
    from torch import Tensor

    from medseq.inference.export_network import Exportable

__all__ = ["FORMATS", "RETURNING", "TOLERANCE", "ExportReport", "Parity", "export_bundle", "from_export", "parity"]

FORMATS = ("onnx", "monai", "hf", "torch-export")
# Those that a bundle can be made of again.
RETURNING = ("hf", "monai", "torch-export")
TOLERANCE = 1e-4
SIDECAR = "medseq.json"
_ROUNDS = 3


@dataclass(frozen=True)
class Parity:
    """How a graph compares with the network that it was traced from.

    Attributes:
        difference: Largest absolute difference over all outputs and inputs that were tried.
        inputs: How many inputs.
        seconds: Median time of the network here.
        seconds_exported: Median time of the graph, in the runtime that will run it.
    """

    difference: float
    inputs: int
    seconds: float
    seconds_exported: float


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        format: One of `FORMATS`.
        folder: Where it lies.
        files: Relative to it, sorted.
        facts: What is worth saying: opset, sizes.
        parity: Of graphs, else None.
    """

    format: str
    folder: Path
    files: tuple[str, ...]
    facts: dict[str, Any]
    parity: Parity | None = None


def export_bundle(
    bundle: Bundle, to: str, folder: Path, *, size: tuple[int, int] = (256, 256), seed: int = 0
) -> ExportReport:
    """Write a bundle in another format.

    Args:
        bundle: A loaded bundle.
        to: One of `FORMATS`.
        folder: Must not exist yet, or be empty.
        size: Rows and columns of a graph for images or raw data.
        seed: Of the inputs on which a graph is compared.

    Raises:
        InputError: Unknown format, or one that cannot hold this model; the message says why and what can.
        BackendError: The package that writes the format is missing, or the graph is not the network.
        OutputError: The folder is in use, or cannot be written.
    """
    if to not in FORMATS:
        raise InputError("unknown format", where="--to", found=to, wanted=", ".join(FORMATS))
    if min(size) < 16 or max(size) > 2048:
        raise InputError("the size is out of range", where="--size", found=size, wanted="16 to 2048")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError("the export's folder is in use", where=folder.name, remedy="choose another")
    with whole(folder) as stage:
        stage.mkdir()
        facts, compared = _writer(to)(bundle, stage, size, seed)
        files = tuple(sorted(path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()))
    return ExportReport(to, folder, files, facts, compared)


Writer = Callable[[Bundle, Path, tuple[int, int], int], tuple[dict[str, Any], Parity | None]]


def _writer(to: str) -> Writer:
    """The function that writes one format; its libraries are imported now."""
    if to == "onnx":
        from medseq.inference.export_onnx import write_onnx

        return write_onnx
    if to == "torch-export":
        from medseq.inference.export_program import write_program

        return write_program
    if to == "hf":
        from medseq.inference.export_hub import write_hub

        return write_hub
    from medseq.inference.export_monai import write_monai

    return write_monai


def parity(
    network: "Exportable", run: "Callable[[Mapping[str, Tensor]], list[Tensor]]", seed: int, *, where: str
) -> Parity:
    """Run the network and its graph on the same fresh inputs.

    Args:
        network: What was traced.
        run: The graph: inputs by name -> outputs in order.
        seed: Of the inputs.
        where: Named in the error.

    Raises:
        BackendError: They differ by more than `TOLERANCE`.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    worst, ours, theirs = 0.0, [], []
    for _ in range(_ROUNDS):
        inputs = network.redraw(generator)
        started = time.perf_counter()
        with torch.no_grad():
            wanted = network.module(*inputs.values())
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        found = run(inputs)
        theirs.append(time.perf_counter() - started)
        pairs = zip(found, wanted if isinstance(wanted, tuple) else (wanted,), strict=True)
        worst = max(worst, *(float((a - b).abs().max()) if a.shape == b.shape else float("inf") for a, b in pairs))
    if not worst <= TOLERANCE:
        raise BackendError(
            "the graph is not the network",
            where=where,
            found=f"difference {worst:.3g}",
            wanted=f"{TOLERANCE:g} or less",
        )
    return Parity(worst, _ROUNDS, sorted(ours)[_ROUNDS // 2], sorted(theirs)[_ROUNDS // 2])


def sidecar(bundle: Bundle) -> str:
    """What a bundle is without its weights, as JSON: the way back."""
    content = bundle.config.model_dump(mode="json", exclude={"weights"})
    about = {"bundle": content, "metadata": bundle.metadata, "bundle_hash": bundle.hash}
    return json.dumps(about | {"dtype": bundle.config.weights.dtype}, indent=1, ensure_ascii=False) + "\n"


def card(bundle: Bundle) -> str:
    """The bundle's model card."""
    path = bundle.folder / "README.md"
    return path.read_text("utf-8") if path.is_file() else f"# {bundle.config.name}\n\nResearch use only.\n"


def from_export(source: str, folder: Path, out: Path, *, overwrite: bool = False) -> Bundle:
    """The bundle that an export was made of, from the export alone.

    Args:
        source: One of `RETURNING`.
        folder: What `export_bundle` wrote, or what was trained on from there.
        out: Folder of the bundle.
        overwrite: Replace an existing bundle.

    Raises:
        InputError: The format keeps no way back.
        BundleError: Not such an export, or its weights do not fit.
    """
    if source not in RETURNING:
        raise InputError("no bundle can be made of this format", found=source, wanted=", ".join(RETURNING))
    about = _read_sidecar(folder / ("configs" if source == "monai" else ".") / SIDECAR, folder.name)
    state = _read_weights(folder / "models" / "model.pt" if source == "monai" else folder / "model.safetensors")
    if source == "hf":
        # The class of the hub wraps the network.
        state = {key.removeprefix("net."): value for key, value in state.items()}
    readme = folder / ("docs/README.md" if source == "monai" else "README.md")
    text = readme.read_text("utf-8") if readme.is_file() else f"# {about['bundle'].get('name')}\n"
    if text.startswith("---\n"):
        text = text.partition("\n---\n")[2].lstrip()
    dtype = about.get("dtype", "float32")
    made = save_bundle(
        out, about["bundle"], state, metadata=about.get("metadata", {}), card=text, dtype=dtype, overwrite=overwrite
    )
    made.build_model()
    return made


def _read_sidecar(path: Path, where: str) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise BundleError(f"{SIDECAR} is missing or not readable", where=where, wanted="an export of medseq") from None
    if not isinstance(about, dict) or not isinstance(about.get("bundle"), dict):
        raise BundleError(f"{SIDECAR} says nothing of a bundle", where=where, wanted="an export of medseq")
    return about


def _read_weights(path: Path) -> "dict[str, Tensor]":
    import torch

    from medseq.inference.encoder_torch import read_tensors

    if not path.is_file():
        raise BundleError("the weights are missing", where=path.name, wanted="an export of medseq")
    state = read_tensors(path, path.name)
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BundleError("the weights are no state dict", where=path.name)
    return state
