"""The time that each part takes within a network, from parts timed alone and from whole networks.

A part timed alone is called for itself, finds its input where it left it, and may reorder its input and output for the
runtime's kernels: its time is not what it adds to a network, but tells which parts take longer than others. Whole
networks tell what parts add, yet each only the sum of a dozen. So times are found that explain the networks and stay
near a line through those measured alone; how near is chosen by cross-validation among the networks themselves. Parts
that cannot be timed alone stay near what all of their kind take.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TRUSTS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
"""How much a part's relative distance from the line may weigh against a network's relative error, squares of both."""
FOLDS = 5


def part_times(counts: Floats, measured: Floats, alone: Floats, ends: NDArray[np.bool_]) -> Floats:
    """Milliseconds of each part [P], none negative.

    `counts` [N, P] says how often each of N > 5 networks has each part, `measured` [N] their milliseconds, `alone` [P]
    the parts' milliseconds alone, `ends` [P] which parts are ends: they have another offset from the line than blocks.
    """
    return _by_trust(counts, measured, lambda counts, measured: _line(counts, measured, alone, ends))


def amount_times(amounts: Floats, measured: Floats, kinds: Floats) -> Floats:
    """Milliseconds of one unit of each part [P], none negative, where networks have amounts of parts.

    `amounts` [N, P] says how much each of N > 5 networks has, `measured` [N] their milliseconds, `kinds` [P, K] how
    much a unit of each part is of each of K kinds of work: all work of a kind takes about the same.
    """
    size = np.where(amounts.any(axis=0), amounts.max(axis=0), 1.0)
    return _by_trust(amounts / size, measured, lambda parts, ms: _of_kinds(parts, ms, kinds * size[:, None])) / size


def _by_trust(counts: Floats, measured: Floats, line: Callable[[Floats, Floats], Floats]) -> Floats:
    """Times near what `line` makes of some networks' counts and milliseconds, as near as cross-validation says."""
    folds = np.arange(len(measured)) % FOLDS
    errors = np.zeros(len(TRUSTS))
    for fold in range(FOLDS):
        fitted, left = folds != fold, folds == fold
        of_fold = line(counts[fitted], measured[fitted])
        for i, trust in enumerate(TRUSTS):
            times = _near(of_fold, counts[fitted], measured[fitted], trust)
            errors[i] += np.abs(counts[left] @ times / measured[left] - 1).sum()
    return _near(line(counts, measured), counts, measured, TRUSTS[int(errors.argmin())])


def _near(line: Floats, counts: Floats, measured: Floats, trust: float) -> Floats:
    """The times that minimise the squared relative errors of networks plus `trust` times those of parts to the line."""
    from scipy.optimize import nnls

    scale = line + 0.3 * line.mean()  # so that parts of no time on the line may have some
    pull = np.sqrt(trust) / scale
    rows = np.concatenate([counts / measured[:, None], np.diag(pull)])
    times: Floats = nnls(rows, np.concatenate([np.ones(len(measured)), pull * line]))[0]
    return times


def _line(counts: Floats, measured: Floats, alone: Floats, ends: NDArray[np.bool_]) -> Floats:
    """`slope * alone + offset` that explains the networks best, with offsets for blocks and for ends; none below 0."""
    from scipy.optimize import lsq_linear

    columns = np.stack([counts @ alone, counts @ ~ends, counts @ ends], axis=1) / measured[:, None]
    slope, of_blocks, of_ends = lsq_linear(columns, np.ones(len(measured)), bounds=([0, -np.inf, -np.inf], np.inf)).x
    line: Floats = np.maximum(slope * alone + np.where(ends, of_ends, of_blocks), 0)
    return line if line.any() else alone * (measured.sum() / (counts @ alone).sum())


def _of_kinds(amounts: Floats, measured: Floats, kinds: Floats) -> Floats:
    """The parts' times where a unit of each kind takes the same in all parts: what explains the networks best."""
    from scipy.optimize import nnls

    columns = amounts @ kinds / measured[:, None]
    sizes = columns.max(axis=0)
    times: Floats = kinds @ (nnls(columns / sizes, np.ones(len(measured)))[0] / sizes)
    return times


def counted(amounts: Sequence[Mapping[str, float]], order: Sequence[str]) -> Floats:
    """How much each network, given by the names of its parts, has of each part: [networks, parts]."""
    place = {name: i for i, name in enumerate(order)}
    counts = np.zeros((len(amounts), len(order)))
    for row, parts in zip(counts, amounts, strict=True):
        for name, amount in parts.items():
            row[place[name]] = amount
    return counts
