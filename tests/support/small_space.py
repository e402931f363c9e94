"""A space small enough to be gone through whole, with costs that are plain sums."""

from collections.abc import Iterator

from trainonce.cost.macs import Cost, CostModel, CostTerm
from trainonce.search import Limit, Problem, Resource
from trainonce.space import Architecture, Choice, SearchSpace

KERNELS, EXPANDS = (3, 5), (3, 4, 6)


def block(number: int) -> list[Choice]:
    """A block's choices; it exists where the depth reaches it."""
    found = []
    for name, values in (("kernel", KERNELS), ("expand", EXPANDS)):
        allowed = {depth: values for depth in (1, 2) if number <= depth}
        found.append(Choice(name=f"s.b{number}.{name}", values=values, parent="s.depth", allowed=allowed))
    return found


SPACE = SearchSpace((Choice(name="s.depth", values=(1, 2)), *block(1), *block(2)))
"""Of depth 1 there are 6 subnets, of depth 2 there are 36."""


def work(kernel: int | None, expand: int | None) -> Cost:
    return Cost(0, 0) if kernel is None or expand is None else Cost(1000 * kernel**2 * expand, 10 * expand)


COST = CostModel(SPACE, tuple(CostTerm((f"s.b{n}.kernel", f"s.b{n}.expand"), work) for n in (1, 2)))
MACS = Resource(name="macs", of=lambda arch: COST(arch).macs)
PARAMS = Resource(name="params", of=lambda arch: COST(arch).params)


def everything() -> Iterator[Architecture]:
    for first in ((k, e) for k in KERNELS for e in EXPANDS):
        yield SPACE.check({"s.depth": 1, "s.b1.kernel": first[0], "s.b1.expand": first[1]})
        for second in ((k, e) for k in KERNELS for e in EXPANDS):
            values = {"s.depth": 2, "s.b1.kernel": first[0], "s.b1.expand": first[1]}
            yield SPACE.check(values | {"s.b2.kernel": second[0], "s.b2.expand": second[1]})


def truth(arch: Architecture) -> float:
    """Rises with MACs but not always: larger kernels in the first block are good, in the second bad."""
    top1 = 50.0 + 3 * arch["s.depth"] + 2 * (arch["s.b1.kernel"] == 5) + arch["s.b1.expand"]
    if "s.b2.kernel" in arch:
        top1 += 0.7 * arch["s.b2.expand"] - 4 * (arch["s.b2.kernel"] == 5)
    return top1


def problem(*, most_macs: float | None = None, most_params: float | None = None) -> Problem:
    limits = [] if most_macs is None else [Limit(resource=MACS, most=most_macs)]
    limits += [] if most_params is None else [Limit(resource=PARAMS, most=most_params)]
    return Problem(cost=COST, limits=tuple(limits), minimised=(MACS,))
