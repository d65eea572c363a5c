"""`medseq convert`: a checkpoint of another implementation becomes a bundle with the same numbers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medseq.cli.console import AsJson, Quiet, Verbose, print_json, say
from medseq.errors import BundleError, InputError

if TYPE_CHECKING:
    from medseq.inference.bundle import Bundle

__all__ = ["convert"]


def convert(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(help="Whose checkpoint it is, e.g. restore-rwkv; auto: by its keys.")],
    ckpt: Annotated[
        Path, typer.Argument(help="Their checkpoint: .pt, .pth, .ckpt, .safetensors or .atommic; no code in it is run.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the new bundle.")],
    config: Annotated[
        list[str] | None,
        typer.Option("--config", metavar="K=V …", help="Arguments of their constructor: --config type=SRMamba rate=5."),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            "--like", help="Bundle (name or path) whose input, preprocess, inference and output to take over."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the bundle; else that of the folder.")] = None,
    modality: Annotated[
        list[str] | None, typer.Option("--modality", help="CT, MR, PT, NM or OT; repeatable; any if not given.")
    ] = None,
    units: Annotated[str, typer.Option("--units", help="Units that it was trained on: HU, SUVbw, Bq/ml or 1.")] = "1",
    dtype: Annotated[
        Literal["float32", "float16"], typer.Option("--dtype", help="Storage of the weights.")
    ] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert a checkpoint of the original implementation: convert restore-rwkv their.pt ./bundle --config dim=48.

    Folders that medseq export wrote come back too: convert hf|monai|torch-export FOLDER ./bundle.
    """
    import hashlib
    import io

    from medseq.cli.bundle import INTENDED_USE, load_tensors, read_state_dict, software_versions
    from medseq.inference import reference
    from medseq.inference.bundle import save_bundle
    from medseq.inference.export import RETURNING, from_export
    from medseq.inference.reference_archive import is_archive, read_archive, without_training

    arguments = dict(_key_value(text) for text in [*(config or []), *ctx.args])
    if source in RETURNING:
        made = from_export(source, ckpt, out, overwrite=overwrite)
        _tell(made, as_json=as_json, quiet=quiet)
        return
    if source not in (*reference.sources(), "auto"):
        raise InputError("unknown reference implementation", found=source, wanted=", ".join(reference.sources()))
    if is_archive(ckpt) and ckpt.is_file():
        weights, stored = read_archive(ckpt)
        state = without_training(_plain_state(load_tensors(io.BytesIO(weights), ckpt.name), ckpt))
        arguments = stored | arguments
    else:
        state = _plain_state(read_state_dict(ckpt), ckpt)
    source = reference.detect(state) if source == "auto" else source
    model = reference.load(source, state, arguments)
    kind = type(model)
    if not hasattr(model, "init_args"):
        raise BundleError(
            "only whole networks become bundles",
            found=kind.__name__,
            remedy="give the whole state dict; layers load by medseq.inference.reference",
        )
    content = {
        "name": name or out.resolve().name,
        "version": "1.0",
        **_surroundings(like, modality or [], units, model),
        "model": {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": model.init_args},
    }
    digest = hashlib.sha256(ckpt.read_bytes()).hexdigest()
    facts = {
        "intended_use": INTENDED_USE,
        "training_data": "not known: converted from another implementation",
        "licence": "that of the checkpoint; not stated here",
        "converted_from": {"source": source, "sha256": digest, "config": arguments},
        "versions": software_versions(),
    }
    card = f"# {content['name']}\n\nConverted from a {source} checkpoint (sha256 {digest}). {INTENDED_USE}.\n"
    if quirks := getattr(model, "quirks", []):
        # Trained weights rely on them, so they are reproduced: whoever reads the numbers must know.
        facts["reproduced_errors_of_the_original"] = quirks
        card += "\nReproduces what the original does and its weights rely on:\n\n"
        card += "".join(f"- {quirk}\n" for quirk in quirks)
    made = save_bundle(out, content, model.state_dict(), metadata=facts, card=card, dtype=dtype, overwrite=overwrite)
    made.build_model()
    _tell(made, as_json=as_json, quiet=quiet)


def _tell(made: "Bundle", *, as_json: bool, quiet: bool) -> None:
    if as_json:
        print_json({"folder": made.folder, "name": made.config.name, "hash": made.hash})
        return
    say(f"bundle {made.config.name}: {made.folder} ({made.hash[:12]})", quiet=quiet)


def _key_value(text: str) -> tuple[str, Any]:
    """``dim=48`` -> ("dim", 48): the value is YAML, so lists and booleans work."""
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError("not an argument", where="--config", found=text, wanted="KEY=VALUE")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError("the value is not YAML", where="--config", found=text, wanted="KEY=VALUE") from None


def _plain_state(content: Any, path: Path) -> dict[str, Any]:
    """The state dict itself, whatever training code wrapped around it."""
    import torch

    # direct keeps the sensitivity network beside the model.
    beside = content.get("sensitivity_model") if isinstance(content, dict) else None
    for key in ("state_dict", "model_state_dict", "params", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if isinstance(beside, dict) and isinstance(content, dict):
        content = content | {f"sensitivity_model.{key}": value for key, value in beside.items()}
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise BundleError("the checkpoint holds no state dict", where=path.name, wanted="parameter name -> tensor")
    return {key.removeprefix("module."): value for key, value in content.items()}


def _surroundings(like: str | None, modality: list[str], units: str, model: Any) -> dict[str, Any]:
    """Everything in bundle.yaml but the model: from another bundle, or plain images as the network takes them."""
    from medseq.inference.bundle import load_bundle

    if like is not None:
        own = {"format", "name", "version", "model", "weights"}
        return load_bundle(like).config.model_dump(mode="json", exclude=own)
    # models/<task>_<architecture>.py
    task = type(model).__module__.rpartition(".")[2].partition("_")[0]
    if task == "recon":
        fft = f"{model.fft_origin}-{model.fft_norm}"
        return {
            "task": task,
            "input": {"kind": "kspace", "modality": modality or ["MR"], "units": "1", "fft": fft},
            # The scale that the weights were trained at.
            "preprocess": getattr(model, "preprocess", []),
            "output": {"kind": "volume"},
        }
    if task == "mil":
        classes = [f"class {number}" for number in range(model.classifier.out_features)]
        return {
            "task": task,
            "input": {"kind": "bag", "feature_dim": model.in_dim},
            "output": {"kind": "scores", "classes": classes},
        }
    image = {"kind": "volume", "modality": modality, "units": units, "channels": getattr(model, "in_channels", 1)}
    return {"task": task, "input": image, "output": {"kind": "volume", "units": units}}
