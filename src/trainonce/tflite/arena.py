"""The memory that LiteRT for Microcontrollers plans for a network in int8 (its arena), by its rules.

Maps lie in one region, each from the operator that makes it to the last that reads it. The planner is greedy: it
places the largest map first, at the lowest place that is free as long as it is needed. The runtime's records of
operators and tensors come on top.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from trainonce.tflite.file import WEIGHTED
from trainonce.tflite.graph import Graph

ALIGNED = 16
RECORDS: Mapping[str, int] = {
    "ADD": 161,
    "CONV_2D": 244,
    "DEPTHWISE_CONV_2D": 243,
    "FULLY_CONNECTED": 312,
    "HARD_SWISH": 122,
    "MEAN": 352,
    "MUL": 80,
    "PAD": 178,
    "RESHAPE": 154,
    "TRANSPOSE": 312,
}
"""Bytes of records of an operator of each kind and of its tensors, beside those of its channels."""
OTHER_RECORDS = 200
FIXED_RECORDS = 312
"""Bytes of records whatever the network."""
OF_A_CHANNEL = 8
"""A multiplier and a shift."""


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator as far as memory and files follow from it; its maps by number."""

    kind: str
    reads: tuple[int, ...]
    makes: int
    values: int
    """How many values its map has."""
    channels: int = 0
    """Of weights that have a scale for each."""
    weights: int = 0
    """How many values they have."""


@dataclass(frozen=True, kw_only=True)
class Operators:
    """Those of a network, or of a part of one, in the order of execution. Map 0 is what comes in."""

    values: int
    """How many values come in."""
    operators: tuple[Operator, ...]
    returned: int
    """The map that comes out."""


def operators_of(graph: Graph) -> Operators:
    """The operators of a graph."""
    numbers = {graph.given: 0}
    found = []
    for node in graph.nodes:
        numbers[node.output] = len(numbers)
        weights = graph.constants[node.inputs[1]] if node.kind in WEIGHTED else None
        axis = 3 if node.kind == "DEPTHWISE_CONV_2D" else 0
        found.append(
            Operator(
                kind=node.kind,
                reads=tuple(numbers[name] for name in node.inputs if name in numbers),
                makes=numbers[node.output],
                values=int(np.prod(graph.shapes[node.output])),
                channels=0 if weights is None else weights.shape[axis],
                weights=0 if weights is None else weights.size,
            )
        )
    values = int(np.prod(graph.shapes[graph.given]))
    return Operators(values=values, operators=tuple(found), returned=numbers[graph.returned])


def arena_bytes(network: Operators) -> int:
    """Bytes of maps, as they are planned, and of records."""
    return planned_bytes(network) + record_bytes(network)


def record_bytes(network: Operators) -> int:
    """Bytes of the runtime's records of operators and tensors, as they were counted on a system of 64 bits."""
    of_kinds = sum(RECORDS.get(one.kind, OTHER_RECORDS) for one in network.operators)
    return FIXED_RECORDS + of_kinds + OF_A_CHANNEL * sum(one.channels for one in network.operators)


@dataclass
class _PlannedMap:
    """A map in memory."""

    size: int
    first: int
    last: int
    place: int = field(default=0)


def planned_bytes(network: Operators) -> int:
    """Bytes of the region that holds all maps in int8."""
    maps = {0: _PlannedMap(_aligned(network.values), 0, 0)}
    for now, one in enumerate(network.operators):
        maps[one.makes] = _PlannedMap(_aligned(one.values), now, now)
        for number in one.reads:
            maps[number].last = now
    maps[network.returned].last = len(network.operators) - 1
    placed: list[_PlannedMap] = []
    for _, wanted in sorted(maps.items(), key=lambda item: (-item[1].size, -item[0])):  # of equal ones the last first
        beside = [other for other in placed if other.first <= wanted.last and other.last >= wanted.first]
        for other in sorted(beside, key=lambda other: other.place):
            if other.place - wanted.place >= wanted.size:
                break
            wanted.place = max(wanted.place, other.place + other.size)
        placed.append(wanted)
    return max(one.place + one.size for one in placed)


def _aligned(values: int) -> int:
    return -(-values // ALIGNED) * ALIGNED


def chained(parts: Sequence[Operators]) -> Operators:
    """The parts of a network, one after the other: each reads what the one before gives."""
    found: list[Operator] = []
    returned = 0
    for part in parts:
        start, given = len(found), returned
        places = [given, *(start + one.makes for one in part.operators)]
        found += [
            replace(one, reads=tuple(places[number] for number in one.reads), makes=places[one.makes])
            for one in part.operators
        ]
        returned = places[part.returned]
    return Operators(values=parts[0].values, operators=tuple(found), returned=returned)
