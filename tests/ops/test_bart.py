"""One acquisition through the BART toolbox and through medseq; fails where BART is missing (make system-test-deps).

The acquisition is BART's analytic phantom: its k-space is computed in closed form, by neither of the two transforms.
"""

import numpy as np
import pytest
import torch

from benchmarks.bart_runner import bart, from_bart, pics_sign, to_bart
from medseq.errors import BackendError, InputError
from medseq.models.recon_classical import CGSense, L1Wavelet, TotalVariation, ZeroFilled
from medseq.ops.coils import acs_mask, rss, sens_expand, sens_reduce
from medseq.ops.espirit import espirit
from medseq.ops.fourier import fft2, ifft2
from medseq.ops.masks import poisson_disc_mask
from medseq.ops.recon_quality import scaled_nrmse

pytestmark = pytest.mark.bart
SIZE, COILS = 128, 8


def coil_first(array):
    """A phantom's ``(row, col, 1, coil)`` -> ``(1, coil, row, col)``."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array[:, :, 0], -1, 0)))[None]


@pytest.fixture(scope="module")
def phantom():
    """K-space with the largest combined pixel 1, and the true maps, root sum of squares 1."""
    kspace = coil_first(bart(f"phantom -k -s {COILS} -x {SIZE}"))
    maps = coil_first(bart(f"phantom -S {COILS} -x {SIZE}"))
    return kspace / rss(ifft2(kspace)).max(), maps / rss(maps)[:, None]


@pytest.fixture
def scan(phantom, generator):
    """Noisy k-space behind a Poisson mask of 4x."""
    kspace, _ = phantom
    noise = torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator)
    mask = poisson_disc_mask((SIZE, SIZE), 4, 0.03, generator).mask[None]
    return (kspace + 0.005 * noise) * mask, mask


def nrmse(image, reference):
    return scaled_nrmse(np.asarray(image), np.asarray(reference))


@pytest.mark.parametrize("size", [(8, 8), (6, 8), (6, 10), (7, 8), (9, 5)])
def test_fourier_transforms_agree(size, generator):
    x = torch.randn(3, *size, dtype=torch.complex64, generator=generator)
    # Bits 1 and 2 of the mask: rows and columns.
    found = torch.from_numpy(from_bart(bart("fft -u 6", to_bart(x.numpy()))))
    torch.testing.assert_close(found, fft2(x), rtol=0, atol=1e-5)
    found = torch.from_numpy(from_bart(bart("fft -n -u -i 6", to_bart(x.numpy()))))
    torch.testing.assert_close(found, ifft2(x, origin="corner"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 12), (16, 18), (10, 14), (18, 16)])
def test_sense_agrees_up_to_the_sign_of_pics(size, generator):
    x = torch.randn(1, *size, dtype=torch.complex64, generator=generator)
    maps = torch.randn(1, 4, *size, dtype=torch.complex64, generator=generator)
    maps = maps / rss(maps)[:, None]
    kspace = sens_expand(x, maps)
    image = from_bart(bart("pics -S -l2 -r 0 -i 30", to_bart(kspace[0].numpy()), to_bart(maps[0].numpy())))
    torch.testing.assert_close(pics_sign(*size) * torch.from_numpy(image), x[0], rtol=0, atol=1e-4)


def test_maps_agree_with_ecalib_and_with_the_truth(phantom):
    kspace, truth = phantom
    image = torch.from_numpy(bart(f"phantom -x {SIZE}")[:, :, 0, 0])
    inside = image.abs() > 1e-3
    theirs = coil_first(bart("ecalib -m1 -r 24", kspace[0].movedim(0, -1)[:, :, None].numpy()))
    # ecalib's -t is a part of the largest squared singular value, 0.001 by default.
    found = espirit(kspace, torch.ones(1, 1, 1, SIZE), threshold=0.001**0.5)
    ours = found.maps
    supports = [rss(maps)[0] > 0 for maps in (theirs, ours)]
    assert (supports[0] != supports[1]).float().mean() < 0.01
    assert all(bool(support[inside].all()) for support in supports)

    def agreement(a, b):
        return (a[0].conj() * b[0]).sum(0).abs()[inside]

    # ecalib stops after 30 power iterations, which leaves a few pixels where two eigenvalues are close.
    assert (agreement(theirs, ours) >= 0.99).float().mean() > 0.985
    assert agreement(ours, truth).min() >= 0.99
    assert agreement(ours, truth).mean() >= agreement(theirs, truth).mean()


def test_maps_agree_from_undersampled_data(phantom, scan):
    kspace, mask = scan
    inside = torch.from_numpy(bart(f"phantom -x {SIZE}")[:, :, 0, 0]).abs() > 1e-3
    theirs = torch.from_numpy(from_bart(bart("ecalib -m1", to_bart(kspace[0].numpy()))))
    ours = espirit(kspace, mask).maps[0]
    found = (theirs.conj() * ours).sum(0).abs()[inside]
    assert (found >= 0.99).float().mean() > 0.97
    assert (ours.conj() * phantom[1][0]).sum(0).abs()[inside].min() > 0.98


@pytest.mark.parametrize("lam", [0.0, 0.01])
def test_cg_sense_agrees(lam, scan):
    kspace, mask = scan
    maps = espirit(kspace, mask).maps
    theirs = from_bart(bart(f"pics -l2 -r {lam} -w 1 -i 10", to_bart(kspace[0].numpy()), to_bart(maps[0].numpy())))
    ours = CGSense(iterations=10, lam=lam)(kspace, mask, maps).image[0]
    # The same ten steps in float32.
    assert nrmse(ours, theirs) < 5e-3


@pytest.mark.parametrize(
    ("method", "options"), [(L1Wavelet(), "-R W:6:0:{}"), (TotalVariation(), "-R T:6:0:{} -u 0.1")]
)
def test_compressed_sensing_is_not_worse(method, options, phantom, scan):
    kspace, mask = scan
    maps = espirit(kspace, mask).maps
    reference = sens_reduce(phantom[0], maps)[0]
    ours = nrmse(method(kspace, mask, maps).image[0], reference)
    given = [to_bart(kspace[0].numpy()), to_bart(maps[0].numpy())]
    theirs = [nrmse(from_bart(bart(f"pics -S -i 60 {options.format(lam)}", *given)), reference) for lam in (5e-3, 1e-2)]
    # Ours at its default weight against the better of two of theirs; the noise differs from run to run.
    assert ours < 1.1 * min(theirs)
    assert ours < 0.2 * nrmse(ZeroFilled()(kspace, mask, maps).image[0], reference)


def test_poisson_masks_have_the_same_statistics(generator):
    theirs = torch.from_numpy(from_bart(bart(f"poisson -Y {SIZE} -Z {SIZE} -y 1.6 -z 1.6 -C 20 -v -s 7"))).abs() > 0
    acceleration = theirs.numel() / int(theirs.sum())
    fraction = int(acs_mask(theirs[None, None]).sum()) / theirs.numel()
    ours = poisson_disc_mask((SIZE, SIZE), acceleration, fraction, generator).mask[0]
    assert abs(int(ours.sum()) - int(theirs.sum())) <= 1
    y, x = torch.meshgrid(*(torch.arange(SIZE) - SIZE // 2,) * 2, indexing="ij")
    radius = (y**2 + x**2).sqrt()
    rings = [(radius >= lo) & (radius < hi) for lo, hi in ((16, 28), (28, 40), (40, 64))]
    densities = [[float(mask[ring].float().mean()) for ring in rings] for mask in (theirs, ours)]
    for density in densities:
        assert density[0] > density[1] > density[2]
    # Both thin out with radius; the laws of the distance differ in detail.
    assert all(0.5 < a / b < 2 for a, b in zip(*densities, strict=True))
    for mask in (theirs, ours):
        outside = mask & (radius > 40)
        neighbours = (outside[:, 1:] & outside[:, :-1]).sum()
        # Independent points of this density would touch in density^2 of the places.
        expected = float(outside.float().mean()) ** 2 * SIZE * (SIZE - 1)
        assert neighbours < 0.3 * expected


def test_the_runner_names_what_goes_wrong(monkeypatch):
    with pytest.raises(BackendError, match="BART failed"):
        bart("fft -u 6", np.ones((1, 0, 3, 2)))
    with pytest.raises(BackendError, match="BART failed"):
        bart("notatool")
    with pytest.raises(InputError, match="even sizes only"):
        pics_sign(7, 8)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(BackendError, match=r"BART is not installed.*system-test-deps"):
        bart("version")
