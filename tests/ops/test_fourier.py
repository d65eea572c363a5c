"""Fourier conventions: against the original toolkits, and the properties that define them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medseq.errors import InputError
from medseq.ops.fourier import fft2, fft2c, ifft2, ifft2c, to_centre, to_corner

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = [(12, 10), (11, 9), (12, 9), (1, 7), (1, 1)]


def close(found, wanted):
    # Both are float32 FFTs of one library: rounding of the shifted order only.
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()


@pytest.mark.parametrize("toolkit", ["direct", "atommic"])
def test_every_convention_matches_the_original(toolkit):
    tensors = load_file(GOLDEN / f"blocks_{toolkit}.safetensors")
    norms = {"normalized0": "backward", "normalized1": "ortho", "backward": "backward"} | {
        norm: norm for norm in ("ortho", "forward")
    }
    keys = [key for key in tensors if key.startswith("out.fft.")]
    assert len(keys) >= 24
    for key in keys:
        _, _, size, name, centred, norm = key.split(".")
        x = torch.view_as_complex(tensors[f"in.fft.{size}.x"])
        transform = {"fft2": fft2, "ifft2": ifft2}[name]
        found = transform(x, origin="centre" if centred == "centered1" else "corner", norm=norms[norm])
        close(torch.view_as_real(found), tensors[key])


def test_shifts_match_the_original():
    tensors = load_file(GOLDEN / "blocks_direct.safetensors")
    row = tensors["in.shift.x"]
    assert torch.equal(to_centre(row), tensors["out.shift.fftshift"])
    assert torch.equal(to_corner(row), tensors["out.shift.ifftshift"])
    assert torch.equal(to_corner(to_centre(row)), row)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("origin", ["centre", "corner"])
@pytest.mark.parametrize("norm", ["ortho", "backward", "forward"])
def test_inverse_undoes_the_transform(size, origin, norm, generator):
    x = torch.randn(2, 3, *size, dtype=torch.complex128, generator=generator)
    torch.testing.assert_close(ifft2(fft2(x, origin=origin, norm=norm), origin=origin, norm=norm), x)


@pytest.mark.parametrize("size", SIZES)
def test_ortho_is_unitary(size, generator):
    x, y = torch.randn(2, *size, dtype=torch.complex128, generator=generator)
    for origin in ("centre", "corner"):
        inner = torch.vdot(fft2(x, origin=origin).flatten(), y.flatten())
        torch.testing.assert_close(inner, torch.vdot(x.flatten(), ifft2(y, origin=origin).flatten()))
        torch.testing.assert_close(fft2(x, origin=origin).norm(), x.norm())


@pytest.mark.parametrize("size", SIZES)
def test_a_constant_image_is_a_peak_at_the_origin(size):
    rows, cols = size
    peak = fft2c(torch.ones(size, dtype=torch.complex128))
    wanted = torch.zeros_like(peak)
    wanted[rows // 2, cols // 2] = (rows * cols) ** 0.5
    torch.testing.assert_close(peak, wanted)
    torch.testing.assert_close(ifft2c(wanted), torch.ones_like(peak))


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match=r"found torch\.float32, wanted complex64"):
        fft2(torch.zeros(4, 4))
    with pytest.raises(InputError, match="found middle, wanted centre or corner"):
        ifft2(torch.zeros(4, 4, dtype=torch.complex64), origin="middle")
    with pytest.raises(InputError, match="found unitary"):
        fft2(torch.zeros(4, 4, dtype=torch.complex64), norm="unitary")
