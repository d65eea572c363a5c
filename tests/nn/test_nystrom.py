"""Landmark attention: exact where the sequence is short, an inverse that inverts."""

import torch

from medseq.nn.nystrom import NystromAttention, iterative_pinv


def test_short_sequences_get_softmax_attention(draw):
    layer = NystromAttention(16, 2, landmarks=32, kernel_size=0, dropout=0.0)
    x = draw(1, 20, 16)
    y, first = layer(x)
    q, k, v = layer.qkv(x[0]).view(20, 3, 2, 8).permute(1, 2, 0, 3)
    weights = (q @ k.mT / 8**0.5).softmax(-1)
    wanted = layer.out((weights @ v).transpose(0, 1).reshape(20, 16))
    torch.testing.assert_close(y[0], wanted)
    torch.testing.assert_close(first, weights[:, 0].mean(0))


def test_the_iteration_inverts(draw):
    a = draw(3, 12, 12).softmax(-1)
    a = 0.5 * a + 0.5 * torch.eye(12)
    # Six steps of the iteration leave about 1e-4 for matrices as well conditioned as these.
    torch.testing.assert_close(iterative_pinv(a, 10) @ a, torch.eye(12).expand(3, -1, -1), atol=1e-3, rtol=0)


def test_landmarks_approximate_smooth_attention(draw):
    layer = NystromAttention(16, 2, landmarks=16, kernel_size=0, dropout=0.0)
    exact = NystromAttention(16, 2, landmarks=999, kernel_size=0, dropout=0.0)
    exact.load_state_dict(layer.state_dict())
    # Tokens that change slowly along the sequence: a run is well described by its mean.
    x = draw(1, 8, 16).repeat_interleave(32, 1) + 0.01 * draw(1, 256, 16)
    y, wanted = layer(x)[0], exact(x)[0]
    assert (y - wanted).norm() < 0.05 * wanted.norm()
