"""The native matrix product against numpy's in double precision: shapes with every remainder, stored either way."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.support.native import needs_native
from torch import Tensor
from torch.nn import functional as F

from trainonce.nn import native
from trainonce.nn.native.layers import product

pytestmark = needs_native
SIDES = st.integers(1, 150)


def stored(rows: int, columns: int, *, transposed: bool, spare: int, seed: int) -> Tensor:
    """A random matrix whose rows, or columns, lie `spare` numbers further apart than they are long."""
    generator = torch.Generator().manual_seed(seed)
    if transposed:
        return torch.randn(columns, rows + spare, generator=generator)[:, :rows].t()
    return torch.randn(rows, columns + spare, generator=generator)[:, :columns]


@given(SIDES, SIDES, st.integers(1, 600), st.booleans(), st.booleans(), st.integers(0, 5))
@example(1, 1, 1, False, True, 0)
@example(7, 48, 257, True, False, 3)  # one row beyond a stretch, a tile that is full, rows that are left
@example(97, 33, 512, False, False, 1)
def test_it_is_numpys(m: int, n: int, k: int, left_transposed: bool, right_transposed: bool, spare: int) -> None:
    left = stored(m, k, transposed=left_transposed, spare=spare, seed=0)
    right = stored(k, n, transposed=right_transposed, spare=spare, seed=1)
    wanted = left.numpy().astype(np.float64) @ right.numpy().astype(np.float64)
    scale = np.abs(left.numpy()).astype(np.float64) @ np.abs(right.numpy())  # what rounding is in proportion to
    assert np.all(np.abs(product(left, right).numpy() - wanted) <= 1e-6 * scale + 1e-30)


def test_threads_share_the_rows() -> None:
    left, right = torch.randn(301, 40), torch.randn(40, 96)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = product(left, right)
        torch.set_num_threads(3)
        torch.testing.assert_close(product(left, right), alone, rtol=1e-6, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_what_is_not_finite_stays_in_its_row() -> None:
    left = torch.randn(9, 20)
    left[4, 7] = torch.nan
    found = product(left, torch.randn(20, 40)).isnan()
    assert found[4].all()
    assert not found[[0, 1, 2, 3, 5, 6, 7, 8]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pointwise_convolution_and_its_gradients_are_torchs(dtype: torch.dtype) -> None:
    """In double precision too, where the kernels cannot be used."""
    x = torch.randn(3, 24, 5, 4, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    whole = torch.randn(50, 30, 1, 1, dtype=dtype, requires_grad=True)
    gradients = []
    for convolution in (native.pointwise, F.conv2d):
        out = convolution(x, whole[:41, :24])
        gradients.append((out.detach(), *torch.autograd.grad(out.square().sum(), (x, whole))))
    for ours, torchs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=2e-5, atol=2e-3)
