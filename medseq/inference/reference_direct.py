"""RecurrentVarNet from the state dicts of direct (``block_list.*``), with its sensitivity network if it is there.

direct keeps the sensitivity network beside the model in its checkpoints; its keys are expected under
``sensitivity_model.`` in the same state dict.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medseq.errors import BundleError
from medseq.inference.reference_keys import count, load_strictly, reconcile, sensitivity_net
from medseq.models.recon_recurrent_varnet import RecurrentVarNet, Regulariser
from medseq.nn.unet import UNet

__all__ = ["from_direct"]

_SENS = "sensitivity_model."
# In the order of ConvGRU, with a sign: direct's update gate lets the candidate in, ours keeps the state, and
# sigmoid(-x) = 1 - sigmoid(x).
_GATES = {"reset_gates": 1, "update_gates": -1, "out_gates": 1}
# Of Conv2dGRU: what RecurrentVarNet always gives.
_GRU_DEFAULTS: dict[str, Any] = {
    "out_channels": 2,
    "gru_kernel_size": 1,
    "orthogonal_initialization": True,
    "instance_norm": False,
    "dense_connect": 0,
    "replication_padding": True,
}
_DEFAULTS: dict[str, Any] = {
    "initializer_initialization": None,
    "initializer_dilations": [1, 1, 2, 4],
    "initializer_multiscale": 1,
    "num_steps": 15,
    "sens_sigma": 0.7,
    "operators": {"centered": True, "normalized": True},
    # Of the data pipeline: the quantile of measured samples that everything is divided by.
    "scale_percentile": 0.99,
}


def from_direct(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> nn.Module:
    """Build and load what a state dict of direct belongs to: RecurrentVarNet, its regulariser, or a U-Net.

    `config` has the original constructor's words, ``operators: {centered, normalized}`` for the Fourier convention
    (centred and normalised if not given), ``sens_sigma`` for the width of the Gaussian on the calibration data, and
    ``scale_percentile`` for the quantile of measured samples that training divided by (null: the largest).

    Raises:
        BundleError: Unknown, missing or contradicting keys.
    """
    state = dict(state_dict)
    if not any(key.startswith("block_list.") for key in state):
        return _block(state, config)
    sizes = _sizes(state, config)
    known = reconcile("direct", config, sizes, {key: _DEFAULTS[key] for key in _DEFAULTS if key not in sizes})
    operators = {"centered": True, "normalized": True, "dim": [2, 3], **known["operators"]}
    arguments: dict[str, Any] = {
        "num_steps": known["num_steps"],
        "channels": known["recurrent_hidden_channels"],
        "num_layers": known["recurrent_num_layers"],
        "shared": not known["no_parameter_sharing"],
        "normalized": known["normalized"],
        "initializer": known["initializer_initialization"] if known["learned_initializer"] else None,
        "fft_origin": "centre" if operators["centered"] else "corner",
        "fft_norm": "ortho" if operators["normalized"] else "backward",
    }
    if known["learned_initializer"]:
        if arguments["initializer"] is None:
            raise BundleError(
                "the state dict has a learned initializer",
                where="direct",
                wanted="initializer_initialization: sense, zero_filled or input_image",
            )
        for key in ("channels", "dilations", "multiscale"):
            value = known[f"initializer_{key}"]
            arguments[f"initializer_{key}"] = value if isinstance(value, int) else list(value)
    own = {_our_name(key): value for key, value in state.items() if not key.startswith((_SENS, "block_list."))}
    for block in range(count(state, "block_list.")):
        own |= _block_weights(state, f"block_list.{block}.", block, known["recurrent_num_layers"])
    keywords = dict(arguments)
    if any(key.startswith(_SENS) for key in state):
        fft = {"fft_origin": arguments["fft_origin"], "fft_norm": arguments["fft_norm"]}
        net, weights, spec = sensitivity_net(state, _SENS, "direct", sigma=known["sens_sigma"], **fft)
        keywords["sens_net"] = net
        arguments["sens_net"] = {"class_path": "medseq.nn.sensitivity.SensitivityNet", "init_args": spec}
        own |= {f"sens_net.{key}": value for key, value in weights.items()}
    model: Any = RecurrentVarNet(**keywords)
    load_strictly("direct", model, own)
    share = 1.0 if known["scale_percentile"] is None else known["scale_percentile"]
    rule: dict[str, Any] = {"share": share, "norm": arguments["fft_norm"]}
    model.preprocess = [{"class_path": "medseq.data.recon_scale.KSpaceQuantile", "init_args": rule}]
    model.init_args, model.quirks = arguments, []
    return model


def _sizes(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """The original constructor's arguments that the weights tell."""
    blocks, inner = count(state, "block_list."), "block_list.0.regularizer."
    normalized = any(key.startswith(f"{inner}convgru.") for key in state)
    inner += "convgru." if normalized else ""
    layers = count(state, f"{inner}reset_gates.")
    try:
        hidden = state[f"{inner}reset_gates.0.0.weight"].shape[0]
    except KeyError as error:
        raise BundleError("a key is missing", where="direct", wanted=str(error.args[0])) from None
    learned = any(key.startswith("initializer.") for key in state)
    sizes: dict[str, Any] = {
        "in_channels": 2,
        "recurrent_hidden_channels": hidden,
        "recurrent_num_layers": layers,
        "normalized": normalized,
        "learned_initializer": learned,
    }
    # A single block is shared by all steps, or the only step there is: `num_steps` of the caller tells.
    steps = config.get("num_steps", blocks if blocks > 1 else None)
    sizes["no_parameter_sharing"] = blocks > 1 or (steps == 1 and bool(config.get("no_parameter_sharing", True)))
    if blocks > 1:
        sizes["num_steps"] = blocks
    if learned:
        convs = count(state, "initializer.conv_blocks.")
        widths = [state[f"initializer.conv_blocks.{i}.1.weight"].shape[0] for i in range(convs)]
        seen = state["initializer.out_blocks.0.0.weight"].shape[1]
        scales = [n for n in range(1, convs + 1) if sum(widths[-n:]) == seen]
        if not scales:
            raise BundleError("the initializer does not fit together", where="direct", found=f"{widths} and {seen}")
        sizes |= {"initializer_channels": widths, "initializer_multiscale": scales[0]}
    return sizes


