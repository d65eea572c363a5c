"""SRMamba against an oracle that reorders, pads and scans step by step."""

import pytest
import torch
from torch.nn import functional as F

from medseq.nn.srmamba import SRMamba


def oracle(layer, x):
    """Token by token, in float64; padding stands inside the strided sequence."""

    def scan(xz, suffix):
        inner = layer.d_inner
        conv, A = getattr(layer, f"conv1d{suffix}"), -getattr(layer, f"A{suffix}_log").exp()
        u, z = xz[:, :inner], xz[:, inner:]
        u = F.silu(F.conv1d(F.pad(u, (3, 0)), conv.weight, conv.bias, groups=inner))
        states = A.shape[1]
        h, out = torch.zeros(len(u), inner, states, dtype=u.dtype), []
        for t in range(u.shape[2]):
            dt, B, C = getattr(layer, f"x_proj{suffix}")(u[..., t]).split([layer.dt_rank, states, states], 1)
            delta = F.softplus(getattr(layer, f"dt_proj{suffix}")(dt))[..., None]
            h = (delta * A).exp() * h + delta * B[:, None] * u[..., t, None]
            out.append((h * C[:, None]).sum(-1) + getattr(layer, f"D{suffix}") * u[..., t])
        return torch.stack(out, 2) * F.silu(z)

    xz, n, r = layer.in_proj(x).mT, x.shape[1], layer.rate
    k = -(-n // r)
    index = torch.arange(k * r).view(k, r).T.flatten()
    padded = F.pad(xz, (0, k * r - n))
    back = torch.empty(k * r, dtype=torch.long)
    back[index] = torch.arange(k * r)
    strided = scan(padded[..., index], "_b")[..., back][..., :n]
    return layer.out_proj((scan(xz, "") + strided).mT)


@pytest.mark.parametrize(("n", "rate"), [(1, 5), (3, 10), (12, 4), (17, 5), (23, 1)])
def test_equals_the_equations(n, rate, draw):
    layer = SRMamba(8, rate, d_state=4).double()
    x = draw(2, n, 8, dtype=torch.float64)
    # Both in float64: the same sums in another order.
    torch.testing.assert_close(layer(x), oracle(layer, x), rtol=1e-9, atol=1e-10)
