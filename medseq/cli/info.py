"""`medseq info MODEL`: what a model is and what it costs on an input of a given size."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseq.cli.console import AsJson, Verbose, print_json, table
from medseq.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["info"]

_SHAPES = {"restore": (1, 1, 256, 256), "recon": (1, 8, 256, 256), "mil": (10_000, 0)}


def info(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A shipped model, a bundle's folder, or a configuration (task/name).")
    ],
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape", help="restore: batch,channel,row,col; recon: batch,coil,row,col; mil: patches,features."
        ),
    ] = None,
    timed: Annotated[int, typer.Option("--time", min=0, help="Also time so many forward passes here.")] = 0,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Parameters, floating-point operations, memory and time of a model.

    Nothing is computed without --time: operations and activations are counted on tensors without data, so that a model
    which needs more memory than this machine has can be asked about. Memory for training is a lower bound: activations,
    weights, gradients, Adam's moments and averaged weights.
    """
    from medseq.inference.model_cost import model_cost, model_inputs

    task, net, about = _find(model)
    size = _sizes(shape) if shape else _default_shape(task, net)
    cost = model_cost(net, model_inputs(task, net, size), runs=timed)
    if as_json:
        print_json({"model": model, "task": task, "shape": size, **about, **asdict(cost)})
        return
    rows = [
        ["model", " ".join(str(value) for value in (model, *about.values()))],
        ["task", task],
        ["input", " x ".join(map(str, size))],
        ["parameters", f"{cost.parameters:,}"],
        ["operations", f"{cost.flops / 1e9:,.3f} GFLOP, {cost.flops / 2e9:,.3f} GMAC"],
        ["weights", f"{cost.weight_bytes / 2**20:,.1f} MiB"],
        ["activations kept in training", f"{cost.activation_bytes / 2**20:,.1f} MiB"],
        ["training, at least", f"{cost.training_bytes / 2**20:,.1f} MiB"],
    ]
    if cost.seconds is not None:
        rows.append(["one forward pass here", f"{cost.seconds:.3g} s"])
    table(["", ""], rows)


def _find(model: str) -> "tuple[str, nn.Module, dict[str, Any]]":
    """Task, network, and what else is known of it."""
    from medseq.cli.share import config_names, find_config
    from medseq.inference.bundle import load_bundle
    from medseq.inference.bundle_classes import build_class
    from medseq.inference.bundle_schema import ClassSpec

    if not (model.removesuffix(".yaml") in config_names() or model.endswith(".yaml")):
        bundle = load_bundle(model)
        return bundle.config.task, bundle.build_model(), {"version": bundle.config.version, "hash": bundle.hash[:12]}
    from medseq.cli.bundle import load_mapping

    settings = load_mapping(find_config(model)).get("model", {})
    task = (settings.get("bundle") or {}).get("task")
    if not task or "net" not in settings:
        raise InputError(
            "the configuration names no network and task", where=Path(model).name, wanted="model.net, model.bundle.task"
        )
    return task, build_class(ClassSpec(**settings["net"]), where=model), {}


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError("not a shape", where="--shape", found=text, wanted="whole numbers with commas") from None


def _default_shape(task: str, net: "nn.Module") -> tuple[int, ...]:
    """A usual size, with the channels or features that the network takes."""
    shape = _SHAPES[task]
    for name, place in (("in_channels", 1),) if task == "restore" else (("feature_dim", 1), ("in_dim", 1)):
        width = getattr(net, name, None) or getattr(getattr(net, "net", None), name, None)
        if task != "recon" and isinstance(width, int):
            return (*shape[:place], width, *shape[place + 1 :])
    if 0 in shape:
        raise InputError("the network does not say how many features it takes", remedy="give --shape patches,features")
    return shape
