"""Tasks and results as plain values, so that they cross to another process or node as JSON: nothing is unpickled."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from medseq.inference.ledger_schema import OutputRow
from medseq.inference.outputs import Identity, Layout
from medseq.inference.predictor import Flag
from medseq.inference.worker import ItemResult, ItemTask

__all__ = ["result_from_plain", "result_to_plain", "task_from_plain", "task_to_plain"]


def task_to_plain(task: ItemTask) -> dict[str, Any]:
    """A task, JSON-ready."""
    maps = None if task.sens_maps is None else str(task.sens_maps)
    paths = {"root": str(task.root), "out": str(task.out), "sens_maps": maps}
    return {**asdict(task), **paths, "params": dict(task.params)}


def task_from_plain(plain: dict[str, Any]) -> ItemTask:
    """The task again."""
    values = {
        "root": Path(plain["root"]),
        "out": Path(plain["out"]),
        "sens_maps": None if plain["sens_maps"] is None else Path(plain["sens_maps"]),
        "files": tuple(plain["files"]),
        "identity": Identity(**plain["identity"]),
    }
    return ItemTask(**{**plain, **values})


def result_to_plain(result: ItemResult) -> dict[str, Any]:
    """A result, JSON-ready."""
    return asdict(result)


def result_from_plain(plain: dict[str, Any]) -> ItemResult:
    """The result again."""
    values = {
        "outputs": tuple(OutputRow(**row) for row in plain["outputs"]),
        "layout": Layout(**plain["layout"]),
        "flags": tuple(Flag(**flag) for flag in plain["flags"]),
    }
    return ItemResult(**{**plain, **values})
