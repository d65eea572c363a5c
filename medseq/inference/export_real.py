"""Rewrites a traced network so that it knows no complex numbers: ONNX has none.

The graph is run once more, node by node, with every complex tensor as a pair of real ones, while torch.export watches;
what it records is the same network in real arithmetic. Fourier transforms become products with constant matrices,
O(n) a sample instead of O(log n), which at the sizes of images is what matrix units do well.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from medseq.errors import InputError

__all__ = ["InRealNumbers", "has_complex"]


class Pair(NamedTuple):
    """A complex tensor as two real ones of its shape."""

    re: Tensor
    im: Tensor


def has_complex(program: torch.export.ExportedProgram) -> bool:
    """Whether any value inside is complex."""
    values = (node.meta.get("val") for node in program.graph.nodes)
    return any(isinstance(value, Tensor) and value.is_complex() for value in values)


class InRealNumbers(nn.Module):
    """A traced network, to be traced again.

    Args:
        program: Its inputs and outputs are real.
        where: Name of the model, for errors.
    """

    def __init__(self, program: torch.export.ExportedProgram, where: str) -> None:
        super().__init__()
        # Without decompositions: the standard set would take the Fourier transforms apart.
        program = program.run_decompositions({})
        self.graph, self.where = [program.graph_module], where
        # The graph takes its weights as arguments: in the order of the signature, None where an input belongs.
        self.places: list[str | None] = []
        for number, spec in enumerate(program.graph_signature.input_specs):
            value = program.state_dict.get(spec.target, program.constants.get(spec.target)) if spec.target else None
            self.places.append(None if value is None else f"weight_{number}")
            if value is not None:
                self.register_buffer(f"weight_{number}", value.detach())
        # Cosines and sines of every length that is transformed: constants of the graph.
        for length in _transformed(program):
            for name, matrix in zip(("cosine", "sine"), _waves(length), strict=True):
                self.register_buffer(f"{name}_{length}", matrix)

    def forward(self, *inputs: Tensor) -> Any:
        """See the network's own forward."""
        given = iter(inputs)
        waves = {name: buffer for name, buffer in self.named_buffers() if not name.startswith("weight_")}
        out = _Replay(self.graph[0], waves, self.where).run(
            *(next(given) if name is None else getattr(self, name) for name in self.places)
        )
        return out[0] if len(out) == 1 else tuple(out)


class _Replay(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, waves: dict[str, Tensor], where: str) -> None:
        super().__init__(graph)
        self.waves, self.where = waves, where

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = target._schema.name.removeprefix("aten::") if hasattr(target, "_schema") else ""
        if name not in _MAKERS and not _has_pair(args):
            return super().call_function(target, args, kwargs)
        if name in _PARTWISE:
            return Pair(*(target(part, *args[1:], **kwargs) for part in args[0]))
        if name in _TRANSFORMS:
            return self.transform(name, *args)
        rule = {**_MAKERS, **_RULES}.get(name)
        if rule is None or (kwargs.get("alpha", 1) != 1):
            raise InputError(
                "ONNX has no complex numbers, and this operation on them is not known in real ones",
                where=self.where,
                found=name or str(target),
                remedy="export it with --to hf or torch-export",
            )
        return rule(*args)

    def transform(self, name: str, x: Pair, size: Any = None, dim: Any = None, norm: str | None = None) -> Pair:
        """A Fourier transform along some axes."""
        inverse = "ifft" in name
        for axis in _axes(name, dim, x.re.dim()):
            n = x.re.shape[axis]
            scale = {None: 1 / n if inverse else 1.0, "ortho": n**-0.5, "forward": 1.0 if inverse else 1 / n}
            scale["backward"] = scale[None]
            cosine, sine = (self.waves[f"{kind}_{n}"] * scale[norm] for kind in ("cosine", "sine"))
            re, im = x.re.transpose(axis, -1), x.im.transpose(axis, -1)
            turned = im @ sine, re @ sine
            re, im = re @ cosine, im @ cosine
            re, im = (re - turned[0], im + turned[1]) if inverse else (re + turned[0], im - turned[1])
            x = Pair(re.transpose(axis, -1), im.transpose(axis, -1))
        return x


