"""The dimensions of a network's tensors, and of the values that its operations make, while they are being found."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainonce.errors import UserError
from trainonce.models.traced.axes import Axes, Dimension
from trainonce.nn.plain_graph import IMAGES, Argument, GraphSpec, Line, Program

Dimensions = tuple[Dimension, ...]
"""The dimensions of a tensor."""
Made = Dimensions | list[Dimensions]
"""What an operation makes: a tensor, or several."""

BATCH = 13
"""Images with which shapes are found: a prime, so that a number of channels is never taken for it."""
MAPS = "a place in the map"


@dataclass
class Analysis:
    """The axes of a network: the dimensions of its tensors, and of each value that its operations make."""

    spec: GraphSpec
    axes: Axes
    tensors: dict[str, Dimensions]
    values: dict[str, Made]
    shapes: dict[str, Any]
    unknown: dict[str, str]
    """Operations without a rule, by what they make."""

    def of(self, argument: Argument) -> Dimensions:
        """The dimensions of an argument that is a tensor, as far as they are known by now."""
        assert isinstance(argument, str)
        name = argument[1:]
        found = self.values[name] if name in self.values else self.tensors[name]
        assert isinstance(found, tuple)
        return tuple(self.axes.resolve(dimension) for dimension in found)

    def fixed(self, length: int, reason: str = MAPS) -> Dimension:
        """A dimension that keeps its length."""
        return self.axes.new(length, frozen=reason)

    def shape(self, line: Line) -> tuple[int, ...]:
        """The shape of what a line makes."""
        shape: tuple[int, ...] = self.shapes[line.out]
        return shape

    def tie(self, one: Dimensions, other: Dimensions) -> Dimensions:
        """The dimensions of what is made of two tensors value by value; a length of 1 goes with any other."""
        rank = max(len(one), len(other))
        ones, others = ([self.fixed(1)] * (rank - len(given)) + list(given) for given in (one, other))
        made = []
        for mine, its in zip(ones, others, strict=True):
            if self.axes.length(mine) == 1 or self.axes.length(its) == 1:
                made.append(its if self.axes.length(mine) == 1 else mine)
            else:
                self.axes.unify(mine, its)
                made.append(self.axes.resolve(mine))
        return tuple(made)


def shapes_of(spec: GraphSpec) -> dict[str, Any]:
    """The shape of each value: sizes, a list of shapes for several outputs, or a whole number.

    Raises `UserError` where operations, as they are written down, do not fit together.
    """
    shapes: dict[str, Any] = {IMAGES: (BATCH, spec.in_channels, spec.resolution, spec.resolution)}

    def see(line: Line, made: Any) -> None:
        shapes[line.out] = [tuple(m.shape) for m in made] if isinstance(made, list | tuple) else made
        if isinstance(made, Tensor):
            shapes[line.out] = tuple(made.shape)

    try:
        with torch.device("meta"), torch.no_grad():
            tensors = {tensor.name: tensor.empty() for tensor in spec.tensors}
            Program(spec)(torch.empty(shapes[IMAGES]), tensors, lambda _, x: x, training=False, seen=see)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        first = str(error).partition("\n")[0]
        raise UserError(f"the operations of the network do not fit together: {first:.200}") from error
    return shapes


def dim_of(number: Argument, rank: int) -> int:
    """A dimension by its number, which may count from the end."""
    assert isinstance(number, int)
    return number % rank


def argument(line: Line, at: int, name: str, default: Argument) -> Argument:
    """An argument by its place, or by its name, or what it is where it is not given."""
    return line.args[at] if len(line.args) > at else dict(line.kwargs).get(name, default)
