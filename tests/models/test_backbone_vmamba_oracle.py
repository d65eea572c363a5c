"""VMamba as a whole against its equations, written out once more from torch.nn.functional alone.

The blocks' numbers are the original's (tests/nn/test_ss2d.py); no numbers of a whole VSSM are at hand. What could be
wrong between the blocks, their order, the way down, the norms, the head, is compared here. The oracle reads a state
dict and knows no module of the package.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medseq.models.backbone_vmamba import VSSM, example_inputs, tiny

FORWARD_TYPES = {
    "vmamba": "v05_noz",
    "vanilla": "v0",
    "one_direction": "v051d_noz",
    "two_directions": "v052d",
    "cascade": "v052dc_noz",
}
SCANS = {"v05": "cross", "v0": "cross", "v051d": "rows", "v052d": "both ways", "v052dc": "cascade"}


class Weights:
    """A part of a state dict: `w("mlp").get("fc1.weight")`."""

    def __init__(self, state: dict[str, Tensor], prefix: str = "") -> None:
        self.state, self.prefix = state, prefix

    def __call__(self, *names: object) -> "Weights":
        return Weights(self.state, self.prefix + "".join(f"{name}." for name in names))

    def get(self, name: str) -> Tensor | None:
        return self.state.get(self.prefix + name)

    def has(self, name: str) -> bool:
        return any(key.startswith(self.prefix + name) for key in self.state)

    def numbers(self) -> Iterator[int]:
        """0, 1, ... as far as there are parts of that name."""
        number = 0
        while self.has(f"{number}."):
            yield number
            number += 1


def norm(w: Weights, x: Tensor) -> Tensor:
    """Layer norm over the channels of (batch, channel, row, col)."""
    y = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], w.get("weight"), w.get("bias"))
    return y.permute(0, 3, 1, 2)


def linear(w: Weights, x: Tensor) -> Tensor:
    return F.linear(x.permute(0, 2, 3, 1), w.get("weight"), w.get("bias")).permute(0, 3, 1, 2)


def recurrence(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """h_t = exp(dt_t A) h_(t-1) + dt_t B_t u_t, y_t = C_t h_t + D u_t; u, dt (batch, dim, length), B, C (…, N, …)."""
    h, outputs = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        h = (dt[:, :, t, None] * A).exp() * h + (dt[:, :, t] * u[:, :, t])[..., None] * B[:, None, :, t]
        outputs.append((h * C[:, None, :, t]).sum(-1) + D * u[:, :, t])
    return torch.stack(outputs, 2)


def one_scan(w: Weights, k: int, tokens: Tensor) -> Tensor:
    """Direction k over (batch, dim, length), its step, B and C made from the tokens."""
    dim, rank, state = tokens.shape[1], w.get("dt_projs_weight").shape[2], w.get("A_logs").shape[1]
    dt, B, C = torch.einsum("cd,bdl->bcl", w.get("x_proj_weight")[k], tokens).split([rank, state, state], 1)
    dt = torch.einsum("dr,brl->bdl", w.get("dt_projs_weight")[k], dt) + w.get("dt_projs_bias")[k][:, None]
    own = slice(k * dim, (k + 1) * dim)
    return recurrence(tokens, F.softplus(dt), -w.get("A_logs")[own].exp(), B, C, w.get("Ds")[own])


def four_scans(w: Weights, x: Tensor, scans: str) -> Tensor:
    """The sum over four directions, each brought back to its place."""
    turned = {"cross": (1, 3), "rows": (), "both ways": ()}[scans]
    flipped = {"cross": (2, 3), "rows": (), "both ways": (2, 3)}[scans]
    total = torch.zeros_like(x)
    for k in range(4):
        image = x.transpose(2, 3) if k in turned else x
        tokens = image.flatten(2)
        y = one_scan(w, k, tokens.flip(2)).flip(2) if k in flipped else one_scan(w, k, tokens)
        y = y.view(image.shape)
        total = total + (y.transpose(2, 3) if k in turned else y)
    return total


def cascade(w: Weights, x: Tensor) -> Tensor:
    """Every row by itself in directions 0 and 1, then every column in 2 and 3; forwards and backwards.

    The backward result is added in the order of its scan, as the original does.
    """

    def bare_norm(x: Tensor) -> Tensor:
        return norm(Weights({}), x)

    def rows(x: Tensor, k: int) -> Tensor:
        lines = [x[:, :, r] for r in range(x.shape[2])]
        return torch.stack([one_scan(w, k, t) + one_scan(w, k + 1, t.flip(2)) for t in lines], 2)

    first = bare_norm(rows(bare_norm(x), 0))
    return rows(first.transpose(2, 3), 2).transpose(2, 3)


def ss2d(w: Weights, x: Tensor, forward_type: str) -> Tensor:
    base, *words = forward_type.split("_")
    x, z = linear(w("in_proj"), x), None
    if "noz" not in words:
        x, z = x.chunk(2, 1)
    conv = w("conv2d")
    x = F.silu(F.conv2d(x, conv.get("weight"), conv.get("bias"), padding=1, groups=x.shape[1]))
    y = cascade(w, x) if SCANS[base] == "cascade" else four_scans(w, x, SCANS[base])
    y = norm(w("out_norm"), y)
    return linear(w("out_proj"), y if z is None else y * F.silu(z))


def feed_forward(w: Weights, x: Tensor) -> Tensor:
    x = linear(w("fc1"), x)
    if x.shape[1] == 2 * w("fc2").get("weight").shape[1]:  # gated
        x, z = x.chunk(2, 1)
        return linear(w("fc2"), x * F.gelu(z))
    return linear(w("fc2"), F.gelu(x))


def block(w: Weights, x: Tensor, forward_type: str) -> Tensor:
    x = x + ss2d(w("op"), norm(w("norm"), x), forward_type)
    return x + feed_forward(w("mlp"), norm(w("norm2"), x)) if w.has("mlp.") else x


def conv(w: Weights, x: Tensor, stride: int, padding: int) -> Tensor:
    return F.conv2d(x, w.get("weight"), w.get("bias"), stride, padding)


def embed(w: Weights, image: Tensor) -> Tensor:
    """Two 3x3 convolutions of stride 2 where there are two, else one of patches of 4."""
    if not w.has("5."):
        return norm(w(2), conv(w(0), image, 4, 0))
    return norm(w(7), conv(w(5), F.gelu(norm(w(2), conv(w(0), image, 2, 1))), 2, 1))


def down(w: Weights, x: Tensor) -> Tensor:
    if w.has("reduction."):
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        # (0, 0), (1, 0), (0, 1), (1, 1) as (row, col).
        squares = [x[:, :, 0::2, 0::2], x[:, :, 1::2, 0::2], x[:, :, 0::2, 1::2], x[:, :, 1::2, 1::2]]
        return linear(w("reduction"), norm(w("norm"), torch.cat(squares, 1)))
    size = w(1).get("weight").shape[2]  # 2, or 3 with a margin of 1
    return norm(w(3), conv(w(1), x, 2, size - 2))


def vssm(state: dict[str, Tensor], image: Tensor, forward_type: str) -> Tensor:
    """Class logits."""
    w = Weights(state)
    x = embed(w("patch_embed"), image)
    for stage in w("layers").numbers():
        layer = w("layers", stage)
        for number in layer("blocks").numbers():
            x = block(layer("blocks", number), x, forward_type)
        x = down(layer("downsample"), x) if layer.has("downsample.") else x
    head = w("classifier", "head")
    return F.linear(norm(w("classifier", "norm"), x).mean((2, 3)), head.get("weight"), head.get("bias"))


def distance(got: Tensor, want: Tensor) -> float:
    """Largest difference in units of the largest value."""
    return ((got.double() - want).abs().max() / want.abs().max()).item()


@pytest.fixture
def draw(seed) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(model: VSSM, generator: torch.Generator) -> VSSM:
    """With weights far from their start, where biases are 0, norms 1 and steps so small that scans hardly matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 1.0 if name.endswith(("x_proj_weight", "dt_projs_bias", "A_logs", "out_norm.weight")) else 0.4
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def by_equations(model: VSSM, image: Tensor, weights: Tensor, name: str) -> list[Tensor]:
    """Logits, and the gradients of their weighted sum by every parameter, in the dtype of the image."""
    state = {key: x.detach().to(image.dtype).requires_grad_() for key, x in model.state_dict().items()}
    logits = vssm(state, image, FORWARD_TYPES[name])
    wanted = [state[key] for key, _ in model.named_parameters()]
    assert len(wanted) == len(state)
    return [logits, *torch.autograd.grad((logits * weights).sum(), wanted)]


