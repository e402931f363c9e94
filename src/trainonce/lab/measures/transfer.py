"""Loss transfer: what a step along one task's gradient does to another task's loss on held-out images.

Z(b -> a) = 1 - L_a(weights - lr g_b; B') / L_a(weights; B'), and R_ab = Z(b -> a) / Z(a -> a). There is interference if
and only if R is negative. This is what a cosine cannot say: a negative one can be harmless, a positive one harm.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from trainonce.errors import UserError
from trainonce.lab.measures.gradients import gradient_of
from trainonce.lab.measures.jackknife import jackknife_error, means_without_one

Floats = NDArray[np.float64]
B = TypeVar("B")
ALPHA = 0.05
"""How often at most some pair is taken to harm where none does."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Transfer:
    """What steps along the gradients of P tasks do to each other's losses, on average over the batches."""

    z: Floats
    """[P, P] in row a, column b: the share of a's loss that a step along b's gradient takes away."""
    z_error: Floats
    """[P, P] its standard error over the batches (the jackknife's of a mean); NaN where there is one alone."""
    batches: int
    """How many batches the means and errors are over."""
    r: Floats
    """[P, P] Z(b -> a), over what a step along a's own gradient takes away; NaN where its own does not help."""
    r_error: Floats
    """[P, P] its standard error over the batches, by the jackknife."""
    mean_r: float
    """The mean R of different tasks; NaN where none has one."""
    mean_r_error: float

    def errors_beyond_noise(self) -> float:
        """How many standard errors from zero a Z must be to count: so many that all P(P-1) pairs together go wrong in
        at most one measurement of twenty in the one direction, if none has an effect.

        The one-sided quantile of Student's t at 0.05 / (P(P-1)) (Bonferroni). NaN for a single batch.
        """
        pairs = max(1, len(self.z) * (len(self.z) - 1))
        return float(stats.t.isf(ALPHA / pairs, self.batches - 1)) if self.batches > 1 else math.nan

    def harmful(self) -> NDArray[np.bool_]:
        """[P, P] whether b's steps raise a's loss beyond noise."""
        found: NDArray[np.bool_] = self.z < -self.errors_beyond_noise() * self.z_error
        return found

    def helpful(self) -> NDArray[np.bool_]:
        """[P, P] whether b's steps lower a's loss beyond noise."""
        found: NDArray[np.bool_] = self.z > self.errors_beyond_noise() * self.z_error
        return found


def loss_transfer(
    losses: Sequence[Callable[[B], Tensor]],
    parameters: Mapping[str, Tensor],
    batches: Iterable[tuple[B, B]],
    *,
    lr: float,
) -> Transfer:
    """Step along each task's gradient on a batch and see all tasks' losses on another: `batches` are such pairs.

    The parameters are as before when it returns. Raises `UserError` where there is no batch or a loss is zero.
    """
    found = np.array([_transfer(losses, parameters, batch, held_out, lr) for batch, held_out in batches])
    if not len(found):
        raise UserError("measuring transfer needs at least one batch")
    z: Floats = found.mean(axis=0)
    without = means_without_one(found)
    return Transfer(
        z=z,
        z_error=jackknife_error(without),
        batches=len(found),
        r=_relative(z),
        r_error=jackknife_error(_relative(without)),
        mean_r=float(_mean_of_different(_relative(z))),
        mean_r_error=float(jackknife_error(_mean_of_different(_relative(without)))),
    )


def _relative(z: Floats) -> Floats:
    """[..., P, P] each row over its diagonal entry, where that is positive."""
    own = np.diagonal(z, axis1=-2, axis2=-1)[..., None]
    relative: Floats = z / np.where(own > 0, own, np.nan)
    return relative


def _mean_of_different(r: Floats) -> Floats:
    """[...] the mean over pairs of different tasks, where they have a value."""
    values = r[..., ~np.eye(r.shape[-1], dtype=bool)]
    count = np.isfinite(values).sum(axis=-1)
    return np.asarray(np.nansum(values, axis=-1) / np.where(count > 0, count, np.nan))


def _transfer(
    losses: Sequence[Callable[[B], Tensor]], parameters: Mapping[str, Tensor], batch: B, held_out: B, lr: float
) -> Floats:
    """[P, P] of one pair of batches."""
    before = _values(losses, held_out)
    if not (before > 0).all():
        raise UserError("the share of a loss that is taken away needs losses above zero")
    after = np.empty((len(losses), len(losses)))
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for b, loss in enumerate(losses):
        gradient = gradient_of(loss, parameters, batch)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.sub_(gradient[name], alpha=lr)
            after[:, b] = _values(losses, held_out)
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])
    transfer: Floats = 1 - after / before[:, None]
    return transfer


@torch.no_grad()
def _values(losses: Sequence[Callable[[B], Tensor]], batch: B) -> Floats:
    return np.array([float(loss(batch)) for loss in losses])
