"""Write the network of a bundle as a program of torch.export, for runtimes of torch without Python's source.

The program may hold operators of medseq (the selective scan, the causal convolution): whoever loads it imports
``medseq.ops`` first. Its layers are merged for speed, so the weights lie beside it once more, as the bundle has them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseq.inference.bundle import Bundle
from medseq.inference.export import SIDECAR, Parity, card, parity, sidecar
from medseq.inference.export_network import exportable
from medseq.inference.export_onnx import traced

__all__ = ["write_program"]


def write_program(
    bundle: Bundle, folder: Path, size: tuple[int, int], seed: int
) -> tuple[dict[str, Any], Parity | None]:
    """Write ``program.pt2``, the weights and what a bundle can be made of again.

    Raises:
        InputError: No graph can hold the network.
        BackendError: The program computes something else.
    """
    network = exportable(bundle, size)
    program = traced(network, bundle.config.name)
    torch.export.save(program, folder / "program.pt2")
    module = program.module()

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            out = module(*inputs.values())
        return list(out) if isinstance(out, tuple) else [out]

    compared = parity(network, run, seed, where=bundle.config.name)
    (folder / "model.safetensors").write_bytes(bundle.read_weights())
    (folder / SIDECAR).write_text(sidecar(bundle), encoding="utf-8")
    (folder / "README.md").write_text(card(bundle), encoding="utf-8")
    used = {str(node.target) for node in program.graph.nodes if str(node.target).startswith("medseq.")}
    inputs = {name: list(x.shape) for name, x in network.inputs.items()}
    return {"inputs": inputs, "free": network.dynamic, "operators_of_medseq": sorted(used)}, compared
