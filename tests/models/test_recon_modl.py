"""MoDL: data consistency, conventions, orientations, and what it refuses."""

import pytest
import torch

from medseq.errors import InputError, ShapeError
from medseq.models.recon_modl import MoDL, OrientationAverage, example_inputs
from medseq.ops.fourier import to_corner


def close(a, b):
    # Two float32 paths through two cascades of conjugate gradients.
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def smooth_maps(rows, cols):
    y, x = (torch.linspace(-1, 1, size) for size in (rows, cols))
    maps = torch.stack([torch.exp(-((y[:, None] - a) ** 2) - (x - b) ** 2) for a in (-1, 1) for b in (-1, 1)])
    return (maps / maps.square().sum(0).sqrt()).to(torch.complex64)[None]


def test_measured_data_win_where_they_decide(seed):
    torch.manual_seed(seed)
    maps = smooth_maps(20, 18)
    image = torch.randn(1, 20, 18, dtype=torch.complex64)
    net = MoDL(cascades=2, width=8, iterations=10).eval()
    with torch.no_grad():
        for cascade in net.cascades:  # a network that proposes nonsense, and a small weight of it
            cascade.net.last.weight.mul_(30)
            cascade.log_weight.fill_(-9.0)
    from medseq.ops.coils import sens_expand

    kspace, mask = sens_expand(image, maps), torch.ones(1, 1, 1, 18, dtype=torch.bool)
    with torch.no_grad():
        out = net(kspace, mask, maps, noise_sd=torch.zeros(1)).image
    assert float((out - image).norm() / image.norm()) < 1e-3


def test_corner_and_centre_agree(seed):
    torch.manual_seed(seed)
    inputs = example_inputs("")
    centre = MoDL(cascades=2, width=8).eval()
    corner = MoDL(cascades=2, width=8, fft_origin="corner").eval()
    corner.load_state_dict(centre.state_dict())
    shifted = {key: to_corner(value) for key, value in inputs.items()}
    noise = torch.full((2,), 0.05)
    with torch.no_grad():
        whole = centre(**inputs, noise_sd=noise).image
        # The networks' own convolutions see another border when the image is shifted: compare the physics only.
        for net in (centre, corner):
            for cascade in net.cascades:
                torch.nn.init.zeros_(cascade.net.last.weight)
        close(corner(**shifted, noise_sd=noise).image, to_corner(centre(**inputs, noise_sd=noise).image))
    assert torch.isfinite(torch.view_as_real(whole)).all()


@pytest.mark.parametrize("norm", ["backward", "forward"])
def test_the_norm_of_the_transform_does_not_matter(norm, seed):
    torch.manual_seed(seed)
    inputs = example_inputs("")
    ortho, other = MoDL(cascades=1, width=8).eval(), MoDL(cascades=1, width=8, fft_norm=norm).eval()
    other.load_state_dict(ortho.state_dict())
    factor = (18 * 20) ** (0.5 if norm == "backward" else -0.5)
    with torch.no_grad():
        wanted = ortho(**inputs).image
        close(other(**{**inputs, "masked_kspace": inputs["masked_kspace"] * factor}).image, wanted)


def test_a_turned_scan_in_a_turned_network_gives_the_turned_image(seed):
    torch.manual_seed(seed)
    n = 17
    mask = torch.rand(1, 1, n, n) < 0.5
    maps = torch.randn(1, 3, n, n, dtype=torch.complex64)
    maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    kspace = torch.randn(1, 3, n, n, dtype=torch.complex64) * mask
    net = MoDL(cascades=2, width=8).eval()
    noise = torch.full((1,), 0.05)
    with torch.no_grad():
        plain = net(kspace, mask, maps, noise_sd=noise).image
        # Odd sizes: a quarter turn about the centre is the same turn of k-space. Turning the scan back inside the
        # network (orientation 3 undoes a quarter turn) must change nothing.
        turned = [torch.rot90(x, 1, (-2, -1)) for x in (kspace, mask, maps)]
        again = net(*turned, noise_sd=noise, orientation=3).image
    close(torch.rot90(again, -1, (-2, -1)), plain)


def test_average_over_orientations(seed):
    torch.manual_seed(seed)
    inputs, net = example_inputs(""), MoDL(cascades=1, width=8)
    average = OrientationAverage(net, 8).eval()
    with torch.no_grad():
        wanted = torch.stack([net(**inputs, orientation=i).image for i in range(8)]).mean(0)
        close(average(**inputs).image, wanted)
        assert torch.equal(average.train()(**inputs).image, net(**inputs).image)
    with pytest.raises(InputError, match="eight orientations"):
        OrientationAverage(net, 9)


def test_pixels_without_sensitivity_are_zero():
    inputs = example_inputs("")
    inputs["sens_maps"][:, :, :5] = 0
    with torch.no_grad():
        out = MoDL(cascades=1, width=8)(**inputs).image
    assert bool((out[:, :5] == 0).all())
    assert bool((out[:, 5:] != 0).all())


def test_states_and_intermediates():
    net = MoDL(cascades=3, width=8, memory=2)
    with torch.no_grad():
        out = net(**example_inputs(""), return_states=True)
    assert [len(steps) for steps in out.intermediates] == [1, 1, 1]
    assert [tuple(state.shape) for state in out.states] == [(2, 2, 18, 20)] * 3
    assert torch.equal(out.intermediates[-1][0], out.image)


def test_refuses_what_it_cannot_do():
    net, inputs = MoDL(cascades=1, width=8), example_inputs("")
    with pytest.raises(ShapeError, match="initial image"):
        net(**inputs, initial_image=torch.zeros(2, 5, 5, dtype=torch.complex64))
    with pytest.raises(InputError, match="needs sensitivity maps"):
        net(inputs["masked_kspace"], inputs["mask"])
    with pytest.raises(InputError, match="no gradient"):
        net(**{**inputs, "sens_maps": inputs["sens_maps"].requires_grad_()})
    with pytest.raises(InputError, match="positive sizes"):
        MoDL(cascades=0)
