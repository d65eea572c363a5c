"""Ask a reconstruction network of any convention: slices are centred and unitary, networks have habits of their own.

What differs: the Fourier convention (`fft_origin`, `fft_norm`), what the image is (`image_kind`), who makes the
sensitivity maps (`sens_net`) and whether the noise is asked for (`takes_noise_sd`).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseq.io.kspace_fft import modulated
from medseq.ops.coils import sens_expand, sens_reduce
from medseq.ops.fourier import to_centre, to_corner

__all__ = ["ask_network", "keeps_complete_data"]


def keeps_complete_data(net: nn.Module) -> bool:
    """Whether fully sampled data are to be combined and left alone; other networks are run, and change them."""
    return bool(getattr(net, "keeps_complete_data", False))


def ask_network(
    net: nn.Module, kspace: Tensor, mask: Tensor, maps: Tensor, *, own_maps: bool, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Run a network on one scan.

    Args:
        net: Under the reconstruction contract.
        kspace: ``(1, coil, row, col)``, measured, centred, unitary, at the network's scale.
        mask: ``(1, 1, row or 1, col)`` bool.
        maps: ``(1, coil, row, col)``.
        own_maps: Let a network with a `sens_net` make its maps itself.
        options: Further keywords of its forward.

    Returns:
        Image ``(1, row, col)`` complex (of ``rss`` networks its imaginary part is zero), and the k-space that the
        network predicts, centred and unitary; where it predicts a magnitude alone, with the zero-filled image's phase.
    """
    origin, norm = getattr(net, "fft_origin", "centre"), getattr(net, "fft_norm", "ortho")
    rows, cols = kspace.shape[-2:]
    gain = float(rows * cols) ** {"ortho": 0.0, "backward": 0.5, "forward": -0.5}[norm]
    fed, pattern = kspace * gain, mask
    if origin == "corner":
        # The same image, whole and in the middle, by the plain inverse FFT: images and maps stay as they are.
        phase = torch.from_numpy(modulated(np.ones((rows, cols), np.complex64), inverse=True)).to(kspace.device)
        fed, pattern = to_corner(fed * phase), to_corner(mask)
    maker = getattr(net, "sens_net", None)
    if own_maps and maker is not None:
        maps = maker(fed, pattern)
    out = net(fed, pattern, maps, **options)
    image = out.image.to(torch.complex64)
    if getattr(net, "image_kind", "complex") == "complex":
        return image, sens_expand(image, maps)
    if out.kspace is None:
        start = sens_reduce(kspace, maps)
        return image, sens_expand(image.abs() * torch.exp(1j * start.angle()), maps)
    predicted = out.kspace / gain
    if origin == "corner":
        predicted = to_centre(predicted) * phase.conj()
    return image, predicted
