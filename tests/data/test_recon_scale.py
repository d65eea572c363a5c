"""Rules for the scale of k-space: what each toolkit divides by, undone exactly; and that bundles carry them."""

import pytest
import torch
import yaml

from medseq.data.recon_scale import CoilImageMax, KSpaceQuantile, SenseScale, Unscaled
from medseq.errors import InputError
from medseq.inference.bundle_classes import is_transform
from medseq.ops.coils import sens_expand
from medseq.ops.fourier import ifft2, ifft2c

RULES = {
    "sense": SenseScale(),
    "kspace": KSpaceQuantile(),
    "kspace, backward": KSpaceQuantile(0.995, "backward"),
    "largest sample": KSpaceQuantile(1.0),
    "coil image": CoilImageMax(),
}


@pytest.fixture
def scan(seed):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 3, 18, 20, dtype=torch.complex64, generator=generator)
    maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    image = torch.randn(2, 18, 20, dtype=torch.complex64, generator=generator) + 3
    mask = torch.rand(1, 1, 18, 20, generator=generator) < 0.5
    mask[..., 8:11, 9:12] = True
    return torch.where(mask, sens_expand(image, maps), 0), mask, maps


@pytest.mark.parametrize("name", RULES)
def test_a_rule_follows_the_unit_and_is_undone(name, scan):
    kspace, mask, maps = scan
    rule = RULES[name]
    params = rule.fit(kspace, mask, maps)
    assert is_transform(type(rule))
    assert params["scale"].shape == (2,)
    louder = rule.fit(kspace * 250, mask, maps)
    # A product of single precision numbers.
    torch.testing.assert_close(louder["scale"], params["scale"] * 250, rtol=1e-4, atol=0)
    torch.testing.assert_close(rule.apply(kspace * 250, louder), rule.apply(kspace, params), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rule.invert(rule.apply(kspace, params), params), kspace, rtol=1e-5, atol=1e-5)


def test_what_the_originals_divide_by(scan):
    kspace, mask, maps = scan
    # atommic: the largest magnitude in the images of all coils.
    fed = CoilImageMax().apply(kspace, CoilImageMax().fit(kspace, mask, maps))
    torch.testing.assert_close(ifft2c(fed).abs().amax(dim=(1, 2, 3)), torch.ones(2))
    # direct, without normalisation of its transform: samples are larger by sqrt(n), and so is what divides them.
    rule = KSpaceQuantile(1.0, "backward")
    theirs = rule.apply(kspace, rule.fit(kspace, mask, maps)) * (18 * 20) ** 0.5
    torch.testing.assert_close(theirs.abs().amax(dim=(1, 2, 3)), torch.ones(2))
    image = ifft2(theirs, norm="backward")
    torch.testing.assert_close(rule.invert(image, rule.fit(kspace, mask, maps)), ifft2c(kspace), rtol=1e-4, atol=1e-5)
    assert torch.equal(Unscaled().apply(kspace, Unscaled().fit(kspace, mask, maps)), kspace)


def test_silence_and_nonsense_are_refused(scan):
    kspace, mask, maps = scan
    for rule in (SenseScale(), KSpaceQuantile(), CoilImageMax()):
        with pytest.raises(InputError, match="no signal|all zero"):
            rule.fit(torch.zeros_like(kspace), mask, maps)
    for share, norm in ((0.0, "ortho"), (1.5, "ortho"), (0.9, "forward")):
        with pytest.raises(InputError, match="this quantile makes no sense"):
            KSpaceQuantile(share, norm)


def test_shipped_configurations_carry_the_scale_of_their_data(repo_root):
    found = 0
    for path in sorted((repo_root / "configs" / "recon").glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        scale = content["data"]["train"].get("init_args", {}).get("scale", "sense")
        rules = [entry["class_path"] for entry in content["model"].get("bundle", {}).get("preprocess", [])]
        assert rules == {"sense": [], "kspace": ["medseq.data.recon_scale.KSpaceQuantile"]}[scale], path.name
        found += scale == "kspace"
    assert found == 2
