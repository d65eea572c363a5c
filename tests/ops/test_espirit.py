"""ESPIRiT: against known coils, against the definition with one transform per kernel, on awkward scans."""

import pytest
import torch

from medseq.errors import InputError, ShapeError
from medseq.ops.coils import acs_sens_maps, rss
from medseq.ops.espirit import espirit, estimate_maps
from medseq.ops.fourier import fft2, to_centre, to_corner
from medseq.ops.masks import equispaced_mask, poisson_disc_mask


def scan(size=(64, 64), coils=6, noise=0.0, generator=None):
    """Object, true maps and full k-space of coils on a ring around an ellipse with an inside."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    image = ((y / 0.75) ** 2 + (x / 0.6) ** 2 < 1) * (1 + 0.5 * torch.sin(7 * x) * torch.cos(9 * y))
    angle = 2 * torch.pi * torch.arange(coils)[:, None, None] / coils
    distance = (y - 1.3 * torch.sin(angle)) ** 2 + (x - 1.3 * torch.cos(angle)) ** 2
    maps = torch.exp(-distance / 1.5) * torch.exp(1j * (angle + 0.7 * x * torch.cos(angle)))
    maps = maps / rss(maps, dim=0)
    kspace = fft2(image * maps)
    kspace = kspace + noise * torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator)
    return image > 0, maps[None], kspace[None]


def agreement(found, truth, where):
    """|<found, truth>| a pixel: 1 where the maps agree up to a phase."""
    return (found.conj() * truth).sum(0).abs()[where]


def columns(cols):
    return equispaced_mask(cols, 3, 0.25, offset=0).mask[None]


def disc(size, seed):
    return poisson_disc_mask(size, 4, 0.08, torch.Generator().manual_seed(seed)).mask[None]


@pytest.mark.parametrize("size", [(64, 64), (63, 70), (48, 81)])
@pytest.mark.parametrize("kind", ["columns", "disc"])
def test_known_coils_are_found(size, kind, seed):
    inside, truth, kspace = scan(size)
    mask = columns(size[1]) if kind == "columns" else disc(size, seed)
    maps, eigenvalue = espirit(kspace * mask, mask)
    assert eigenvalue.shape == (1, *size)
    # The threshold cuts 2 % of the spectrum: the maps are as exact as the remaining span, worst at the object's edge.
    found = agreement(maps[0], truth[0], inside)
    assert found.min() > 0.97
    assert found.mean() > 0.998
    power = rss(maps)[0]
    torch.testing.assert_close(power[inside], torch.ones(int(inside.sum())), rtol=0, atol=1e-5)
    assert (power[:4] == 0).any()
    assert eigenvalue.max() < 1 + 1e-4


def test_the_autocorrelation_equals_one_transform_per_kernel(generator):
    kspace = torch.randn(1, 3, 14, 17, dtype=torch.complex128, generator=generator)
    kspace = torch.einsum("cd,bdyx->bcyx", torch.randn(3, 3, dtype=torch.complex128, generator=generator), kspace)
    mask = torch.ones(1, 1, 14, 17)
    rows, cols = 3, 4
    windows = kspace[0].unfold(1, rows, 1).unfold(2, cols, 1).permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(1)
    _, singular, span = torch.linalg.svd(windows, full_matrices=False)
    kernels = span[singular >= 0.6 * singular[0]].view(-1, 3, rows, cols)
    y, x = torch.arange(14) - 7, torch.arange(17) - 8
    waves = [
        torch.exp(2j * torch.pi * p[:, None] * torch.arange(n) / len(p)).to(kernels) for p, n in ((y, rows), (x, cols))
    ]
    images = torch.einsum("kcab,ya,xb->kcyx", kernels, *waves)
    matrices = torch.einsum("kcyx,kdyx->yxcd", images, images.conj()) / (rows * cols)
    wanted, vectors = torch.linalg.eigh(matrices)
    maps, eigenvalue = espirit(kspace, mask, kernel=(rows, cols), threshold=0.6, crop=0.0)
    # Power iteration converges by the ratio of two eigenvalues; the value itself by the square of that.
    torch.testing.assert_close(eigenvalue[0], wanted[..., -1], rtol=1e-3, atol=1e-3)
    clear = wanted[..., -2] < 0.9 * wanted[..., -1]
    assert clear.any()
    found = agreement(maps[0], vectors[..., -1].movedim(-1, 0), clear)
    torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-6)


def test_conventions_differ_by_a_shift(seed):
    _, _, kspace = scan((24, 27))
    mask = disc((24, 27), seed)
    mask[..., 6:18, 7:20] = True
    centre = espirit(kspace * mask, mask)
    # Both domains have their origin at the corner: the same samples, moved.
    corner = espirit(to_corner(kspace * mask), to_corner(mask), origin="corner")
    torch.testing.assert_close(to_centre(corner.maps), centre.maps)
    torch.testing.assert_close(to_centre(corner.eigenvalue), centre.eigenvalue)


def test_only_measured_points_are_read(seed):
    _, _, kspace = scan()
    mask = disc((64, 64), seed)
    changed = torch.where(mask, kspace, complex("nan"))
    torch.testing.assert_close(espirit(changed, mask).maps, espirit(kspace * mask, mask).maps, rtol=0, atol=0)


def test_phase_is_smooth_and_the_order_of_coils_does_not_matter(generator):
    inside, truth, kspace = scan(noise=0.01, generator=generator)
    mask = columns(64)
    maps = espirit(kspace * mask, mask).maps
    order = torch.randperm(6, generator=generator)
    turned = espirit(kspace[:, order] * mask, mask).maps
    # Up to one global phase, which the largest coil's weight fixes.
    relation = torch.vdot(maps[:, order].flatten(), turned.flatten())
    torch.testing.assert_close(turned, maps[:, order] * relation / relation.abs(), rtol=0, atol=2e-3)
    # The gauge left between truth and estimate turns slowly from pixel to pixel.
    gauge = (truth[0].conj() * maps[0]).sum(0).sgn()
    both = inside[:, 1:] & inside[:, :-1]
    assert (gauge[:, 1:] * gauge[:, :-1].conj()).angle().abs()[both].max() < 0.3


def test_one_coil_and_a_dead_coil():
    inside, _, kspace = scan()
    one = espirit(kspace[:, :1], torch.ones(1, 1, 1, 64)).maps[0, 0]
    torch.testing.assert_close(one[inside], torch.ones_like(one[inside]), rtol=0, atol=1e-5)
    dead = kspace.clone()
    dead[:, 2] = 0
    maps = espirit(dead, torch.ones(1, 1, 1, 64)).maps
    # Eigenvectors of float32 matrices: rounding only.
    assert maps[:, 2].abs().max() < 1e-6
    assert maps[:, 3].abs().max() > 0.3


def test_a_batch_is_its_items_and_keeps_the_dtype(seed):
    _, _, kspace = scan()
    two = torch.cat([kspace, kspace.flip(1) * 5]).to(torch.complex128)
    masks = torch.cat([disc((64, 64), seed), disc((64, 64), seed + 1)])
    both = espirit(two * masks, masks)
    assert both.maps.dtype == torch.complex128
    for i in range(2):
        alone = espirit((two * masks)[i : i + 1], masks[i : i + 1])
        torch.testing.assert_close(both.maps[i : i + 1], alone.maps)


def test_strips_do_not_show(monkeypatch):
    _, _, kspace = scan((30, 26))
    mask = torch.ones(1, 1, 1, 26)
    whole = espirit(kspace, mask).maps
    monkeypatch.setattr("medseq.ops.espirit._STRIP_BYTES", 1)
    torch.testing.assert_close(espirit(kspace, mask).maps, whole, rtol=0, atol=1e-5)


def test_soft_weighting_fades_where_cropping_cuts():
    _, _, kspace = scan()
    mask = torch.ones(1, 1, 1, 64)
    maps, eigenvalue = espirit(kspace, mask, soft=True)
    power = rss(maps)
    assert ((power > 0.1) & (power < 0.9)).any()
    assert (power[eigenvalue > 0.999] > 0.99).all()
    assert not power[eigenvalue < 0.6].any()
    assert (power[eigenvalue > 0.81] > 0.5).all()
    assert set(rss(espirit(kspace, mask).maps).round().unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("noise", [0.02, 0.2])
def test_the_automatic_threshold_follows_the_noise(noise, generator):
    inside, truth, kspace = scan(noise=noise, generator=generator)
    mask = torch.ones(1, 1, 1, 64)
    auto, low = espirit(kspace, mask, threshold="auto"), espirit(kspace, mask, threshold=1e-4)
    # With every kernel kept, noise included, all pixels have the eigenvalue 1 and none is left out.
    assert (low.eigenvalue > 0.99).all()
    assert (auto.eigenvalue[0, :4, :4] < 0.8).all()
    assert (auto.eigenvalue[0][inside] > 0.8).float().mean() > 0.97
    assert agreement(auto.maps[0], truth[0], inside & (auto.eigenvalue[0] > 0.8)).mean() > 0.98
    scaled = espirit(1e4 * kspace, mask, threshold="auto")
    torch.testing.assert_close(scaled.eigenvalue, auto.eigenvalue, rtol=0, atol=1e-4)


def test_maps_are_estimated_by_name(seed):
    _, _, kspace = scan()
    mask = disc((64, 64), seed)
    y = kspace * mask
    torch.testing.assert_close(estimate_maps(y, mask), espirit(y, mask).maps)
    torch.testing.assert_close(estimate_maps(y, mask, "acs"), acs_sens_maps(y, mask))
    for method in ("acs", "espirit"):
        corner = estimate_maps(to_corner(y), to_corner(mask), method, origin="corner", norm="backward")
        torch.testing.assert_close(to_centre(corner), estimate_maps(y, mask, method), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="found sake, wanted acs or espirit"):
        estimate_maps(y, mask, "sake")


def test_bad_input_is_named():
    _, _, kspace = scan((32, 32))
    full = torch.ones(1, 1, 32, 32)
    hole = full.clone()
    hole[..., 16, 16] = 0
    with pytest.raises(InputError, match="the centre of k-space was not sampled"):
        espirit(kspace, hole)
    narrow = torch.zeros(1, 1, 1, 32)
    narrow[..., 14:18] = 1
    with pytest.raises(InputError, match=r"too small for ESPIRiT \(found 0 fully sampled windows of 6 x 6"):
        espirit(kspace, narrow)
    assert espirit(kspace, narrow, kernel=(6, 3)).maps.any()
    with pytest.raises(InputError, match="too small for ESPIRiT"):
        espirit(kspace[..., :5, :5], full[..., :5, :5])
    with pytest.raises(InputError, match="zero in every coil"):
        espirit(0 * kspace, full)
    broken = kspace.clone()
    broken[0, 1, 15, 15] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        espirit(broken, full)
    with pytest.raises(ShapeError, match="mask and k-space disagree"):
        espirit(kspace, full[..., :20])
    with pytest.raises(ShapeError, match="k-space has the wrong form"):
        espirit(kspace.real, full)
    for options, text in (
        ({"threshold": 2.0}, "threshold from 0 to 1"), ({"kernel": (0, 6)}, "kernel >= 1"),
        ({"crop": 1.0}, "crop value"), ({"origin": "middle"}, "found middle"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=text):
            espirit(kspace, full, **options)
