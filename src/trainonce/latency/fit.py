"""The time that each part takes within a network, from parts timed alone and from whole networks.

A part timed alone is called for itself, finds its input where it left it, and may reorder its input and output for the
runtime's kernels: its time is not what it adds to a network, but tells which parts take longer than others. Whole
networks tell what parts add, yet each only the sum of a dozen. So times are found that explain the networks and stay
near a line through those measured alone; how near is chosen by cross-validation among the networks themselves.
"""

from collections.abc import Sequence

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
    folds = np.arange(len(measured)) % FOLDS
    errors = np.zeros(len(TRUSTS))
    for fold in range(FOLDS):
        fitted, left = folds != fold, folds == fold
        line = _line(counts[fitted], measured[fitted], alone, ends)
        for i, trust in enumerate(TRUSTS):
            times = _near(line, counts[fitted], measured[fitted], trust)
            errors[i] += np.abs(counts[left] @ times / measured[left] - 1).sum()
    return _near(_line(counts, measured, alone, ends), counts, measured, TRUSTS[int(errors.argmin())])


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


def counted(names: Sequence[Sequence[str]], order: Sequence[str]) -> Floats:
    """How often each network, given by its parts' names, has each part: [networks, parts]."""
    place = {name: i for i, name in enumerate(order)}
    counts = np.zeros((len(names), len(order)))
    for row, parts in zip(counts, names, strict=True):
        for name in parts:
            row[place[name]] += 1
    return counts
