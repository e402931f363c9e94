"""Which numbers of an operation follow where dimensions become shorter: groups, padding, sizes of reshapes, splits."""

from collections.abc import Callable
from dataclasses import replace

from trainonce.models.traced.analysis import Analysis, argument, dim_of
from trainonce.models.traced.axes import Dimension
from trainonce.nn.plain_graph import Argument, Line

Length = Callable[[Dimension], int]
"""The length of a dimension in an architecture."""
Followed = Callable[[Analysis, Line, Length], tuple[Argument, ...]]


def followed(found: Analysis, line: Line, length: Length) -> Line:
    """A line with the numbers that it has where dimensions have other lengths."""
    follow = FOLLOWED.get(line.op)
    if follow is None or line.out in found.unknown:
        return line
    return replace(line, args=follow(found, line, length))


def _groups(found: Analysis, line: Line, length: Length) -> tuple[Argument, ...]:
    if len(line.args) < 7 or line.args[6] == 1:
        return line.args
    weight, padding = found.of(line.args[1]), line.args[4]
    if any(found.axes.reason(part.axis) is None for part in weight[2]):  # an elastic kernel stays centred
        padding = (length(weight[2]) // 2,) * 2
    inside = length(found.of(line.args[0])[1])
    return (*line.args[:4], padding, line.args[5], inside // length(weight[1]))


def _sizes(found: Analysis, line: Line, length: Length) -> tuple[Argument, ...]:
    sizes, made = line.args[1], found.values[line.out]
    assert isinstance(sizes, tuple)
    assert isinstance(made, tuple)
    new = tuple(
        length(d) if type(n) is int and n != -1 and not found.axes.is_rigid(d) else n
        for n, d in zip(sizes, made, strict=True)
    )
    return (line.args[0], new, *line.args[2:])


def _unflattened(found: Analysis, line: Line, length: Length) -> tuple[Argument, ...]:
    made, sizes = found.values[line.out], line.args[2]
    assert isinstance(sizes, tuple)
    dim = dim_of(line.args[1], len(made) - len(sizes) + 1)
    new = tuple(n if n == -1 else length(d) for n, d in zip(sizes, made[dim : dim + len(sizes)], strict=True))  # type: ignore[arg-type]
    return (line.args[0], line.args[1], new)


def _split_sizes(found: Analysis, line: Line, length: Length) -> tuple[Argument, ...]:
    made, x = found.values[line.out], found.of(line.args[0])
    assert isinstance(made, list)
    dim = dim_of(argument(line, 2, "dim", 0), len(x))
    return (line.args[0], tuple(length(piece[dim]) for piece in made), dim)


def _normalised(found: Analysis, line: Line, length: Length) -> tuple[Argument, ...]:
    x, sizes = found.of(line.args[0]), line.args[1]
    assert isinstance(sizes, tuple)
    return (line.args[0], tuple(length(d) for d in x[-len(sizes) :]), *line.args[2:])


def _sliced(found: Analysis, line: Line, length: Length) -> tuple[Argument, ...]:
    x, made = found.of(line.args[0]), found.values[line.out]
    dim = dim_of(argument(line, 1, "dim", 0), len(x))
    if found.axes.is_rigid(x[dim]) or found.shape(line)[dim] == found.axes.length(x[dim]):
        return line.args
    start = argument(line, 2, "start", 0)
    first = slice(start, None).indices(found.axes.length(x[dim]))[0]
    before, at = 0, 0
    for segment in x[dim]:
        if at >= first:
            break
        at, before = at + found.axes.length((segment,)), before + length((segment,))
    piece = made[dim]
    assert isinstance(piece, tuple)
    return (line.args[0], dim, before, before + length(found.axes.resolve(piece)))  # type: ignore[arg-type]


FOLLOWED: dict[str, Followed] = {
    "conv2d.default": _groups,
    "conv2d.padding": _groups,
    "conv1d.default": _groups,
    "view.default": _sizes,
    "reshape.default": _sizes,
    "_unsafe_view.default": _sizes,
    "expand.default": _sizes,
    "unflatten.int": _unflattened,
    "split_with_sizes.default": _split_sizes,
    "layer_norm.default": _normalised,
    "slice.Tensor": _sliced,
}
"""By operation: its arguments where dimensions have other lengths. Others take no lengths."""
