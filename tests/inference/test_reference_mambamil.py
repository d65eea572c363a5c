"""State dicts of MambaMIL's authors give their numbers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from medseq.errors import BundleError
from medseq.inference.reference import load

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = sorted(path.stem for path in GOLDEN.glob("mambamil_*_L*"))
MIXERS = sorted(path.stem for path in GOLDEN.glob("mambamil_mixer_*"))
TEST_ONLY = ("grad_params",)


def read(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        config = json.loads(file.metadata()["config"])
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    return tensors, state, {key: value for key, value in config.items() if key not in TEST_ONLY}


def close(found, wanted, tolerance=1e-5):
    error = (found.reshape(-1) - wanted.reshape(-1)).abs().max() / wanted.abs().max()
    assert error <= tolerance, f"error {error:.2e} of the maximum"


def ours(key):
    from medseq.inference.reference_mambamil import _ours

    return _ours(key)


def test_there_are_goldens_of_every_kind():
    assert len(MODELS) == 6
    assert len(MIXERS) == 2


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_model_gives_the_authors_numbers(name):
    tensors, state, config = read(name)
    net = load("mambamil", state, config)
    mixed = []
    for layer in net.layers:
        layer.mixer.register_forward_hook(lambda module, args, out: mixed.append(out))
    out = net(tensors["in.x"])
    close(out.logits, tensors["out.logits"])
    close(out.attention, tensors["out.attention"])
    close(out.embedding, tensors["out.bag_embedding"])
    close(net.mix(tensors["in.x"][None]), tensors["out.tokens_normed"])
    for number in range(config["layer"]):
        close(mixed[number], tensors[f"out.mixer_{number}"])
    if config["survival"]:
        hazards = torch.sigmoid(out.logits)
        close(hazards, tensors["out.hazards"])
        close((1 - hazards).cumprod(1), tensors["out.survival"])
        return
    close(out.logits.softmax(1), tensors["out.probs"])
    loss = F.cross_entropy(out.logits, tensors["in.Y"].long())
    close(loss, tensors["out.ce_loss"])
    loss.backward()
    parameters = dict(net.named_parameters())
    for key in [key for key in tensors if key.startswith("grad.")]:
        # Gradients pass through the recurrence twice: 1e-4 of the largest one.
        close(parameters[ours(key.removeprefix("grad."))].grad, tensors[key], 1e-4)


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_alone_gives_the_authors_numbers(name):
    tensors, state, config = read(name)
    mixer = load("mambamil", state, {**config["kw"], "type": config["type"], "rate": config["rate"]})
    x = tensors["in.x"].requires_grad_()
    y = mixer(x)
    close(y, tensors["out.y"])
    y.backward(tensors["in.gy"])
    parameters = dict(mixer.named_parameters())
    for key in [key for key in tensors if key.startswith("grad.")]:
        close(parameters[key.removeprefix("grad.")].grad, tensors[key], 1e-4)


def test_the_type_must_be_said_where_the_keys_do_not_tell_it():
    _, state, config = read("mambamil_srmamba_L1_r5_n40_cls7")
    without = {key: value for key, value in config.items() if key != "type"}
    with pytest.raises(BundleError, match="do not tell which mixer"):
        load("mambamil", state, without)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "Mamba"}, "contradicts"),
        ({"in_dim": 25}, "in_dim"),
        ({"n_layers": 1}, "unknown"),
        ({"act": "tanh"}, "activation"),
    ],
)
def test_words_that_do_not_fit_are_refused(change, message):
    _, state, config = read("mambamil_srmamba_L1_r5_n40_cls7")
    with pytest.raises(BundleError, match=message):
        load("mambamil", state, {**config, **change})


@pytest.mark.parametrize("damage", ["missing", "extra"])
def test_keys_that_do_not_fit_are_refused(damage):
    _, state, config = read("mambamil_mamba_L2_n37_cls2")
    if damage == "missing":
        del state["layers.1.1.D"]
    else:
        state["layers.1.1.other"] = torch.zeros(1)
    with pytest.raises(BundleError, match=r"D|other"):
        load("mambamil", state, config)
