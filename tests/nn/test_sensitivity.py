"""Sensitivity networks and the U-Net under them: only measured data are used, any size works."""

import pytest
import torch

from medseq.errors import InputError
from medseq.nn.sensitivity import SensitivityNet
from medseq.nn.unet import NormUNet, UNet
from medseq.ops.coils import rss
from medseq.ops.fourier import to_corner


def scan(seed, size=(20, 24)):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(1, 1, 1, size[1], dtype=torch.bool)
    mask[..., ::4], mask[..., 9:15] = True, True
    return torch.randn(1, 3, *size, dtype=torch.complex64, generator=generator), mask


@pytest.mark.parametrize("style", ["varnet", "direct"])
def test_only_measured_calibration_data_are_used(style, seed):
    kspace, mask = scan(seed)
    net = SensitivityNet(4, 2, style).eval()
    with torch.no_grad():
        wanted, full = net(kspace * mask, mask), net(kspace, mask)
    assert torch.equal(wanted, full)
    torch.testing.assert_close(rss(wanted), torch.ones(1, 20, 24))


def test_the_origin_of_the_transform_does_not_matter(seed):
    """Magnitudes at least: the image moves by half its size, and the U-Net sees other edges, so the maps before it."""
    kspace, mask = scan(seed)
    centre = SensitivityNet(4, 2).calibration_images(kspace, mask)
    corner = SensitivityNet(4, 2, fft_origin="corner").calibration_images(to_corner(kspace), to_corner(mask))
    torch.testing.assert_close(corner, to_corner(centre), rtol=0, atol=1e-5)


def test_a_scan_without_its_centre_is_refused(seed):
    kspace, mask = scan(seed)
    mask[..., 12] = False
    with pytest.raises(InputError, match="the centre of k-space was not sampled"):
        SensitivityNet(4, 2)(kspace, mask)


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (17, 31)])
def test_normalised_unet_takes_any_size_and_constant_images(size):
    net = NormUNet(4, 2).eval()
    for image in (torch.randn(2, *size, dtype=torch.complex64), torch.ones(2, *size, dtype=torch.complex64)):
        result = net(image)
        assert result.shape == image.shape
        assert torch.isfinite(result.abs()).all()


def test_unet_mirrors_odd_sizes(seed):
    net = UNet(2, 3, 4, 2).eval()
    assert net(torch.randn(1, 2, 13, 19)).shape == (1, 3, 13, 19)
