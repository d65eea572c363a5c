"""Write a restoration bundle as a MONAI bundle: ``python -m monai.bundle run`` takes a folder of NIfTI through it.

What runs is medseq's own predictor (`medseq.inference.monai_inferer`), so preprocessing, tiles, gates and checks of the
numbers are those of ``medseq predict``. The configuration names folders and no expressions of the bundle, because MONAI
evaluates strings that begin with ``$``.
"""

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from medseq import __version__
from medseq.errors import BackendError, InputError
from medseq.inference.bundle import Bundle
from medseq.inference.export import SIDECAR, Parity, card, sidecar

__all__ = ["SCHEMA", "write_monai"]

# What `verify_metadata` checks against, offline: our own reading of MONAI's bundle specification.
SCHEMA = Path(__file__).parent / "monai_metadata.schema.json"
_SCHEMA_NAME = "metadata_schema.json"

_INFERENCE: dict[str, Any] = {
    "imports": ["$import glob", "$import os", "$import torch"],
    "bundle_root": ".",
    "dataset_dir": "$@bundle_root + '/input'",
    "output_dir": "$@bundle_root + '/output'",
    "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
    "network_def": {"_target_": "medseq.inference.monai_inferer.build_network", "folder": "@bundle_root"},
    "network": "$@network_def.to(@device).eval()",
    "weights": "$torch.load(@bundle_root + '/models/model.pt', map_location=@device, weights_only=True)",
    "files": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii*')))",
    "load_image": {"_target_": "LoadImage", "image_only": True, "ensure_channel_first": True},
    "inferer": {
        "_target_": "medseq.inference.monai_inferer.VolumeInferer",
        "folder": "@bundle_root",
        "network": "@network",
        "device": "@device",
    },
    "save_image": {
        "_target_": "SaveImage",
        "output_dir": "@output_dir",
        "output_postfix": "restored",
        "separate_folder": False,
        "resample": False,
        "print_log": False,
    },
    "process": {"_target_": "Compose", "transforms": ["@load_image", "@inferer", "@save_image"]},
    "initialize": ["$@network.load_state_dict(@weights)"],
    "run": ["$list(map(@process, @files))"],
}


def write_monai(bundle: Bundle, folder: Path, size: tuple[int, int], seed: int) -> tuple[dict[str, Any], Parity | None]:
    """Write ``configs``, ``models``, ``docs`` and ``LICENSE``. `size` and `seed` play no part.

    Raises:
        InputError: The bundle is not one from images to images.
        BackendError: MONAI is not installed.
    """
    if bundle.config.task != "restore":
        raise InputError(
            "a MONAI bundle describes networks from images to images",
            where=bundle.config.name,
            found=f"task {bundle.config.task}",
            wanted="task restore",
            remedy="export it with --to hf",
        )
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir()
    torch.save(bundle.build_model().state_dict(), folder / "models" / "model.pt")
    _dump(folder / "configs" / "metadata.json", _metadata(bundle))
    _dump(folder / "configs" / "inference.json", _INFERENCE)
    shutil.copyfile(SCHEMA, folder / "configs" / _SCHEMA_NAME)
    (folder / "configs" / SIDECAR).write_text(sidecar(bundle), encoding="utf-8")
    how = (
        "\n## Use with MONAI\n\nPut NIfTI files into `input` and run, in this folder:\n\n"
        "    python -m monai.bundle run --config_file configs/inference.json\n"
    )
    (folder / "docs" / "README.md").write_text(card(bundle).rstrip() + "\n" + how, encoding="utf-8")
    (folder / "LICENSE").write_text(str(bundle.metadata.get("licence", "not stated")) + "\n", encoding="utf-8")
    return {"weights": "float32", "configuration": "configs/inference.json"}, None


def _metadata(bundle: Bundle) -> dict[str, Any]:
    spec, facts = bundle.config, bundle.metadata
    factor = spec.output.scale_factor
    image = {
        "type": "image",
        "format": "hounsfield" if spec.input.units == "HU" else "magnitude",
        "modality": " or ".join(spec.input.modality) or "any",
        "num_channels": spec.input.channels,
        # The network takes planes of any size; what it sees comes after the bundle's preprocessing.
        "spatial_shape": ["16*n", "16*n"],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {
            str(channel): f"channel {channel} of the preprocessing" for channel in range(spec.input.channels)
        },
    }
    restored = {**image, "num_channels": 1, "channel_def": {"0": "restored image"}}
    sets = facts.get("training_data", [])
    sets = sets if isinstance(sets, list) else [sets]
    names = [str(entry.get("name", "")) if isinstance(entry, dict) else str(entry) for entry in sets]
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": spec.version,
        "changelog": {spec.version: f"exported by medseq {__version__} from bundle {bundle.hash[:12]}"},
        "monai_version": _version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": _version("numpy"),
        "optional_packages_version": {"medseq": __version__, "nibabel": _version("nibabel")},
        "name": spec.name,
        "task": "super-resolution" if factor > 1 else "denoising",
        "description": f"{spec.name}: plane by plane restoration by a linear-time network of medseq",
        "authors": "see docs/README.md",
        "copyright": str(facts.get("licence", "not stated")),
        "data_source": "; ".join(filter(None, names)) or "not stated",
        "data_type": "nibabel",
        "image_classes": "single-channel image",
        "intended_use": str(facts.get("intended_use", "Research use only, not for diagnosis")),
        "references": [],
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": restored}},
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise BackendError(f"{name} is not installed", remedy="pip install 'medseq[export]'") from None


def _dump(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
