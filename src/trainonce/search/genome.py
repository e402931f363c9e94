"""Architectures as genes, a number for every choice whether it exists or not, and as features for a predictor.

With all choices always there, two genomes can be crossed gene by gene. What a genome means is its projection: the
architecture that its genes give where choices exist.
"""

import random
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trainonce.cost.macs import CostModel
from trainonce.space import Architecture, Choice, SearchSpace

Genes = Mapping[str, int]
"""For every choice of a space, by its name, the place of a value among the choice's values."""


def decode(space: SearchSpace, genes: Genes) -> Architecture:
    """The architecture that genes mean; where a gene's value is not open, the nearest one that is."""

    def pick(choice: Choice, open_values: tuple[int, ...]) -> int:
        wanted = choice.values[genes[choice.name]]
        return min(open_values, key=lambda value: (abs(value - wanted), value))

    return space.build(pick)


def encode(space: SearchSpace, arch: Architecture, rng: random.Random) -> dict[str, int]:
    """Genes that mean an architecture; those of choices that it does not have are drawn."""
    return {
        choice.name: choice.values.index(arch[choice.name])
        if choice.name in arch
        else rng.randrange(len(choice.values))
        for choice in space.choices
    }


def features(cost: CostModel, archs: Sequence[Architecture]) -> NDArray[np.float64]:
    """What a predictor sees [N, features]: each choice one-hot, with absent as a value of its own, and log MACs."""
    places: dict[tuple[str, int | None], int] = {}
    for choice in cost.space.choices:
        for value in (None, *choice.values):
            places[choice.name, value] = len(places)
    seen = np.zeros((len(archs), len(places) + 1))
    for row, arch in zip(seen, archs, strict=True):
        for choice in cost.space.choices:
            row[places[choice.name, arch.get(choice.name)]] = 1
        row[-1] = np.log(max(1, cost(arch).macs))
    return seen
