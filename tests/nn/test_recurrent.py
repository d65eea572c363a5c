"""Recurrent units: against torch's own cell and their equations, states, and mixers in their place."""

import pytest
import torch
from torch import nn

from medseq.errors import InputError
from medseq.nn import recurrent
from medseq.nn.recurrent import MGU, ConvGRU, IndRNN, Recurrent, in_fast_layout, make_recurrent, replicate_conv

UNITS = [IndRNN, MGU, ConvGRU, lambda channels: ConvGRU(channels, reset="before")]


def images(seed, channels=5, count=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, channels, 6, 7, generator=generator)


def test_gru_with_1x1_gates_is_torchs_cell_at_every_pixel(seed):
    unit, cell = ConvGRU(5), nn.GRUCell(5, 5)
    with torch.no_grad():
        cell.weight_ih.copy_(unit.ih.weight[..., 0, 0])
        cell.weight_hh.copy_(unit.hh.weight[..., 0, 0])
        cell.bias_ih.normal_()
        cell.bias_hh.zero_()
        unit.ih.bias.copy_(cell.bias_ih)
    x, h = images(seed)
    pixels = [t.permute(0, 2, 3, 1).reshape(-1, 5) for t in (x, h)]
    wanted = cell(*pixels).view(2, 6, 7, 5).permute(0, 3, 1, 2)
    torch.testing.assert_close(unit(x, h)[0], wanted)


def test_reset_before_is_the_equation(seed):
    unit = ConvGRU(5, kernel_size=3, reset="before")
    x, h = images(seed)
    r, z, n = nn.functional.conv2d(x, unit.ih.weight, unit.ih.bias, padding=1).chunk(3, 1)
    w = unit.hh.weight.chunk(3)
    r, z = (torch.sigmoid(a + nn.functional.conv2d(h, b, padding=1)) for a, b in ((r, w[0]), (z, w[1])))
    n = torch.tanh(n + nn.functional.conv2d(r * h, w[2], padding=1))
    torch.testing.assert_close(unit(x, h)[0], (1 - z) * n + z * h)


@pytest.mark.parametrize("make", UNITS)
def test_no_state_is_a_state_of_zeros(make, seed):
    unit = make(5)
    x, h = images(seed)
    y, state = unit(x)
    torch.testing.assert_close(y, unit(x, torch.zeros_like(h))[0])
    assert not torch.allclose(unit(x, state + 1)[0], y)


@pytest.mark.parametrize("kind", [IndRNN, MGU, ConvGRU])
def test_sizes_of_input_and_state_may_differ(kind, seed):
    unit = kind(5, 3, 3, 2)
    y, state = unit(images(seed)[0])
    assert y.shape == state.shape == (2, 3, 6, 7)
    assert unit(images(seed)[0], state)[1].shape == state.shape
    assert kind(5, bias=False).ih.bias is None


def test_an_image_mixer_is_given_a_state_a_recurrent_one_is_taken(seed):
    conv = make_recurrent(lambda channels: nn.Conv2d(channels, channels, 3, padding=1), 5)
    assert isinstance(conv, Recurrent)
    assert isinstance(make_recurrent(IndRNN, 5), IndRNN)
    x, h = images(seed)
    y, state = conv(x, h)
    assert y.shape == state.shape == x.shape
    assert not torch.allclose(conv(x, None)[0], y)
    with pytest.raises(InputError, match="found int, wanted an nn.Module"):
        make_recurrent(lambda channels: channels, 5)


def test_a_mixer_whose_output_is_zero_leaves_a_plain_gru(seed):
    unit = Recurrent(5, nn.Conv2d(5, 5, 1, bias=False))
    nn.init.zeros_(unit.mixer.weight)
    x, h = images(seed)
    assert torch.equal(unit(x, h)[0], unit.cell(x, h)[0])


def test_edges_are_repeated(seed):
    conv = replicate_conv(5, 5, 3, dilation=2, bias=False)
    nn.init.constant_(conv.weight, 1 / 45)
    torch.testing.assert_close(conv(torch.ones(1, 5, 6, 7)), torch.ones(1, 5, 6, 7))


@pytest.mark.parametrize("size", [(6, 7), (40, 41)])
@pytest.mark.parametrize(
    "make", [lambda: ConvGRU(32, reset="before"), lambda: IndRNN(32), lambda: IndRNN(32, bias=False)]
)
def test_blocks_of_pixels_give_what_the_convolutions_give(make, size, seed):
    generator = torch.Generator().manual_seed(seed)
    unit = make()
    for parameter in unit.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, h = torch.randn(2, 2, 32, *size, generator=generator)
    wide = x.contiguous(memory_format=torch.channels_last)
    wanted = unit(x, h)[0].detach()
    with torch.no_grad():
        assert recurrent._runs_blocked(wide, h)
        assert not recurrent._runs_blocked(x.contiguous(), h)
        found, state = unit(wide, h)
    assert found is state
    assert found.is_contiguous(memory_format=torch.channels_last)
    # Sums of 64 float32 products in another order.
    torch.testing.assert_close(found, wanted, rtol=0, atol=3e-6 * (1 + float(wanted.abs().max())))
    assert not recurrent._runs_blocked(wide, h)


def test_only_wide_layers_change_their_layout():
    x = torch.randn(1, 4, 6, 7)
    assert in_fast_layout(x, 64).is_contiguous(memory_format=torch.channels_last)
    assert in_fast_layout(x, 8) is x
