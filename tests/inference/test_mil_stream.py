"""A bag in chunks gives what the model gives of the whole bag."""

import numpy as np
import psutil
import pytest
import torch
from torch.nn import functional as F

from medseq.errors import InputError
from medseq.inference.mil_stream import Scratch, can_stream, stream_bag
from medseq.models.mil_abmil import ABMIL
from medseq.models.mil_clam import CLAM
from medseq.models.mil_mamba import MambaMIL
from medseq.models.mil_pooling import LinearProbe, PoolingMIL
from medseq.models.mil_transmil import TransMIL
from medseq.nn.mamba import BiMamba, Mamba

SMALL = {"in_dim": 12, "d_model": 16, "attention_dim": 8}
MODELS = {
    "mamba": lambda: MambaMIL(mixer=Mamba, **SMALL),
    "bimamba": lambda: MambaMIL(mixer=BiMamba, num_layers=3, **SMALL),
    "srmamba": lambda: MambaMIL(rate=5, **SMALL),
    "abmil": lambda: ABMIL(**SMALL),
    "clam": lambda: CLAM(**SMALL),
    "mean": lambda: PoolingMIL(12, pool="mean", d_model=16),
    "max": lambda: PoolingMIL(12, pool="max", d_model=16),
    "probe": lambda: LinearProbe(12, pool="mean+max"),
}


@pytest.fixture
def draw(seed):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def reader(x):
    return lambda lo, hi: x[lo:hi].numpy()


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize(("n", "chunk"), [(1, 4), (3, 1), (23, 4), (24, 7), (25, 5), (60, 16), (60, 500)])
def test_chunks_give_the_whole(name, n, chunk, draw, tmp_path):
    model, x = MODELS[name]().eval(), draw(n, 12)
    whole = model(x)
    parts = stream_bag(model, reader(x), n, chunk=chunk, scratch=tmp_path)
    # The same float32 operations in another order.
    torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.attention, whole.attention, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts.embedding, whole.embedding, rtol=1e-4, atol=1e-5)
    assert list(tmp_path.iterdir()) == []


def test_projections_with_biases_count_them_once(draw):
    model, x = MambaMIL(mixer=lambda dim: BiMamba(dim, bias=True), **SMALL).eval(), draw(30, 12)
    torch.testing.assert_close(stream_bag(model, reader(x), 30, chunk=8).logits, model(x).logits, rtol=1e-4, atol=1e-5)


def test_bfloat16_between_layers_changes_little(draw):
    model, x = MODELS["srmamba"]().eval(), draw(200, 12)
    whole = model(x).logits
    parts = stream_bag(model, reader(x), 200, chunk=64, scratch_dtype="bfloat16").logits
    # bfloat16 keeps 8 bits of each token; the mean over the bag is known better than that.
    assert 0 < (parts - whole).abs().max() < 0.02


def test_scores_far_apart_neither_overflow_nor_vanish(draw):
    model, x = MODELS["abmil"]().eval(), draw(40, 12)
    with torch.no_grad():
        model.attention.score.weight.mul_(1e4)
    torch.testing.assert_close(stream_bag(model, reader(x), 40, chunk=3).logits, model(x).logits, rtol=1e-3, atol=1e-4)


def test_a_stop_ends_between_chunks(draw):
    for name in MODELS:
        asked = iter([False, False, True])
        result = stream_bag(
            MODELS[name]().eval(), reader(draw(60, 12)), 60, chunk=8, should_stop=lambda it=asked: next(it)
        )
        assert result is None


def test_models_of_the_whole_bag_and_empty_bags_are_refused(draw):
    for model in (TransMIL(12, d_model=16, heads=2), MambaMIL(scan2d=True, **SMALL)):
        assert not can_stream(model)
        with pytest.raises(InputError, match="whole bag at once"):
            stream_bag(model, reader(draw(4, 12)), 4)
    with pytest.raises(InputError, match="empty bag"):
        stream_bag(MODELS["mamba"](), reader(draw(1, 12)), 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scratch_keeps_rows(dtype, draw, tmp_path):
    with Scratch(tmp_path, 50, 8, dtype) as scratch:
        rows = draw(50, 8).bfloat16().float()
        scratch.write(rows, 0, 50)
        scratch.write(-rows[3:40:5], 3, 40, 5)
        rows[3:40:5] *= -1
        assert torch.equal(scratch.read(0, 50), rows)
        assert torch.equal(scratch.read(7, 31, 4), rows[7:31:4])


@pytest.mark.parametrize("mixer", [Mamba, BiMamba])
def test_memory_is_that_of_a_chunk(mixer):
    """Rows are made when they are asked for: the tokens of all would be 10 MB, inner ones 20 MB a tensor."""
    torch.manual_seed(0)
    model = MambaMIL(in_dim=8, d_model=64, num_layers=2, mixer=mixer, attention_dim=8).eval()
    process = psutil.Process()

    def rows(lo, hi):
        peak.append(process.memory_info().rss)
        return np.random.default_rng(lo).standard_normal((hi - lo, 8), np.float32)

    peak: list[int] = []
    stream_bag(model, rows, 4000, chunk=2000)
    before = max(peak)
    peak.clear()
    stream_bag(model, rows, 40_000, chunk=2000)
    # Of the whole bag a layer holds five tensors of 20 MB at once; an allocator keeps some MB of its own.
    assert max(peak) - before < 30 << 20


def test_the_softmax_is_over_the_whole_bag(draw):
    model, x = MODELS["abmil"]().eval(), draw(30, 12)
    out = stream_bag(model, reader(x), 30, chunk=7)
    wanted = F.softmax(model.attention.scores(model.embed(x[None])), 1)
    torch.testing.assert_close(out.attention, wanted)
