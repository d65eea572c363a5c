"""Simulated scans: fields of loops, resolution, noise, maps."""

import math

import pytest
import torch

from medseq.data.coil_fields import coil_maps, loop_field, smooth_field
from medseq.data.simulate import acquire, add_phase, imperfect_maps, simulate_scan
from medseq.errors import InputError, ShapeError
from medseq.ops.coils import rss, sens_expand
from medseq.ops.fourier import fft2c, ifft2c


def test_field_on_the_axis_of_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(3, generator=generator)
    normal = normal / normal.norm()
    centre, radius = torch.randn(3, generator=generator), 0.4
    height = torch.linspace(-1, 1, 9)
    field = loop_field(centre + height[:, None] * normal, centre, normal, radius)
    wanted = 2 * math.pi * radius**2 / (radius**2 + height**2) ** 1.5
    # 24 straight segments enclose 1.1 % less than the circle and lie up to 0.9 % nearer.
    torch.testing.assert_close(field @ normal, wanted, rtol=0.03, atol=0)
    assert float((field - (field @ normal)[:, None] * normal).abs().max()) < 1e-4 * float(field.abs().max())


def test_far_field_of_a_loop_is_a_dipole(seed):
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(20, 3, generator=generator)
    direction = direction / direction.norm(dim=1, keepdim=True)
    normal, radius, distance = torch.tensor([0.0, 0.0, 1.0]), 0.05, 2.0
    moment = math.pi * radius**2 * normal
    wanted = (3 * (direction @ moment)[:, None] * direction - moment) / distance**3
    field = loop_field(distance * direction, torch.zeros(3), normal, radius)
    # Beyond the dipole comes (radius / distance)^2 = 6e-4; the polygon's area is 1.1 % small.
    torch.testing.assert_close(field, wanted, rtol=0.03, atol=0.03 * float(wanted.abs().max()))


@pytest.mark.parametrize("coils", [1, 5, 8, 13, 32])
def test_maps_of_arrays_of_any_size(coils, seed):
    maps = coil_maps((40, 33), coils, torch.Generator().manual_seed(seed))
    assert maps.shape == (coils, 40, 33)
    assert torch.isfinite(torch.view_as_real(maps)).all()
    assert float(maps.abs().square().sum(0).mean()) == pytest.approx(1.0, rel=1e-4)
    if coils > 1:  # the receivers see different things
        flat = maps.flatten(1)
        cosine = (flat[0].conj() @ flat[1]).abs() / (flat[0].norm() * flat[1].norm())
        assert float(cosine) < 0.999
    again = coil_maps((40, 33), coils, torch.Generator().manual_seed(seed))
    assert torch.equal(maps, again)


def disc(shape, sharp=40.0):
    y, x = (torch.linspace(-1, 1, size) for size in shape)
    return torch.sigmoid(sharp * (0.7 - torch.sqrt(y[:, None] ** 2 + x**2)))


@pytest.mark.parametrize("shape", [(24, 32), (25, 19), (32, 21)])
@pytest.mark.parametrize("fine", [2, 3])
def test_scan_is_the_centre_of_k_space(shape, fine, seed):
    generator = torch.Generator().manual_seed(seed)
    grid = (fine * shape[0], fine * shape[1])
    image = add_phase(disc(grid), generator, fine=fine)
    ones = torch.ones(1, *grid, dtype=torch.complex64)
    scan = acquire(image, ones, 0.0, generator, fine=fine)
    whole = fft2c(image)
    frequencies = [torch.fft.fftshift(torch.fft.fftfreq(n, 1 / n)).round().long() for n in shape]
    rows = frequencies[0] + grid[0] // 2
    cols = frequencies[1] + grid[1] // 2
    wanted = ifft2c(whole[rows][:, cols]) / fine
    scale = torch.quantile(wanted.abs().flatten(), 0.95)
    torch.testing.assert_close(scan.image, wanted / scale, rtol=1e-4, atol=1e-5)
    # A pixel of the scan and the fine pixel at its place show the same, away from edges.
    start = [grid[i] // 2 - fine * (shape[i] // 2) for i in range(2)]
    same = image[start[0] :: fine, start[1] :: fine][: shape[0], : shape[1]]
    middle = (slice(shape[0] // 2 - 2, shape[0] // 2 + 3), slice(shape[1] // 2 - 2, shape[1] // 2 + 3))
    torch.testing.assert_close(wanted[middle], same[middle], rtol=0.15, atol=0.15)


def test_model_of_the_scan_fits_up_to_what_the_resolution_cut_off(seed):
    generator = torch.Generator().manual_seed(seed)
    scan = simulate_scan(disc((96, 80)), 6, 0.0, generator)
    torch.testing.assert_close(scan.noisy, scan.image, rtol=1e-4, atol=1e-5)
    residual = scan.kspace - sens_expand(scan.image[None], scan.sens_maps[None])[0]
    relative = float(residual.norm() / scan.kspace.norm())
    # Not zero, or the simulation would be the reconstruction's own operator; small, or maps and image do not fit.
    assert 1e-6 < relative < 0.05
    torch.testing.assert_close(rss(scan.sens_maps, dim=0), torch.ones(48, 40), rtol=1e-4, atol=1e-4)
    assert float(torch.quantile(scan.image.abs().flatten(), 0.95)) == pytest.approx(1, rel=1e-4)


def test_noise_has_the_level_asked_for(seed):
    state = torch.Generator().manual_seed(seed)
    noisy = simulate_scan(disc((128, 128)), 4, 0.1, state)
    clean = simulate_scan(disc((128, 128)), 4, 0.0, torch.Generator().manual_seed(seed))
    power = (noisy.kspace - clean.kspace).abs().square().mean()
    # 16384 complex samples: the power is known to 0.8 %.
    assert float(power.sqrt()) == pytest.approx(0.1, rel=0.04)
    # A combination by maps of root sum of squares 1 keeps the noise level.
    assert float((noisy.noisy - clean.image).abs().square().mean().sqrt()) == pytest.approx(0.1, rel=0.06)


def test_imperfect_maps_stay_close_to_the_true_ones(seed):
    scan = simulate_scan(disc((128, 112)), 8, 0.01, torch.Generator().manual_seed(seed))
    inside = scan.image.abs() > 0.5
    kinds = set()
    for number in range(12):
        maps = imperfect_maps(scan, torch.Generator().manual_seed(seed + number))
        strength = rss(maps, dim=0)
        assert float(strength.max()) < 1.001
        agreement = (maps.conj() * scan.sens_maps).sum(0).abs()
        assert float(agreement[inside].mean()) > 0.93
        kinds.add(bool((strength == 0).any()))
    assert kinds == {True, False}


def test_smooth_fields_are_smooth(seed):
    generator = torch.Generator().manual_seed(seed)
    field = smooth_field((60, 70), 4, generator, 3, complex_values=True)
    assert field.shape == (3, 60, 70)
    assert field.is_complex()
    step = (field[:, 1:] - field[:, :-1]).abs().mean()
    assert float(step) < 0.2 * float(field.abs().mean())


def test_refuses_its_own_grid_and_odd_fits(seed):
    generator = torch.Generator().manual_seed(seed)
    with pytest.raises(InputError, match="own grid"):
        simulate_scan(disc((32, 32)), 2, 0.0, generator, fine=1)
    with pytest.raises(ShapeError, match="multiples of 2"):
        simulate_scan(disc((33, 32)), 2, 0.0, generator)
