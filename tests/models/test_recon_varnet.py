"""E2E-VarNet and the U-Net baseline: their equations, scale, sizes."""

import pytest
import torch

from medseq.errors import InputError
from medseq.models.recon_unet import ReconUNet
from medseq.models.recon_varnet import VarNet, varnet
from medseq.ops.coils import rss, sens_expand, sens_reduce
from medseq.ops.fourier import ifft2


def scan(seed, size=(17, 22), coils=3):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, coils, *size, dtype=torch.complex64, generator=generator)
    maps /= torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    mask = torch.rand(2, 1, 1, size[1], generator=generator) < 0.4
    image = torch.randn(2, *size, dtype=torch.complex64, generator=generator)
    return {"masked_kspace": sens_expand(image, maps) * mask, "mask": mask, "sens_maps": maps}


def test_varnet_is_the_equation(seed):
    given = scan(seed)
    y, mask, maps = given["masked_kspace"], given["mask"], given["sens_maps"]
    model = VarNet(2, 4, 2).eval()
    with torch.no_grad():
        model.cascades[1].dc_weight.fill_(0.3)
        out, k = model(**given), y
        for block in model.cascades:
            k = k - block.dc_weight * mask * (k - y) - sens_expand(block.model(sens_reduce(k, maps)), maps)
    torch.testing.assert_close(out.kspace, k, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.image, rss(ifft2(k)), rtol=1e-4, atol=1e-5)
    assert len(out.intermediates) == 2


@pytest.mark.parametrize("model", [VarNet(2, 4, 2), ReconUNet(4, 2), ReconUNet(4, 2, image="rss")])
def test_scale_of_the_data_is_the_scale_of_the_image(model, seed):
    given = scan(seed)
    model.eval()
    with torch.no_grad():
        one, many = model(**given).image, model(**{**given, "masked_kspace": 1000 * given["masked_kspace"]}).image
    # Normalisation and instance norms in float32; the 1e-5 inside an instance norm is below the variance it meets.
    assert (many - 1000 * one).abs().max() <= 1e-2 * one.abs().max() * 1000


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (31, 33)])
@pytest.mark.parametrize("coils", [1, 5])
def test_any_size_and_any_number_of_coils(size, coils, seed):
    given = scan(seed, size, coils)
    given["mask"] = torch.ones_like(given["mask"])
    for model in (VarNet(1, 4, 2), ReconUNet(4, 2), ReconUNet(4, 2, image="rss")):
        with torch.no_grad():
            image = model.eval()(**given).image
        assert image.shape == (2, *size)
        assert torch.isfinite(image.abs()).all()


def test_the_magnitude_network_needs_no_maps_the_complex_one_does(seed):
    given = scan(seed)
    without = {key: given[key] for key in ("masked_kspace", "mask")}
    model = ReconUNet(4, 2, image="rss").eval()
    assert torch.equal(model(**without).image, model(**given).image)
    with pytest.raises(InputError, match="needs sensitivity maps"):
        ReconUNet(4, 2)(**without)


def test_start_image_and_named_size(seed):
    given = scan(seed)
    model = VarNet(1, 4, 2).eval()
    start = torch.randn(2, 17, 22, dtype=torch.complex64)
    assert not torch.allclose(model(**given, initial_image=start).image, model(**given).image)
    # 12 U-Nets of width 18 with a step size each, and direct's count of the same sensitivity network of width 8.
    assert sum(p.numel() for p in varnet().parameters()) == 12 * (2_454_338 + 1) + 484_898


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="at least one cascade"):
        VarNet(0)
    with pytest.raises(InputError, match="found phase, wanted complex or rss"):
        ReconUNet(image="phase")
