"""Recurrent Variational Network: unrolled gradient steps in k-space with a recurrent regulariser in the image domain.

Reference:
    Yiasemis et al., Recurrent variational network: a deep learning inverse problem solver applied to the task of
    accelerated MRI reconstruction, CVPR 2022, arXiv:2111.09639. State dicts of the authors' toolkit (direct) load
    through `medseq.inference.reference.load`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from medseq.errors import InputError
from medseq.nn.recon import Acquisition, ReconOutput, as_channels, as_complex, prepare, recomputed
from medseq.nn.recurrent import ConvGRU, in_fast_layout, make_recurrent, replicate_conv
from medseq.nn.sensitivity import SensitivityNet
from medseq.ops.coils import rss
from medseq.ops.fourier import Norm, Origin, fft2, ifft2

__all__ = ["RecurrentVarNet", "recurrent_varnet"]

Start = Literal["sense", "zero_filled", "input_image"]
State = list[Any]


class Regulariser(nn.Module):
    """Convolutions with a recurrent unit after each: complex image -> complex update, and the units' states.

    ``u = relu(conv(u)); h = unit(u, h); u = relu(h)`` for each layer, then a last convolution. The first kernel is
    5x5, all others 3x3; the second convolution has dilation 2.

    Args:
        channels: Width of the hidden layers and of the states.
        num_layers: Recurrent layers.
        mixer: Makes the unit of a layer; see `RecurrentVarNet`.
        normalized: Run on images of mean 0 and deviation 1 (real and imaginary part each) and undo that after.
    """

    def __init__(
        self, channels: int, num_layers: int, mixer: Callable[[int], nn.Module] | None, *, normalized: bool
    ) -> None:
        super().__init__()
        self.normalized = normalized
        self.convs, self.units = nn.ModuleList(), nn.ModuleList()
        self.channels = channels
        for layer in range(num_layers + 1):
            wide = channels if layer < num_layers else 2
            self.convs.append(
                replicate_conv(channels if layer else 2, wide, 3 if layer else 5, dilation=2 if layer == 1 else 1)
            )
        for _ in range(num_layers):
            if mixer is not None:
                self.units.append(make_recurrent(mixer, channels))
            else:
                self.units.append(_gru(channels))

    def forward(self, image: Complex[Tensor, "batch row col"], states: State) -> tuple[Tensor, State]:
        """One update and the states after it."""
        x = as_channels(image)
        if self.normalized:
            deviation, mean = torch.std_mean(x, dim=(2, 3), keepdim=True, correction=int(x[0, 0].numel() > 1))
            # direct divides a constant image by 0; this is too little to change any other.
            deviation = deviation + 1e-12
            x = (x - mean) / deviation
        x, new = in_fast_layout(x, self.channels), []
        for conv, unit, state in zip(self.convs, self.units, states, strict=False):
            x, state = unit(torch.relu_(conv(x)), state)
            x = torch.relu(x)
            new.append(state)
        x = self.convs[-1](x)
        if self.normalized:
            x = x * deviation + mean
        return as_complex(x), new


def _gru(channels: int) -> ConvGRU:
    """The paper's unit: 1x1 gates, the state reset before its convolution, and a gate that starts open to the state."""
    unit = ConvGRU(channels, reset="before")
    with torch.no_grad():
        for gate in range(3):
            rows = slice(gate * channels, (gate + 1) * channels)
            weight = nn.init.orthogonal_(torch.empty(channels, 2 * channels))[..., None, None]
            unit.ih.weight[rows], unit.hh.weight[rows] = weight[:, :channels], weight[:, channels:]
        assert unit.ih.bias is not None
        unit.ih.bias[:channels] = -1
    return unit


