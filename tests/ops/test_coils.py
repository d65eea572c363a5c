"""Coil operators: against the original toolkits, adjointness, the calibration region."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medseq.errors import InputError, ShapeError
from medseq.ops.coils import SenseOperator, acs_mask, acs_sens_maps, extract_acs, rss, sens_expand, sens_reduce
from medseq.ops.fourier import fft2, ifft2

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def direct():
    return load_file(GOLDEN / "blocks_direct.safetensors")


@pytest.fixture(scope="module")
def atommic():
    return load_file(GOLDEN / "blocks_atommic.safetensors")


def cplx(x):
    return torch.view_as_complex(x.contiguous())


def close(found, wanted, tolerance=1e-6):
    # Float32 sums over at most 5 coils and one FFT: a few roundings of the largest value.
    wanted = cplx(wanted) if wanted.dim() > found.dim() else wanted
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def normal(generator, *shape):
    return torch.randn(*shape, dtype=torch.complex128, generator=generator)


def test_operators_match_direct(direct):
    sens, image = cplx(direct["in.sens"]), cplx(direct["in.image"])
    masked = cplx(direct["in.masked_kspace"])
    close(ifft2(sens_expand(image, sens)), direct["out.expand"], 2e-6)
    close(sens_reduce(masked, sens), direct["out.reduce_of_ifft2_masked"])
    close(rss(ifft2(masked)), direct["out.rss_of_ifft2_masked"])


def test_rss_and_sense_match_atommic(atommic):
    images, sens = cplx(atommic["in.coil_images"]), cplx(atommic["in.sens"])
    close(rss(images), atommic["out.rss_true"])
    close(sens_reduce(fft2(images), sens), atommic["out.sense"], 2e-6)


def test_maps_from_the_calibration_region_match_direct(direct):
    kspace, region = cplx(direct["in.kspace"]), direct["in.acs_mask"][..., 0].bool()
    close(acs_sens_maps(kspace, region, region=region), direct["out.sens_acs_rss_estimate"])


@pytest.mark.parametrize("size", [(8, 6), (7, 9), (1, 5)])
@pytest.mark.parametrize("origin", ["centre", "corner"])
def test_expand_and_reduce_are_adjoint(size, origin, generator):
    sens, k = normal(generator, 2, 3, *size), normal(generator, 2, 3, *size)
    x = normal(generator, 2, *size)
    left = torch.vdot(sens_expand(x, sens, origin=origin).flatten(), k.flatten())
    right = torch.vdot(x.flatten(), sens_reduce(k, sens, origin=origin).flatten())
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize("origin", ["centre", "corner"])
@pytest.mark.parametrize("norm", ["ortho", "backward"])
def test_the_operator_equals_the_functions(origin, norm, generator):
    sens, k, x = normal(generator, 2, 3, 7, 6), normal(generator, 2, 3, 7, 6), normal(generator, 2, 7, 6)
    operator = SenseOperator(sens, origin, norm)
    torch.testing.assert_close(operator.scan(operator.expand(x)), sens_expand(x, sens, origin=origin, norm=norm))
    torch.testing.assert_close(operator.reduce(operator.corner(k)), sens_reduce(k, sens, origin=origin, norm=norm))


@pytest.mark.parametrize("origin", ["centre", "corner"])
@pytest.mark.parametrize("rows", [1, 7])
def test_the_normal_operator_is_expand_mask_reduce(origin, rows, generator):
    sens, x = normal(generator, 2, 3, 7, 6), normal(generator, 2, 7, 6)
    operator = SenseOperator(sens, origin, "backward")
    mask = torch.rand(2, 1, rows, 6, generator=generator) < 0.5
    wanted = operator.reduce(torch.where(mask, operator.expand(x), 0))
    torch.testing.assert_close(operator.normal(x, mask), wanted)


def test_normalised_maps_invert_the_expansion(generator):
    sens = normal(generator, 1, 4, 9, 8)
    sens, x = sens / rss(sens)[:, None], normal(generator, 1, 9, 8)
    torch.testing.assert_close(sens_reduce(sens_expand(x, sens), sens), x)


@pytest.mark.parametrize(("cols", "count"), [(20, 6), (21, 6), (20, 5), (21, 1), (8, 8)])
def test_calibration_columns_are_found(cols, count):
    from medseq.ops.masks import acs_columns

    line = acs_columns(cols, count)
    assert torch.equal(acs_mask(line.expand(1, 1, 1, cols)), line.expand(1, 1, 1, cols))
    sparse = line.clone()
    if count < cols:
        sparse[0] = True
    region = acs_mask(sparse.expand(2, 1, 5, cols))
    assert region.shape == (2, 1, 5, cols)
    assert torch.equal(region[1, 0, 3], line)


def test_calibration_rows_and_blocks_are_found():
    mask = torch.zeros(2, 1, 12, 10)
    mask[0, 0, 4:9] = 1
    mask[1, 0, 5:8, 3:7] = 1
    mask[1, 0, 0, 0] = 1
    region = acs_mask(mask)
    assert torch.equal(region[0, 0, :, 0].nonzero().flatten(), torch.arange(4, 9))
    assert region[1].sum() == 12
    assert region[1, 0, 5:8, 3:7].all()


def test_only_measured_calibration_data_are_used(generator):
    mask = torch.zeros(1, 1, 1, 16)
    mask[..., 6:11] = 1
    kspace = normal(generator, 1, 3, 16, 16)
    changed = torch.where(mask.bool(), kspace, normal(generator, 1, 3, 16, 16))
    torch.testing.assert_close(acs_sens_maps(kspace, mask), acs_sens_maps(changed, mask))
    maps = acs_sens_maps(kspace, mask, sigma=0.7)
    torch.testing.assert_close(rss(maps), torch.ones(1, 16, 16, dtype=torch.float64))
    assert extract_acs(kspace, mask)[1].sum() == 5


def test_empty_coils_give_zero_maps_and_finite_gradients():
    kspace = torch.zeros(1, 2, 6, 6, dtype=torch.complex64, requires_grad=True)
    maps = acs_sens_maps(kspace, torch.ones(1, 1, 1, 6))
    assert torch.equal(maps, torch.zeros_like(maps))
    maps.abs().sum().backward()
    assert torch.isfinite(torch.view_as_real(kspace.grad)).all()


def test_bad_input_is_named():
    k, s = torch.zeros(1, 12, 4, 4, dtype=torch.complex64), torch.zeros(1, 15, 4, 4, dtype=torch.complex64)
    with pytest.raises(ShapeError, match="k-space has 12 coils, sensitivity maps have 15"):
        sens_reduce(k, s)
    with pytest.raises(ShapeError, match="image and sensitivity maps do not fit"):
        sens_expand(torch.zeros(1, 4, 5, dtype=torch.complex64), s)
    hole = torch.ones(1, 1, 1, 4)
    hole[..., 2] = 0
    with pytest.raises(InputError, match="the centre of k-space was not sampled"):
        extract_acs(k, hole)
    with pytest.raises(ShapeError, match="not a sampling mask"):
        acs_mask(torch.ones(4, 4))
