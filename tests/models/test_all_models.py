"""One contract for every architecture: each file of medseq.models is found, built, run and saved."""

import importlib
import pkgutil

import pytest
import torch
from safetensors.torch import load, save

import medseq.models

MODULES = [info.name for info in pkgutil.iter_modules(medseq.models.__path__)]
CASES = [(module, name) for module in MODULES for name in importlib.import_module(f"medseq.models.{module}").tiny()]


def build(module, name):
    home = importlib.import_module(f"medseq.models.{module}")
    return home.tiny()[name], home.example_inputs(name)


def output(model, inputs):
    result = model(**inputs)
    return result if isinstance(result, torch.Tensor) else result[0]


@pytest.mark.parametrize(("module", "name"), CASES)
def test_backward_reaches_every_parameter(module, name):
    model, inputs = build(module, name)
    whole = model.train()(**inputs)
    result = whole if isinstance(whole, torch.Tensor) else whole[0]
    assert torch.isfinite(result).all()
    loss = result.abs().sum()
    # Scores of single instances are an output that a loss of their own trains.
    if getattr(whole, "instance_logits", None) is not None:
        loss = loss + whole.instance_logits.abs().sum()
    if list(model.parameters()):  # the classical methods have none
        loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize(("module", "name"), CASES)
def test_state_dict_round_trip(module, name):
    model, inputs = build(module, name)
    other, _ = build(module, name)
    other.load_state_dict(load(save({key: value.contiguous() for key, value in model.state_dict().items()})))
    with torch.no_grad():
        assert torch.equal(output(model.eval(), inputs), output(other.eval(), inputs))


@pytest.mark.parametrize(("module", "name"), CASES)
def test_items_of_a_batch_do_not_see_each_other(module, name):
    model, inputs = build(module, name)
    model.eval()
    with torch.no_grad():
        whole = output(model, inputs)
        single = output(model, {key: value[:1] for key, value in inputs.items()})
    # Other batch sizes take other blockings of the matrix products: float32 rounding only.
    torch.testing.assert_close(whole[:1], single, rtol=1e-4, atol=1e-5)
