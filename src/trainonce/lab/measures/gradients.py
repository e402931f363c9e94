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
from trainonce.lab.measures.jackknife import jackknife_error

Floats = NDArray[np.float64]
B = TypeVar("B")


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientAgreement:
    """How the gradients of P tasks agree on the weights they share; NaN where noise leaves nothing to divide by.

    Errors are the jackknife's over batches; NaN for two batches.
    """

    batches: int
    """How many batches; agreement and control are over all pairs of them."""
    agreement: Floats
    """[P, P] noise-corrected cosines: 1 alike, 0 indifferent, -1 opposed; estimates may lie a little beyond."""
    agreement_error: Floats
    mean: float
    """The mean agreement of different tasks; NaN where none has one."""
    mean_error: float
    control: Floats
    """[P] the plain cosine of a task's own gradients on different batches: how far noise alone pulls cosines to 0."""
    control_error: Floats
    conflict: Floats
    """[P, P] share of pairs of different batches on which the product of the two gradients is negative."""
    conflict_error: Floats
    layers: dict[str, Floats]
    """[P, P] noise-corrected cosines within each group of weights."""
    layers_error: dict[str, Floats]


class _Sums:
    """Of one group of D weights: for each of P tasks the sum over batches of its gradient and of its square, [P, D]."""

    def __init__(self, first_PD: Tensor) -> None:
        self.sum_PD, self.square_PD = torch.zeros_like(first_PD), torch.zeros_like(first_PD)
        self.same_batch = np.zeros((len(first_PD), len(first_PD)))

    def add(self, gradients_PD: Tensor) -> None:
        self.sum_PD += gradients_PD
        self.square_PD += gradients_PD.square()
        self.same_batch += _products(gradients_PD, gradients_PD)

    def across(self) -> Floats:
        """[P, P] the sum over pairs of different batches of <g_a, g_b>."""
        return _products(self.sum_PD, self.sum_PD) - self.same_batch

    def own(self) -> Floats:
        """[P, P] in row a, column b: that of <g_a, g_a> over the weights that b uses too."""
        return _products(self.sum_PD.square() - self.square_PD, self.square_PD > 0)

    def norms(self) -> Floats:
        """[P] the sum over batches of <g_a, g_a>."""
        return np.diagonal(self.same_batch).copy()

    def of_batch(self, gradients_PD: Tensor) -> tuple[Floats, Floats, Floats]:
        """What one batch adds to `across`, `own` and `norms`: its products with the others, both ways, and its own."""
        others_PD = self.sum_PD - gradients_PD
        once = _products(gradients_PD, others_PD)
        own = 2 * _products(gradients_PD * others_PD, self.square_PD > 0)
        return once + once.T, own, np.diagonal(_products(gradients_PD, gradients_PD)).copy()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Totals:
    """Sums over batches, [..., P, P] twice and [..., P]; and how many batches they are over."""

    across: Floats
    own: Floats
    norms: Floats
    batches: int

    def agreement(self) -> Floats:
        return _cosine(self.across, self.own)

    def control(self) -> Floats:
        return _over(np.diagonal(self.across, axis1=-2, axis2=-1), (self.batches - 1) * self.norms)

    def mean(self) -> Floats:
        """The mean agreement of different tasks, where they have one."""
        tasks = self.across.shape[-1]
        values = self.agreement()[..., ~np.eye(tasks, dtype=bool)]
        return _over(np.nansum(values, axis=-1), np.isfinite(values).sum(axis=-1))


def gradient_agreement(
    losses: Sequence[Callable[[B], Tensor]],
    parameters: Mapping[str, Tensor],
    batches: Callable[[], Iterable[B]],
    *,
    group: Callable[[str], str] = lambda name: name.rpartition(".")[0] or name,
) -> GradientAgreement:
    """Compare the gradients of tasks, each given as its loss on a batch, over two batches or more.

    A task uses the weights whose gradient is not zero on every batch. For two tasks everything is taken over the
    weights that both use: c = <g_a(B1), g_b(B2)> / sqrt(<g_a(B1), g_a(B2)> <g_b(B1), g_b(B2)>), each product averaged
    over all pairs of different batches first. `group` gives the layer of a parameter's name. Conflicts are counted
    over batches that follow each other. `batches` is gone through twice, and must give the same: for the sums, and for
    what each batch does to them. Raises `UserError` for fewer than two batches.
    """
    sums: dict[str, _Sums] = {}
    before: dict[str, Tensor] = {}
    conflicts: list[Floats] = []
    count = 0
    for batch in batches():
        now = _by_group([gradient_of(loss, parameters, batch) for loss in losses], group)
        for name, gradients_PD in now.items():
            sums.setdefault(name, _Sums(gradients_PD)).add(gradients_PD)
        if before:
            pair = _total(_products(before[name], now[name]) for name in now)
            conflicts.append(((pair < 0).astype(float) + (pair.T < 0)) / 2)
        before, count = now, count + 1
    if count < 2:
        raise UserError(f"comparing gradients needs two batches or more, not {count}")
    whole = {name: _Totals(across=s.across(), own=s.own(), norms=s.norms(), batches=count) for name, s in sums.items()}
    without = _without_one(losses, parameters, batches(), group, sums, whole)
    network, network_without = _network(whole), _network(without)
    return GradientAgreement(
        batches=count,
        agreement=network.agreement(),
        agreement_error=jackknife_error(network_without.agreement()),
        mean=float(network.mean()),
        mean_error=float(jackknife_error(network_without.mean())),
        control=network.control(),
        control_error=jackknife_error(network_without.control()),
        conflict=np.mean(conflicts, axis=0),
        conflict_error=jackknife_error(_conflicts_without_one(np.array(conflicts))),
        layers={name: totals.agreement() for name, totals in whole.items()},
        layers_error={name: jackknife_error(totals.agreement()) for name, totals in without.items()},
    )