class StateInitializer(nn.Module):
    """First hidden states from k-space: dilated convolutions whose last feature maps feed one head a layer.

    Args:
        out_channels: Channels of a state.
        num_layers: Heads.
        channels: Width of each convolution.
        dilations: Dilation of each.
        multiscale: How many of the last feature maps the heads see.
    """

    def __init__(
        self, out_channels: int, num_layers: int, channels: Sequence[int], dilations: Sequence[int], multiscale: int
    ) -> None:
        super().__init__()
        if len(channels) != len(dilations) or not 1 <= multiscale <= len(channels):
            raise InputError(
                "the initializer's settings do not fit together",
                found=f"{len(channels)} channels, {len(dilations)} dilations, multiscale {multiscale}",
                wanted="as many dilations as channels, multiscale between 1 and that",
            )
        self.multiscale, self.out_channels = multiscale, out_channels
        widths = [2, *channels]
        self.convs = nn.ModuleList(
            replicate_conv(a, b, 3, dilation=d) for a, b, d in zip(widths[:-1], channels, dilations, strict=True)
        )
        seen = sum(channels[-multiscale:])
        self.heads = nn.ModuleList(nn.Conv2d(seen, out_channels, 1) for _ in range(num_layers))

    def forward(self, kspace: Complex[Tensor, "batch row col"]) -> list[Tensor]:
        """States of all layers."""
        x, maps = in_fast_layout(as_channels(kspace), self.out_channels), []
        for conv in self.convs:
            x = torch.relu_(conv(x))
            maps.append(x)
        x = torch.cat(maps[-self.multiscale :], dim=1)
        return [torch.relu_(head(x)) for head in self.heads]


class RecurrentVarNet(nn.Module):
    """``k <- k - a M (k - y) + F S w`` with ``w, h = regulariser(S^H F^-1 k, h)``, num_steps times.

    Args:
        num_steps: Unrolled steps.
        channels: Width of the regulariser and of its states.
        num_layers: Recurrent layers of the regulariser.
        shared: One set of weights for all steps.
        normalized: Normalise the regulariser's input, see `Regulariser`.
        initializer: What the first states are learned from, ``sense`` (combined zero-filled image), ``zero_filled``
            (coil images) or ``input_image`` (`initial_image` of `forward`), each as k-space; None for zeros.
        initializer_channels: See `StateInitializer`.
        initializer_dilations: Same.
        initializer_multiscale: Same.
        mixer: Makes a layer's recurrent unit from its number of channels, instead of the paper's ConvGRU: a
            `RecurrentMixer`, or an `ImageMixer`, which is then given a state (`medseq.nn.recurrent.Recurrent`).
        sens_net: Makes sensitivity maps where none are given, from k-space and mask.
        checkpoint_cascades: Keep only what passes between steps and compute the rest again for the gradient.
        fft_origin: Fourier convention, see `medseq.ops.fourier`.
        fft_norm: Same.
    """

    image_kind = "rss"
    # Set by `inference.reference`: what builds this network again, and which errors of the original it reproduces.
    init_args: dict[str, Any]
    quirks: list[str]

    def __init__(
        self,
        num_steps: int = 8,
        channels: int = 128,
        num_layers: int = 4,
        shared: bool = False,
        normalized: bool = False,
        initializer: Start | None = "sense",
        initializer_channels: Sequence[int] = (32, 32, 64, 64),
        initializer_dilations: Sequence[int] = (1, 1, 2, 4),
        initializer_multiscale: int = 3,
        mixer: Callable[[int], nn.Module] | None = None,
        sens_net: nn.Module | None = None,
        checkpoint_cascades: bool = False,
        fft_origin: Origin = "centre",
        fft_norm: Norm = "ortho",
    ) -> None:
        super().__init__()
        if num_steps < 1 or num_layers < 1:
            raise InputError(
                "RecurrentVarNet needs at least one step and one layer",
                found=(num_steps, num_layers),
                wanted="1 or more",
            )
        if initializer not in (None, "sense", "zero_filled", "input_image"):
            raise InputError("unknown initializer", found=initializer, wanted="sense, zero_filled, input_image or null")
        self.num_steps, self.num_layers, self.start = num_steps, num_layers, initializer
        self.fft_origin, self.fft_norm = fft_origin, fft_norm
        blocks = 1 if shared else num_steps
        self.regularisers = nn.ModuleList(
            Regulariser(channels, num_layers, mixer, normalized=normalized) for _ in range(blocks)
        )
        # As k starts at y, an unshared first step size never acts; it is kept for the original's state dicts.
        self.step_sizes = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in range(blocks))
        self.initializer = (
            StateInitializer(channels, num_layers, initializer_channels, initializer_dilations, initializer_multiscale)
            if initializer is not None
            else None
        )
        self.sens_net, self.checkpoint_cascades = sens_net, checkpoint_cascades

    def forward(
        self,
        masked_kspace: Complex[Tensor, "batch coil row col"],
        mask: Tensor,
        sens_maps: Complex[Tensor, "batch coil row col"] | None = None,
        initial_image: Complex[Tensor, "batch row col"] | None = None,
        return_states: bool = False,
    ) -> ReconOutput:
        """Reconstruct a batch.

        Args:
            masked_kspace: Measured k-space, zero elsewhere.
            mask: ``(batch or 1, 1, row or 1, col)``, any dtype, not zero where measured.
            sens_maps: Sensitivity maps; None for those of `sens_net`.
            initial_image: Only with ``initializer="input_image"``.
            return_states: Also return the hidden states after each step, ``[step]`` of ``(batch, channel, row, col,
                layer)``, as the original has them.

        Returns:
            Root sum of squares of the coil images; multi-coil k-space; ``intermediates[0][step]`` is multi-coil
            k-space after each step. Sampled points are not forced to the measured values.

        Raises:
            ShapeError: Sizes or dtypes do not fit.
            InputError: No maps and no `sens_net`; or no `initial_image` where one is needed.
        """
        scan = prepare(masked_kspace, mask, sens_maps, self.sens_net, origin=self.fft_origin, norm=self.fft_norm)
        states = self.initial_states(scan, initial_image)
        k, steps, kept = scan.kspace, [], []
        for step in range(self.num_steps):
            block = step % len(self.regularisers)
            k, states = recomputed(self.checkpoint_cascades, self._step, block, scan, k, states)
            steps.append(k)
            if return_states:
                kept.append(torch.stack(states, dim=-1) if isinstance(states[0], Tensor) else states)
        image = rss(ifft2(k, origin="corner", norm=self.fft_norm))
        kspaces = [scan.operator.scan(k) for k in steps]
        return ReconOutput(scan.operator.scan(image), kspaces[-1], [kspaces], kept if return_states else None)

    def _step(self, block: int, scan: Acquisition, k: Tensor, states: State) -> tuple[Tensor, State]:
        """One update of k-space, and the states after it."""
        update, states = self.regularisers[block](scan.operator.reduce(k), states)
        mismatch = torch.where(scan.mask, k - scan.kspace, 0)
        return k - self.step_sizes[block] * mismatch + scan.operator.expand(update), states

    def initial_states(self, scan: Acquisition, initial_image: Float[Tensor, "..."] | None) -> State:
        """States before the first step: learned from k-space, or None (zeros) for every layer.

        Raises:
            InputError: There is no initial image although the states are learned from one.
        """
        if self.initializer is None:
            return [None] * self.num_layers
        if self.start == "zero_filled":
            # The sum over coils of F F^-1 y.
            return self.initializer(scan.operator.scan(scan.kspace.sum(dim=1)))
        if self.start == "sense":
            image = scan.operator.reduce(scan.kspace)
        elif initial_image is None:
            raise InputError("this network needs an initial image", remedy="pass initial_image (batch, row, col)")
        else:
            image = initial_image
        return self.initializer(fft2(image, origin=self.fft_origin, norm=self.fft_norm))