def _our_name(key: str) -> str:
    """``initializer.conv_blocks.0.1.bias`` -> ``initializer.convs.0.bias``; others as they are."""
    parts = key.split(".")
    if parts[0] == "initializer" and len(parts) == 5:
        kind = {"conv_blocks": "convs", "out_blocks": "heads"}.get(parts[1], parts[1])
        return f"initializer.{kind}.{parts[2]}.{parts[4]}"
    return key


def _block_weights(state: Mapping[str, Tensor], prefix: str, block: int, layers: int) -> dict[str, Tensor]:
    """Our names and tensors for one step."""
    own = {}
    rest = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    for key in list(rest):
        if key == "learning_rate":
            own[f"step_sizes.{block}"] = rest.pop(key)
    weights = {key.removeprefix("regularizer.").removeprefix("convgru."): value for key, value in rest.items()}
    return own | {f"regularisers.{block}.{key}": value for key, value in _regulariser_weights(weights, layers).items()}


def _regulariser_weights(weights: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Conv2dGRU of direct -> `Regulariser`; keys that it does not have stay as they are."""
    left = dict(weights)
    own: dict[str, Tensor] = {}
    for index in range(layers + 1):
        for part in ("weight", "bias"):
            if (key := f"conv_blocks.{index}.1.{part}") in left:
                own[f"convs.{index}.{part}"] = left.pop(key)
    for layer in range(layers):
        keys = [f"{gate}.{layer}.0" for gate in _GATES]
        missing = [f"{key}.{part}" for key in keys for part in ("weight", "bias") if f"{key}.{part}" not in left]
        if missing:
            raise BundleError("a key is missing", where="direct", wanted=missing[0])
        signs = _GATES.values()
        weight = torch.cat([sign * left.pop(f"{key}.weight") for key, sign in zip(keys, signs, strict=True)])
        bias = torch.cat([sign * left.pop(f"{key}.bias") for key, sign in zip(keys, signs, strict=True)])
        width = weight.shape[0] // 3
        own[f"units.{layer}.ih.weight"] = weight[:, :width].clone()
        own[f"units.{layer}.hh.weight"] = weight[:, width:].clone()
        own[f"units.{layer}.ih.bias"] = bias
    return own | left


def _block(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> nn.Module:
    """The regulariser (Conv2dGRU, NormConv2dGRU) or the U-Net alone."""
    normalized = any(key.startswith("convgru.") for key in state)
    inner = {key.removeprefix("convgru."): value for key, value in state.items()}
    if "reset_gates.0.0.weight" in inner:
        layers, hidden = count(inner, "reset_gates."), inner["reset_gates.0.0.weight"].shape[0]
        sizes = {"in_channels": 2, "hidden_channels": hidden, "num_layers": layers, "normalized": normalized}
        known = reconcile("direct", config, sizes, _GRU_DEFAULTS)
        for key, value in _GRU_DEFAULTS.items():
            if known[key] != value:
                raise BundleError(
                    "this form of Conv2dGRU is not supported", where="direct", found=f"{key} {known[key]}"
                )
        module = Regulariser(hidden, layers, None, normalized=normalized)
        return load_strictly("direct", module, _regulariser_weights(inner, layers))
    if "down_sample_layers.0.layers.0.weight" in state:
        first = state["down_sample_layers.0.layers.0.weight"]
        pools = count(state, "down_sample_layers.")
        sizes = {"in_channels": first.shape[1], "num_filters": first.shape[0], "num_pool_layers": pools}
        reconcile("direct", config, sizes, {"out_channels": 2, "dropout_probability": 0.0})
        last = state.get(f"up_conv.{pools - 1}.1.weight")
        out = last.shape[0] if last is not None else 2
        return load_strictly("direct", UNet(first.shape[1], out, first.shape[0], pools), state)
    raise BundleError("not a state dict of direct's RecurrentVarNet", where="direct", found=sorted(state)[:5])
