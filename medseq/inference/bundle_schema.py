"""What may stand in a bundle's ``bundle.yaml``: every key, its type and its range. No torch, no files but the text.

Unknown and repeated keys are refused, so a misspelt key never falls back to a default in silence. YAML aliases
are refused too: a few lines of them expand to gigabytes.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from medseq.errors import BundleError
from medseq.io.plain_text import MAX_TEXT_BYTES, plain_yaml
from medseq.io.volume import Modality, Units

__all__ = ["BundleConfig", "ClassSpec", "parse_yaml", "validate_config"]

_CLASS_PATH = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$"

# `units: 1` is a number in YAML; the unit is called "1".
UnitName = Annotated[Units, BeforeValidator(lambda value: "1" if value == 1 and value is not True else value)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ClassSpec(_Strict):
    """A class by its import path and the keywords it is built with; a keyword may be such a pair itself."""

    class_path: str = Field(pattern=_CLASS_PATH)
    init_args: dict[str, Any] = {}


class WeightsSpec(_Strict):
    """The weights file beside ``bundle.yaml``; floating-point tensors are stored as `dtype`."""

    file: str = "model.safetensors"
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _plain_name(self) -> "WeightsSpec":
        if not re.fullmatch(r"[\w.-]+\.safetensors", self.file) or self.file.startswith("."):
            raise ValueError("weights.file must be a plain name that ends in .safetensors")
        return self


class Range(_Strict):
    """A closed range; a missing end is open."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class InputSpec(_Strict):
    """What the model may be given.

    `channels` is what the network sees after `preprocess`; `units_of` gives the units of modalities that have others.
    """

    kind: Literal["volume", "kspace", "slide", "bag"]
    modality: list[Modality] = []
    units: UnitName = "1"
    units_of: dict[Modality, UnitName] = {}
    channels: int = Field(1, ge=1)
    context_slices: int = Field(0, ge=0)
    spacing_mm: Range | None = None
    body_part: list[str] = []
    feature_dim: int | None = Field(None, ge=1)
    encoder: str | None = None
    mpp: float | None = Field(None, gt=0)
    fft: str | None = None


class InferenceSpec(_Strict):
    """How the model is run.

    `tile` and `overlap` apply to planes larger than `tile`; `batch` counts planes or tiles; `uncertainty` writes the
    spread over flips and turns unless the caller says otherwise.
    """

    tile: int | tuple[int, int] | None = None
    overlap: float = Field(0.25, ge=0, lt=1)
    blend: Literal["gaussian", "constant"] = "gaussian"
    batch: int = Field(1, ge=1)
    uncertainty: bool = False

    @model_validator(mode="after")
    def _positive_tile(self) -> "InferenceSpec":
        sides = self.tile if isinstance(self.tile, tuple) else (self.tile,)
        if any(side is not None and side < 8 for side in sides):
            raise ValueError("inference.tile must be at least 8 pixels a side")
        return self


class OutputSpec(_Strict):
    """What the model returns.

    `scale_factor` is how many times as many rows and columns a super-resolution model returns.
    Of scores: `target` says what the logits are; `classes` names the classes, or the time bins of survival;
    `temperature` divides the logits, and `threshold` is where the probability of the second of two classes calls it.
    """

    kind: Literal["volume", "kspace", "scores"] = "volume"
    units: UnitName | None = None
    scale_factor: int = Field(1, ge=1, le=8)
    target: Literal["class", "ordinal", "survival"] = "class"
    classes: list[str] = []
    threshold: float | None = Field(None, ge=0, le=1)
    temperature: float | None = Field(None, gt=0)


class CheckSpec(_Strict):
    """One fidelity check: the metric `name` above `max` raises a flag. The names are those of `fidelity.METRICS`."""

    name: str
    max: float
    unit: UnitName = "1"


class BundleConfig(_Strict):
    """The content of ``bundle.yaml``, format 1.

    `preprocess_of` gives the chains of modalities that have another one than `preprocess`: one model for several.
    """

    format: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    version: str = Field(pattern=r"^[\w.+-]{1,32}$")
    task: Literal["restore", "recon", "mil"]
    model: ClassSpec
    weights: WeightsSpec
    input: InputSpec
    preprocess: list[ClassSpec] = []
    preprocess_of: dict[Modality, list[ClassSpec]] = {}
    inference: InferenceSpec = InferenceSpec()
    output: OutputSpec = OutputSpec()
    checks: list[CheckSpec] = []
    valid_range: Range | None = None

    def units_for(self, modality: str | None) -> Units:
        """The units in which the model takes a modality."""
        return self.input.units_of.get(modality, self.input.units)  # type: ignore[call-overload]

    def preprocess_for(self, modality: str | None) -> list[ClassSpec]:
        """The chain of a modality."""
        return self.preprocess_of.get(modality, self.preprocess)  # type: ignore[call-overload]


def parse_yaml(text: bytes, *, where: str) -> dict[str, Any]:
    """Read one mapping from YAML.

    Raises:
        BundleError: Not YAML, not a mapping, with aliases or repeated keys, or larger than 1 MiB.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise BundleError("bundle.yaml is too large", where=where, found=f"{len(text)} bytes", wanted="1 MiB at most")
    try:
        data = plain_yaml(text)
    except ValueError as error:
        raise BundleError(f"bundle.yaml is not readable: {error}", where=where) from None
    if not isinstance(data, dict):
        raise BundleError("bundle.yaml holds no mapping", where=where, found=type(data).__name__, wanted="keys: values")
    return data


def validate_config(data: dict[str, Any], *, where: str) -> BundleConfig:
    """Check a mapping against the schema.

    Raises:
        BundleError: Naming each key that is missing, unknown or out of range.
    """
    if data.get("format") != 1:
        raise BundleError(
            "the bundle has another format",
            where=where,
            found=f"format {data.get('format')!r}",
            wanted="format 1",
            remedy="update medseq, or convert the bundle again",
        )
    try:
        return BundleConfig.model_validate(data)
    except ValidationError as error:
        problems = [_problem(entry) for entry in error.errors(include_url=False, include_context=False)]
        raise BundleError("bundle.yaml does not fit: " + "; ".join(problems[:5]), where=where) from None


def _problem(entry: Any) -> str:
    key = ".".join(str(part) for part in entry["loc"]) or "(top level)"
    if entry["type"] == "extra_forbidden":
        return f"unknown key {key}"
    if entry["type"] == "missing":
        return f"missing key {key}"
    return f"{key}: {entry['msg'].removeprefix('Value error, ')}"
