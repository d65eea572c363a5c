"""CIRIM from the state dicts of atommic (``reconstruction_module.*``) and mridc (``cirim.*``)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from medseq.errors import BundleError
from medseq.inference.reference_keys import count, load_strictly, reconcile, sensitivity_net
from medseq.models.recon_cirim import CIRIM
from medseq.nn.recurrent import MGU, ConvGRU, IndRNN, replicate_conv

__all__ = ["KEYS", "from_atommic", "from_mridc"]


_SHARED: dict[str, Any] = {
    "conv_dilations": [1, 2, 1],
    "recurrent_dilations": [1, 1, 0],
    "time_steps": 8,
    "exact_time_steps": False,
    "fft_centered": False,
    "fft_normalization": "backward",
    "coil_combination_method": "SENSE",
    # Of the data pipeline: what the input was divided by.
    "normalization_type": "max",
    # Fixed by the network that is built here, or of no consequence to its numbers.
    **dict.fromkeys(
        ("depth", "conv_dim", "dimensionality", "spatial_dims", "coil_dim", "accumulate_predictions", "train_loss_fn")
    ),
    "val_loss_fn": None,
}
_ATOMMIC: dict[str, Any] = {
    **_SHARED,
    "keep_prediction": True,
    "coil_sensitivity_maps_nn_mask_type": "2D",
    "coil_sensitivity_maps_nn_normalize": True,
}
# What the weights tell as well; the original's configuration repeats it.
_READ_OFF = (
    *("num_cascades", "recurrent_layer", "conv_filters", "conv_kernels", "conv_bias", "recurrent_filters"),
    *("recurrent_kernels", "recurrent_bias", "no_dc", "estimate_coil_sensitivity_maps_with_nn"),
)
# Every word that `from_atommic` understands.
KEYS = frozenset((*_ATOMMIC, *_READ_OFF))
_MRIDC: dict[str, Any] = {**_SHARED, "keep_eta": True, "sens_mask_type": "2D", "sens_normalize": True}


def from_atommic(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> nn.Module:
    """Build and load what an atommic state dict belongs to: CIRIM, one of its cells or its sensitivity network.

    `config` has the original constructor's words. ``time_steps`` are rounded up to a multiple of 8, as there, unless
    ``exact_time_steps`` is true.

    Raises:
        BundleError: Unknown, missing or contradicting keys.
    """
    state = dict(state_dict)
    if not any(key.startswith("reconstruction_module.") for key in state):
        return _block("atommic", state, config)
    sizes, own = _sizes("atommic", state, "reconstruction_module.")
    prefix = "coil_sensitivity_maps_nn."
    if any(key.startswith(prefix) for key in state):
        sizes["estimate_coil_sensitivity_maps_with_nn"] = True
    known = reconcile("atommic", config, sizes, _ATOMMIC)
    arguments = {**_arguments(known), "hidden": "carry"}
    quirks = []
    if known["coil_combination_method"] == "RSS":
        arguments["combine"] = "rss_parts"
        quirks.append("starts at the root sum of squares of real and of imaginary parts")
    net = _net(known["coil_sensitivity_maps_nn_mask_type"], known["coil_sensitivity_maps_nn_normalize"])
    model: Any = _finish("atommic", state, own, prefix, arguments, net, quirks)
    model.preprocess = _scaling("atommic", known["normalization_type"])
    return model


def from_mridc(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> nn.Module:
    """Build and load CIRIM from an mridc state dict: states reset at every cascade, gradients stop between them.

    Raises:
        BundleError: Unknown, missing or contradicting keys.
    """
    # The top-level weight of mridc's model is never used.
    state = {key: value for key, value in state_dict.items() if key != "dc_weight"}
    if not any(key.startswith("cirim.") for key in state):
        return _block("mridc", state, config)
    sizes, own = _sizes("mridc", state, "cirim.")
    known = reconcile("mridc", config, sizes, _MRIDC)
    if known["coil_combination_method"] != "SENSE" and not known["no_dc"]:
        raise BundleError(
            "this combination of coils is not supported",
            where="mridc",
            found=known["coil_combination_method"],
            wanted="SENSE",
        )
    arguments = {**_arguments(known), "hidden": "reset", "detach": True, "reuse_initial": True, "return_kspace": False}
    quirks = ["no gradient passes between cascades"]
    if not known["keep_eta"]:
        arguments["restart"] = "image_as_kspace" if known["no_dc"] else "kspace"
        if known["no_dc"]:
            quirks.append("every cascade after the first starts at the Fourier transform of the last image")
    net = _net(known["sens_mask_type"], known["sens_normalize"])
    model: Any = _finish("mridc", state, own, "sens_net.", arguments, net, quirks)
    model.preprocess = _scaling("mridc", known["normalization_type"])
    return model


def _sizes(source: str, state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The original's arguments that the weights tell, and the weights under our names."""
    first, cascades = f"{prefix}0.layers.", count(state, prefix)
    levels = count(state, first)
    try:
        convs = [state[f"{first}{level}.convs.conv_layer.weight"] for level in range(levels)]
        final = state[f"{prefix}0.final_layer.0.conv_layer.weight"]
        gates = [state[f"{first}{level}.rnn.ih.weight"] for level in range(levels)]
        recurrent = [
            state[f"{first}{level}.rnn.hh"].shape[1]
            if f"{first}{level}.rnn.hh" in state
            else state[f"{first}{level}.rnn.hh.weight"].shape[1]
            for level in range(levels)
        ]
        cell = {1: "IndRNN", 2: "MGU", 3: "GRU"}[gates[0].shape[0] // recurrent[0]]
    except KeyError as error:
        raise BundleError("a key is missing", where=source, wanted=str(error.args[0])) from None
    biased = [f"{first}{level}.convs.conv_layer.bias" in state for level in range(levels)]
    gated = [f"{first}{level}.rnn.ih.bias" in state for level in range(levels)]
    sizes = {
        "num_cascades": cascades,
        "recurrent_layer": cell,
        "conv_filters": [conv.shape[0] for conv in [*convs, final]],
        "conv_kernels": [conv.shape[-1] for conv in [*convs, final]],
        "conv_bias": [*biased, f"{prefix}0.final_layer.0.conv_layer.bias" in state],
        "recurrent_filters": [*recurrent, 0],
        "recurrent_kernels": [*(gate.shape[-1] for gate in gates), 0],
        "recurrent_bias": [*gated, False],
        "no_dc": f"{prefix}0.dc_weight" not in state,
    }
    return sizes, {_our_name(key.removeprefix(prefix)): value for key, value in state.items() if key.startswith(prefix)}


def _our_name(key: str) -> str:
    """``2.layers.1.rnn.ih.bias`` -> ``cascades.2.units.1.ih.bias``."""
    cascade, _, rest = key.partition(".")
    if rest == "dc_weight":
        return f"dc_weights.{cascade}"
    rest = rest.replace("final_layer.0.conv_layer", "final")
    for part, ours in (("convs.conv_layer", "convs"), ("rnn", "units")):
        if rest.startswith("layers.") and f".{part}." in rest:
            level = rest.split(".")[1]
            rest = rest.replace(f"layers.{level}.{part}", f"{ours}.{level}")
    return f"cascades.{cascade}.{rest}"


def _arguments(known: Mapping[str, Any]) -> dict[str, Any]:
    """Our keywords for the original's arguments."""
    steps = known["time_steps"]
    return {
        "num_cascades": known["num_cascades"],
        "time_steps": steps if known["exact_time_steps"] else 8 * -(-steps // 8),
        "cell": known["recurrent_layer"].lower(),
        "channels": list(known["conv_filters"][:-1]),
        "recurrent_channels": list(known["recurrent_filters"][:-1]),
        "conv_kernels": list(known["conv_kernels"]),
        "conv_dilations": list(known["conv_dilations"]),
        "conv_bias": list(known["conv_bias"]),
        "recurrent_kernels": list(known["recurrent_kernels"][:-1]),
        "recurrent_dilations": list(known["recurrent_dilations"][:-1]),
        "recurrent_bias": list(known["recurrent_bias"][:-1]),
        "data_consistency": "implicit" if known["no_dc"] else "explicit",
        "fft_origin": "centre" if known["fft_centered"] else "corner",
        "fft_norm": known["fft_normalization"],
    }


def _scaling(source: str, kind: str | None) -> list[dict[str, Any]]:
    """The `preprocess` of a bundle for a ``normalization_type`` of the original's transforms; none leaves data alone.

    Raises:
        BundleError: A type that shifts values: it is not linear, and belongs to no trained model that is known.
    """
    rules = {"max": "CoilImageMax", "none": "Unscaled", None: "Unscaled", "fft": "Unscaled"}
    if kind not in rules:
        raise BundleError(
            "this normalisation is not supported",
            where=source,
            found=f"normalization_type {kind}",
            wanted="max or none",
        )
    return [{"class_path": f"medseq.data.recon_scale.{rules[kind]}", "init_args": {}}]


def _net(mask_type: str, normalize: bool) -> dict[str, Any]:
    """Our keywords for the sensitivity network of both toolkits."""
    return {"acs": "rows" if mask_type == "2D" else "auto", "divide": "sqrt_abs" if normalize else "none"}


def _finish(
    source: str,
    state: Mapping[str, Tensor],
    own: dict[str, Tensor],
    prefix: str,
    arguments: dict[str, Any],
    net: dict[str, Any],
    quirks: list[str],
) -> nn.Module:
    """Build and load the network, with its sensitivity network if the state dict holds one."""
    keywords = dict(arguments)
    if any(key.startswith(prefix) for key in state):
        fft = {"fft_origin": arguments["fft_origin"], "fft_norm": arguments["fft_norm"]}
        built, weights, spec = sensitivity_net(state, prefix, "varnet", **net, **fft)
        keywords["sens_net"] = built
        arguments["sens_net"] = {"class_path": "medseq.nn.sensitivity.SensitivityNet", "init_args": spec}
        own |= {f"sens_net.{key}": value for key, value in weights.items()}
        if spec["divide"] == "sqrt_abs":
            quirks.append("sensitivity maps are divided by sqrt(sum |x|), which lacks the square")
        if spec["acs"] == "rows":
            quirks.append("the calibration region takes rows by the numbers of the sampled columns")
    model = CIRIM(**keywords)
    # Every key that was not understood goes in as it is, so that loading names it.
    prefixes = (prefix, "reconstruction_module.", "cirim.")
    own |= {key: value for key, value in state.items() if not key.startswith(prefixes)}
    load_strictly(source, model, own)
    model.init_args, model.quirks = arguments, quirks
    return model


def _block(source: str, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> nn.Module:
    """A cell, a convolution or the sensitivity network alone."""
    if "ih.weight" in state:
        hidden = state["hh"].shape[1] if "hh" in state else state["hh.weight"].shape[1]
        gates, kernel = state["ih.weight"].shape[0] // hidden, state["ih.weight"].shape[-1]
        sizes = {"input_size": state["ih.weight"].shape[1], "hidden_size": hidden, "kernel_size": kernel}
        known = reconcile(source, config, sizes, {"conv_dim": 2, "dilation": 1, "bias": True})
        kind = {1: IndRNN, 2: MGU, 3: ConvGRU}[gates]
        cell = kind(state["ih.weight"].shape[1], hidden, kernel, known["dilation"], "ih.bias" in state)
        return load_strictly(source, cell, state)
    if "conv_layer.weight" in state:
        features, channels, kernel = state["conv_layer.weight"].shape[:3]
        sizes = {"input_size": channels, "features": features, "kernel_size": kernel}
        known = reconcile(source, config, sizes, {"conv_dim": 2, "dilation": 1, "bias": True, "nonlinear": None})
        conv = replicate_conv(channels, features, kernel, dilation=known["dilation"], bias="conv_layer.bias" in state)
        active = str(known["nonlinear"]).lower() == "relu"
        load_strictly(source, conv, {key.removeprefix("conv_layer."): value for key, value in state.items()})
        return nn.Sequential(conv, nn.ReLU() if active else nn.Identity())
    if "norm_unet.unet.conv.layers.0.weight" in state:
        defaults = {"mask_type": "2D", "normalize": True, "fft_centered": False, "fft_normalization": "backward"}
        known = reconcile(source, config, {}, defaults)
        net, own, _ = sensitivity_net(
            state,
            "",
            "varnet",
            **_net(known["mask_type"], known["normalize"]),
            fft_origin="centre" if known["fft_centered"] else "corner",
            fft_norm=known["fft_normalization"],
        )
        return load_strictly(source, net, own)
    raise BundleError(f"not a state dict of {source}'s CIRIM", where=source, found=sorted(state)[:5])
