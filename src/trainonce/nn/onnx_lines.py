"""A network that is a list of operations as ONNX nodes, line by line: quickly, for measuring.

Subnets of a person's own network would take torch's exporter seconds each. The network runs once, which gives the shape
of everything; what does not follow from the images is a constant. Each line becomes what torch's exporter makes of it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainonce.nn.plain_graph import DROPOUT, IMAGES, ITEM, NORM, Argument, GraphNetwork, Line

INPUT, OUTPUT = "input", "output"
SIX = 1 / 6


class UnwrittenError(Exception):
    """An operation is none of those that are written here, or is called in another way."""


class LinesAsOnnx:
    """The nodes and initializers of a network in evaluation mode, for images of one shape.

    Raises `UnwrittenError` for an operation that is none of `OPERATORS`.
    """

    def __init__(self, network: GraphNetwork, shape: tuple[int, ...]) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.network = network
        self.tensors = dict(network.named_parameters()) | dict(network.named_buffers())
        self.made: dict[str, Any] = {**self.tensors, IMAGES: torch.zeros(shape)}
        """What each line makes, and all else that lines read."""
        self.names: dict[str, str | Sequence[str]] = {IMAGES: INPUT}
        """The names in ONNX of what follows from the images; of several outputs, one name each."""
        lines = network.spec.lines
        self.readers: dict[str, list[Line]] = {}
        """The lines that read what each line makes."""
        for line in lines:
            for name in line.reads:
                self.readers.setdefault(name, []).append(line)
        with torch.no_grad():
            network.run(self.made[IMAGES], seen=lambda line, out: self.made.__setitem__(line.out, out))
        for line in lines:
            follows = any(name in self.names for name in line.reads) and not isinstance(self.made[line.out], int)
            if follows and line.out not in self.names:
                write = OPERATORS.get(line.op)
                if write is None:
                    raise UnwrittenError(line.op)
                self.names[line.out] = write(self, line)
        self.node("Identity", [self.name(f"%{network.spec.output}")], OUTPUT)

    @property
    def initializers(self) -> list[Any]:
        """The constants."""
        return list(self.constants.values())

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        """Add an operator with one output; its name."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        """Add a constant, of float32 where its numbers are floats; its name."""
        from onnx import numpy_helper

        array: NDArray[Any] = np.asarray(value.detach().numpy() if isinstance(value, Tensor) else value)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        return name

    def whole(self, line: Line, what: str, *values: int) -> str:
        """A constant of whole numbers that belongs to a line."""
        return self.constant(f"{line.out}/{what}", np.array(values, dtype=np.int64))

    def name(self, argument: Argument, line: Line | None = None) -> str:
        """The name of an argument: what is made by a node, a tensor of the network, or a number of `line`."""
        if isinstance(argument, str) and argument.startswith("%"):
            made = self.names.get(argument[1:])
            if made is None:
                return self.constant(argument[1:], self.made[argument[1:]])
            if isinstance(made, str):
                return made
        elif isinstance(argument, int | float) and line is not None:
            return self.constant(f"{line.out}/{argument}", float(argument))
        raise UnwrittenError(argument)

    def value(self, argument: Argument) -> Any:
        """What is behind an argument: a tensor, or itself."""
        return self.made[argument[1:]] if isinstance(argument, str) and argument.startswith("%") else argument

    def constant_of(self, argument: Argument) -> Tensor:
        """The tensor behind an argument that does not follow from the images."""
        if not isinstance(argument, str) or argument[1:] in self.names:
            raise UnwrittenError("a weight that follows from the images")
        tensor: Tensor = self.value(argument)
        return tensor.detach()

    def shape(self, line: Line) -> tuple[int, ...]:
        """The shape of what a line makes."""
        return tuple(self.made[line.out].shape)

    def axis(self, line: Line, axis: Argument) -> int:
        """An axis of what a line reads, counted from the front."""
        first = line.args[0][0] if isinstance(line.args[0], tuple) else line.args[0]
        assert isinstance(axis, int)
        dimensions: int = self.value(first).ndim
        return axis % dimensions


def _with_defaults(line: Line, *defaults: Argument) -> tuple[Any, ...]:
    """The arguments of a line, the last of them filled up. Raises `UnwrittenError` for others."""
    if line.kwargs or len(line.args) > len(defaults):
        raise UnwrittenError(line)
    return (*line.args, *defaults[len(line.args) :])


def _pair(values: Sequence[int]) -> list[int]:
    """A number for height and width, of which one may stand for both."""
    return [*values, *values] if len(values) == 1 else list(values)


def _conv(graph: LinesAsOnnx, line: Line) -> str:
    """A convolution with the batch norm that follows it, if one does, folded in."""
    x, w, b, stride, padding, dilation, groups = _with_defaults(line, None, None, None, (1,), (0,), (1,), 1)
    weight = graph.constant_of(w)
    bias = None if b is None else graph.constant_of(b)
    after = graph.readers.get(line.out, [])
    name = line.out
    if len(after) == 1 and after[0].op == NORM:
        name = after[0].out
        norm = graph.network.get_submodule(str(after[0].args[1]))
        assert isinstance(norm, nn.BatchNorm2d)
        weight, bias = folded(weight, bias, norm)
        graph.names[name] = name
    kernel = list(weight.shape[2:])
    strides, dilations = _pair(stride)[: len(kernel)], _pair(dilation)[: len(kernel)]
    if padding == "same":
        all_in_all = [gap * (side - 1) for gap, side in zip(dilations, kernel, strict=True)]
        pads = [some // 2 for some in all_in_all] + [some - some // 2 for some in all_in_all]
    else:
        pads = 2 * ([0] * len(kernel) if padding == "valid" else _pair(padding)[: len(kernel)])
    inputs = [graph.name(x), graph.constant(f"{name}/weight", weight)]
    inputs += [] if bias is None else [graph.constant(f"{name}/bias", bias)]
    sizes = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations}
    return graph.node("Conv", inputs, name, group=groups, **sizes)


def folded(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that gives what a batch norm makes of this one, in double precision."""
    scale, shift = (part.double() for part in _scale_and_shift(norm))
    wide = weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))
    return wide, shift if bias is None else bias.double() * scale + shift


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = 1 / torch.sqrt(norm.running_var.double() + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def _norm(graph: LinesAsOnnx, line: Line) -> str:
    """A batch norm that stands alone."""
    norm = graph.network.get_submodule(str(line.args[1]))
    assert isinstance(norm, nn.BatchNorm2d)
    ones = torch.ones(norm.num_features)
    parts = {
        "weight": ones if norm.weight is None else norm.weight,
        "bias": 0 * ones if norm.bias is None else norm.bias,
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
    }
    inputs = [graph.name(line.args[0]), *(graph.constant(f"{line.args[1]}.{name}", t) for name, t in parts.items())]
    return graph.node("BatchNormalization", inputs, line.out, epsilon=norm.eps)


def _linear(graph: LinesAsOnnx, line: Line) -> str:
    x, w, b = _with_defaults(line, None, None, None)
    weight, bias = graph.constant_of(w), None if b is None else graph.name(b)
    if graph.value(x).ndim == 2:
        return graph.node("Gemm", [graph.name(x), graph.name(w), *([bias] if bias else [])], line.out, transB=1)
    product = f"{line.out}/product" if bias else line.out
    graph.node("MatMul", [graph.name(x), graph.constant(f"{w[1:]}/turned", weight.T)], product)
    return graph.node("Add", [product, bias], line.out) if bias else product


def _unary(kind: str, **attributes: float) -> "Write":
    def write(graph: LinesAsOnnx, line: Line) -> str:
        (x,) = _with_defaults(line, None)
        return graph.node(kind, [graph.name(x)], line.out, **attributes)

    return write


def _binary(kind: str) -> "Write":
    def write(graph: LinesAsOnnx, line: Line) -> str:
        first, second = _with_defaults(line, None, None)
        if kind == "Add" and 0 in (first, second):
            return graph.name(second if first == 0 else first)
        return graph.node(kind, [graph.name(first, line), graph.name(second, line)], line.out)

    return write


def _clip(low: float | None = None, high: float | None = None) -> "Write":
    """Between two numbers, which the line takes where they are not given."""

    def write(graph: LinesAsOnnx, line: Line) -> str:
        x, below, above = _with_defaults(line, None, -1.0 if low is None else low, 1.0 if high is None else high)
        return graph.node("Clip", [graph.name(x), graph.name(below, line), graph.name(above, line)], line.out)

    return write


def _silu(graph: LinesAsOnnx, line: Line) -> str:
    (x,) = _with_defaults(line, None)
    gate = graph.node("Sigmoid", [graph.name(x)], f"{line.out}/gate")
    return graph.node("Mul", [graph.name(x), gate], line.out)


def _gelu(graph: LinesAsOnnx, line: Line) -> str:
    """By the error function, which runtimes recognise."""
    (x,) = _with_defaults(line, None)
    given = graph.name(x)
    scaled = graph.node("Div", [given, graph.constant("root_of_two", math.sqrt(2))], f"{line.out}/scaled")
    error = graph.node("Erf", [scaled], f"{line.out}/erf")
    moved = graph.node("Add", [error, graph.constant("one", 1.0)], f"{line.out}/moved")
    half = graph.node("Mul", [graph.constant("half", 0.5), moved], f"{line.out}/half")
    return graph.node("Mul", [given, half], line.out)


def _reduced(kind: str) -> "Write":
    def write(graph: LinesAsOnnx, line: Line) -> str:
        args = (line.args[0], *line.args[2:]) if kind == "ReduceL2" else line.args
        if kind == "ReduceL2" and line.args[1] != 2:
            raise UnwrittenError(line)
        x, axes, keep = _with_defaults(Line(line.out, line.op, args, line.kwargs), None, None, False)
        where = graph.whole(line, "axes", *axes) if isinstance(axes, tuple) and axes else None
        if where is None:
            raise UnwrittenError(line)
        return graph.node(kind, [graph.name(x), where], line.out, keepdims=int(keep))

    return write


def _adaptive_mean(graph: LinesAsOnnx, line: Line) -> str:
    x, size = _with_defaults(line, None, None)
    (height, width), (rows, columns) = graph.value(x).shape[2:], _pair(size)
    if (rows, columns) == (1, 1):
        return graph.node("ReduceMean", [graph.name(x), graph.whole(line, "axes", -1, -2)], line.out, keepdims=1)
    if height % rows or width % columns:
        raise UnwrittenError(line)
    kernel = [height // rows, width // columns]
    return graph.node("AveragePool", [graph.name(x)], line.out, kernel_shape=kernel, strides=kernel)


def _max_pool(graph: LinesAsOnnx, line: Line) -> str:
    x, kernel, stride, padding, dilation, ceil = _with_defaults(line, None, None, (), (0,), (1,), False)
    strides, pads = _pair(stride or kernel), 2 * _pair(padding)
    sizes = {"kernel_shape": _pair(kernel), "strides": strides, "pads": pads, "dilations": _pair(dilation)}
    return graph.node("MaxPool", [graph.name(x)], line.out, ceil_mode=int(ceil), **sizes)


def _mean_pool(graph: LinesAsOnnx, line: Line) -> str:
    x, kernel, stride, padding, ceil, counted, divisor = _with_defaults(line, None, None, (), (0,), False, True, None)
    if divisor is not None:
        raise UnwrittenError(line)
    sizes = {"kernel_shape": _pair(kernel), "strides": _pair(stride or kernel), "pads": 2 * _pair(padding)}
    more = {"ceil_mode": int(ceil), "count_include_pad": int(counted)}
    return graph.node("AveragePool", [graph.name(x)], line.out, **sizes, **more)


def _same(graph: LinesAsOnnx, line: Line) -> str:
    return graph.name(line.args[0])


def _cast(graph: LinesAsOnnx, line: Line) -> str:
    if graph.made[line.out].dtype != torch.float32:
        raise UnwrittenError(line)
    return _same(graph, line)


def _reshape(graph: LinesAsOnnx, line: Line) -> str:
    """To the shape that the line makes, whatever it is called."""
    x, shape = graph.name(line.args[0]), graph.shape(line)
    if tuple(graph.value(line.args[0]).shape) == shape:
        return x
    return graph.node("Reshape", [x, graph.whole(line, "shape", *shape)], line.out)


def _expand(graph: LinesAsOnnx, line: Line) -> str:
    return graph.node("Expand", [graph.name(line.args[0]), graph.whole(line, "shape", *graph.shape(line))], line.out)


def _permute(graph: LinesAsOnnx, line: Line) -> str:
    _, order = _with_defaults(line, None, None)
    return graph.node(
        "Transpose", [graph.name(line.args[0])], line.out, perm=[graph.axis(line, axis) for axis in order]
    )


def _transpose(graph: LinesAsOnnx, line: Line) -> str:
    _, *two = _with_defaults(line, None, None, None)
    order = list(range(graph.value(line.args[0]).ndim))
    first, second = (graph.axis(line, axis) for axis in two)
    order[first], order[second] = second, first
    return graph.node("Transpose", [graph.name(line.args[0])], line.out, perm=order)


def _cat(graph: LinesAsOnnx, line: Line) -> str:
    parts, axis = _with_defaults(line, None, 0)
    return graph.node("Concat", [graph.name(part) for part in parts], line.out, axis=graph.axis(line, axis))


def _sliced(graph: LinesAsOnnx, line: Line, output: str, axis: int, begin: int, end: int, step: int = 1) -> str:
    values = {"from": begin, "to": end, "along": axis, "by": step}
    where = [graph.constant(f"{output}/{key}", np.array([value], np.int64)) for key, value in values.items()]
    return graph.node("Slice", [graph.name(line.args[0]), *where], output)


def _split(graph: LinesAsOnnx, line: Line) -> Sequence[str]:
    """Into as many and as large parts as the line makes."""
    from onnx import helper

    _, _, axis = _with_defaults(line, None, None, 0)
    at = graph.axis(line, axis)
    sizes = graph.whole(line, "sizes", *(part.shape[at] for part in graph.made[line.out]))
    outputs = [f"{line.out}/{number}" for number in range(len(graph.made[line.out]))]
    graph.nodes.append(helper.make_node("Split", [graph.name(line.args[0]), sizes], outputs, axis=at))
    return outputs


def _unbind(graph: LinesAsOnnx, line: Line) -> Sequence[str]:
    _, axis = _with_defaults(line, None, 0)
    at = graph.axis(line, axis)
    where, outputs = graph.whole(line, "axes", at), []
    for number in range(len(graph.made[line.out])):
        part = _sliced(graph, line, f"{line.out}/{number}/thick", at, number, number + 1)
        outputs.append(graph.node("Squeeze", [part, where], f"{line.out}/{number}"))
    return outputs


def _item(graph: LinesAsOnnx, line: Line) -> str:
    of, number = line.args
    assert isinstance(of, str)
    assert isinstance(number, int)
    return graph.names[of[1:]][number]


def _select(graph: LinesAsOnnx, line: Line) -> str:
    x, axis, number = _with_defaults(line, None, None, None)
    where = graph.constant(f"{line.out}/number", np.array(number, np.int64))
    return graph.node("Gather", [graph.name(x), where], line.out, axis=graph.axis(line, axis))


def _slice(graph: LinesAsOnnx, line: Line) -> str:
    x, axis, begin, end, step = _with_defaults(line, None, 0, None, None, 1)
    if tuple(graph.value(x).shape) == graph.shape(line):
        return graph.name(x)
    last = 2**63 - 1 if end is None else end
    return _sliced(graph, line, line.out, graph.axis(line, axis), begin or 0, last, step)


def _layer_norm(graph: LinesAsOnnx, line: Line) -> str:
    x, sizes, weight, bias, eps, _ = _with_defaults(line, None, None, None, None, 1e-5, True)
    if weight is None:
        raise UnwrittenError(line)
    inputs = [graph.name(x), graph.name(weight), *([] if bias is None else [graph.name(bias)])]
    return graph.node("LayerNormalization", inputs, line.out, axis=-len(sizes), epsilon=eps)


def _softmax(graph: LinesAsOnnx, line: Line) -> str:
    x, axis, _ = _with_defaults(line, None, None, None)
    return graph.node("Softmax", [graph.name(x)], line.out, axis=graph.axis(line, axis))


def _attention(graph: LinesAsOnnx, line: Line) -> str:
    """Query and key are scaled by half of the power each, as torch's exporter does it."""
    query, key, value = _with_defaults(line, None, None, None)
    of_query, of_key = graph.value(query), graph.value(key)
    order = [*range(of_key.ndim - 2), of_key.ndim - 1, of_key.ndim - 2]
    scale = graph.constant(f"{line.out}/scale", of_query.shape[-1] ** -0.25)
    turned = graph.node("Transpose", [graph.name(key)], f"{line.out}/key", perm=order)
    scaled = [graph.node("Mul", [name, scale], f"{line.out}/{n}") for n, name in enumerate((graph.name(query), turned))]
    scores = graph.node("MatMul", scaled, f"{line.out}/scores")
    weights = graph.node("Softmax", [scores], f"{line.out}/weights", axis=-1)
    return graph.node("MatMul", [weights, graph.name(value)], line.out)


def _added_product(graph: LinesAsOnnx, line: Line) -> str:
    first, second, third = (graph.name(argument) for argument in _with_defaults(line, None, None, None))
    return graph.node("Add", [first, graph.node("Mul", [second, third], f"{line.out}/product")], line.out)


def _pad(graph: LinesAsOnnx, line: Line) -> str:
    x, pads, mode, value = _with_defaults(line, None, None, "constant", 0.0)
    if mode != "constant":
        raise UnwrittenError(line)
    front = [0] * (graph.value(x).ndim - len(pads) // 2)
    sides = [*front, *pads[-2::-2], *front, *pads[::-2]]
    number = graph.constant(f"{line.out}/value", float(value or 0.0))
    return graph.node("Pad", [graph.name(x), graph.whole(line, "pads", *sides), number], line.out)


Write = Callable[[LinesAsOnnx, Line], str | Sequence[str]]
"""Adds the nodes of a line, and gives the name of what it makes; of several, one name each."""

OPERATORS: dict[str, Write] = {
    NORM: _norm,
    DROPOUT: _same,
    ITEM: _item,
    "adaptive_avg_pool2d.default": _adaptive_mean,
    "add.Tensor": _binary("Add"),
    "addcmul.default": _added_product,
    "amax.default": _reduced("ReduceMax"),
    "avg_pool2d.default": _mean_pool,
    "bmm.default": _binary("MatMul"),
    "cat.default": _cat,
    "chunk.default": _split,
    "clone.default": _same,
    "contiguous.default": _same,
    "conv1d.default": _conv,
    "conv2d.default": _conv,
    "conv2d.padding": _conv,
    "div.Tensor": _binary("Div"),
    "expand.default": _expand,
    "flatten.using_ints": _reshape,
    "gelu.default": _gelu,
    "hardsigmoid.default": _unary("HardSigmoid", alpha=SIX, beta=0.5),
    "hardswish.default": _unary("HardSwish"),
    "hardtanh.default": _clip(),
    "layer_norm.default": _layer_norm,
    "linalg_vector_norm.default": _reduced("ReduceL2"),
    "linear.default": _linear,
    "matmul.default": _binary("MatMul"),
    "max_pool2d.default": _max_pool,
    "mean.dim": _reduced("ReduceMean"),
    "mul.Tensor": _binary("Mul"),
    "pad.default": _pad,
    "permute.default": _permute,
    "relu.default": _unary("Relu"),
    "relu6.default": _clip(0.0, 6.0),
    "reshape.default": _reshape,
    "scaled_dot_product_attention.default": _attention,
    "select.int": _select,
    "sigmoid.default": _unary("Sigmoid"),
    "silu.default": _silu,
    "slice.Tensor": _slice,
    "softmax.int": _softmax,
    "split.Tensor": _split,
    "split_with_sizes.default": _split,
    "squeeze.dim": _reshape,
    "sub.Tensor": _binary("Sub"),
    "tanh.default": _unary("Tanh"),
    "to.dtype": _cast,
    "transpose.int": _transpose,
    "unbind.int": _unbind,
    "unsqueeze.default": _reshape,
    "view.default": _reshape,
}
"""The operations that are written here."""
