"""What `fit` and `validate` share: the table of tasks, and shipped configurations by name. Light to import."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseq.cli.share import find_config
from medseq.errors import BundleError, InputError

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

    from medseq.cli.lightning import TaskCLI
    from medseq.tasks.data_module import TaskDataModule

__all__ = ["TASKS", "start_from", "task_cli"]

# Name -> (module, LightningModule, LightningDataModule): a new task is one line here.
TASKS = {
    "mil": ("medseq.tasks.mil", "MILTask", "MILDataModule"),
    "recon": ("medseq.tasks.recon", "ReconTask", "ReconDataModule"),
    "restore": ("medseq.tasks.restore", "RestoreTask", "RestoreDataModule"),
}


def task_cli(verb: str, task: str, arguments: Sequence[str], *, quiet: bool = False) -> "TaskCLI":
    """Parse the configuration of a task and build trainer, task and data; nothing is run.

    Args:
        verb: The command, for usage texts.
        task: A key of `TASKS`.
        arguments: What followed the task on the command line.
        quiet: Lightning logs warnings only.

    Raises:
        InputError: Unknown task or configuration file.
        ManifestError: The configuration does not fit the classes; the message is the parser's.
    """
    if task not in TASKS:
        raise InputError("unknown task", found=task, wanted=", ".join(TASKS))
    arguments = _shipped_configs(arguments)
    from medseq.cli.lightning import build

    return build(f"{verb} {task}", TASKS[task], arguments, quiet=quiet)


def start_from(
    task: "LightningModule", source: str | None, *, resumed: bool = False, data: "TaskDataModule | None" = None
) -> None:
    """Give a new training the weights of an old one, in the network and in its average.

    Args:
        task: The task, built.
        source: A checkpoint of a training (``.ckpt``), or a bundle, by name or by path; None changes nothing.
        resumed: The run goes on from a checkpoint of its own.
        data: The new training's data, whose validation and test patients the bundle must not have been trained on.

    Raises:
        InputError: Both at once, or a patient of validation or test that the bundle was trained on.
        BundleError: No such bundle, or weights that do not fit the network; both sides are named.
    """
    if source is None:
        return
    if resumed:
        raise InputError("--ckpt resumes a run, --init begins another", remedy="give one of the two")
    from medseq.cli.bundle import checkpoint_weights
    from medseq.inference.bundle import load_bundle

    if source.endswith(".ckpt"):
        state = checkpoint_weights(Path(source))
    else:
        bundle = load_bundle(source)
        if data is not None:
            _require_unseen(data, bundle.metadata, source)
        state = bundle.build_model().state_dict()
    own = task.net.state_dict()
    wrong = [key for key in own.keys() | state.keys() if key not in own or key not in state]
    wrong += [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if wrong:
        raise BundleError(
            "the weights are not those of this network",
            where=source,
            found=f"{len(wrong)} keys that differ, such as {min(wrong)}",
            wanted="the same architecture as model.net",
        )
    task.net.load_state_dict(state)
    task.ema.load_state_dict(state)


def _require_unseen(data: "TaskDataModule", metadata: Mapping[str, Any], source: str) -> None:
    """Refuse to judge a fine-tuned model by patients that its start has learned from."""
    from medseq.cli.fit_record import patient_hashes

    known = set(metadata.get("training", {}).get("patients", ()))
    for part in ("val", "test"):
        both = known & set(patient_hashes(getattr(data, part, None)))
        if both:
            raise InputError(
                f"patients of data.{part} are in the training data of the bundle",
                where=source,
                found=f"{len(both)} patients",
                remedy="split the data so that they are in data.train, or start from another bundle",
            )


def _shipped_configs(arguments: Sequence[str]) -> list[str]:
    """Replace the name of a shipped configuration by its path."""
    out: list[str] = []
    for argument in arguments:
        if out and out[-1] in ("--config", "-c"):
            out.append(str(find_config(argument)))
        elif argument.startswith("--config="):
            out.append(f"--config={find_config(argument.partition('=')[2])}")
        else:
            out.append(argument)
    return out
