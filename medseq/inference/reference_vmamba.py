"""VMamba from the state dicts of its authors' code: whole backbones, single blocks and single SS2D layers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from medseq.errors import BundleError
from medseq.inference.reference_keys import load_strictly, ratio, reconcile
from medseq.models.backbone_vmamba import VSSM, VSSMFeatures
from medseq.nn.ss2d import SS2D
from medseq.nn.ss2d_variants import ForwardType
from medseq.nn.ssm_init import resolve_dt_rank
from medseq.nn.vss_block import VSSBlock

__all__ = ["from_vmamba"]

_SOURCE = "vmamba"

# Names of older checkpoints -> those of today.
_RENAMED = (
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"^(layers\.\d+\.blocks\.\d+)\.ln_1\.", r"\1.norm."),
    (r"^(layers\.\d+\.blocks\.\d+)\.self_attention\.", r"\1.op."),
    (r"^norm\.", "classifier.norm."),
    (r"^head\.", "classifier.head."),
)
# Arguments without influence on a loaded model's numbers.
_TRAINING = dict.fromkeys(("dropout", "initialize", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor"))
_BLOCK_TRAINING = dict.fromkeys(
    ("drop_path", "ssm_drop_rate", "mlp_drop_rate", "ssm_init", "use_checkpoint", "norm_layer")
)
_MODEL_TRAINING = dict.fromkeys(("drop_path_rate", "imgsize", "pretrained"))
# Arguments that no size tells.
_LAYER = {"act_layer": "silu", "channel_first": False}
_BLOCK = {"ssm_act_layer": "silu", "mlp_act_layer": "gelu", "post_norm": False, "channel_first": False}
_MODEL = {"ssm_act_layer": "silu", "mlp_act_layer": "gelu"}
# Their words for our arguments.
_OURS = {"act_layer": "act", "ssm_act_layer": "ssm_act", "mlp_act_layer": "mlp_act", "in_chans": "in_channels"}
_NORM_KEYS = {"out_norm.weight": "layer", "out_norm.1.weight": "dwconv3", "out_norm.0.weight": "cnorm"}


def from_vmamba(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> nn.Module:
    """Build and load what a state dict belongs to: VSSM, VSSMFeatures, VSSBlock or SS2D.

    `config` has the original constructor's words. It is needed for what no size tells: ``forward_type`` (else the cross
    scan), activations, ``post_norm``, and for blocks and layers ``channel_first``.

    Raises:
        BundleError: Unknown, missing or contradicting keys.
    """
    state = dict(state_dict)
    try:
        if "x_proj_weight" in state:
            layer = SS2D(**_arguments(config, _layer_sizes(state, config), _LAYER, _TRAINING))
            return load_strictly(_SOURCE, layer, state)
        if any(key.startswith(("op.", "mlp.")) for key in state):
            block = VSSBlock(**_arguments(config, _block_sizes(state, config), _BLOCK, _BLOCK_TRAINING))
            return load_strictly(_SOURCE, block, state)
        for pattern, name in _RENAMED:
            state = {re.sub(pattern, name, key): value for key, value in state.items()}
        return _backbone(state, config)
    except KeyError as error:
        raise BundleError("a key is missing", where=_SOURCE, found=sorted(state)[:5], wanted=error.args[0]) from None


def _arguments(
    config: Mapping[str, Any], sizes: Mapping[str, Any], told: Mapping[str, Any], free: Mapping[str, Any]
) -> dict[str, Any]:
    """Our constructor's arguments: what the state dict tells, and what only `config` can."""
    known = reconcile(_SOURCE, config, sizes, {**told, **free})
    chosen = {key: known[key] for key in (*sizes, *told)}
    return {_OURS.get(key, key): _lower(value) if key.endswith("act_layer") else value for key, value in chosen.items()}


def _lower(word: Any) -> Any:
    return word.lower() if isinstance(word, str) else word


