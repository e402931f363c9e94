"""The parts of a network that is a list of operations: of each weight how many numbers it has, and how much it makes.

Such a network has too many parts of other sizes to time each alone. So what an operation with a weight takes is said
to be a sum: something for each of its numbers, something for each channel that it makes, and something for being
there. What stands around it (activations, sums, norms) follows from its channels too.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from trainonce.nn.plain_graph import GraphSpec, Line, TensorSpec

AMOUNTS: Mapping[str, Callable[[tuple[int, ...]], float]] = {
    "numbers": lambda shape: float(math.prod(shape)),
    "channels": lambda shape: float(shape[0]),
    "operation": lambda shape: 1.0,
}
"""What of an operation takes time, and how much of it a weight of some shape is."""

Key = tuple[str, str, int]
"""A part: what of an operation it is, by which weight, at which resolution of images."""
Kind = tuple[str, str]
"""A kind of work: what is done, by which sort of operation."""


def weights_in(spec: GraphSpec) -> list[TensorSpec]:
    """The matrices and kernels of a network."""
    return [tensor for tensor in spec.tensors if tensor.learned and len(tensor.shape) > 1]


def amounts_in(spec: GraphSpec) -> dict[Key, float]:
    """How much of each part a network has."""
    return {
        (of, weight.name, spec.resolution): amount(weight.shape)
        for weight in weights_in(spec)
        for of, amount in AMOUNTS.items()
    }


def sizes_of(key: Key) -> dict[str, Any]:
    """A part as a table names it."""
    of, weight, resolution = key
    return {"part": of, "weight": weight, "resolution": resolution}


def kinds_in(spec: GraphSpec) -> dict[Key, dict[Kind, float]]:
    """What one of each part is in each kind of work, all of which takes about the same for all operations of a sort.

    A number of a kernel is fetched once and used at every place of the map that is made; a channel has a value at each.
    """
    shapes = {weight.name: weight.shape for weight in weights_in(spec)}
    places = dict.fromkeys(shapes, 1.0)

    def seen(line: Line, made: Any) -> None:
        for name in shapes.keys() & set(line.reads):
            places[name] = made.numel() / shapes[name][0]

    with torch.device("meta"), torch.no_grad():
        spec.build().eval().run(torch.empty(1, spec.in_channels, spec.resolution, spec.resolution), seen)
    found: dict[Key, dict[Kind, float]] = {}
    for name, shape in shapes.items():
        sort = _sort(shape)
        found["numbers", name, spec.resolution] = {("used", sort): places[name], ("fetched", sort): 1.0}
        found["channels", name, spec.resolution] = {("made", sort): places[name]}
        found["operation", name, spec.resolution] = {("begun", sort): 1.0}
    return found


def _sort(shape: tuple[int, ...]) -> str:
    """What is done with a weight of this shape, as far as that says how long it takes."""
    if len(shape) != 4:
        return "matrix"
    return "depthwise" if shape[1] == 1 else "pointwise" if shape[2:] == (1, 1) else "kernel"
