"""What is looked for: the limits that a subnet must keep, and what is to be small beside a high top-1."""

from collections.abc import Mapping
from dataclasses import dataclass

from trainonce.cost.macs import CostModel
from trainonce.errors import UserError
from trainonce.search.genome import Genes, decode
from trainonce.search.resources import Limit, Resource
from trainonce.settings import JsonObject
from trainonce.space import Architecture


@dataclass(frozen=True, kw_only=True)
class Problem:
    """High top-1 and little need of each resource in `minimised`, within the limits."""

    cost: CostModel
    """The costs over the space that is searched."""
    limits: tuple[Limit, ...] = ()
    minimised: tuple[Resource, ...] = ()

    def resources(self) -> tuple[Resource, ...]:
        """Those that are minimised, and those that are limited."""
        return (*self.minimised, *(limit.resource for limit in self.limits))

    def feasible(self, arch: Architecture) -> bool:
        """Whether a subnet keeps every limit."""
        return all(limit.violation(arch) <= 0 for limit in self.limits)

    def objectives(self, arch: Architecture, top1: float) -> tuple[float, ...]:
        """The numbers that are to be small: top-1 with its sign changed, and the resources."""
        return (-top1, *(resource.of(arch) for resource in self.minimised))

    def values(self, arch: Architecture) -> dict[str, float]:
        """What a subnet needs of every resource here, by its name."""
        return {resource.name: resource.of(arch) for resource in self.resources()}

    def to_json(self) -> JsonObject:
        """The limits by resource, and what is minimised, as JSON values."""
        narrow = {resource.numbers for resource in self.resources()} - {"float32"}
        counted = {resource.target for resource in self.resources()} - {None}
        return {
            "limits": {limit.resource.name: limit.most for limit in self.limits},
            **({"numbers": narrow.pop()} if narrow else {}),  # a search in float32 is called what it was
            **({"target": counted.pop()} if counted else {}),
            "minimised": [resource.name for resource in self.minimised],
        }


def feasible_subnet(problem: Problem) -> Architecture:
    """Some subnet that keeps every limit: the smallest, or one that changing its choices one by one leads to.

    Raises `UserError` that says what the least found needs where none is found.
    """
    space = problem.cost.space
    genes: Genes = {choice.name: 0 for choice in space.choices}
    least = _excess(problem, decode(space, genes))
    improved = True
    while least > 0 and improved:
        improved = False
        for choice in space.choices:
            for gene in range(len(choice.values)):
                found = _excess(problem, decode(space, {**genes, choice.name: gene}))
                if found < least:
                    genes, least, improved = {**genes, choice.name: gene}, found, True
    arch = decode(space, genes)
    if least > 0:
        needed = ", ".join(limit.resource.text(limit.resource.of(arch)) for limit in problem.limits)
        wanted = " and ".join(str(limit) for limit in problem.limits)
        raise UserError(f"no subnet of this supernet has {wanted}; the smallest has {needed} ({arch})")
    return arch


def _excess(problem: Problem, arch: Architecture) -> float:
    return sum(max(0.0, limit.violation(arch)) for limit in problem.limits)


Scores = Mapping[Architecture, float]
"""Top-1 in percent by subnet."""
