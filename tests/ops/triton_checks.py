"""What the tests of the Triton kernels share: the bound of the error."""

import torch
from torch import Tensor

__all__ = ["assert_as_exact_as"]


def assert_as_exact_as(got: Tensor, plain: Tensor, exact: Tensor, *, factor: float = 2.0, ulps: float = 16.0) -> None:
    """The error of `got` is at most `factor` times that of plain float32 torch plus `ulps` of the largest value.

    The kernels add and multiply in another order (scans in parallel within a chunk), which costs some roundings even
    where the plain recurrence happens to be exact.
    """
    scale = float(exact.abs().max()) + 1e-30
    error, allowed = (float((x.double() - exact).abs().max()) / scale for x in (got, plain))
    bound = factor * allowed + ulps * torch.finfo(torch.float32).eps
    assert error <= bound, f"error {error:.2e} of the largest value, allowed {bound:.2e}"
