"""The models of a benchmark: bundles as they are, configurations trained once for every seed, one protocol for all."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseq.cli.benchmark_cases import CaseScores, score_cases
from medseq.cli.console import say
from medseq.errors import InputError

if TYPE_CHECKING:
    from medseq.cli.lightning import TaskCLI
    from medseq.tasks.averaged import AveragedTask

__all__ = ["ScoredModels", "scored_models"]


@dataclass(frozen=True)
class ScoredModels:
    """Scores and costs by name of the model.

    Attributes:
        part: Which cases: ``test`` or ``val``.
        scores: One `CaseScores` for each seed; a bundle has one.
        costs: Parameters and 10^9 multiply-adds of one case.
        baseline: Scores of the input itself.
    """

    part: str
    scores: dict[str, list[CaseScores]]
    costs: dict[str, dict[str, float]]
    baseline: list[tuple[str, str, dict[str, float]]]

    def spread(self) -> dict[str, dict[str, float]]:
        """Standard deviation between seeds of the mean over cases, for models that have several."""
        out = {}
        for name, runs in self.scores.items():
            if len(runs) > 1:
                metrics = runs[0].cases[0][2]
                means = {m: [statistics.fmean(case[2][m] for case in run.cases) for run in runs] for m in metrics}
                out[name] = {metric: statistics.stdev(values) for metric, values in means.items()}
        return out


def scored_models(
    task: str, models: Sequence[str], data: str, *, out: Path, seeds: int, steps: int | None, quiet: bool
) -> ScoredModels:
    """Train what is to be trained, and score everything on the same cases.

    Raises:
        InputError: The same model twice, or a bundle of another task.
    """
    from medseq.cli.share import config_names

    if len(set(models)) != len(models):
        raise InputError("a model is named twice", where="--models", found=", ".join(models))
    only_data = _data_section(data, out)
    part = ""
    scores: dict[str, list[CaseScores]] = {}
    costs: dict[str, dict[str, float]] = {}
    for name in models:
        is_config = name.removesuffix(".yaml") in config_names() or name.endswith((".yaml", ".yml"))
        for seed in range(1, seeds + 1) if is_config else [0]:
            say(f"{name}: seed {seed}" if is_config else name, quiet=quiet)
            module, cli = (
                _trained(task, name, only_data, seed, out, steps) if is_config else _of_bundle(task, name, data)
            )
            part = "test" if cli.datamodule.test is not None else "val"
            cases = getattr(cli.datamodule, part)
            scores.setdefault(name, []).append(score_cases(module, cases, type(cli.datamodule).collate))
            if name not in costs:
                costs[name] = _cost(module, cases, type(cli.datamodule).collate)
    return ScoredModels(part, scores, costs, scores[models[0]][0].baseline)


def _data_section(data: str, out: Path) -> Path:
    """The data of a configuration as a file of its own, to be laid over those of other configurations."""
    import yaml

    from medseq.cli.bundle import load_mapping
    from medseq.cli.share import find_config

    section = load_mapping(find_config(data)).get("data")
    if not section:
        raise InputError("the configuration has no data section", where="--data", found=data)
    path = out / "data.yaml"
    path.write_text(yaml.safe_dump({"data": section}, sort_keys=False), encoding="utf-8")
    return path


def _trained(
    task: str, name: str, data: Path, seed: int, out: Path, steps: int | None
) -> "tuple[AveragedTask, TaskCLI]":
    from medseq.cli.training import task_cli

    words = ["--config", name, "--config", str(data), f"--seed_everything={seed}", "--trainer.logger=false"]
    words += [f"--trainer.default_root_dir={out / 'runs'}", "--trainer.enable_checkpointing=false"]
    words += ["--trainer.enable_model_summary=false", "--trainer.enable_progress_bar=false"]
    if steps is not None:
        words += [f"--trainer.max_steps={steps}", "--trainer.max_epochs=-1"]
    cli = task_cli("fit", task, [*words, "--trainer.callbacks=[]"], quiet=True)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return cli.model, cli


def _of_bundle(task: str, name: str, data: str) -> "tuple[AveragedTask, TaskCLI]":
    """A task around the bundle's network and transforms; what is scored, and how, is the data configuration's."""
    from medseq.cli.training import task_cli
    from medseq.inference.bundle import load_bundle

    bundle = load_bundle(name)
    if bundle.config.task != task:
        raise InputError("the bundle does something else", where=name, found=bundle.config.task, wanted=task)
    cli = task_cli("validate", task, ["--config", data, "--trainer.logger=false"], quiet=True)
    cli.model.net = bundle.build_model()
    cli.model.ema = cli.model.net
    if hasattr(cli.model, "preprocess"):
        cli.model.preprocess = bundle.transforms()
    return cli.model, cli


def _cost(module: "AveragedTask", cases: Any, collate: Any) -> dict[str, float]:
    """Parameters, and multiply-adds of the network on the first case."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from medseq.inference.model_cost import formulas

    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=formulas()) as counter:
        module.evaluation_step(collate([cases[0]]), -1, "case")
    parameters = sum(p.numel() for p in module.net.parameters())
    return {"parameters": parameters, "gmac": counter.get_total_flops() / 2e9}
