"""The same network at several sizes of images: a space whose first choice is the resolution, and what subnets cost."""

from collections.abc import Iterator, Sequence

from trainonce.cost.macs import ZERO, Cost, CostModel, CostTerm, cached_term
from trainonce.errors import UserError
from trainonce.models.traced.layout import TracedLayout
from trainonce.nn.plain_graph import GraphSpec
from trainonce.space import Architecture, Choice, SearchSpace

RESOLUTION = "resolution"
STRIDE = 32
"""What most networks divide the side of an image by: a multiple of it makes whole maps."""


def smaller_sides(side: int) -> range:
    """What `STRIDE` divides from half of a side on: few, since each is traced."""
    return range(-(-side // (2 * STRIDE)) * STRIDE, side, STRIDE)


class Resolutions:
    """The layouts of a network, traced at one size of images or at several."""

    def __init__(self, layouts: Sequence[TracedLayout]) -> None:
        """Of rising resolutions. Raises `UserError` where the choices are others at another size."""
        self.largest = layouts[-1]
        self.by_resolution = {layout.spec.resolution: layout for layout in layouts}
        choices = self.largest.space.choices
        for side, layout in self.by_resolution.items():
            if layout.space.choices != choices:
                raise UserError(
                    f"at {side} pixels other parts of this network are elastic: it is for one size of images"
                )
        if len(layouts) == 1:
            self.space, self.cost = self.largest.space, self.largest.cost
            return
        self.space = SearchSpace((Choice(name=RESOLUTION, values=tuple(self.by_resolution)), *choices))
        self.cost = CostModel(self.space, self._terms())

    def describe(self, arch: Architecture) -> GraphSpec:
        """The plain network of an architecture."""
        return self.by_resolution[arch.get(RESOLUTION, self.largest.spec.resolution)].describe(arch)

    def _terms(self) -> tuple[CostTerm, ...]:
        """Each term of the costs at one size, with those of the same choices at the others."""
        by_choices: dict[tuple[str, ...], dict[int, list[CostTerm]]] = {}
        for side, layout in self.by_resolution.items():
            for term in layout.cost.terms:
                by_choices.setdefault(term.choices, {}).setdefault(side, []).append(term)
        return tuple(
            cached_term((RESOLUTION, *choices), lambda side, *values, terms=terms: _sum(terms[side], values))
            for choices, terms in by_choices.items()
        )


def _sum(terms: Sequence[CostTerm], values: Sequence[int | None]) -> Cost:
    return sum((term.cost(*values) for term in terms), ZERO)


def ends_at_each_size(space: SearchSpace) -> Iterator[Architecture]:
    """The largest and the smallest architecture, at each resolution where there are several."""
    sides = next((choice.values for choice in space.choices if choice.name == RESOLUTION), (0,))
    for side in sides:
        for end in (-1, 0):
            yield space.build(lambda choice, open_values: side if choice.name == RESOLUTION else open_values[end])  # noqa: B023


def check_same(network: GraphSpec, others: Sequence[GraphSpec]) -> None:
    """Raise `ValueError` where one is not the network at a lower resolution: the same operations on its tensors."""
    sides = [other.resolution for other in (*others, network)]
    if sides != sorted(set(sides)):
        raise ValueError(f"the resolutions must be rising, not {', '.join(map(str, sides))}")
    for other in others:
        for ours, its in zip(network.tensors, other.tensors, strict=False):
            if ours != its:
                raise ValueError(
                    f"{ours.name} is {_by(ours.shape)} at {network.resolution} pixels and {_by(its.shape)} at "
                    f"{other.resolution}: the network is for one size of images"
                )
        ours_do, its_do = ([(line.out, line.op, line.reads) for line in spec.lines] for spec in (network, other))
        if (ours_do, network.tensors, network.output) != (its_do, other.tensors, other.output):
            raise ValueError(
                f"the network does something else at {other.resolution} pixels than at {network.resolution}: "
                "it is for one size of images"
            )


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
