"""Gradient agreement between tasks that share weights, corrected for noise.

Cosines of gradients on the same batch are inflated by the noise that both share, those on different batches deflated by
the noise of each. Products of different batches have the right mean; dividing their averages corrects for it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainonce.errors import UserError

Floats = NDArray[np.float64]
B = TypeVar("B")


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientAgreement:
    """How the gradients of P tasks agree on the weights they share; NaN where noise leaves nothing to divide by."""

    agreement: Floats
    """[P, P] noise-corrected cosines: 1 alike, 0 indifferent, -1 opposed; estimates may lie a little beyond."""
    control: Floats
    """[P] the plain cosine of a task's own gradients on different batches: how far noise alone pulls cosines to 0."""
    conflict: Floats
    """[P, P] share of pairs of different batches on which the product of the two gradients is negative."""
    layers: dict[str, Floats]
    """[P, P] noise-corrected cosines within each group of weights."""


class _Sums:
    """Of one group of weights: for each task the sum over batches of its gradient and of its square, and products."""

    def __init__(self, first: Sequence[Tensor]) -> None:
        tasks = len(first)
        self.sum = [torch.zeros_like(gradient) for gradient in first]
        self.square = [torch.zeros_like(gradient) for gradient in first]
        self.same_batch = np.zeros((tasks, tasks))

    def add(self, gradients: Sequence[Tensor]) -> None:
        for total, squares, gradient in zip(self.sum, self.square, gradients, strict=True):
            total += gradient
            squares += gradient.square()
        self.same_batch += _products(gradients, gradients)

    def across(self) -> Floats:
        """[P, P] the sum over pairs of different batches of <g_a, g_b>."""
        return _products(self.sum, self.sum) - self.same_batch

    def own(self) -> Floats:
        """[P, P] in row a, column b: that of <g_a, g_a> over the weights that b uses too."""
        own = [total.square() - squares for total, squares in zip(self.sum, self.square, strict=True)]
        used = [squares > 0 for squares in self.square]
        return np.array([[float((mine * theirs).sum(dtype=torch.float64)) for theirs in used] for mine in own])

    def norms(self) -> Floats:
        """[P] the sum over batches of <g_a, g_a>."""
        return np.diagonal(self.same_batch).copy()


def gradient_agreement(
    losses: Sequence[Callable[[B], Tensor]],
    parameters: Mapping[str, Tensor],
    batches: Iterable[B],
    *,
    group: Callable[[str], str] = lambda name: name.rpartition(".")[0] or name,
) -> GradientAgreement:
    """Compare the gradients of tasks, each given as its loss on a batch, over two batches or more.

    A task uses the weights whose gradient is not zero on every batch. For two tasks everything is taken over the
    weights that both use: c = <g_a(B1), g_b(B2)> / sqrt(<g_a(B1), g_a(B2)> <g_b(B1), g_b(B2)>), each product averaged
    over all pairs of different batches first. `group` gives the layer of a parameter's name. Conflicts are counted
    over batches that follow each other. Raises `UserError` for fewer than two batches.
    """
    sums: dict[str, _Sums] = {}
    before: list[dict[str, Tensor]] = []
    conflicts, count = np.zeros((len(losses), len(losses))), 0
    for batch in batches:
        now = [_by_group(gradient_of(loss, parameters, batch), group) for loss in losses]
        for name in now[0]:
            gradients = [gradient[name] for gradient in now]
            sums.setdefault(name, _Sums(gradients)).add(gradients)
        if before:
            pair = _total(_products([g[name] for g in before], [g[name] for g in now]) for name in now[0])
            conflicts += (pair < 0).astype(float) + (pair.T < 0)
        before, count = now, count + 1
    if count < 2:
        raise UserError(f"comparing gradients needs two batches or more, not {count}")
    across, own = _total(s.across() for s in sums.values()), _total(s.own() for s in sums.values())
    norms = _total(s.norms() for s in sums.values())
    return GradientAgreement(
        agreement=_cosine(across, own),
        control=_over(np.diagonal(across) / (count - 1), norms),
        conflict=conflicts / (2 * (count - 1)),
        layers={name: _cosine(s.across(), s.own()) for name, s in sums.items()},
    )


def gradient_of(loss: Callable[[B], Tensor], parameters: Mapping[str, Tensor], batch: B) -> dict[str, Tensor]:
    """The gradient of a loss by each parameter, zero where it does not depend on it; nothing is accumulated."""
    found = torch.autograd.grad(loss(batch), list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }


def _by_group(gradient: Mapping[str, Tensor], group: Callable[[str], str]) -> dict[str, Tensor]:
    """Each group's gradient as one vector."""
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in gradient.items():
        parts.setdefault(group(name), []).append(tensor.detach().flatten())
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def _products(one: Sequence[Tensor], other: Sequence[Tensor]) -> Floats:
    return np.array([[float((a * b).sum(dtype=torch.float64)) for b in other] for a in one])


def _total(parts: Iterable[Floats]) -> Floats:
    total: Floats = np.sum(list(parts), axis=0)
    return total


def _cosine(across: Floats, own: Floats) -> Floats:
    """Both tasks' own products must be positive: where noise has eaten one up there is nothing to say."""
    both = np.where((own > 0) & (own.T > 0), own * own.T, np.nan)
    return _over(across, np.sqrt(both))


def _over(above: Floats, below: Floats) -> Floats:
    quotient: Floats = above / np.where(below > 0, below, np.nan)
    return quotient
