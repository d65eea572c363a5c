"""CIRIM: cascades of independently recurrent inference machines, learned gradient descent in the image domain.

Reference:
    Karkalousos et al., Assessment of data consistency through cascades of independently recurrent inference machines
    for fast and robust accelerated MRI reconstruction, arXiv:2111.15498. State dicts of the authors' two toolkits
    (mridc, and its successor atommic) load through `medseq.inference.reference.load`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Complex
from torch import Tensor, nn

from medseq.errors import InputError
from medseq.nn.recon import Acquisition, ReconOutput, as_channels, as_complex, prepare, recomputed
from medseq.nn.recurrent import MGU, ConvGRU, IndRNN, in_fast_layout, make_recurrent, replicate_conv
from medseq.nn.sensitivity import SensitivityNet
from medseq.ops.fourier import Norm, Origin, ifft2

__all__ = ["CIRIM", "cirim"]

Cell = Literal["indrnn", "gru", "mgu"]
_CELLS: dict[str, Callable[..., nn.Module]] = {"indrnn": IndRNN, "gru": ConvGRU, "mgu": MGU}
State = list[Any]


class RIM(nn.Module):
    """One recurrent inference machine: what turns image and gradient into the next update.

    ``u = [x, g]``, for each level ``u, h = unit(relu(conv(u)), h)``, update = ``final(u)``.
    """

    def __init__(self, convs: Sequence[nn.Conv2d], units: Sequence[nn.Module], final: nn.Conv2d) -> None:
        super().__init__()
        self.convs, self.units, self.final = nn.ModuleList(convs), nn.ModuleList(units), final
        self.channels = convs[0].out_channels

    def forward(self, image: Tensor, gradient: Tensor, states: State) -> tuple[Tensor, State]:
        """The complex update, and the states after it."""
        x = torch.cat([as_channels(image), as_channels(gradient)], dim=1)
        x, new = in_fast_layout(x, self.channels), []
        for conv, unit, state in zip(self.convs, self.units, states, strict=True):
            x, state = unit(torch.relu_(conv(x)), state)
            new.append(state)
        return as_complex(self.final(x)), new


class CIRIM(nn.Module):
    """Cascades of recurrent inference machines.

    Each time step takes the gradient of the data term, ``g = A^H (A x - y)`` with ``A = M F S``, and lets the machine
    propose ``x <- x + update(x, g, h)``. With ``data_consistency="explicit"`` a prediction is turned into k-space,
    ``k = y - w [M (k_in - y)] - F S x``, where k_in entered the cascade: the image is then a negative correction.

    Args:
        num_cascades: Machines, each with its own weights.
        time_steps: Updates a machine makes; exactly as given.
        cell: Recurrent unit: ``indrnn`` (the paper), ``gru`` or ``mgu``.
        channels: Width of the two levels; one number a level.
        recurrent_channels: Channels of the states; None for `channels`.
        conv_kernels: Kernel sizes of the levels' convolutions and of the last one.
        conv_dilations: Their dilations.
        conv_bias: Whether they have a bias.
        recurrent_kernels: Kernel sizes of the recurrent units.
        recurrent_dilations: Their dilations.
        recurrent_bias: Whether their gates have a bias.
        mixer: Makes the recurrent unit of a level from its number of channels, instead of `cell`: a `RecurrentMixer`,
            or an `ImageMixer`, which is then given a state (`medseq.nn.recurrent.Recurrent`).
        hidden: ``reset`` zeroes the states at every cascade (the paper's code), ``carry`` hands them on (atommic).
        data_consistency: ``implicit`` by the gradient alone, or ``explicit`` as above.
        detach: Let no gradient pass from a cascade to the one before, as the paper's code does.
        restart: Where a cascade after the first starts: at the last ``image``; at that of the ``kspace`` that enters
            it (explicit data consistency only); or, as mridc does with ``keep_eta: false`` and implicit consistency, at
            the ``image_as_kspace``, Fourier-transformed once more although it is no k-space.
        reuse_initial: Start every cascade at the initial image, if one is given, as mridc does.
        combine: Start image where none is given: ``sense``, or ``rss_parts``, atommic's root sum of squares of the
            real and of the imaginary parts, wrong but what some of its checkpoints were trained on.
        return_kspace: Explicit data consistency: intermediates are multi-coil k-space, else coil-combined images.
        sens_net: Makes sensitivity maps where none are given, from k-space and mask.
        checkpoint_cascades: Keep only what passes between cascades and compute the rest again for the gradient.
        fft_origin: Fourier convention, see `medseq.ops.fourier`.
        fft_norm: Same.
    """

    image_kind = "complex"
    # Set by `inference.reference`: what builds this network again, and which errors of the original it reproduces.
    init_args: dict[str, Any]
    quirks: list[str]

    def __init__(
        self,
        num_cascades: int = 5,
        time_steps: int = 8,
        cell: Cell = "indrnn",
        channels: Sequence[int] = (64, 64),
        recurrent_channels: Sequence[int] | None = None,
        conv_kernels: Sequence[int] = (5, 3, 3),
        conv_dilations: Sequence[int] = (1, 2, 1),
        conv_bias: Sequence[bool] = (True, True, False),
        recurrent_kernels: Sequence[int] = (1, 1),
        recurrent_dilations: Sequence[int] = (1, 1),
        recurrent_bias: Sequence[bool] = (True, True),
        mixer: Callable[[int], nn.Module] | None = None,
        hidden: Literal["reset", "carry"] = "reset",
        data_consistency: Literal["implicit", "explicit"] = "implicit",
        detach: bool = False,
        restart: Literal["image", "kspace", "image_as_kspace"] = "image",
        reuse_initial: bool = False,
        combine: Literal["sense", "rss_parts"] = "sense",
        return_kspace: bool = True,
        sens_net: nn.Module | None = None,
        checkpoint_cascades: bool = False,
        fft_origin: Origin = "centre",
        fft_norm: Norm = "ortho",
    ) -> None:
        super().__init__()
        states = tuple(recurrent_channels if recurrent_channels is not None else channels)
        _check_levels(len(channels), states, conv_kernels, conv_dilations, conv_bias, recurrent_kernels)
        if num_cascades < 1 or time_steps < 1:
            raise InputError(
                "CIRIM needs at least one cascade and one time step",
                found=(num_cascades, time_steps),
                wanted="1 or more",
            )
        if cell not in _CELLS:
            raise InputError("unknown recurrent cell", found=cell, wanted=", ".join(_CELLS))
        if restart == "kspace" and data_consistency != "explicit":
            raise InputError("restart='kspace' needs data_consistency='explicit'", found=data_consistency)
        self.time_steps, self.hidden, self.detach, self.restart = time_steps, hidden, detach, restart
        self.data_consistency, self.reuse_initial, self.combine = data_consistency, reuse_initial, combine
        self.return_kspace, self.fft_origin, self.fft_norm = return_kspace, fft_origin, fft_norm

        def machine() -> RIM:
            convs, units, width = [], [], 4
            for level, (wide, state) in enumerate(zip(channels, states, strict=True)):
                size: dict[str, Any] = {"dilation": conv_dilations[level], "bias": conv_bias[level]}
                convs.append(replicate_conv(width, wide, conv_kernels[level], **size))
                if mixer is not None:
                    units.append(make_recurrent(mixer, wide))
                else:
                    units.append(
                        _CELLS[cell](
                            wide, state, recurrent_kernels[level], recurrent_dilations[level], recurrent_bias[level]
                        )
                    )
                width = wide if mixer is not None else state
            final = replicate_conv(width, 2, conv_kernels[-1], dilation=conv_dilations[-1], bias=conv_bias[-1])
            return RIM(convs, units, final)

        self.cascades = nn.ModuleList(machine() for _ in range(num_cascades))
        # The first cascade's k_in is y, so its weight never acts; it is kept for the originals' state dicts.
        self.dc_weights = (
            nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in range(num_cascades))
            if data_consistency == "explicit"
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
            initial_image: Where to start; None for the combined zero-filled image.
            return_states: Also return the hidden states after each cascade, ``[cascade][level]``.

        Returns:
            Complex image; ``intermediates[cascade][step]``; k-space with explicit data consistency only.

        Raises:
            ShapeError: Sizes or dtypes do not fit.
            InputError: No maps and no `sens_net`.
        """
        scan = prepare(masked_kspace, mask, sens_maps, self.sens_net, origin=self.fft_origin, norm=self.fft_norm)
        x = initial_image if initial_image is not None else self._start(scan)
        k_in, states = scan.kspace, None
        images, kspaces, kept = [], [], []
        # Whole columns: rows need no transform, and the data enter the gradient once.
        lines = scan.mask.shape[2] == 1 and scan.kspace.shape[2] > 1
        right = scan.operator.reduce(torch.where(scan.mask, scan.kspace, 0)) if lines else None
        for index in range(len(self.cascades)):
            if index:
                x, k_in, states = self._between(scan, x, k_in, states, initial_image)
            steps, states = recomputed(self.checkpoint_cascades, self._cascade, index, scan, x, states, right)
            x = steps[-1]
            images.append(steps)
            kept.append(states)
            if self.dc_weights is not None:
                kspaces.append([self._consistent(index, scan, k_in, step) for step in steps])
                k_in = kspaces[-1][-1]
        if self.dc_weights is None:
            return ReconOutput(x, None, images, kept if return_states else None)
        return self._from_kspace(scan, kspaces, kept if return_states else None)

    def _start(self, scan: Acquisition) -> Tensor:
        if self.combine == "sense":
            return scan.operator.reduce(scan.kspace)
        coils = scan.operator.scan(ifft2(scan.kspace, origin="corner", norm=self.fft_norm))
        return torch.complex(coils.real.square().sum(1).sqrt(), coils.imag.square().sum(1).sqrt())

    def _between(
        self, scan: Acquisition, x: Tensor, k_in: Tensor, states: State | None, initial: Tensor | None
    ) -> tuple[Tensor, Tensor, State | None]:
        """What enters a cascade after the first."""
        if self.detach:
            x, k_in = x.detach(), k_in.detach()
        if self.reuse_initial and initial is not None:
            x = initial
        elif self.restart == "kspace":
            x = scan.operator.reduce(k_in)
        elif self.restart == "image_as_kspace":
            x = scan.operator.reduce(scan.operator.corner(x)[:, None].expand_as(k_in))
        return x, k_in, states if self.hidden == "carry" else None

    @staticmethod
    def _gradient(scan: Acquisition, x: Tensor, right: Tensor | None) -> Tensor:
        """``A^H (A x - y)``; with `right` = ``A^H y`` by the cheaper normal operator."""
        if right is not None:
            return scan.operator.normal(x, scan.mask) - right
        return scan.operator.reduce(torch.where(scan.mask, scan.operator.expand(x) - scan.kspace, 0))

    def _cascade(
        self, index: int, scan: Acquisition, x: Tensor, states: State | None, right: Tensor | None
    ) -> tuple[list[Tensor], State]:
        machine: Any = self.cascades[index]
        states = states if states is not None else [None] * len(machine.units)
        steps = []
        for _ in range(self.time_steps):
            gradient = self._gradient(scan, x, right)
            update, states = machine(x, gradient, states)
            x = x + update
            steps.append(x)
        return steps, states

    def _consistent(self, index: int, scan: Acquisition, k_in: Tensor, image: Tensor) -> Tensor:
        """Soft data consistency: ``y - w [M (k_in - y)] - F S x``."""
        assert self.dc_weights is not None
        mismatch = torch.where(scan.mask, k_in - scan.kspace, 0)
        return scan.kspace - self.dc_weights[index] * mismatch - scan.operator.expand(image)

    def _from_kspace(self, scan: Acquisition, kspaces: list[list[Tensor]], states: list[State] | None) -> ReconOutput:
        last = kspaces[-1][-1]
        convert = scan.operator.scan if self.return_kspace else scan.operator.reduce
        intermediates = [[convert(k) for k in steps] for steps in kspaces]
        return ReconOutput(scan.operator.reduce(last), scan.operator.scan(last), intermediates, states)


def _check_levels(levels: int, states: Sequence[int], *settings: Sequence[Any]) -> None:
    kernels, dilations, bias, recurrent = (len(setting) for setting in settings)
    if levels < 1 or len(states) != levels or (kernels, dilations, bias) != (levels + 1,) * 3 or recurrent != levels:
        raise InputError(
            "CIRIM's levels do not fit together",
            found=f"{levels} levels, {len(states)} states, {kernels} kernels, {dilations} dilations, {bias} biases",
            wanted="n channels and n recurrent settings, n + 1 convolutions",
        )


def cirim(width: int = 64, **keywords: Any) -> CIRIM:
    """The paper's size: 5 cascades of 8 steps, IndRNN of 64 channels, 264 960 parameters (128: 980 480)."""
    return CIRIM(channels=(width, width), **keywords)


def tiny() -> dict[str, nn.Module]:
    """Small instances of every variant, for tests."""
    small: dict[str, Any] = {"num_cascades": 2, "time_steps": 2, "channels": (6, 6)}
    return {
        "indrnn": CIRIM(**small),
        "gru": CIRIM(cell="gru", hidden="carry", **small),
        "mgu": CIRIM(cell="mgu", recurrent_kernels=(3, 3), fft_origin="corner", fft_norm="backward", **small),
        "explicit": CIRIM(data_consistency="explicit", restart="kspace", **small),
        "sens_net": CIRIM(sens_net=SensitivityNet(channels=4, pools=2), **small),
    }


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward` for the instance `name` of `tiny`."""
    mask = torch.zeros(2, 1, 1, 20, dtype=torch.bool)
    mask[..., ::3], mask[..., 8:13] = True, True
    inputs = {"masked_kspace": torch.randn(2, 3, 18, 20, dtype=torch.complex64) * mask, "mask": mask}
    if name != "sens_net":
        maps = torch.randn(2, 3, 18, 20, dtype=torch.complex64)
        inputs["sens_maps"] = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    return inputs
