"""MambaMIL, and its mixers alone, from the state dicts of the authors' code.

A checkpoint of that code is a bare state dict. Its keys tell Mamba from the two-directional forms, but BiMamba and
SRMamba have the same keys and shapes, and neither type nor rate is stored: the caller must say them.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from medseq.errors import BundleError
from medseq.inference.reference_keys import count, load_strictly, reconcile
from medseq.inference.reference_mamba import mamba_sizes
from medseq.models.mil_mamba import MambaMIL
from medseq.nn.mamba import BiMamba, Mamba
from medseq.nn.srmamba import SRMamba

__all__ = ["from_mambamil"]

_SOURCE = "mambamil"
_MIXERS: dict[str, type[Mamba]] = {"Mamba": Mamba, "BiMamba": BiMamba, "SRMamba": SRMamba}
# The original's names of our layers, at the start of a key.
_NAMES = {"_fc1.0.": "embed.0.", "attention.0.": "attention.hidden.", "attention.2.": "attention.score."}
# Arguments of the original that no weight tells.
_FREE = {"dropout": 0.0, "act": "gelu", "survival": False, "rate": 10, "type": None}


def from_mambamil(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> nn.Module:
    """Build and load MambaMIL, or one of its mixers if the keys are those of a mixer.

    `config` has the original constructor's words: ``in_dim``, ``n_classes``, ``layer`` and others are read off the
    weights and checked; ``type`` (Mamba, BiMamba, SRMamba), ``rate`` (the code's own default is 10, its scripts pass
    5), ``act`` and ``dropout`` are taken as given.

    Raises:
        BundleError: `type` is missing where the keys do not tell it, or keys and words do not fit.
    """
    state = dict(state_dict)
    if "in_proj.weight" in state:
        return _mixer(state, config)
    wanted = {"_fc1.0.weight", "layers.0.1.A_log", "attention.0.weight", "classifier.weight"}
    if not wanted <= state.keys():
        raise BundleError("not a MambaMIL state dict", where=_SOURCE, found=sorted(state)[:5], wanted=sorted(wanted))
    first = {key.removeprefix("layers.0.1."): value for key, value in state.items() if key.startswith("layers.0.1.")}
    mixer = mamba_sizes(first, config)
    embed_dim, in_dim = state["_fc1.0.weight"].shape
    sizes = {
        "in_dim": in_dim,
        "embed_dim": embed_dim,
        "n_classes": state["classifier.weight"].shape[0],
        "layer": count(state, "layers."),
        **{key: mixer[key] for key in ("d_state", "d_conv", "expand")},
        "dt_rank": first["dt_proj.weight"].shape[1],
    }
    known = reconcile(_SOURCE, config, sizes, _FREE)
    kind = _type(known["type"], "A_b_log" in first)
    spec = _mixer_arguments(mixer, kind, known["rate"])
    arguments: dict[str, Any] = {
        "in_dim": in_dim,
        "n_classes": sizes["n_classes"],
        "d_model": embed_dim,
        "num_layers": sizes["layer"],
        "dropout": float(known["dropout"] or 0.0),
        "activation": known["act"],
        "attention_dim": state["attention.0.weight"].shape[0],
    }
    if known["act"] not in ("gelu", "relu"):
        raise BundleError("unknown activation", where=_SOURCE, found=known["act"], wanted="gelu or relu")
    cls = _MIXERS[kind]
    own = {key: value for key, value in spec.items() if key != "d_model"}
    model = MambaMIL(mixer=partial(cls, **own), **arguments)
    load_strictly(_SOURCE, model, {_ours(key): value for key, value in state.items()})
    arguments["mixer"] = {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": own}
    # What builds this network again, for `medseq convert`.
    model.init_args = arguments  # type: ignore[assignment]
    return model


def _mixer(state: dict[str, Tensor], config: Mapping[str, Any]) -> nn.Module:
    """One mixer alone."""
    said = {key: value for key, value in config.items() if key not in ("type", "rate")}
    sizes = mamba_sizes(state, said)
    reconcile(_SOURCE, said, sizes, {})
    kind = _type(config.get("type"), "A_b_log" in state)
    return load_strictly(_SOURCE, _MIXERS[kind](**_mixer_arguments(sizes, kind, config.get("rate", 10))), state)


def _mixer_arguments(sizes: Mapping[str, Any], kind: str, rate: int) -> dict[str, Any]:
    return {**sizes, "rate": rate} if kind == "SRMamba" else dict(sizes)


def _type(said: str | None, two_directions: bool) -> str:
    """Which mixer the weights are of."""
    possible = ("BiMamba", "SRMamba") if two_directions else ("Mamba",)
    if said is None and not two_directions:
        return "Mamba"
    if said is None:
        raise BundleError(
            "the weights do not tell which mixer they are of",
            where=_SOURCE,
            wanted="type: BiMamba, or type: SRMamba and its rate",
            remedy="say what the training script passed (its shipped scripts: SRMamba, rate 5)",
        )
    if said not in possible:
        raise BundleError("type contradicts the weights", where=_SOURCE, found=said, wanted=" or ".join(possible))
    return said


def _ours(key: str) -> str:
    """Our name of a parameter of the original."""
    for theirs, own in _NAMES.items():
        if key.startswith(theirs):
            return own + key.removeprefix(theirs)
    if key.startswith("layers."):
        _, number, part, rest = key.split(".", 3)
        name = {"0": "norm", "1": "mixer"}.get(part, part)
        return f"layers.{number}.{name}.{rest}"
    return key