def recurrent_varnet(**keywords: Any) -> RecurrentVarNet:
    """The paper's Calgary-Campinas model: 8 steps, 128 channels, 4 layers; 6 918 424 parameters."""
    return RecurrentVarNet(**keywords)


def tiny() -> dict[str, nn.Module]:
    """Small instances of every variant, for tests."""
    small: dict[str, Any] = {"num_steps": 2, "channels": 6, "num_layers": 2}
    start: dict[str, Any] = {
        "initializer_channels": (4, 4),
        "initializer_dilations": (1, 2),
        "initializer_multiscale": 2,
    }
    return {
        "sense": RecurrentVarNet(**small, **start),
        "shared": RecurrentVarNet(shared=True, normalized=True, initializer=None, **small),
        "zero_filled": RecurrentVarNet(initializer="zero_filled", fft_origin="corner", **small, **start),
        "input_image": RecurrentVarNet(initializer="input_image", fft_norm="backward", **small, **start),
        "sens_net": RecurrentVarNet(sens_net=SensitivityNet(channels=4, pools=2), **small, **start),
    }


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward` for the instance `name` of `tiny`."""
    mask = torch.zeros(2, 1, 1, 20, dtype=torch.bool)
    mask[..., ::3], mask[..., 8:13] = True, True
    inputs = {"masked_kspace": torch.randn(2, 3, 18, 20, dtype=torch.complex64) * mask, "mask": mask}
    if name != "sens_net":
        maps = torch.randn(2, 3, 18, 20, dtype=torch.complex64)
        inputs["sens_maps"] = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    if name == "input_image":
        inputs["initial_image"] = torch.randn(2, 18, 20, dtype=torch.complex64)
    return inputs
