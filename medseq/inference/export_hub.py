"""The layout of Hugging Face: ``config.json``, ``model.safetensors`` and a card that starts with its metadata.

    from medseq.inference.export_hub import HubModel
    model = HubModel.from_pretrained("folder")        # or the name of a repository that you uploaded

`HubModel` is a `PyTorchModelHubMixin` around the bundle's network; the call of the network is the call of the model.
Nothing here talks to a network: the folder is uploaded by whoever owns it.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from medseq.errors import BackendError
from medseq.inference.bundle import Bundle
from medseq.inference.bundle_classes import build_class
from medseq.inference.bundle_schema import ClassSpec, validate_config
from medseq.inference.export import SIDECAR, Parity, card, sidecar

__all__ = ["hub_model", "write_hub"]

_TAGS = {
    "restore": ("image-to-image", "denoising"),
    "recon": ("image-to-image", "mri-reconstruction"),
    "mil": ("image-classification", "multiple-instance-learning"),
}
_made: dict[str, type] = {}


def __getattr__(name: str) -> Any:
    # The class is made when it is asked for: huggingface_hub is an extra.
    if name == "HubModel":
        return hub_model()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def hub_model() -> type:
    """The class `HubModel`.

    Raises:
        BackendError: huggingface_hub is not installed.
    """
    if "HubModel" in _made:
        return _made["HubModel"]
    try:
        from huggingface_hub import PyTorchModelHubMixin
    except ModuleNotFoundError:
        raise BackendError("huggingface_hub is not installed", remedy="pip install 'medseq[export]'") from None
    from torch import nn

    class HubModel(
        nn.Module,
        PyTorchModelHubMixin,
        library_name="medseq",
        tags=["medical-imaging"],
    ):
        """The network of a bundle, by ``from_pretrained`` and ``save_pretrained``.

        Args:
            bundle: The content of ``bundle.yaml`` without weights; classes outside medseq are refused.
        """

        def __init__(self, bundle: dict[str, Any]) -> None:
            super().__init__()
            config = validate_config({**bundle, "weights": {"sha256": "0" * 64}}, where=str(bundle.get("name")))
            self.bundle = bundle
            self.net = build_class(ClassSpec(**config.model.model_dump()), where=config.name)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.net(*args, **kwargs)

    _made["HubModel"] = HubModel
    return HubModel


def write_hub(bundle: Bundle, folder: Path, size: tuple[int, int], seed: int) -> tuple[dict[str, Any], Parity | None]:
    """Write the folder. Weights are float32; `size` and `seed` play no part.

    Raises:
        BackendError: huggingface_hub is not installed.
    """
    content = bundle.config.model_dump(mode="json", exclude={"weights"})
    model = hub_model()(bundle=content)
    model.net.load_state_dict(bundle.build_model().state_dict())
    model.eval().save_pretrained(folder)
    if not (folder / "config.json").is_file():
        (folder / "config.json").write_text(json.dumps({"bundle": content}, indent=1) + "\n", encoding="utf-8")
    (folder / SIDECAR).write_text(sidecar(bundle), encoding="utf-8")
    pipeline, tag = _TAGS[bundle.config.task]
    about = {
        "library_name": "medseq",
        "pipeline_tag": pipeline,
        "tags": ["medical-imaging", tag, *(name.lower() for name in bundle.config.input.modality)],
        "license": "other",
        "license_name": str(bundle.metadata.get("licence", "not stated"))[:200],
    }
    front = yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=1000)
    how = (
        "\n## Use\n\n```python\nfrom medseq.inference.export_hub import HubModel\n\n"
        'model = HubModel.from_pretrained("folder or repository").eval()\n```\n'
    )
    (folder / "README.md").write_text(f"---\n{front}---\n\n{card(bundle).rstrip()}\n{how}", encoding="utf-8")
    return {"weights": "float32"}, None
