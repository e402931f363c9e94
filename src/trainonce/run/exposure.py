"""Exposure: how much training each part of the shared weights got, and at how many MACs.

A choice's values are nested: a larger one uses what the smaller ones use, and adds to it. So what the value v of a
choice adds is trained by every subnet that has the choice at v or above. Its exposure is the sum of the learning rate
over the steps in which one of the step's subnets had. Where subnets are drawn uniformly it has a closed form.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainonce.errors import UserError
from trainonce.files import read_arrays
from trainonce.space import Architecture, SearchSpace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MACS_BINS = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class ExposureTable:
    """What a run trained: a row for each value of each choice, and the subnet passes by MACs."""

    names: NDArray[np.str_]
    """[R] the choices' names, in the space's order, each as often as it has values."""
    values: Ints
    """[R] a value of the choice."""
    passes: Ints
    """[R] subnet passes (a subnet trained on a batch) with exactly this value."""
    exposure: Floats
    """[R] the sum of the learning rate over the steps in which the weights that this value adds were active."""
    steps: int
    """Steps recorded."""
    lr_sum: float
    """The sum of the learning rate over all of them: the exposure of weights that every subnet uses."""
    macs_edges: Floats
    """[B + 1] edges of equal bins of MACs over the space's range."""
    macs_passes: Ints
    """[B] subnet passes by bin."""

    def of(self, name: str, value: int) -> float:
        """The exposure of what a value adds. Raises `UserError` where the table has no such row."""
        found = np.flatnonzero((self.names == name) & (self.values == value))
        if not len(found):
            raise UserError(f"the exposure has no row for {name} at {value}")
        return float(self.exposure[found[0]])

    def to_npz(self) -> bytes:
        """The table as the content of an .npz file; equal tables give equal bytes."""
        content = io.BytesIO()
        np.savez(
            content,
            allow_pickle=False,
            names=self.names,
            values=self.values,
            passes=self.passes,
            exposure=self.exposure,
            steps=np.asarray(self.steps, np.int64),
            lr_sum=np.asarray(self.lr_sum, np.float64),
            macs_edges=self.macs_edges,
            macs_passes=self.macs_passes,
        )
        return content.getvalue()

    @classmethod
    def read(cls, path: str | Path) -> "ExposureTable":
        """The table in an .npz file. Raises `UserError` that names the file."""
        path = Path(path)
        if not path.exists():
            raise UserError(f"there is no {path}: the run was trained without recording its exposure")
        found = read_arrays(path)
        try:
            return cls._from(found)
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} does not hold an exposure: {error}") from error

    @classmethod
    def _from(cls, found: Mapping[str, NDArray[Any]]) -> "ExposureTable":
        rows, bins = found["names"].shape, found["macs_passes"].shape
        shapes = dict.fromkeys(("names", "values", "passes", "exposure"), rows)
        shapes |= {"steps": (), "lr_sum": (), "macs_passes": bins, "macs_edges": (bins[0] + 1,)}
        kinds = {"names": "U", "exposure": "f", "lr_sum": "f", "macs_edges": "f"}
        for name, shape in shapes.items():
            if found[name].shape != shape or found[name].dtype.kind != kinds.get(name, "i"):
                raise ValueError(f"its {name!r} is of another shape or kind")
        columns = {name: found[name] for name in shapes if shapes[name] != ()}
        return cls(**columns, steps=int(found["steps"]), lr_sum=float(found["lr_sum"]))


class Exposure:
    """Records what is trained. `low` and `high` are the fewest and most MACs of the space."""

    def __init__(self, space: SearchSpace, low: float, high: float) -> None:
        self.names, self.values = rows_of(space)
        self._order = {choice.name: number for number, choice in enumerate(space.choices)}
        self._choice_R = np.array([self._order[name] for name in self.names.tolist()])
        rows = zip(self.names.tolist(), self.values.tolist(), strict=True)
        self._row = {row: number for number, row in enumerate(rows)}
        self.edges = np.linspace(low, max(high, low + 1), MACS_BINS + 1)
        self.passes = np.zeros(len(self.values), np.int64)
        self.exposure = np.zeros(len(self.values))
        self.macs_passes = np.zeros(MACS_BINS, np.int64)
        self.steps = 0
        self.lr_sum = 0.0

    def add(self, archs: Sequence[Architecture], macs: Sequence[float], lr: float) -> None:
        """Record a step that trained these subnets, of so many MACs, at a learning rate."""
        reach_C = np.full(len(self._order), -1)
        for arch in archs:
            rows = [self._row[pair] for pair in arch.pairs]
            self.passes[rows] += 1
            there = self._choice_R[rows]
            reach_C[there] = np.maximum(reach_C[there], self.values[rows])
        self.exposure += lr * (self.values <= reach_C[self._choice_R])
        for count in macs:
            place = int((count - self.edges[0]) / (self.edges[-1] - self.edges[0]) * MACS_BINS)
            self.macs_passes[min(max(place, 0), MACS_BINS - 1)] += 1
        self.steps += 1
        self.lr_sum += lr

    def table(self) -> ExposureTable:
        """What was recorded so far."""
        return ExposureTable(
            names=self.names,
            values=self.values,
            macs_edges=self.edges,
            **self.state(),
            steps=self.steps,
            lr_sum=self.lr_sum,
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """The counts that a checkpoint keeps, beside `steps` and `lr_sum`: copies."""
        return {name: getattr(self, name).copy() for name in ("passes", "exposure", "macs_passes")}

    def restore(self, state: Mapping[str, NDArray[Any]], *, steps: int, lr_sum: float) -> None:
        """Go on from the counts of a checkpoint."""
        for name in ("passes", "exposure", "macs_passes"):
            getattr(self, name)[:] = state[name]
        self.steps, self.lr_sum = steps, lr_sum


def rows_of(space: SearchSpace) -> tuple[NDArray[np.str_], Ints]:
    """All pairs of a choice's name [R] and one of its values [R], in order."""
    rows = [(choice.name, value) for choice in space.choices for value in choice.values]
    return np.array([name for name, _ in rows], np.str_), np.array([value for _, value in rows], np.int64)


def total_variation(p: Sequence[float] | Floats | Ints, q: Sequence[float] | Floats | Ints) -> float:
    """Half the sum of absolute differences of two distributions, given as counts: 0 equal, 1 disjoint."""
    one, other = _distributions(p, q)
    return float(np.abs(one - other).sum() / 2)


def jensen_shannon(p: Sequence[float] | Floats | Ints, q: Sequence[float] | Floats | Ints) -> float:
    """The Jensen-Shannon divergence in bits of two distributions, given as counts: 0 equal, 1 disjoint."""
    one, other = _distributions(p, q)
    middle = (one + other) / 2
    return float(sum(_divergence(part, middle) for part in (one, other)) / 2)


def _divergence(p: Floats, q: Floats) -> float:
    some = p > 0
    return float((p[some] * np.log2(p[some] / q[some])).sum())


def _distributions(*counts: Sequence[float] | Floats | Ints) -> list[Floats]:
    arrays = [np.asarray(count, np.float64) for count in counts]
    if len({array.shape for array in arrays}) != 1 or any((a < 0).any() or not a.sum() > 0 for a in arrays):
        raise UserError("two distributions need equally many counts, none negative and not all zero")
    return [array / array.sum() for array in arrays]
