"""Write the network of a bundle as ONNX, and run it beside the network before anybody else does.

Operators of medseq leave as plain operations: WKV and the cross scan as products of matrices and log-step sums
(`ops/*/exportable.py`), the selective scan as the loop `Scan`, the causal convolution as `Conv`. Complex arithmetic
leaves as real (`export_real`).
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseq.errors import BackendError, InputError
from medseq.inference.bundle import Bundle
from medseq.inference.export import Parity, card, parity
from medseq.inference.export_network import LEAST_BAG, Exportable, exportable
from medseq.inference.export_real import InRealNumbers, has_complex
from medseq.ops.causal_conv1d import chunked as convolution
from medseq.ops.selective_scan import exportable as scan

__all__ = ["OPSET", "traced", "write_onnx"]

# Lower ones lack what the graphs need, higher ones what older runtimes know.
OPSET = 18


def write_onnx(bundle: Bundle, folder: Path, size: tuple[int, int], seed: int) -> tuple[dict[str, Any], Parity | None]:
    """Write ``model.onnx``, ``model.json`` (inputs, outputs, the preprocessing that stays outside) and the card.

    Raises:
        InputError: No graph can hold the network.
        BackendError: onnx, onnxscript or onnxruntime is missing, cannot translate it, or computes something else.
    """
    runtime = _require("onnxruntime")
    _require("onnxscript")
    network = exportable(bundle, size)
    program = traced(network, bundle.config.name)
    if has_complex(program):
        program = traced(replace(network, module=InRealNumbers(program, bundle.config.name)), bundle.config.name)
    with torch.no_grad(), _quiet():
        plain = program.run_decompositions(
            {
                torch.ops.medseq.selective_scan.default: scan.forward,
                torch.ops.medseq.causal_conv1d.default: convolution.forward,
            }
        )
        try:
            graph = torch.onnx.export(
                plain,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                input_names=list(network.inputs),
                output_names=list(network.outputs),
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise BackendError(
                "the network cannot be translated to ONNX",
                where=bundle.config.name,
                found=str(error.__cause__ or error).strip().splitlines()[0][:200],
                remedy="export it with --to hf or torch-export",
            ) from None
    assert graph is not None
    path = folder / "model.onnx"
    graph.save(str(path))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        return [torch.from_numpy(x) for x in session.run(None, {name: x.numpy() for name, x in inputs.items()})]

    compared = parity(network, run, seed, where=bundle.config.name)
    spec = bundle.config
    about = {
        "opset": OPSET,
        "axes": network.axes,
        "fixed": {name: list(x.shape) for name, x in network.inputs.items()},
        "free": network.dynamic,
        # The graph begins after these and ends before they are undone.
        "preprocess": [step.model_dump(mode="json") for step in spec.preprocess],
        "output": spec.output.model_dump(mode="json", exclude_none=True),
        "input": spec.input.model_dump(mode="json", exclude_none=True),
        "bundle": {"name": spec.name, "version": spec.version, "hash": bundle.hash},
        "largest_difference": compared.difference,
        "notice": "Research use only, not for diagnosis",
    }
    (folder / "model.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(bundle), encoding="utf-8")
    return {"opset": OPSET, "inputs": about["fixed"], "free": network.dynamic}, compared


def traced(network: Exportable, where: str) -> torch.export.ExportedProgram:
    """The network as a program of torch.export, medseq's own operators in it as far as they do not leave as plain ones.

    Raises:
        InputError: The graph would depend on values, or on sizes that should be free.
    """
    free = {name: torch.export.Dim(name, min=LEAST_BAG) for axes in network.dynamic.values() for name in axes.values()}
    shapes = tuple({axis: free[name] for axis, name in network.dynamic.get(key, {}).items()} for key in network.inputs)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(
                network.module, tuple(network.inputs.values()), dynamic_shapes=shapes if free else None, strict=False
            )
    except (torch._dynamo.exc.UserError, RuntimeError, ValueError, AssertionError) as error:
        # Rephrased: torch's own text is a page that ends in local paths. Sizes that are free but must fit a stride, as
        # in SRMamba's reordering, end in an assertion of torch.
        raise InputError(
            "the network cannot become a graph",
            where=where,
            found=str(error).strip().splitlines()[0][:200],
            remedy="export it with --to hf",
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress, and its remark that torchvision is not installed, off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # The exporter itself still uses what torch calls deprecated.
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def _require(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise BackendError(f"{name} is not installed", remedy="pip install 'medseq[export]'") from None
