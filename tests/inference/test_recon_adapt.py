"""Adaptation by a scan's own samples: held-out ones are never trained on, never predicted worse, and decide."""

import copy

import numpy as np
import pytest
import torch

from medseq.inference import recon_adapt
from medseq.inference.recon_adapt import adapt_network
from medseq.inference.recon_slice import Prepared, reconstruct_slice
from medseq.inference.run import predict_folder
from medseq.models.recon_cirim import CIRIM
from medseq.models.recon_hybrid import Hybrid, split_samples
from medseq.models.recon_modl import MoDL
from medseq.ops.coils import sens_expand
from tests.inference.test_recon import scene
from tests.inference.test_recon_folder import fastmri

SIZES = {"cascades": 2, "width": 8, "memory": 1, "iterations": 3}


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def part(rng):
    return measured(rng)


def measured(rng):
    """A third of single points, the centre in full, next to no noise."""
    scan = scene(rng, 40, 44)
    kspace, maps = torch.from_numpy(scan.kspace)[None], torch.from_numpy(scan.maps)[None]
    mask = torch.from_numpy(rng.random((1, 1, 40, 44)) < 0.33)
    mask[..., 14:26, 16:28] = True
    noise = 1e-4 * torch.from_numpy(rng.normal(size=(2, *kspace.shape)).astype(np.float32))
    kspace = torch.where(mask, kspace + torch.complex(noise[0], noise[1]), 0)
    return Prepared(kspace, mask, maps, torch.full((1,), 1.41e-4))


def network(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = MoDL(**SIZES) if kind != "cirim" else CIRIM(num_cascades=1, time_steps=2, channels=(6, 6))
        if kind != "cirim":
            for cascade in net.cascades:
                # A network that starts at nothing has everything to learn, and something to do wrong.
                torch.nn.init.normal_(list(cascade.net.parameters())[-2], std=0.02)
    return Hybrid(net, orientations=1, iterations=5).eval() if kind == "hybrid" else net.eval()


@pytest.mark.parametrize("kind", ["modl", "hybrid", "cirim"])
def test_held_out_samples_are_predicted_better_and_the_network_given_stays(kind):
    # One scene: how far a random start gets in so few steps differs from scan to scan.
    net, part = network(kind), measured(np.random.default_rng(4))
    before = copy.deepcopy(net.state_dict())
    adapted, told = adapt_network(net, part, steps=18, lr=1e-3, every=3)
    assert told.after < told.before
    assert 0 < told.steps <= 18
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    changed = [name for name, value in adapted.state_dict().items() if not torch.equal(value, before[name])]
    assert changed
    # What is said of the samples is what the adapted network does: asked once more.
    shown, hidden = split_samples(part.mask, 0.08)
    inner = adapted.net if kind == "hybrid" else adapted
    part_shown = Prepared(torch.where(shown, part.kspace, 0), shown, part.maps, part.noise_sd)
    image = torch.from_numpy(reconstruct_slice(inner, part_shown).image)[None]
    error = (sens_expand(image, part.maps) - part.kspace)[hidden.expand_as(part.kspace)]
    data = part.kspace[hidden.expand_as(part.kspace)]
    assert float(error.norm() / data.norm()) == pytest.approx(told.after, rel=1e-3)


def test_steps_that_only_harm_are_undone(part):
    net = network("modl")
    adapted, told = adapt_network(net, part, steps=4, lr=30.0, every=1)
    assert (told.steps, told.after) == (0, told.before)
    for name, value in net.state_dict().items():
        assert torch.equal(adapted.state_dict()[name], value)


def test_held_out_samples_are_never_seen(part):
    net, (_, hidden) = network("modl"), split_samples(part.mask, 0.08)
    once, first = adapt_network(net, part, steps=4, lr=1e-3, every=4)
    other = torch.where(hidden, part.kspace * (1 + 1e-4), part.kspace)
    again, second = adapt_network(net, Prepared(other, part.mask, part.maps, part.noise_sd), steps=4, lr=1e-3, every=4)
    assert first.before != second.before, "they are what is measured by"
    for name, value in once.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_lines_spare_no_samples(part):
    net = network("modl")
    mask = torch.zeros(1, 1, 1, 44, dtype=torch.bool)
    mask[..., ::3] = True
    lines = Prepared(part.kspace * mask, mask, part.maps, part.noise_sd)
    assert adapt_network(net, lines) == (net, None)


def test_the_run_says_what_it_did(recon_bundle, tmp_path, rng, monkeypatch):
    from functools import partial

    from medseq.inference import recon
    from tests.inference.test_recon_folder import by_name

    monkeypatch.setattr(recon, "adapt_network", partial(recon_adapt.adapt_network, steps=2, every=1))
    scan = scene(rng, 40, 44)
    (tmp_path / "in").mkdir()
    mask = rng.random((40, 44)) < 0.4
    mask[14:26, 16:28] = True
    kspace = np.stack([scan.kspace * mask] * 2)
    fastmri(tmp_path / "in" / "points.h5", kspace, mask=mask)
    fastmri(tmp_path / "in" / "lines.h5", kspace * scan.mask[0], mask=scan.mask[0, 0])
    words = {"orientations": 1, "adapt": True}
    summary = predict_folder(recon_bundle, tmp_path / "in", tmp_path / "out", **words)
    assert summary.counts["done"] == 2, by_name(tmp_path / "out")
    items = {name: found[0][0] for name, found in by_name(tmp_path / "out").items()}
    metrics = items["points.h5"].metrics
    assert metrics["held_out"] <= metrics["held_out_before"]
    flags = {name: {flag["code"]: flag["message"] for flag in item.flags} for name, item in items.items()}
    assert f"to {metrics['held_out']:.4g}" in flags["points.h5"]["adapted"]
    assert "lines" in flags["lines.h5"]["not-adapted"]
    assert "held_out" not in items["lines.h5"].metrics
