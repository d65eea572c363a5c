"""A network adapted to one scan by the scan's own samples; no reference is needed.

The samples are split in three: those that are held out are never trained on, of the others a random part is predicted
from the rest in every step. The weights kept are those that predict the held-out samples best, the original ones among
them: by construction an adapted network is never worse on these than the network was. Patterns of lines have too few
lines to spare, and are left alone.

Reference:
    Yaman et al., Self-supervised learning of physics-guided reconstruction neural networks without fully sampled
    reference data, MRM 84, 2020; Yaman et al., Zero-shot self-supervised learning for MRI reconstruction, ICLR 2022,
    for a split in three and for stopping at the minimum.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medseq.data.recon_scale import KSpaceScale, SenseScale
from medseq.inference.recon_net import ask_network
from medseq.inference.recon_slice import Prepared
from medseq.models.recon_hybrid import Hybrid, split_samples
from medseq.models.recon_modl import OrientationAverage
from medseq.ops.coils import acs_mask

__all__ = ["Adaptation", "adapt_network"]

# Part of the shown samples, outside the calibration region, that each step predicts from the others.
_PREDICTED = 0.35
# Looks at the held-out samples without progress after which it ends.
_PATIENCE = 3


@dataclass(frozen=True)
class Adaptation:
    """What adapting did.

    Attributes:
        before: ``||e|| / ||y||`` over the held-out samples, with the network as it was.
        after: The same with the weights kept; not above `before`.
        steps: Step whose weights were kept; 0 for the original ones.
    """

    before: float
    after: float
    steps: int


def adapt_network(
    net: nn.Module,
    part: Prepared,
    *,
    scaling: KSpaceScale | None = None,
    own_maps: bool = True,
    steps: int = 40,
    lr: float = 1e-4,
    every: int = 5,
) -> tuple[nn.Module, Adaptation | None]:
    """A copy of a network with weights adapted to a slice; `net` stays as it is.

    Args:
        net: Under the reconstruction contract. Of a mixture or an average the network inside is trained.
        part: The slice.
        scaling: See `medseq.inference.recon_slice.reconstruct_slice`.
        own_maps: Same.
        steps: At most.
        lr: Of Adam.
        every: Steps between two looks at the held-out samples.

    Returns:
        The network, and what became of the held-out samples; `net` itself and None where none can be spared.
    """
    shown, hidden = split_samples(part.mask, net.held_out if isinstance(net, Hybrid) else 0.08)
    if not bool(hidden.any()):
        return net, None
    adapted = copy.deepcopy(net)
    inner = adapted.net if isinstance(adapted, Hybrid | OrientationAverage) else adapted
    asked = _Asked(inner, part, shown, scaling or SenseScale(), own_maps and part.maps_from != "given")
    parameters = list(inner.parameters())
    frozen = [parameter.requires_grad for parameter in parameters]
    optimiser = torch.optim.Adam(parameters, lr=lr)
    free = (shown & ~acs_mask(part.mask)).flatten().nonzero().flatten()
    generator = torch.Generator().manual_seed(0)
    first = best = asked.misses(shown, hidden)
    kept, kept_at, idle = copy.deepcopy(inner.state_dict()), 0, 0
    for parameter in parameters:
        parameter.requires_grad_(True)
    for step in range(1, steps + 1):
        order = torch.randperm(len(free), generator=generator)[: round(_PREDICTED * len(free))]
        goal = torch.zeros_like(shown)
        goal.view(-1)[free[order.to(free.device)]] = True
        optimiser.zero_grad()
        asked.loss(shown & ~goal, goal).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if step % every == 0 or step == steps:
            now = asked.misses(shown, hidden)
            idle = 0 if now < best else idle + 1
            if now < best:
                best, kept, kept_at = now, copy.deepcopy(inner.state_dict()), step
            elif idle >= _PATIENCE:
                break
    inner.load_state_dict(kept)
    for parameter, was in zip(parameters, frozen, strict=True):
        parameter.requires_grad_(was)
        parameter.grad = None
    return adapted, Adaptation(first, best, kept_at)


class _Asked:
    """The scan at the network's scale, which the shown samples decide."""

    def __init__(self, net: nn.Module, part: Prepared, shown: Tensor, rule: KSpaceScale, own_maps: bool) -> None:
        params = rule.fit(torch.where(shown, part.kspace, 0), shown, part.maps)
        self._net, self._maps, self._own = net, part.maps, own_maps
        self._kspace = rule.apply(part.kspace, params)
        self._options: dict[str, Any] = {}
        if getattr(net, "takes_noise_sd", False):
            self._options["noise_sd"] = part.noise_sd / params["scale"]

    def loss(self, given: Tensor, goal: Tensor) -> Tensor:
        """Of the samples in `goal`, predicted from those in `given`: the sum of the relative l2 and l1 errors."""
        error, data = self._compare(given, goal)
        norm = torch.linalg.vector_norm
        return norm(error) / norm(data) + norm(error, ord=1) / norm(data, ord=1)

    @torch.no_grad()
    def misses(self, given: Tensor, goal: Tensor) -> float:
        """Relative l2 error of the samples in `goal`."""
        error, data = self._compare(given, goal)
        return float(torch.linalg.vector_norm(error) / torch.linalg.vector_norm(data))

    def _compare(self, given: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        kspace = torch.where(given, self._kspace, 0)
        _, predicted = ask_network(self._net, kspace, given, self._maps, own_maps=self._own, options=self._options)
        chosen = goal.expand_as(predicted)
        return (predicted - self._kspace)[chosen], self._kspace[chosen]
