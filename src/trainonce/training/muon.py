"""Muon: steps along the matrix with orthonormal rows that is nearest to the momentum (Jordan 2024; arXiv 2502.16982).

A step moves a matrix about as far along each direction of its momentum, also along those that the gradient hardly has.
The matrices here are weights of convolutions, [out, in k k]. Their short side, M, is short enough that the orthogonal
factor is found on it: (U U^T)^(-1/2) U, where the root is a polynomial of U U^T, [M, M], and matrices with the same M
are treated together.
"""

import math
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

POLYNOMIALS = (
    (8.09337, -23.6204, 17.4462),
    (3.63659, -2.72193, 0.536546),
    (2.6613, -1.97715, 0.452616),
)
"""Coefficients of s, s^3 and s^5 of the odd polynomials that singular values go through, one after the other: each
comes nearest to 1 over where the one before leaves values of 0.01 to 1 (Amsel 2025, arXiv 2505.16932, for another
interval and number). The last leaves them between 0.73 and 1.27."""
LONGEST_SHORT_SIDE = 128
"""Matrices with a longer short side take the steps of SGD: for the last layer of `light`, 640 x 480, the factor takes
longer than all else in a step (docs/LOG.md, "On the way to Muon")."""


def takes_orthogonal_steps(weight: Tensor) -> bool:
    """Whether it is a convolution's weight with more than one input channel in a group, and not too large."""
    dense = weight.ndim == 4 and weight.shape[1] > 1
    return dense and 1 < min(weight.shape[0], weight[0].numel()) <= LONGEST_SHORT_SIDE


class Matrix:
    """A convolution's weight, [out, in, k, k], and its momentum as matrices [M, N] with M no more than N: views.

    `scale` is a scalar, see `scale_of`.
    """

    def __init__(self, weight: nn.Parameter, momentum: Tensor, scale: Tensor) -> None:
        self.weight, self.scale = weight, scale
        self.channels_last = not weight.is_contiguous()
        self.weight_MN, self.momentum_MN = self.matrix(weight.detach()), self.matrix(momentum)
        for view, whole in ((self.weight_MN, weight), (self.momentum_MN, momentum)):
            assert view.data_ptr() == whole.data_ptr(), "a copy would move instead"

    def matrix(self, of: Tensor) -> Tensor:
        """What has the weight's shape as a matrix, its columns in the order in which the weight lies in memory."""
        return as_matrix(of.permute(0, 2, 3, 1) if self.channels_last else of)


def as_matrix(of: Tensor) -> Tensor:
    """What has the shape [out, …] as a matrix [M, N] with M no more than N; a view where that can be."""
    matrix = of.reshape(len(of), -1)
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def scale_of(weight: Tensor) -> Tensor:
    """How long a row of a step is at a rate of 1: then the step has the norm that the weight has now, a scalar.

    The rows of a weight of nothing but zeros count 1.
    """
    of_rows = math.sqrt(min(weight.shape[0], weight[0].numel()))
    norm: Tensor = weight.detach().norm()
    norm = torch.where(norm > 0, norm, torch.full_like(norm, of_rows))
    return norm / of_rows


def orthogonal_step(matrices: Sequence[Matrix], *, lr: float, momentum: float, weight_decay: float) -> None:
    """Move those with a gradient along the orthogonal factor of their Nesterov momentum; others stay as they are.

    Those cannot go on by a momentum that fades, as they do by SGD: the factor would not fade with it. Of one that has a
    gradient, rows and columns without any do go on, some 20 steps at a length that hardly fades. Decay takes
    `lr * weight_decay` off a weight, apart from the gradient.
    """
    used = sorted((one for one in matrices if one.weight.grad is not None), key=lambda one: len(one.weight_MN))
    if not used:
        return
    momenta = [one.momentum_MN for one in used]
    gradients = [one.matrix(one.weight.grad) for one in used if one.weight.grad is not None]
    torch._foreach_mul_(momenta, momentum)
    torch._foreach_add_(momenta, gradients)
    ahead = torch._foreach_add(gradients, momenta, alpha=momentum)
    for _, group in groupby(zip(used, ahead, strict=True), key=lambda pair: len(pair[1])):
        pairs = list(group)
        scales = torch.stack([one.scale for one, _ in pairs])
        roots = inverse_roots(torch.stack([towards_MN @ towards_MN.T for _, towards_MN in pairs]))
        roots.mul_((-lr * scales)[:, None, None])
        for (one, towards_MN), root_MM in zip(pairs, roots, strict=True):
            one.weight_MN.addmm_(root_MM, towards_MN, beta=1 - lr * weight_decay)


def inverse_roots(grams_KMM: Tensor) -> Tensor:
    """About A^(-1/2) of positive semidefinite matrices [K, M, M]: times U it makes singular values of U near 1.

    Those under a hundredth of the root of A's trace are raised less; of a zero matrix it is finite.
    """
    traces_K = grams_KMM.diagonal(dim1=1, dim2=2).sum(1).clamp_min(torch.finfo(grams_KMM.dtype).tiny)
    gram = grams_KMM / traces_K[:, None, None]
    root: Tensor | None = None
    for number, (a, b, c) in enumerate(POLYNOMIALS, start=1):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        root = factor if root is None else factor @ root
        if number < len(POLYNOMIALS):
            gram = factor @ (gram @ factor)
    assert root is not None
    return root * traces_K.rsqrt()[:, None, None]
