"""`medseq bundle`: turn a training checkpoint into a bundle for inference."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import typer

from medseq.cli.console import AsJson, Quiet, Verbose, print_json, say
from medseq.errors import BundleError, InputError, ManifestError

if TYPE_CHECKING:
    from torch import Tensor

    from medseq.inference.bundle import Bundle

__all__ = [
    "bundle",
    "checkpoint_weights",
    "load_mapping",
    "load_tensors",
    "make_bundle",
    "read_state_dict",
    "software_versions",
]

INTENDED_USE = "Research use only, not for diagnosis"


def bundle(
    ckpt: Annotated[Path, typer.Argument(help="Checkpoint of a training run; config.yaml lies beside or above it.")],
    out: Annotated[Path, typer.Argument(help="Folder of the new bundle.")],
    card: Annotated[Path, typer.Option("--card", help="Model card, Markdown.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="The run's config.yaml, if it lies elsewhere.")
    ] = None,
    metadata: Annotated[
        Path | None,
        typer.Option("--metadata", help="JSON or YAML for metadata.json: training data with hashes, metrics, licence."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16"], typer.Option("--dtype", help="Storage of the weights.")
    ] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a bundle from a training checkpoint, with the averaged weights if the run kept them."""
    if not card.is_file():
        raise InputError("no such model card", where="--card", found=card.name)
    extra = load_mapping(metadata) if metadata else {}
    made = make_bundle(
        ckpt,
        out,
        config=config,
        card=card.read_text(encoding="utf-8"),
        metadata=extra,
        dtype=dtype,
        overwrite=overwrite,
    )
    if as_json:
        print_json({"folder": made.folder, "name": made.config.name, "hash": made.hash})
        return
    say(f"bundle {made.config.name} {made.config.version}: {made.folder} ({made.hash[:12]})", quiet=quiet)


def make_bundle(
    ckpt: Path,
    out: Path,
    *,
    config: Path | None = None,
    card: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
) -> "Bundle":
    """Write a bundle from a Lightning checkpoint and the resolved configuration of its run.

    Args:
        ckpt: Checkpoint of one of the tasks; its averaged weights (``ema.``) win over the last ones (``net.``).
        out: Folder to write.
        config: The run's ``config.yaml``; looked for beside the checkpoint and in two folders above if None.
        card: Model card, Markdown; a notice that there is none yet if None.
        metadata: Goes into ``metadata.json`` beside what the checkpoint says of itself.
        dtype: Storage of the weights, float32 or float16.
        overwrite: Replace an existing bundle.

    Raises:
        InputError: No configuration, or no such checkpoint.
        ManifestError: The configuration says nothing about a bundle.
        BundleError: The checkpoint is not one of a task, or the bundle would not load.
    """
    from medseq.inference.bundle import save_bundle

    checkpoint = _load_checkpoint(ckpt)
    settings = load_mapping(config or _config_beside(ckpt)).get("model", {})
    about = dict(settings.get("bundle") or {})
    if not about:
        raise ManifestError(
            "the configuration says nothing about a bundle",
            where="model.bundle",
            wanted="name, version, task, input, …",
        )
    extra = {**(about.pop("metadata", None) or {}), **(metadata or {})}
    if "version" in about:
        # "1" is written into config.yaml as a number.
        about["version"] = str(about["version"])
    content = {"model": settings["net"], "preprocess": settings.get("preprocess") or [], **about}
    if "output" in about and isinstance(checkpoint.get("output"), dict):
        # What the logits are, and what was fitted to validation cases: threshold and temperature.
        content["output"] = {**about["output"], **checkpoint["output"]}
    weights, which = _weights(checkpoint["state_dict"])
    if "model" in about:
        # What is shipped wraps what was trained, under the name `net`.
        content["model"] = _wrapped(about["model"], settings["net"])
        weights = {f"net.{key}": value for key, value in weights.items()}
    facts = {
        "intended_use": INTENDED_USE,
        **extra,
        "versions": software_versions(),
        "training": {
            **extra.get("training", {}),
            "optimizer_steps": int(checkpoint["global_step"]),
            "epochs": int(checkpoint["epoch"]) + 1,
            "weights": which,
            **_patients(ckpt),
            **({"validation": checkpoint["validation"]} if "validation" in checkpoint else {}),
        },
    }
    text = card or f"# {about.get('name', 'model')}\n\nNo model card was written for this bundle. {INTENDED_USE}.\n"
    made = save_bundle(out, content, weights, metadata=facts, card=text, dtype=dtype, overwrite=overwrite)
    # What loads today must build today, not at the first patient.
    made.build_model()
    for modality in (None, *made.config.preprocess_of):
        made.transforms(modality)
    return made


