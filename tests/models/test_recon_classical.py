"""Classical reconstruction: data consistency, exactness where it must be exact, and gains over zero filling."""

import pytest
import torch

from medseq.errors import InputError, ShapeError
from medseq.models.recon_classical import GRAPPA, POCS, CGSense, L1Wavelet, TotalVariation, ZeroFilled
from medseq.ops.coils import rss, sens_expand
from medseq.ops.fourier import ifft2c, to_corner
from medseq.ops.masks import equispaced_mask, gaussian_2d_mask, poisson_disc_mask
from medseq.ops.recon_quality import scaled_nrmse

CONVENTIONS = [("centre", "ortho"), ("corner", "ortho"), ("corner", "backward"), ("centre", "forward")]


def phantom(size=64):
    """Ellipses of different brightness, with a smooth phase."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, size),) * 2, indexing="ij")
    image = torch.zeros(size, size)
    for cy, cx, ry, rx, value in [
        (0, 0, 0.9, 0.7, 1.0), (0, 0, 0.8, 0.6, -0.5), (-0.3, 0.2, 0.2, 0.15, 0.3), (0.3, -0.2, 0.1, 0.2, 0.4),
        (0.1, 0.3, 0.04, 0.04, 0.5),
    ]:  # fmt: skip
        image[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] += value
    return image * torch.exp(1j * (0.6 * x - 0.4 * y + 0.5 * x * y))


def coils(count=8, size=64):
    """Smooth maps of coils on a ring, root sum of squares 1."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, size),) * 2, indexing="ij")
    angle = 2 * torch.pi * torch.arange(count)[:, None, None] / count
    distance = (y - 1.3 * torch.sin(angle)) ** 2 + (x - 1.3 * torch.cos(angle)) ** 2
    maps = torch.exp(-distance / 1.5) * torch.exp(
        1j * (angle + 0.7 * x * torch.cos(angle) + 0.7 * y * torch.sin(angle))
    )
    return (maps / rss(maps, dim=0))[None]


def scan(mask, noise=0.0, seed=0, size=64, count=8):
    image, maps = phantom(size)[None], coils(count, size)
    kspace = sens_expand(image, maps)
    generator = torch.Generator().manual_seed(seed)
    kspace = kspace + noise * torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator)
    return image, {"masked_kspace": kspace * mask, "mask": mask, "sens_maps": maps}


def columns(acceleration, center=0.15, size=64):
    return equispaced_mask(size, acceleration, center, offset=0).mask[None]


def nrmse(image, reference):
    return scaled_nrmse(image.numpy(), reference.numpy())


@pytest.mark.parametrize(("origin", "norm"), CONVENTIONS)
@pytest.mark.parametrize("method", [ZeroFilled, CGSense])
def test_fully_sampled_data_give_the_image(method, origin, norm):
    image, maps = phantom()[None], coils()
    kspace = sens_expand(image, maps, origin=origin, norm=norm)
    found = method(fft_origin=origin, fft_norm=norm)(kspace, torch.ones(1, 1, 1, 64), maps).image
    # Two float32 Fourier transforms; CG stops one rounding later.
    torch.testing.assert_close(found, image, rtol=0, atol=3e-6)


