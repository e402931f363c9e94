"""How much of a subnet's weights a random subnet trains: in closed form."""

import math

from trainonce.cost.macs import CostModel
from trainonce.space import Architecture


def expected_share(cost: CostModel, arch: Architecture) -> float:
    """The mean, over the parameters of `arch`, of the probability that a uniform subnet of the space has them too.

    Choices are nested, so what two subnets share is the subnet of the smaller of each two values. Each term of the
    cost looks at few choices, over which the draws are enumerated. A training step draws one uniform subnet, so
    this is also the share of a supernet's steps, and of its learning-rate sum, in which the weights are trained.
    """
    shared = []
    for term in cost.terms:
        for drawn, probability in cost.space.draws_of(term.choices):
            meet = (_smaller(arch.get(name), drawn.get(name)) for name in term.choices)
            shared.append(probability * term.cost(*meet).params)
    return math.fsum(shared) / cost(arch).params


def _smaller(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else min(a, b)