def by_model(model: VSSM, image: Tensor, weights: Tensor) -> list[Tensor]:
    logits = model(image)
    return [logits, *torch.autograd.grad((logits * weights).sum(), list(model.parameters()))]


@pytest.mark.parametrize("name", FORWARD_TYPES)
def test_logits_and_gradients_are_those_of_the_equations(name, draw):
    model = drawn(tiny()[name], draw)
    shape = example_inputs(name)["image"].shape
    image, weights = torch.randn(shape, generator=draw), torch.randn(2, 3, generator=draw)
    truth = by_equations(model, image.double(), weights, name)
    plain = by_equations(model, image, weights, name)
    names = ["logits", *(key for key, _ in model.named_parameters())]
    # The cascade's norms over 8 channels can blow float32's rounding up, that of the equations as much; where in the
    # gradients it shows, their order of summing decides.
    rounding = max(distance(of_equations, want) for of_equations, want in zip(plain, truth, strict=True))
    for key, got, want in zip(names, by_model(model, image, weights), truth, strict=True):
        assert distance(got, want) <= max(1e-5 if key == "logits" else 1e-4, 10 * rounding), key
    for key, got, want in zip(names, by_model(model.double(), image.double(), weights), truth, strict=True):
        assert distance(got, want) <= 1e-10, key


def test_the_oracle_sees_a_difference(draw):
    # A direction exchanged, a norm left out: the mistakes that the comparison must not forgive; its tolerance is 1e-5.
    model = drawn(tiny()["vmamba"], draw)
    image = torch.randn(1, 1, 27, 35, generator=draw)
    state, found = dict(model.state_dict()), model(image)
    for key, change in {
        "layers.1.blocks.1.op.A_logs": lambda x: x.view(4, -1)[[1, 0, 2, 3]].view(x.shape),
        "layers.0.downsample.3.bias": torch.zeros_like,
        "layers.0.blocks.0.op.dt_projs_bias": lambda x: x.roll(1, 0),
    }.items():
        assert distance(found, vssm(state | {key: change(state[key])}, image, "v05_noz")) > 1e-4, key
