"""The mixture of a network and compressed sensing: the scan itself decides which of them to trust."""

import pytest
import torch

from medseq.data.recon import PhantomScans, collate, undersample
from medseq.data.sampling import draw_pattern
from medseq.data.simulate import simulate_scan
from medseq.errors import InputError
from medseq.models.recon_classical import L1Wavelet
from medseq.models.recon_hybrid import Hybrid, example_inputs, split_samples
from medseq.models.recon_modl import MoDL
from medseq.nn.recon import ReconOutput
from medseq.ops.coils import acs_mask


class Oracle(MoDL):
    """A network that returns what it is told to."""

    def __init__(self, image):
        super().__init__(cascades=1, width=4, memory=1, iterations=1)
        self.image = image

    def forward(self, masked_kspace, mask, sens_maps=None, **rest):
        return ReconOutput(self.image, None, [[self.image]], None)


def scan(seed, kind="poisson"):
    generator = torch.Generator().manual_seed(seed)
    y, x = (torch.linspace(-1, 1, 96) for _ in range(2))
    image = torch.sigmoid(30 * (0.8 - torch.sqrt(y[:, None] ** 2 + x**2)))
    full = simulate_scan(image, 4, 0.01, generator)
    pattern = draw_pattern(kind, (48, 48), 3.0, 0.06, generator)
    return collate([undersample(full, pattern, full.sens_maps, "disc", noisy_target=False)])


def test_a_perfect_network_is_trusted_and_a_wrong_one_is_not(seed):
    batch = scan(seed)
    good, bad = Hybrid(Oracle(batch.target), 1).eval(), Hybrid(Oracle(torch.roll(batch.target, 9, -1)), 1).eval()
    inputs = (batch.masked_kspace, batch.mask, batch.sens_maps)
    with torch.no_grad():
        trusted, distrusted = good(*inputs), bad(*inputs)
        assert float(trusted.states[0]) > 0.8
        # A disc beside its place still covers a part of it.
        assert float(distrusted.states[0]) < 0.15

        def error(x):
            return float((x - batch.target).norm() / batch.target.norm())

        # A wrong network costs next to nothing.
        sparse = min(error(L1Wavelet(lam)(*inputs).image) for lam in bad.penalties)
        assert error(distrusted.image) < 1.3 * sparse + 0.01
        assert error(trusted.image) < 0.5 * sparse


def test_lines_take_the_fixed_share(seed):
    batch = scan(seed, "equispaced")
    hybrid = Hybrid(Oracle(batch.target), 1, line_share=0.25).eval()
    with torch.no_grad():
        out = hybrid(batch.masked_kspace, batch.mask, batch.sens_maps)
        sparse = L1Wavelet(hybrid.line_penalty)(batch.masked_kspace, batch.mask, batch.sens_maps).image
    assert float(out.states[0]) == 0.25
    torch.testing.assert_close(out.image, 0.25 * batch.target + 0.75 * sparse)


def test_the_network_alone_is_trained():
    hybrid, inputs = Hybrid(MoDL(cascades=1, width=8)), example_inputs("")
    assert torch.equal(hybrid.train()(**inputs).image, hybrid.net(**inputs).image)
    # Its weights are the network's, once.
    assert set(hybrid.state_dict()) == {f"net.{key}" for key in hybrid.net.state_dict()}


def test_items_choose_for_themselves(seed):
    batches = [scan(seed), scan(seed + 1)]
    both = collate([PhantomScans(1)[0]])._replace(
        masked_kspace=torch.cat([b.masked_kspace for b in batches]),
        mask=torch.cat([b.mask for b in batches]),
        sens_maps=torch.cat([b.sens_maps for b in batches]),
    )
    torch.manual_seed(seed)
    hybrid = Hybrid(MoDL(cascades=1, width=8), 1, iterations=5).eval()
    with torch.no_grad():
        whole = hybrid(both.masked_kspace, both.mask, both.sens_maps)
        for i, batch in enumerate(batches):
            alone = hybrid(batch.masked_kspace, batch.mask, batch.sens_maps)
            torch.testing.assert_close(whole.image[i : i + 1], alone.image, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["poisson", "gaussian2d"])
def test_split_keeps_the_centre_and_is_always_the_same(kind, seed):
    mask = draw_pattern(kind, (60, 52), 3.0, 0.05, torch.Generator().manual_seed(seed))[None]
    shown, hidden = split_samples(mask, 0.1)
    assert bool((shown ^ hidden == mask).all())
    assert not bool((hidden & acs_mask(mask)).any())
    outside = int((mask & ~acs_mask(mask)).sum())
    assert int(hidden.sum()) == round(0.1 * outside)
    assert torch.equal(split_samples(mask, 0.1)[1], hidden)


def test_nothing_is_held_out_of_lines_or_of_few_points(seed):
    lines = draw_pattern("random", (60, 200), 3.0, 0.05, torch.Generator().manual_seed(seed))[None]
    for mask in (lines, lines.expand(1, 1, 60, 200), lines.transpose(-1, -2).expand(1, 1, 200, 60)):
        shown, hidden = split_samples(mask, 0.1)
        assert not bool(hidden.any())
        assert torch.equal(shown, mask)
    few = torch.rand((1, 1, 12, 12), generator=torch.Generator().manual_seed(seed)) < 0.5
    assert not bool(split_samples(few, 0.1)[1].any())


def test_settings_are_checked():
    with pytest.raises(InputError, match="out of range"):
        Hybrid(MoDL(cascades=1, width=4), held_out=0.7)
    with pytest.raises(InputError, match="centred, unitary"):
        Hybrid(MoDL(cascades=1, width=4, fft_origin="corner"))
