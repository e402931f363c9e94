"""Which dimensions of a network's tensors must have the same length: union-find over axes.

A dimension is a row of segments, each of which is an axis. An axis has units; a segment gives each unit a run of
`each` consecutive places. A flattened map of C channels of 7 x 7 pixels is one segment of the axis of C units with 49
places each; what `cat` makes is a segment after another; three copies of one axis are a fused query, key and value.

Where two dimensions must agree, their axes become one; where one is a single axis and the other a row of segments, the
first axis is cut into those. An axis that cannot change is frozen, and knows why.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class AxisPart(NamedTuple):
    """An axis inside a dimension; each of its units takes `each` places."""

    axis: int
    each: int


Dimension = tuple[AxisPart, ...]


class Misfit(Exception):
    """Two dimensions cannot be made to agree."""


class Axes:
    """All axes of a network."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._units: list[int] = []
        self._reason: list[str | None] = []
        self._cut: dict[int, Dimension] = {}

    def new(self, units: int, *, frozen: str | None = None) -> Dimension:
        """A dimension of an axis of its own."""
        self._parent.append(len(self._parent))
        self._units.append(units)
        self._reason.append(frozen)
        return (AxisPart(len(self._parent) - 1, 1),)

    def units(self, axis: int) -> int:
        """How many units an axis has."""
        return self._units[self._root(axis)]

    def reason(self, axis: int) -> str | None:
        """Why an axis is frozen; None where it is not."""
        return self._reason[self._root(axis)]

    def resolve(self, dimension: Dimension) -> Dimension:
        """The dimension in axes that are neither merged into others nor cut."""
        found: list[AxisPart] = []
        for segment in dimension:
            root = self._root(segment.axis)
            if root in self._cut:
                found += [AxisPart(a, each * segment.each) for a, each in self.resolve(self._cut[root])]
            else:
                found.append(AxisPart(root, segment.each))
        return tuple(found)

    def length(self, dimension: Dimension) -> int:
        """How many places a dimension has."""
        return sum(self.units(segment.axis) * segment.each for segment in dimension)

    def freeze(self, dimensions: Iterable[Dimension], reason: str) -> None:
        """Let dimensions keep their length. The first reason stays."""
        for dimension in dimensions:
            for segment in self.resolve(dimension):
                if self._reason[segment.axis] is None:
                    self._reason[segment.axis] = reason

    def is_rigid(self, dimension: Dimension) -> bool:
        """Whether no axis of a dimension can change."""
        return all(self._reason[s.axis] is not None or self._units[s.axis] == 1 for s in self.resolve(dimension))

    def unify(self, one: Dimension, other: Dimension) -> None:
        """Let two dimensions agree. Raises `Misfit` where they cannot."""
        ones, others = list(self.resolve(one)), list(self.resolve(other))
        if self.length(tuple(ones)) != self.length(tuple(others)):
            raise Misfit
        while ones and others:
            first, second = self.length((ones[0],)), self.length((others[0],))
            if first > second:
                self._cut_at(ones[0], second)
            elif second > first:
                self._cut_at(others[0], first)
            else:
                self._merge(ones.pop(0), others.pop(0))
            ones, others = list(self.resolve(tuple(ones))), list(self.resolve(tuple(others)))

    def split(self, dimension: Dimension, lengths: Sequence[int]) -> list[Dimension]:
        """The dimension in pieces of these lengths, which sum to its own. Raises `Misfit` where it cannot be cut so."""
        pieces = [self.new(length) for length in lengths]
        self.unify(dimension, tuple(segment for piece in pieces for segment in piece))
        return [self.resolve(piece) for piece in pieces]

    def by_units(self, dimension: Dimension, units: int) -> Dimension:
        """The dimension as so many units of the same number of places. Raises `Misfit` where it cannot be."""
        each, rest = divmod(self.length(dimension), units)
        if rest:
            raise Misfit
        whole = self.new(units)
        self.unify(dimension, (AxisPart(whole[0].axis, each),))
        return self.resolve(whole)

    def _root(self, axis: int) -> int:
        while self._parent[axis] != axis:
            self._parent[axis] = self._parent[self._parent[axis]]
            axis = self._parent[axis]
        return axis

    def _cut_at(self, segment: AxisPart, length: int) -> None:
        """Make an axis two, of which the first has so many places of the segment."""
        units, rest = divmod(length, segment.each)
        if rest:
            raise Misfit
        reason = self._reason[segment.axis]
        first = self.new(units, frozen=reason)
        self._cut[segment.axis] = first + self.new(self._units[segment.axis] - units, frozen=reason)

    def _merge(self, one: AxisPart, other: AxisPart) -> None:
        """Let two segments of one length be the same axis, in the coarser units of both."""
        if one.each < other.each:
            one, other = other, one
        reason = self._reason[one.axis] if self._reason[one.axis] is not None else self._reason[other.axis]
        if one.axis == other.axis:
            if one.each != other.each:
                raise Misfit
        elif one.each == other.each:
            self._parent[other.axis] = one.axis
        elif one.each % other.each:
            raise Misfit
        else:
            self._cut[other.axis] = (AxisPart(one.axis, one.each // other.each),)
        self._reason[one.axis] = reason
