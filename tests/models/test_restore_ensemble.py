"""Averaging over quarter turns."""

import torch

from medseq.models.restore_ensemble import RotationAverage
from medseq.models.restore_unet import RestoreUNet


def small():
    net = RestoreUNet(1, 1, (8, 8), (1, 1))
    torch.nn.init.normal_(net.tail.weight, std=0.1)
    return RotationAverage(net)


def test_the_average_turns_with_the_image():
    model, image = small().eval(), torch.randn(1, 1, 16, 24)
    with torch.no_grad():
        turned = model(torch.rot90(image, 1, (2, 3)))
        # Four sums in another order: float32 rounding.
        torch.testing.assert_close(turned, torch.rot90(model(image), 1, (2, 3)), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(model.net(torch.rot90(image, 1, (2, 3))), torch.rot90(model.net(image), 1, (2, 3)))


def test_training_sees_the_network_itself():
    model, image = small().train(), torch.randn(1, 1, 16, 16)
    assert torch.equal(model(image), model.net(image))
