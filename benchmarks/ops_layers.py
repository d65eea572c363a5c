"""Parts of bench_ops.py: the causal convolution against torch's, a whole Mamba layer against that of transformers."""

import torch
from ops_measure import Claim, agree, interleaved
from ops_peers import convolution_and_silu, transformers_layer, with_gradients
from torch import Tensor

from medseq.nn.mamba import Mamba
from medseq.ops import causal_conv1d

__all__ = ["part_conv", "part_layer"]


def part_conv(rounds: int) -> tuple[list[Claim], dict]:
    """causal_conv1d with SiLU against torch's depthwise convolution and its SiLU."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*shape, generator=generator) for shape in ((1, 768, 4096), (768, 4), (768,))]

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return causal_conv1d(x, weight, bias, "silu")

    agree(ours(*tensors), convolution_and_silu(*tensors))
    ahead = {"medseq": lambda: ours(*tensors), "peer": lambda: convolution_and_silu(*tensors)}
    both = {"medseq": with_gradients(ours, tensors), "peer": with_gradients(convolution_and_silu, tensors)}
    data = {"forward": interleaved(ahead, rounds), "both": interleaved(both, rounds)}
    ratios = {way: times["peer"]["median"] / times["medseq"]["median"] for way, times in data.items()}
    return [
        Claim("causal_conv1d (1,768,4096), 4 taps, over conv1d and silu", ratios["forward"], 1),
        Claim("causal_conv1d forward and backward over conv1d and silu", ratios["both"], 1),
    ], data


def part_layer(rounds: int) -> tuple[list[Claim], dict]:
    """A whole Mamba layer against that of transformers with the same weights, (1,1024,384): if it is installed."""
    peer, layer = transformers_layer(384), Mamba(384).eval()
    if peer is None:
        print("  transformers is not installed: nothing compared")
        return [], {"transformers": "not installed"}
    from transformers import __version__

    layer.load_state_dict(peer.state_dict())
    x = torch.randn(1, 1024, 384, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        agree(layer(x), peer(x))
        times = interleaved({"medseq": lambda: layer(x), "peer": lambda: peer(x)}, rounds)
    ours = interleaved({"medseq": with_gradients(layer, [x])}, rounds)["medseq"]
    # Its backward takes minutes at this length: a gradient as large as the whole table for every token.
    few = x[:, :256].contiguous()
    both = interleaved({"medseq": with_gradients(layer, [few]), "peer": with_gradients(peer, [few])}, 1)
    return [
        Claim("Mamba layer forward over transformers'", times["peer"]["median"] / times["medseq"]["median"], 1),
        Claim(
            "Mamba layer forward and backward, 256 tokens, over it",
            both["peer"]["median"] / both["medseq"]["median"],
            1,
        ),
    ], {"transformers": __version__, "forward": times, "both": {"medseq": ours}, "both, 256 tokens": both}