def test_cg_solves_the_normal_equations(seed):
    image, given = scan(columns(3), noise=0.01, seed=seed)
    given = {k: v.to(torch.complex128) if v.is_complex() else v for k, v in given.items()}
    found = CGSense(iterations=300, lam=0.05, tolerance=1e-12)(**given).image
    kspace, mask, maps = given.values()
    left = (maps.conj() * ifft2c(sens_expand(found, maps) * mask)).sum(1) + 0.05 * found
    torch.testing.assert_close(left, (maps.conj() * ifft2c(kspace)).sum(1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_cg_recovers_an_undersampled_image_without_noise(dtype):
    image, given = scan(columns(2))
    given = {k: v.to(dtype) if v.is_complex() else v for k, v in given.items()}
    found = CGSense(iterations=100)(**given).image
    assert found.dtype == dtype
    assert nrmse(found, image) < 0.02 < 0.1 < nrmse(ZeroFilled()(**given).image, image)


def test_an_empty_scan_stays_empty_and_leaves_its_neighbours_alone():
    _, given = scan(columns(3))
    two = {k: torch.cat([v, v]) if k != "mask" else v for k, v in given.items()}
    two["masked_kspace"][0] = 0
    for method in (CGSense(lam=1e-3), POCS(2), ZeroFilled(), L1Wavelet(iterations=3)):
        both, alone = method(**two).image, method(**given).image
        assert not both[0].any()
        torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [POCS(5), GRAPPA((5, 7)), GRAPPA((5, 7), image="complex"), POCS(5, image="rss")])
def test_sampled_points_stay_exactly(method, seed):
    _, given = scan(columns(3, 0.2), noise=0.02, seed=seed)
    found = method(**given).kspace
    measured = given["mask"].bool().expand_as(found)
    assert torch.equal(found[measured], given["masked_kspace"][measured])
    assert found[~measured].any()


@pytest.mark.parametrize("axis", [2, 3])
def test_partial_fourier_is_completed(axis):
    mask = torch.ones(1, 1, 64, 64)
    mask.narrow(axis, 0, 24).zero_()
    image, given = scan(mask)
    filled, zero = POCS(15)(**given).image, ZeroFilled()(**given).image
    assert nrmse(filled, image) < 0.6 * nrmse(zero, image)


def test_grappa_restores_regular_undersampling():
    for step in (2, 3):
        mask = torch.zeros(1, 1, 1, 64)
        mask[..., ::step], mask[..., 24:40] = 1, 1
        image, given = scan(mask)
        found, zero = GRAPPA()(**given).image, ZeroFilled(image="rss")(**given).image
        assert nrmse(found, image.abs()) < 0.25 * nrmse(zero, image.abs())


def test_grappa_takes_two_dimensional_masks(seed):
    mask = poisson_disc_mask((64, 64), 3, 0.06, torch.Generator().manual_seed(seed)).mask[None]
    image, given = scan(mask)
    found, zero = GRAPPA((5, 5))(**given).image, ZeroFilled(image="rss")(**given).image
    assert nrmse(found, image.abs()) < 0.5 * nrmse(zero, image.abs())


def test_grappa_leaves_full_data_and_refuses_little_calibration():
    _, given = scan(torch.ones(1, 1, 1, 64))
    torch.testing.assert_close(GRAPPA()(**given).kspace, given["masked_kspace"])
    _, given = scan(columns(4, 0.06))
    with pytest.raises(InputError, match=r"smaller than the GRAPPA window \(found 64 x 4, wanted 5 x 7\)"):
        GRAPPA((5, 7))(**given)
    given["mask"][..., 32] = 0
    with pytest.raises(InputError, match=r"smaller than the GRAPPA window \(found 0 x 0, wanted 3 x 3\)"):
        GRAPPA()(**given)
    with pytest.raises(InputError, match="must be odd"):
        GRAPPA((4, 5))(**given)


@pytest.mark.parametrize(("method", "gain"), [(L1Wavelet(), 0.5), (TotalVariation(), 0.5)])
def test_compressed_sensing_beats_zero_filling(method, gain, seed):
    mask = gaussian_2d_mask((64, 64), 4, 0.02, torch.Generator().manual_seed(seed)).mask[None]
    image, given = scan(mask, noise=0.01)
    found = method(**given).image
    assert nrmse(found, image) < gain * nrmse(ZeroFilled()(**given).image, image)


@pytest.mark.parametrize("method", [L1Wavelet, TotalVariation, CGSense, POCS, GRAPPA])
def test_every_convention_gives_the_same_image(method):
    image, given = scan(columns(3, 0.2))
    extra = {"iterations": 5} if method is not GRAPPA else {}
    wanted = method(**extra)(**given).image
    for origin, norm in CONVENTIONS[1:]:
        corner = origin == "corner"
        maps = to_corner(given["sens_maps"]) if corner else given["sens_maps"]
        kspace = sens_expand(to_corner(image) if corner else image, maps, origin=origin, norm=norm)
        mask = to_corner(given["mask"]) if corner else given["mask"]
        found = method(**extra, fft_origin=origin, fft_norm=norm)(kspace * mask, mask, maps).image
        torch.testing.assert_close(found, to_corner(wanted) if corner else wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", [L1Wavelet(iterations=10), CGSense(lam=1e-3), POCS(), GRAPPA()])
def test_scale_of_the_data_is_the_scale_of_the_image(method):
    _, given = scan(columns(3, 0.2))
    wanted = method(**given).image
    found = method(**{**given, "masked_kspace": 1e6 * given["masked_kspace"]}).image
    torch.testing.assert_close(found, 1e6 * wanted, rtol=0, atol=1e6 * 1e-4)


def test_what_is_missing_is_named():
    _, given = scan(columns(3, 0.2))
    without = {key: value for key, value in given.items() if key != "sens_maps"}
    assert POCS(image="rss")(**without).image.shape == (1, 64, 64)
    with pytest.raises(InputError, match="needs sensitivity maps"):
        CGSense()(**without)
    with pytest.raises(ShapeError, match="mask and k-space disagree"):
        ZeroFilled()(given["masked_kspace"], given["mask"][..., :5], given["sens_maps"])
    with pytest.raises(InputError, match="found phase"):
        ZeroFilled(image="phase")
    with pytest.raises(InputError, match="iterations >= 1"):
        CGSense(0)
    with pytest.raises(InputError, match="lam >= 0"):
        L1Wavelet(lam=-1)
