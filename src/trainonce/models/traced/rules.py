"""What each operation asks of the axes of its tensors."""

import math
from collections.abc import Callable, Sequence

from trainonce.models.traced.analysis import BATCH, MAPS, Analysis, Made, argument, dim_of, shapes_of
from trainonce.models.traced.axes import Axes, AxisPart, Dimension, Misfit
from trainonce.nn.plain_graph import DROPOUT, IMAGES, ITEM, NORM, STATISTICS, GraphSpec, Line

FEW = 4
"""A dimension of C channels taken apart as [k, C / k], of which k is at most this, is k runs of channels: where other
dimensions follow, as in a shuffle of channels, and where it is taken further apart, as a fused query, key and value
are. Else it is k units, as heads of attention are."""

INPUT = "images come in with it"
OUTPUT = "it is the classes"

Rule = Callable[[Analysis, Line], Made]
RULES: dict[str, Rule] = {}
"""By operation."""


def rule(*operations: str) -> Callable[[Rule], Rule]:
    def known(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return known


@rule(
    *(
        f"{name}.default"
        for name in ("relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu")
    ),
    *(f"{name}.default" for name in ("tanh", "elu", "selu", "leaky_relu", "softplus", "mish", "clone", "exp")),
    *(
        f"{name}.default"
        for name in ("contiguous", "detach", "clamp", "clamp_min", "sqrt", "rsqrt", "neg", "abs", "alias")
    ),
    *(
        "pow.Tensor_Scalar",
        "add.Scalar",
        "mul.Scalar",
        "div.Scalar",
        "sub.Scalar",
        "feature_dropout.default",
        "to.dtype",
        DROPOUT,
    ),
)
def _each_value(found: Analysis, line: Line) -> Made:
    return found.of(line.args[0])


@rule("add.Tensor", "mul.Tensor", "sub.Tensor", "div.Tensor", "maximum.default", "minimum.default", "addcmul.default")
@rule("prelu.default")
def _value_by_value(found: Analysis, line: Line) -> Made:
    made = found.of(line.args[0])
    for given in line.args[1:]:
        if isinstance(given, str):
            other = found.of(given)
            if line.op == "prelu.default":  # its weight goes with the second dimension
                other = (*other, *(found.fixed(1) for _ in made[2:]))
            made = found.tie(made, other)
    return made


@rule("conv2d.default", "conv2d.padding", "conv1d.default")
def _convolution(found: Analysis, line: Line) -> Made:
    x, weight = found.of(line.args[0]), found.of(line.args[1])
    groups = argument(line, 6, "groups", 1)
    assert isinstance(groups, int)
    out = weight[0]
    if groups == 1:
        found.axes.unify(x[1], weight[1])
    else:
        found.axes.freeze([weight[1]], "it lies inside a group of a convolution")
        group = found.axes.by_units(x[1], groups)
        out_group = found.axes.by_units(out, groups)
        found.axes.unify(group, out_group)
    found.axes.freeze(weight[2:], MAPS)
    if isinstance(line.args[2] if len(line.args) > 2 else None, str):
        found.axes.unify(found.of(line.args[2])[0], out)
    return (x[0], found.axes.resolve(out), *(found.fixed(n) for n in found.shape(line)[2:]))


@rule("linear.default")
def _linear(found: Analysis, line: Line) -> Made:
    *leading, inside = found.of(line.args[0])
    weight = found.of(line.args[1])
    found.axes.unify(inside, weight[1])
    if len(line.args) > 2 and isinstance(line.args[2], str):
        found.axes.unify(found.of(line.args[2])[0], weight[0])
    return (*leading, weight[0])


@rule(NORM)
def _norm(found: Analysis, line: Line) -> Made:
    x = found.of(line.args[0])
    for part in STATISTICS[:4]:
        if f"{line.args[1]}.{part}" in found.tensors:
            found.axes.unify(x[1], found.tensors[f"{line.args[1]}.{part}"][0])
    return x


@rule("batch_norm.default")
def _batch_norm(found: Analysis, line: Line) -> Made:
    x = found.of(line.args[0])
    for given in line.args[1:5]:
        if isinstance(given, str):
            found.axes.unify(x[1], found.of(given)[0])
    return x


@rule("layer_norm.default")
def _layer_norm(found: Analysis, line: Line) -> Made:
    x, sizes = found.of(line.args[0]), line.args[1]
    assert isinstance(sizes, tuple)
    for given in line.args[2:4]:
        if isinstance(given, str):
            for mine, its in zip(x[-len(sizes) :], found.of(given), strict=True):
                found.axes.unify(mine, its)
    return x


@rule("group_norm.default")
def _group_norm(found: Analysis, line: Line) -> Made:
    x, groups = found.of(line.args[0]), line.args[1]
    assert isinstance(groups, int)
    each = found.axes.new(found.axes.length(x[1]) // groups)
    found.axes.unify(x[1], each * groups)
    for given in line.args[2:4]:
        if isinstance(given, str):
            found.axes.unify(x[1], found.of(given)[0])
    return x


@rule("max_pool2d.default", "avg_pool2d.default", "adaptive_avg_pool2d.default", "adaptive_max_pool2d.default")
@rule("upsample_nearest2d.vec", "upsample_bilinear2d.vec", "upsample_bicubic2d.vec")
def _over_maps(found: Analysis, line: Line) -> Made:
    return (*found.of(line.args[0])[:2], *(found.fixed(n) for n in found.shape(line)[2:]))


@rule("pad.default", "constant_pad_nd.default")
def _pad(found: Analysis, line: Line) -> Made:
    x, padding = found.of(line.args[0]), line.args[1]
    assert isinstance(padding, tuple)
    touched = [len(x) - 1 - at // 2 for at, pixels in enumerate(padding) if pixels]
    found.axes.freeze([x[at] for at in touched], "it is padded")
    return tuple(found.fixed(found.shape(line)[at]) if at in touched else d for at, d in enumerate(x))


@rule("mean.dim", "sum.dim_IntList", "linalg_vector_norm.default", "amax.default", "var.correction")
def _reduce(found: Analysis, line: Line) -> Made:
    """What runs over a shorter axis runs over what is left of it."""
    x = found.of(line.args[0])
    named = {
        "mean.dim": 1,
        "sum.dim_IntList": 1,
        "linalg_vector_norm.default": 2,
        "amax.default": 1,
        "var.correction": 1,
    }
    dims = argument(line, named[line.op], "dim", None)
    if dims is None:
        raise Misfit
    over = {dim_of(d, len(x)) for d in (dims if isinstance(dims, tuple) else (dims,))}
    kept = len(found.shape(line)) == len(x)
    return tuple(found.fixed(1) if at in over else d for at, d in enumerate(x) if kept or at not in over)


@rule("softmax.int", "log_softmax.int")
def _softmax(found: Analysis, line: Line) -> Made:
    x = found.of(line.args[0])
    found.axes.freeze([x[dim_of(line.args[1], len(x))]], "a softmax runs over it")
    return x


@rule("matmul.default", "bmm.default")
def _matmul(found: Analysis, line: Line) -> Made:
    one, other = found.of(line.args[0]), found.of(line.args[1])
    if min(len(one), len(other)) < 2:
        raise Misfit
    found.axes.unify(one[-1], other[-2])
    return (*found.tie(one[:-2], other[:-2]), one[-2], other[-1])


@rule("scaled_dot_product_attention.default")
def _attention(found: Analysis, line: Line) -> Made:
    """Heads may be fewer; how long queries and keys are scales their products, so it stays."""
    query, key, value = (found.of(given) for given in line.args[:3])
    if len(line.args) > 3 and line.args[3] is not None:
        raise Misfit
    leading = found.tie(found.tie(query[:-2], key[:-2]), value[:-2])
    found.axes.freeze([query[-1], key[-1]], "products of queries and keys are scaled by it")
    found.axes.freeze([query[-2], key[-2], value[-2]], "a softmax runs over it")
    return (*leading, query[-2], value[-1])


@rule("permute.default")
def _permute(found: Analysis, line: Line) -> Made:
    x, order = found.of(line.args[0]), line.args[1]
    assert isinstance(order, tuple)
    return tuple(x[dim_of(number, len(x))] for number in order)


@rule("transpose.int")
def _transpose(found: Analysis, line: Line) -> Made:
    x = list(found.of(line.args[0]))
    one, other = (dim_of(number, len(x)) for number in line.args[1:3])
    x[one], x[other] = x[other], x[one]
    return tuple(x)


@rule("t.default")
def _t(found: Analysis, line: Line) -> Made:
    return found.of(line.args[0])[::-1]


@rule("cat.default")
def _cat(found: Analysis, line: Line) -> Made:
    parts = line.args[0]
    assert isinstance(parts, tuple)
    made = [found.of(part) for part in parts]
    dim = dim_of(argument(line, 1, "dim", 0), len(made[0]))
    whole = tuple(segment for dimensions in made for segment in dimensions[dim])
    for other in made[1:]:
        for at, (mine, its) in enumerate(zip(made[0], other, strict=True)):
            if at != dim:
                found.axes.unify(mine, its)
    return tuple(found.axes.resolve(whole if at == dim else d) for at, d in enumerate(made[0]))


@rule("split_with_sizes.default")
def _split(found: Analysis, line: Line) -> Made:
    x, sizes = found.of(line.args[0]), line.args[1]
    assert isinstance(sizes, tuple)
    dim = dim_of(argument(line, 2, "dim", 0), len(x))
    pieces = found.axes.split(x[dim], [size for size in sizes if isinstance(size, int)])
    return [tuple(piece if at == dim else d for at, d in enumerate(x)) for piece in pieces]


@rule("unbind.int")
def _unbind(found: Analysis, line: Line) -> Made:
    x = found.of(line.args[0])
    dim = dim_of(argument(line, 1, "dim", 0), len(x))
    found.axes.freeze([x[dim]], "it is taken apart")
    return [tuple(d for at, d in enumerate(x) if at != dim)] * len(found.shapes[line.out])


@rule(ITEM)
def _item(found: Analysis, line: Line) -> Made:
    several, number = line.args
    assert isinstance(several, str)
    assert isinstance(number, int)
    made = found.values[several[1:]]
    assert isinstance(made, list)
    return made[number]


@rule("slice.Tensor")
def _slice(found: Analysis, line: Line) -> Made:
    """A slice keeps its place: the whole dimension, or a piece between two others."""
    x = found.of(line.args[0])
    dim = dim_of(argument(line, 1, "dim", 0), len(x))
    length = found.axes.length(x[dim])
    if found.shape(line)[dim] == length:
        return x
    start, end, step = (
        argument(line, at, name, d) for at, name, d in ((2, "start", 0), (3, "end", None), (4, "step", 1))
    )
    first, last, _ = slice(start, end).indices(length)
    if step != 1:
        raise Misfit
    sizes = [size for size in (first, last - first, length - last) if size]
    pieces = found.axes.split(x[dim], sizes)
    return tuple(pieces[bool(first)] if at == dim else d for at, d in enumerate(x))


@rule("select.int")
def _select(found: Analysis, line: Line) -> Made:
    x = found.of(line.args[0])
    dim = dim_of(line.args[1], len(x))
    found.axes.freeze([x[dim]], "one place of it is taken")
    return tuple(d for at, d in enumerate(x) if at != dim)


@rule("expand.default")
def _expand(found: Analysis, line: Line) -> Made:
    x, shape = found.of(line.args[0]), found.shape(line)
    x = (*(found.fixed(1) for _ in range(len(shape) - len(x))), *x)
    return tuple(d if found.axes.length(d) == n else found.axes.new(n) for d, n in zip(x, shape, strict=True))


@rule("sym_size.int")
def _size(found: Analysis, line: Line) -> Made:
    x = found.of(line.args[0])
    if not found.axes.is_rigid(x[dim_of(line.args[1], len(x))]):
        raise Misfit
    return ()


@rule(
    "view.default",
    "reshape.default",
    "flatten.using_ints",
    "unflatten.int",
    "unsqueeze.default",
    "_unsafe_view.default",
)
@rule("squeeze.dim", "squeeze.dims", "squeeze.default", "view_as.default")
def _reshape(found: Analysis, line: Line) -> Made:
    """Dimensions are taken apart and put together in runs of equal products, in the order of their places."""
    x, shape = list(found.of(line.args[0])), list(found.shape(line))
    made: list[Dimension] = []
    while x or shape:
        inside = [x.pop(0)] if x else []
        outside = [shape.pop(0)] if shape else []
        while (before := math.prod(map(found.axes.length, inside))) != (after := math.prod(outside)):
            if before < after:
                inside.append(x.pop(0))
            else:
                outside.append(shape.pop(0))
        made += _regroup(found, inside, outside, last=not x)
    return tuple(made)


def _regroup(found: Analysis, inside: list[Dimension], outside: list[int], *, last: bool) -> list[Dimension]:
    """The dimensions `outside` of what was `inside`: as many numbers in the same order, the `last` of the tensor."""
    wide = [d for d in inside if found.axes.length(d) > 1]
    lengths = [n for n in outside if n > 1]
    if len(wide) == len(lengths):
        made = wide
    elif len(lengths) == 1:
        made = [_flat(found, wide)]
    elif len(wide) == 1:
        made = _unflat(found, wide[0], lengths, runs=lengths[0] <= FEW and (not last or len(lengths) > 2))
    else:
        raise Misfit
    rest = iter(made)
    return [next(rest) if n > 1 else found.fixed(1) for n in outside]


def _flat(found: Analysis, wide: Sequence[Dimension]) -> Dimension:
    """Several dimensions as one: the first keeps its axes, each unit with what the others hold."""
    first, *others = wide
    if found.axes.is_rigid(first) and found.axes.length(first) <= FEW and len(others) == 1:
        return tuple(others[0] * found.axes.length(first))
    if found.axes.is_rigid(first) and found.axes.length(first) <= FEW and len(others) > 1:
        return _flat(found, others) * found.axes.length(first)
    found.axes.freeze(others, "it is flattened behind another")
    each = math.prod(map(found.axes.length, others))
    return tuple(AxisPart(axis, run * each) for axis, run in first)


def _unflat(found: Analysis, whole: Dimension, lengths: Sequence[int], *, runs: bool) -> list[Dimension]:
    """One dimension as several: units of the first of them, or as many `runs` of what follows."""
    first, *others = lengths
    if not runs:
        return [found.axes.by_units(whole, first), *(found.fixed(n, "it lies inside a head") for n in others)]
    run = found.axes.new(math.prod(others))
    found.axes.unify(whole, run * first)
    rest = [run] if len(others) == 1 else _unflat(found, found.axes.resolve(run), others, runs=False)
    return [found.fixed(first, "it counts runs of channels"), *rest]


def analyse(spec: GraphSpec) -> Analysis:
    """The axes of a network. What an operation without a rule touches is frozen."""
    axes = Axes()
    tensors = {t.name: tuple(axes.new(n) for n in t.shape) for t in spec.tensors}
    found = Analysis(spec, axes, tensors, {}, shapes_of(spec), {})
    size = spec.resolution
    found.values[IMAGES] = tuple(found.fixed(n, INPUT) for n in (BATCH, spec.in_channels, size, size))
    for line in spec.lines:
        rule = RULES.get(line.op)
        try:
            if rule is None:
                raise Misfit
            found.values[line.out] = rule(found, line)
        except Misfit:
            reason = f"{line.op} has no rule" if rule is None else f"{line.op} cannot follow it"
            found.unknown[line.out] = reason
            _freeze_around(found, line, reason)
    logits = found.values[spec.output]
    assert isinstance(logits, tuple)
    axes.freeze(logits, OUTPUT)
    return found


def _freeze_around(found: Analysis, line: Line, reason: str) -> None:
    for name in line.reads:
        made = found.values[name] if name in found.values else found.tensors[name]
        for dimensions in made if isinstance(made, list) else [made]:
            found.axes.freeze(dimensions, reason)
    shape = found.shapes[line.out]
    if isinstance(shape, list):
        found.values[line.out] = [tuple(found.fixed(n, reason) for n in one) for one in shape]
    else:
        found.values[line.out] = tuple(found.fixed(n, reason) for n in shape) if isinstance(shape, tuple) else ()