def software_versions() -> dict[str, str]:
    """Versions that a bundle was made with."""
    import importlib.metadata

    import torch

    from medseq import __version__

    return {"medseq": __version__, "torch": torch.__version__, "numpy": importlib.metadata.version("numpy")}


def load_mapping(path: Path) -> dict[str, Any]:
    """A mapping from a JSON or YAML file.

    Raises:
        InputError: No such file, or not a mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError("the file cannot be read", where=path.name, found=type(error).__name__) from None
    if not isinstance(content, dict):
        raise InputError("the file holds no mapping", where=path.name, found=type(content).__name__)
    return content


def read_state_dict(path: Path) -> Any:
    """What a ``.pt``, ``.ckpt`` or ``.safetensors`` file holds, without running any code in it.

    Raises:
        InputError: No such file.
        BundleError: Not such a file, or it needs code to be loaded.
    """
    if not path.is_file():
        raise InputError("no such checkpoint", found=path.name)
    return load_tensors(path, path.name)


def load_tensors(source: Path | BinaryIO, where: str) -> Any:
    """What a file, or a stream that torch has written, holds, without running any code in it.

    Raises:
        BundleError: Not such a file, or it needs code to be loaded.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if isinstance(source, Path) and source.suffix == ".safetensors":
            return load_file(source)
        return torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise BundleError(
            "the checkpoint cannot be loaded as plain tensors",
            where=where,
            found=str(error).splitlines()[0][:200],
            remedy="save its state_dict() with torch.save or safetensors",
        ) from None


def _patients(ckpt: Path) -> dict[str, list[str]]:
    """Hashes of the training patients, from the run's record: nobody else may be judged by them."""
    for folder in list(ckpt.resolve().parents)[:3]:
        if (folder / "run.json").is_file():
            found = load_mapping(folder / "run.json").get("patients", {}).get("train", [])
            return {"patients": found} if found else {}
    return {}


def _wrapped(outer: Mapping[str, Any], net: Mapping[str, Any]) -> dict[str, Any]:
    """The class of a bundle around the trained network, which is its argument `net`."""
    return {**outer, "init_args": {**(outer.get("init_args") or {}), "net": net}}


def checkpoint_weights(path: Path) -> "dict[str, Tensor]":
    """The network's weights in a training checkpoint, the averaged ones if the run kept them.

    Raises:
        InputError: No such file.
        BundleError: Not a training checkpoint.
    """
    return _weights(_load_checkpoint(path)["state_dict"])[0]


def _load_checkpoint(path: Path) -> dict[str, Any]:
    checkpoint = read_state_dict(path)
    if not isinstance(checkpoint, dict) or not {"state_dict", "global_step", "epoch"} <= checkpoint.keys():
        raise BundleError("not a training checkpoint", where=path.name, wanted="state_dict, global_step and epoch")
    return checkpoint


def _config_beside(ckpt: Path) -> Path:
    for folder in list(ckpt.resolve().parents)[:3]:
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    raise InputError("no config.yaml beside the checkpoint", where=ckpt.name, remedy="give it with --config")


def _weights(state: "Mapping[str, Tensor]") -> "tuple[dict[str, Tensor], str]":
    for prefix, which in (("ema.", "moving average"), ("net.", "last step")):
        found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if found:
            return found, which
    raise BundleError("the checkpoint holds no network", wanted="keys that start with ema. or net.")