def _backbone(state: dict[str, Tensor], config: Mapping[str, Any]) -> nn.Module:
    """The whole network, with a classifier or with norms for feature maps."""
    matches = [re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", key) for key in state]
    blocks = sorted({(int(match[1]), int(match[2])) for match in matches if match})
    if "patch_embed.0.weight" not in state or not blocks:
        raise BundleError("not a VMamba state dict", where=_SOURCE, found=sorted(state)[:5])
    depths = [sum(stage == number for stage, _ in blocks) for number in range(blocks[-1][0] + 1)]
    stages = [_under(state, f"layers.{number}.blocks.0.") for number in range(len(depths))]
    embed, two = state["patch_embed.0.weight"], "patch_embed.5.weight" in state
    sizes = {
        # Of the widest stage, whose ratios are the least rounded.
        **_block_sizes(stages[-1], config),
        "in_chans": embed.shape[1],
        "depths": depths,
        "dims": [_width(stage) for stage in stages],
        "patch_size": 2 * (embed.shape[2] - 1) if two else embed.shape[2],
        "patchembed_version": "v2" if two else "v1",
        "patch_norm": "patch_embed.2.weight" in state,
        "ssm_dt_rank": _dt_rank([_under(stage, "op.") for stage in stages], config.get("ssm_dt_rank")),
        **_downsample_version(state),
    }
    del sizes["hidden_dim"]
    if isinstance(config.get("dims"), int):
        config = {**config, "dims": [config["dims"] * 2**stage for stage in range(len(depths))]}
    free: dict[str, Any] = {**_BLOCK_TRAINING, **_MODEL_TRAINING}
    whole = "classifier.head.weight" in state
    if whole:
        sizes["num_classes"] = state["classifier.head.weight"].shape[0]
    else:
        sizes["out_indices"] = [stage for stage in range(len(depths)) if f"outnorm{stage}.weight" in state]
        free["num_classes"] = None
    if config.get("posembed"):
        raise BundleError("position embeddings are not supported", where=_SOURCE, wanted="posembed false")
    arguments = _arguments(config, sizes, _MODEL, {**free, "posembed": False})
    return load_strictly(_SOURCE, (VSSM if whole else VSSMFeatures)(**arguments), state)


def _layer_sizes(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of SS2D."""
    inner = state["A_logs"].shape[0] // 4
    rows, d_model = state["in_proj.weight"].shape[:2]
    conv = state.get("conv2d.weight")
    return {
        "d_model": d_model,
        "d_state": state["A_logs"].shape[1],
        "ssm_ratio": ratio(inner, d_model, config.get("ssm_ratio")),
        "dt_rank": _dt_rank([state], config.get("dt_rank")),
        "d_conv": -1 if conv is None else conv.shape[2],
        "conv_bias": "conv2d.bias" in state,
        "bias": "in_proj.bias" in state,
        "forward_type": _forward_type(state, config.get("forward_type"), rows == 2 * inner),
    }


def _block_sizes(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of VSSBlock."""
    sizes: dict[str, Any] = {"hidden_dim": _width(state), "mlp_ratio": 0.0, "ssm_ratio": 0.0}
    inside = _under(state, "op.")
    if inside:
        layer = _layer_sizes(inside, {**config, "dt_rank": config.get("ssm_dt_rank")})
        names = {"d_state": "ssm_d_state", "dt_rank": "ssm_dt_rank", "d_conv": "ssm_conv", "conv_bias": "ssm_conv_bias"}
        sizes |= {names.get(key, key): value for key, value in layer.items() if key not in ("d_model", "bias")}
    if "mlp.fc2.weight" in state:
        hidden = state["mlp.fc2.weight"].shape[1]
        sizes["mlp_ratio"] = ratio(hidden, sizes["hidden_dim"], config.get("mlp_ratio"))
        sizes["gmlp"] = state["mlp.fc1.weight"].shape[0] == 2 * hidden
    return sizes


def _dt_rank(layers: Sequence[Mapping[str, Tensor]], asked: int | str | None) -> int | str:
    """Rank of the step: ``auto`` if that gives the rank of every layer, and nothing else was asked for."""
    found = [(layer["dt_projs_weight"].shape[2], layer["in_proj.weight"].shape[1]) for layer in layers if layer]
    automatic = all(rank == resolve_dt_rank("auto", width) for rank, width in found)
    return "auto" if automatic and asked in (None, "auto") else found[0][0]


def _forward_type(state: Mapping[str, Tensor], asked: str | None, gated: bool) -> str:
    """The variant that was asked for, if the state dict can be of it; else the one with a cross scan that it is of."""
    norm = next((kind for key, kind in _NORM_KEYS.items() if key in state), None)
    if asked is None:
        if norm is None:
            raise BundleError(
                "the state dict does not tell the norm after the scans", where=_SOURCE, remedy="give forward_type"
            )
        return "v05" + ("" if norm == "layer" else f"_on{norm}") + ("" if gated else "_noz")
    kind = ForwardType.parse(asked)
    without = kind.out_norm in ("none", "softmax", "sigmoid")
    if kind.gate != gated or (norm is not None if without else kind.out_norm != norm):
        raise BundleError(
            "configuration contradicts the state dict in 'forward_type'",
            where=_SOURCE,
            found=asked,
            wanted=f"{'a' if gated else 'no'} gate, {norm or 'no'} norm with weights",
        )
    return asked


def _downsample_version(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Version of the layers between stages; nothing where there is one stage."""
    if any(key.endswith("downsample.reduction.weight") for key in state):
        return {"downsample_version": "v1"}
    weight = state.get("layers.0.downsample.1.weight")
    return {} if weight is None else {"downsample_version": "v2" if weight.shape[2] == 2 else "v3"}


def _width(block: Mapping[str, Tensor]) -> int:
    return (block["norm.weight"] if "norm.weight" in block else block["norm2.weight"]).shape[0]


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