def _without_one(
    losses: Sequence[Callable[[B], Tensor]],
    parameters: Mapping[str, Tensor],
    batches: Iterable[B],
    group: Callable[[str], str],
    sums: Mapping[str, _Sums],
    whole: Mapping[str, _Totals],
) -> dict[str, _Totals]:
    """Each group's totals without one batch, [N, P, P] and [N, P] for N batches."""
    found: dict[str, list[tuple[Floats, Floats, Floats]]] = {name: [] for name in sums}
    for batch in batches:
        now = _by_group([gradient_of(loss, parameters, batch) for loss in losses], group)
        for name, gradients_PD in now.items():
            found[name].append(sums[name].of_batch(gradients_PD))
    parts = {name: [np.array(values) for values in zip(*own, strict=True)] for name, own in found.items()}
    return {
        name: _Totals(
            across=total.across - parts[name][0],
            own=total.own - parts[name][1],
            norms=total.norms - parts[name][2],
            batches=total.batches - 1,
        )
        for name, total in whole.items()
    }


def _network(groups: Mapping[str, _Totals]) -> _Totals:
    """The totals over all weights."""
    found = list(groups.values())
    return _Totals(
        across=_total(totals.across for totals in found),
        own=_total(totals.own for totals in found),
        norms=_total(totals.norms for totals in found),
        batches=found[0].batches,
    )


def _conflicts_without_one(conflicts: Floats) -> Floats:
    """The share of conflicts [N, P, P] without one of N batches, from those [N - 1, P, P] of pairs that follow."""
    pairs = len(conflicts)
    if pairs < 2:
        return np.full((pairs + 1, *conflicts.shape[1:]), np.nan)
    keep = np.array([[pair not in (batch - 1, batch) for pair in range(pairs)] for batch in range(pairs + 1)], float)
    sums: Floats = np.tensordot(keep, conflicts, axes=1)
    return _over(sums, keep.sum(axis=1)[:, None, None])


def gradient_of(loss: Callable[[B], Tensor], parameters: Mapping[str, Tensor], batch: B) -> dict[str, Tensor]:
    """The gradient of a loss by each parameter, zero where it does not depend on it; nothing is accumulated."""
    found = torch.autograd.grad(loss(batch), list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }


def _by_group(gradients: Sequence[Mapping[str, Tensor]], group: Callable[[str], str]) -> dict[str, Tensor]:
    """Each group's gradients [P, D], a row a task."""
    parts: dict[str, list[Tensor]] = {}
    for name in gradients[0]:
        rows = torch.stack([gradient[name].detach().flatten() for gradient in gradients])
        parts.setdefault(group(name), []).append(rows)
    return {name: torch.cat(tensors, dim=1) for name, tensors in parts.items()}


def _products(one_PD: Tensor, other_PD: Tensor) -> Floats:
    """[P, P] the products of rows, summed in double precision."""
    return np.asarray((one_PD.double() @ other_PD.double().T).cpu().numpy())


def _total(parts: Iterable[Floats]) -> Floats:
    total: Floats = np.sum(list(parts), axis=0)
    return total


def _cosine(across: Floats, own: Floats) -> Floats:
    """Both tasks' own products must be positive: where noise has eaten one up there is nothing to say."""
    others = np.swapaxes(own, -1, -2)
    both = np.where((own > 0) & (others > 0), own * others, np.nan)
    return _over(across, np.sqrt(both))


def _over(above: Floats, below: Floats) -> Floats:
    quotient: Floats = above / np.where(below > 0, below, np.nan)
    return quotient
