"""How much of a subnet's weights a random subnet trains: in closed form."""

import math
from collections.abc import Iterator, Mapping

from trainonce.cost.macs import CostModel
from trainonce.space import Architecture, Choice


def expected_share(cost: CostModel, arch: Architecture) -> float:
    """The mean, over the parameters of `arch`, of the probability that a uniform subnet of the space has them too.

    Choices are nested, so what two subnets share is the subnet of the smaller of each two values. Each term of the
    cost looks at few choices, over which the draws are enumerated. A training step draws one uniform subnet, so
    this is also the share of a supernet's steps, and of its learning-rate sum, in which the weights are trained.
    """
    shared = []
    for term in cost.terms:
        for drawn, probability in _draws(cost, term.choices):
            meet = (_smaller(arch.get(name), drawn.get(name)) for name in term.choices)
            shared.append(probability * term.cost(*meet).params)
    return math.fsum(shared) / cost(arch).params


def _smaller(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else min(a, b)


def _draws(cost: CostModel, names: tuple[str, ...]) -> Iterator[tuple[Mapping[str, int], float]]:
    """All values that a uniform draw can give some choices and those they depend on, each with its probability."""
    wanted: set[str] = set()
    for name in names:
        choice: Choice | None = cost.space[name]
        while choice is not None:
            wanted.add(choice.name)
            choice = cost.space[choice.parent] if choice.parent else None
    choices = [choice for choice in cost.space.choices if choice.name in wanted]

    def from_(i: int, values: dict[str, int], probability: float) -> Iterator[tuple[Mapping[str, int], float]]:
        if i == len(choices):
            yield values, probability
            return
        choice = choices[i]
        open_values = choice.open_values(values.get(choice.parent) if choice.parent else None)
        if not open_values:
            yield from from_(i + 1, values, probability)
        for value in open_values:
            yield from from_(i + 1, values | {choice.name: value}, probability / len(open_values))

    return from_(0, {}, 1.0)