_TRANSFORMS = {"fft_fftn", "fft_ifftn", "fft_fft2", "fft_ifft2"}


def _axes(name: str, dim: Sequence[int] | None, rank: int) -> Sequence[int]:
    if dim is not None:
        return dim
    return (-2, -1) if name.endswith("2") else range(-rank, 0)


def _transformed(program: torch.export.ExportedProgram) -> set[int]:
    """Lengths of the axes that Fourier transforms run along."""
    found: set[int] = set()
    for node in program.graph.nodes:
        name = str(node.target).removeprefix("aten.").removesuffix(".default")
        if name in _TRANSFORMS:
            shape, dim = node.args[0].meta["val"].shape, node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")
            found |= {int(shape[axis]) for axis in _axes(name, dim, len(shape))}
    return found


def _waves(n: int) -> tuple[Tensor, Tensor]:
    # Whole turns are taken off as integers: sines of large angles lose digits.
    index = torch.arange(n)
    angle = ((index[:, None] * index) % n).double() * (2 * math.pi / n)
    return angle.cos().float(), angle.sin().float()


def _has_pair(args: Sequence[Any]) -> bool:
    return any(isinstance(x, Pair) or (isinstance(x, list | tuple) and _has_pair(x)) for x in args)


# What does the same to both parts.
_PARTWISE = {
    *("clone", "contiguous", "detach", "expand", "fft_fftshift", "fft_ifftshift", "flip", "index_select"),
    *("mean", "neg", "permute", "reshape", "roll", "rot90", "select", "slice", "squeeze", "sum", "transpose"),
    *("unsqueeze", "view", "alias"),
}


def _add(a: Any, b: Any) -> Pair:
    (p, q), (r, s) = _pair(a), _pair(b)
    return Pair(p + r, q + s)


def _sub(a: Any, b: Any) -> Pair:
    (p, q), (r, s) = _pair(a), _pair(b)
    return Pair(p - r, q - s)


def _mul(a: Any, b: Any) -> Pair:
    if not isinstance(a, Pair):
        a, b = b, a
    if not isinstance(b, Pair):
        return Pair(a.re * b, a.im * b)
    return Pair(a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re)


def _div(a: Any, b: Any) -> Pair:
    if not isinstance(b, Pair):
        return Pair(a.re / b, a.im / b)
    power = b.re.square() + b.im.square()
    return _mul(a, Pair(b.re / power, -b.im / power))


def _where(condition: Tensor, a: Any, b: Any) -> Pair:
    (p, q), (r, s) = _pair(a), _pair(b)
    return Pair(torch.where(condition, p, r), torch.where(condition, q, s))


def _not_equal(a: Pair, b: float) -> Tensor:
    return (a.re != b) | (a.im != 0)


def _pair(x: Any) -> tuple[Any, Any]:
    return x if isinstance(x, Pair) else (x, torch.zeros_like(x) if isinstance(x, Tensor) else 0.0)


_MAKERS: dict[str, Callable[..., Any]] = {
    "view_as_complex": lambda x: Pair(x[..., 0], x[..., 1]),
    "complex": Pair,
}
_RULES: dict[str, Callable[..., Any]] = {
    "view_as_real": lambda x: torch.stack(list(x), dim=-1),
    "_conj": lambda x: Pair(x.re, -x.im),
    "conj": lambda x: Pair(x.re, -x.im),
    "resolve_conj": lambda x: x,
    "_conj_physical": lambda x: Pair(x.re, -x.im),
    "real": lambda x: x.re,
    "imag": lambda x: x.im,
    "abs": lambda x: (x.re.square() + x.im.square()).sqrt(),
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "ne": _not_equal,
    "where": _where,
    "zeros_like": lambda x, *rest: Pair(torch.zeros_like(x.re), torch.zeros_like(x.im)),
    "cat": lambda parts, dim=0: Pair(torch.cat([p.re for p in parts], dim), torch.cat([p.im for p in parts], dim)),
}
