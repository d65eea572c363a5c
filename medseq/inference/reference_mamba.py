"""Mamba layers from the state dicts of mamba_ssm."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from medseq.errors import BundleError
from medseq.inference.reference_keys import load_strictly, ratio, reconcile
from medseq.nn.mamba import BiMamba, Mamba, Mamba2
from medseq.nn.ssm_init import resolve_dt_rank

__all__ = ["from_mamba_ssm", "mamba_sizes"]

_SOURCE = "mamba-ssm"

# Arguments of the original without influence on a loaded layer's numbers.
_FREE = dict.fromkeys(
    ("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path", "layer_idx", "device", "dtype")
)
_FREE2 = {
    **_FREE,
    **dict.fromkeys(("A_init_range", "conv_init", "deterministic", "use_mem_eff_path")),
    "activation": "swish",
    "chunk_size": 64,
    "dt_limit": (0.0, math.inf),
}


def from_mamba_ssm(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> nn.Module:
    """Build and load the layer that a state dict belongs to: Mamba, BiMamba (keys with ``_b``) or Mamba2.

    `config` has the original constructor's words; Mamba-2 needs ``ngroups`` there if it is not 1.

    Raises:
        BundleError: Unknown, missing or contradicting keys.
    """
    state = dict(state_dict)
    if not {"in_proj.weight", "conv1d.weight", "A_log"} <= state.keys():
        raise BundleError("not a Mamba state dict", where=_SOURCE, found=sorted(state)[:5])
    if "dt_bias" in state:
        known = reconcile(_SOURCE, config, _sizes2(state, config), _FREE2)
        if known["activation"] not in ("swish", "silu"):
            raise BundleError(
                "this activation is not supported", where=_SOURCE, found=known["activation"], wanted="swish"
            )
        layer: nn.Module = Mamba2(**{key: value for key, value in known.items() if key in _OURS2})
    else:
        sizes = mamba_sizes(state, config)
        reconcile(_SOURCE, config, sizes, _FREE)
        layer = (BiMamba if "A_b_log" in state else Mamba)(**sizes)
    return load_strictly(_SOURCE, layer, state)


def mamba_sizes(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Mamba` that the weights of a layer tell; `config` settles how widths were rounded."""
    inner, states = state["A_log"].shape
    d_model = state["in_proj.weight"].shape[1]
    rank = state["dt_proj.weight"].shape[1] if "dt_proj.weight" in state else 1
    automatic = config.get("dt_rank", "auto") == "auto" and rank == resolve_dt_rank("auto", d_model)
    return {
        "d_model": d_model,
        "d_state": states,
        "d_conv": state["conv1d.weight"].shape[2],
        "expand": ratio(inner, d_model, config.get("expand")),
        "dt_rank": "auto" if automatic else rank,
        "conv_bias": "conv1d.bias" in state,
        "bias": "in_proj.bias" in state,
    }


_OURS2 = {
    *("d_model", "d_state", "d_conv", "expand", "headdim", "ngroups", "conv_bias", "bias"),
    *("learnable_init_states", "chunk_size", "dt_limit"),
}


def _sizes2(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    rows, d_model = state["in_proj.weight"].shape
    heads, width = state["dt_bias"].shape[0], state["conv1d.weight"].shape[0]
    # The projection makes z, x, B, C and dt; the convolution takes x, B and C.
    inner, groups = rows - width - heads, config.get("ngroups", 1)
    return {
        "d_model": d_model,
        "d_state": (width - inner) // (2 * groups),
        "d_conv": state["conv1d.weight"].shape[2],
        "expand": ratio(inner, d_model, config.get("expand")),
        "headdim": inner // heads,
        "ngroups": groups,
        "conv_bias": "conv1d.bias" in state,
        "bias": "in_proj.bias" in state,
        "learnable_init_states": "init_states" in state,
    }
