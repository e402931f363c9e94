"""A network as TensorFlow Lite's operators, from its ONNX graph: what LiteRT and LiteRT for Microcontrollers compute.

The images come in as [1, C, H, W], as in every other file, and are turned to [1, H, W, C] at once: so are all maps
inside. TensorFlow Lite pads so that a map keeps its size, more at its end where the padding is odd; where torch pads
otherwise, there is an operator that pads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainonce.errors import UserError

Array = NDArray[Any]
Shape = tuple[int, ...]
LOWEST = float(np.finfo(np.float32).min)
NHWC = (0, 2, 3, 1)
TO_CHANNELS_FIRST = (0, 3, 1, 2)
FUSABLE = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "MUL")
"""Operators that can apply an activation to what they give."""
ACTIVATIONS = ("RELU", "RELU6")


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator."""

    kind: str
    """Its name among TensorFlow Lite's builtin operators."""
    name: str
    """The name of the ONNX node that it computes a part of, which says to what layer it belongs."""
    inputs: tuple[str, ...]
    output: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """The fields of its table of options."""


@dataclass(kw_only=True)
class Graph:
    """A network's operators in the order of execution, with the shapes of its tensors and the values of constants."""

    nodes: list[Node]
    shapes: dict[str, Shape]
    constants: dict[str, Array]
    layers: dict[str, str]
    """For each layer of the network the tensor that is its output, where it is one of the graph's."""
    given: str
    """The tensor that comes in."""
    returned: str
    """The tensor that comes out."""


def graph_in(model: Any, shape: Shape, *, layers: Mapping[str, str] | None = None, turned: bool = True) -> Graph:
    """The operators of an `onnx.ModelProto` with one input of this shape [1, C, H, W] and one output.

    `layers` names tensors of the model. Unless it is `turned`, the first operator reads the input as [1, H, W, C].
    Raises `UserError` for what has no operator here.
    """
    given = model.graph.input[0].name
    translation = _Translation(model, given, shape, turned=turned)
    for node in model.graph.node:
        translation.translate(node)
    graph = Graph(
        nodes=translation.nodes,
        shapes=translation.shapes,
        constants=translation.constants,
        layers={layer: translation.names[tensor] for layer, tensor in (layers or {}).items()},
        given=given,
        returned=translation.names[model.graph.output[0].name],
    )
    return _fused(graph)


def _fused(graph: Graph) -> Graph:
    """The graph with activations applied by the operators before them, where nothing else reads what those give."""
    readers: dict[str, int] = {}
    for node in graph.nodes:
        for name in node.inputs:
            readers[name] = readers.get(name, 0) + 1
    nodes: list[Node] = []
    makers: dict[str, int] = {}
    gone: set[str] = set()
    for node in graph.nodes:
        maker = makers.get(node.inputs[0])
        before = None if maker is None else nodes[maker]
        if (
            node.kind in ACTIVATIONS
            and before is not None
            and before.kind in FUSABLE
            and readers[before.output] == 1
            and "activation" not in before.options
        ):
            assert maker is not None
            options = {**before.options, "activation": node.kind}
            nodes[maker] = Node(
                kind=before.kind, name=before.name, inputs=before.inputs, output=node.output, options=options
            )
            gone.add(before.output)
            makers[node.output] = maker
        else:
            makers[node.output] = len(nodes)
            nodes.append(node)
    layers = {layer: tensor for layer, tensor in graph.layers.items() if tensor not in gone}
    return Graph(
        nodes=nodes,
        shapes=graph.shapes,
        constants=graph.constants,
        layers=layers,
        given=graph.given,
        returned=graph.returned,
    )


def _rounding_up(side: int, before: int, after: int, kernel: int, stride: int) -> int:
    """How much more padding a pool that rounds up has at the end: its last window ends there, and begins before."""
    windows = ceil((side + before + after - kernel) / stride) + 1
    if (windows - 1) * stride >= side + before:
        windows -= 1
    return max((windows - 1) * stride + kernel - side - before - after, 0)


class _Translation:
    """One pass over the nodes of an ONNX graph."""

    def __init__(self, model: Any, given: str, images: Shape, *, turned: bool) -> None:
        from onnx import helper, numpy_helper

        self._attribute_of, self._array_of = helper.get_attribute_value, numpy_helper.to_array
        self.nodes: list[Node] = []
        self.shapes: dict[str, Shape] = {given: images}
        self.constants: dict[str, Array] = {}
        self.given: dict[str, Array] = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        self.names: dict[str, str] = {}
        """What each tensor of ONNX is called here."""
        self.grouped: dict[str, tuple[int, int]] = {}
        """Height and width of maps whose channels are in groups while they are reordered: [H * W, groups, of each]."""
        self._at = "network/Images"
        shape = tuple(images[axis] for axis in NHWC)
        if not turned:
            self.names[given], self.shapes[given] = given, shape
            return
        turn = "RESHAPE" if images[1] == 1 else "TRANSPOSE"  # of one channel only the shape changes
        second = (-1, *shape[1:]) if turn == "RESHAPE" else NHWC  # LiteRT can be told to take several images
        self.names[given] = self._add(turn, (given, self._constant(np.array(second, np.int32))), shape)

    def translate(self, node: Any) -> None:
        """Add what computes a node."""
        self._at = node.name
        attributes = {a.name: self._attribute_of(a) for a in node.attribute}
        if node.op_type == "Constant":
            self.given[node.output[0]] = self._array_of(attributes["value"])
            return
        made_by = OPERATORS.get(node.op_type)
        if made_by is None:
            raise self._refusal(f"what {node.op_type} computes")
        names = [name for name in node.input if name]
        given = [self.given.get(name) for name in names]
        reads = [self.names[name] for name in names if name not in self.given]
        if not self.grouped.keys().isdisjoint(reads) and node.op_type not in ("Reshape", "Transpose"):
            raise self._refusal(f"{node.op_type} of channels in groups")
        output, *others = node.output
        self.names[output] = made_by(self, _Call(reads, given, attributes, output, others))

    def _refusal(self, what: str) -> UserError:
        return UserError(f"no TensorFlow Lite file can be written: {self._at} needs {what}, which is not written here")

    def _constant(self, value: Array) -> str:
        name = f"{self._at}:{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(value)
        self.shapes[name] = value.shape
        return name

    def _add(self, kind: str, inputs: Sequence[str], shape: Shape, output: str = "", **options: Any) -> str:
        output = output or f"{self._at}:{len(self.nodes)}:{kind}"
        self.shapes[output] = shape
        self.nodes.append(Node(kind=kind, name=self._at, inputs=tuple(inputs), output=output, options=options))
        return output

    def conv(self, call: "_Call") -> str:
        """Convolutions, of each channel by itself too."""
        weight = call.given[1]
        if weight is None or weight.ndim != 4:
            raise self._refusal("a convolution over two dimensions with constant weights")
        (x,) = call.reads
        outputs, inside, *kernel = weight.shape
        groups, channels = int(call.get("group", 1)), self.shapes[x][3]
        strides, dilations = call.pair("strides", 1), call.pair("dilations", 1)
        x, padding = self._padded(x, call, kernel, strides, dilations, value=0.0)
        bias = call.given[2] if len(call.given) > 2 else None
        bias = np.zeros(outputs, np.float32) if bias is None else bias
        size = self._size(x, kernel, strides, dilations, padding)
        of_each = groups == channels and inside == 1 and groups > 1
        filters = weight.transpose(2, 3, 1, 0).reshape(1, *kernel, outputs) if of_each else weight.transpose(0, 2, 3, 1)
        options: dict[str, Any] = {
            "padding": padding,
            "strideH": strides[0],
            "strideW": strides[1],
            "dilationHFactor": dilations[0],
            "dilationWFactor": dilations[1],
        }
        if of_each:
            options["depthMultiplier"] = outputs // groups
        reads = (x, self._constant(filters.astype(np.float32)), self._constant(bias.astype(np.float32)))
        kind = "DEPTHWISE_CONV_2D" if of_each else "CONV_2D"
        return self._add(kind, reads, (1, *size, outputs), call.output, **options)

    def _padded(
        self,
        x: str,
        call: "_Call",
        kernel: Sequence[int],
        strides: Sequence[int],
        dilations: Sequence[int],
        *,
        value: float,
    ) -> tuple[str, str]:
        """The maps to look at, padded by an operator of its own where it must be, and the operator's own padding."""
        if call.get("auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET"):
            raise self._refusal("padding by another rule")
        top, left, bottom, right = (int(p) for p in call.get("pads", (0, 0, 0, 0)))
        sides = self.shapes[x][1:3]
        if call.get("ceil_mode", 0):
            down, across = self._beyond(sides, call, kernel, strides)
            bottom, right = bottom + down, right + across
        if top == left == bottom == right == 0:
            return x, "VALID"
        same = []
        for side, k, stride, dilation in zip(sides, kernel, strides, dilations, strict=True):
            all_in_all = max((ceil(side / stride) - 1) * stride + dilation * (k - 1) + 1 - side, 0)
            same.append((all_in_all // 2, all_in_all - all_in_all // 2))
        if same == [(top, bottom), (left, right)]:
            return x, "SAME"
        return self._pad(x, (top, left, bottom, right), value), "VALID"

    @staticmethod
    def _beyond(sides: Sequence[int], call: "_Call", kernel: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
        """How far the last windows of a pool that rounds up reach beyond a padded map, down and to the right."""
        top, left, bottom, right = (int(p) for p in call.get("pads", (0, 0, 0, 0)))
        return (
            _rounding_up(sides[0], top, bottom, kernel[0], strides[0]),
            _rounding_up(sides[1], left, right, kernel[1], strides[1]),
        )

    def _pad(self, x: str, sides: Sequence[int], value: float) -> str:
        top, left, bottom, right = sides
        _, height, width, channels = self.shapes[x]
        amounts = self._constant(np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32))
        shape = (1, height + top + bottom, width + left + right, channels)
        if value == 0:
            return self._add("PAD", (x, amounts), shape)
        return self._add("PADV2", (x, amounts, self._constant(np.array(value, np.float32))), shape)

    def _size(
        self, x: str, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], padding: str
    ) -> tuple[int, int]:
        sides = self.shapes[x][1:3]
        if padding == "SAME":
            height, width = (ceil(side / stride) for side, stride in zip(sides, strides, strict=True))
        else:
            height, width = (
                (side - dilation * (k - 1) - 1) // stride + 1
                for side, k, stride, dilation in zip(sides, kernel, strides, dilations, strict=True)
            )
        return height, width

    def pool(self, call: "_Call", kind: str) -> str:
        """The largest or the mean of the pixels in a window."""
        (x,) = call.reads
        kernel, strides = call.pair("kernel_shape", 1), call.pair("strides", 1)
        if call.pair("dilations", 1) != (1, 1):
            raise self._refusal("a pool with gaps")
        sides, padded = self.shapes[x][1:3], any(call.get("pads", ()))
        x, padding = self._padded(x, call, kernel, strides, (1, 1), value=LOWEST if kind == "MAX_POOL_2D" else 0.0)
        if kind == "AVERAGE_POOL_2D":
            beyond = bool(call.get("ceil_mode", 0)) and any(self._beyond(sides, call, kernel, strides))
            counted = padded and bool(call.get("count_include_pad", 0))  # what is beyond the padding never counts
            if (padded or beyond) and (counted != (padding == "VALID") or (counted and beyond)):
                raise self._refusal("a mean over windows that end beyond a map of this size")
        options = {"strideH": strides[0], "strideW": strides[1], "filterHeight": kernel[0], "filterWidth": kernel[1]}
        shape = (1, *self._size(x, kernel, strides, (1, 1), padding), self.shapes[x][3])
        return self._add(kind, (x,), shape, call.output, padding=padding, **options)

    def fully_connected(self, call: "_Call") -> str:
        """A linear layer: Gemm, or MatMul with constant weights."""
        weight = call.given[1]
        (x,) = call.reads if len(call.reads) == 1 else ("",)
        plain = call.get("alpha", 1.0) == 1 and call.get("beta", 1.0) == 1 and not call.get("transA", 0)
        if weight is None or weight.ndim != 2 or not plain or len(self.shapes.get(x, ())) != 2:
            raise self._refusal("a product of matrices that is no linear layer")
        weight_OI = weight if call.get("transB", 0) else weight.T
        bias = call.given[2] if len(call.given) > 2 else None
        bias = np.zeros(len(weight_OI), np.float32) if bias is None else bias
        reads = (x, self._constant(weight_OI.astype(np.float32)), self._constant(bias.astype(np.float32)))
        return self._add("FULLY_CONNECTED", reads, (1, len(weight_OI)), call.output)

    def unary(self, call: "_Call", kind: str) -> str:
        """An operator that gives what has the shape of what it reads."""
        (x,) = call.reads
        return self._add(kind, (x,), self.shapes[x], call.output)

    def leaky_relu(self, call: "_Call") -> str:
        (x,) = call.reads
        return self._add("LEAKY_RELU", (x,), self.shapes[x], call.output, alpha=float(call.get("alpha", 0.01)))

    def softmax(self, call: "_Call") -> str:
        (x,) = call.reads
        if len(self.shapes[x]) != 2 or call.get("axis", -1) not in (-1, 1):
            raise self._refusal("a softmax over maps")
        return self._add("SOFTMAX", (x,), self.shapes[x], call.output, beta=1.0)

    def clip(self, call: "_Call") -> str:
        """ReLU6, and other bounds."""
        (x,) = call.reads
        if any(bound is None for bound in call.given[1:]):
            raise self._refusal("bounds that are not constant")
        bounds = [float(np.asarray(bound)) for bound in call.given[1:]]
        shape = self.shapes[x]
        if bounds == [0.0, 6.0]:
            return self._add("RELU6", (x,), shape, call.output)
        if len(bounds) != 2:
            raise self._refusal("one bound alone")
        above = self._add("MAXIMUM", (x, self._constant(np.array(bounds[0], np.float32))), shape)
        return self._add("MINIMUM", (above, self._constant(np.array(bounds[1], np.float32))), shape, call.output)

    def hard_sigmoid(self, call: "_Call") -> str:
        """relu6(x + 3) / 6, for which TensorFlow Lite has no operator."""
        (x,) = call.reads
        if abs(call.get("alpha", 0.2) - 1 / 6) > 1e-6 or call.get("beta", 0.5) != 0.5:
            raise self._refusal("a hard sigmoid that is not torch's")
        shape = self.shapes[x]
        three, sixth = (self._constant(np.array([value], np.float32)) for value in (3, 1 / 6))
        up_to_6 = self._add("ADD", (x, three), shape, activation="RELU6")
        return self._add("MUL", (up_to_6, sixth), shape, call.output)

    def elementwise(self, call: "_Call", kind: str) -> str:
        """Sums and products, of constants too."""
        shapes = [self.shapes[x] for x in call.reads]
        reads, others = list(call.reads), iter(call.reads)
        for place, value in enumerate(call.given):
            if value is None:
                next(others)
                continue
            if kind == "DIV":
                if place == 0:
                    raise self._refusal("a constant divided by something")
                kind, value = "MUL", 1 / value
            if len(shapes[0]) == 4 and value.ndim > 1:
                value = value.reshape((1,) * (4 - value.ndim) + value.shape).transpose(NHWC)
            elif len(shapes[0]) == 4 and value.size > 1:
                raise self._refusal("a constant for each column of a map")
            reads.insert(place, self._constant(value.astype(np.float32).reshape(value.shape or (1,))))
        if kind == "DIV" or len({len(shape) for shape in shapes}) != 1:
            raise self._refusal(f"{kind} of tensors like these")
        shape = np.broadcast_shapes(*(self.shapes[name] for name in reads))
        return self._add(kind, reads, shape, call.output)

    def batch_norm(self, call: "_Call") -> str:
        """A batch norm that follows no convolution: a convolution of each channel by itself."""
        (x,) = call.reads
        shape = self.shapes[x]
        if len(shape) != 4:
            raise self._refusal("a batch norm of rows")
        scale, bias, mean, var = (np.asarray(value, np.float64) for value in call.given[1:5])
        factor = scale / np.sqrt(var + float(call.get("epsilon", 1e-5)))
        filters = self._constant(factor.astype(np.float32).reshape(1, 1, 1, -1))
        summand = self._constant((bias - mean * factor).astype(np.float32))
        options = {"padding": "VALID", "strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
        reads = (x, filters, summand)
        return self._add("DEPTHWISE_CONV_2D", reads, shape, call.output, **options, depthMultiplier=1)

    def mean(self, call: "_Call") -> str:
        """The mean over all pixels of a map."""
        (x,) = call.reads
        axes = call.given[1] if len(call.given) > 1 else call.get("axes", None)
        if len(self.shapes[x]) != 4 or sorted(np.asarray(axes).tolist()) not in ([2, 3], [-2, -1]):
            raise self._refusal("a mean over something else than the pixels of maps")
        return self._mean(x, bool(call.get("keepdims", 1)), call.output)

    def global_mean(self, call: "_Call") -> str:
        (x,) = call.reads
        return self._mean(x, True, call.output)

    def _mean(self, x: str, keep: bool, output: str) -> str:
        channels = self.shapes[x][3]
        shape = (1, 1, 1, channels) if keep else (1, channels)
        return self._add("MEAN", (x, self._constant(np.array([1, 2], np.int32))), shape, output, keepDims=keep)

    def reshape(self, call: "_Call") -> str:
        """A row of an image's maps, or their channels in groups and, reordered, in one line again."""
        (x,) = call.reads
        shape, asked = self.shapes[x], call.given[1] if len(call.given) > 1 else None
        sizes = [] if asked is None else [int(size) for size in asked]
        if len(sizes) == 5 and len(shape) == 4 and tuple(sizes[3:]) == shape[1:3] and sizes[1] * sizes[2] == shape[3]:
            groups = (-1, sizes[1], sizes[2])
            pixels = shape[1] * shape[2]
            into = self._add(
                "RESHAPE", (x, self._constant(np.array(groups, np.int32))), (pixels, *groups[1:]), call.output
            )
            self.grouped[into] = (shape[1], shape[2])
            return into
        if x not in self.grouped:
            return self.flatten(call)
        line = (*self.grouped[x], shape[1] * shape[2])
        if sizes[1:] != [line[2], line[0], line[1]]:
            raise self._refusal("channels in groups other than reordered")
        return self._add("RESHAPE", (x, self._constant(np.array((-1, *line), np.int32))), (1, *line), call.output)

    def transpose(self, call: "_Call") -> str:
        """The first channels of all groups before the second ones, as ShuffleNet reorders them."""
        (x,) = call.reads
        if x not in self.grouped or list(call.get("perm", ())) != [0, 2, 1, 3, 4]:
            raise self._refusal("axes in another order")
        pixels, groups, each = self.shapes[x]
        order = self._constant(np.array((0, 2, 1), np.int32))
        turned = self._add("TRANSPOSE", (x, order), (pixels, each, groups), call.output)
        self.grouped[turned] = self.grouped[x]
        return turned

    def split(self, call: "_Call") -> str:
        """Some channels here, others there."""
        (x,) = call.reads
        shape = self.shapes[x]
        sizes = call.given[1] if len(call.given) > 1 else None
        if call.get("axis", 0) != 1 or sizes is None:
            raise self._refusal("a division of something else than channels")
        first = 0
        for size, output in zip(sizes.tolist(), (call.output, *call.others), strict=True):
            begin = self._constant(np.array([0] * (len(shape) - 1) + [first], np.int32))
            extent = self._constant(np.array([-1] * (len(shape) - 1) + [size], np.int32))
            self.names[output] = self._add("SLICE", (x, begin, extent), (*shape[:-1], size), output)
            first += size
        return self.names[call.output]

    def flatten(self, call: "_Call") -> str:
        """What makes one row of an image's maps."""
        (x,) = call.reads
        shape = self.shapes[x]
        if len(call.given) > 1:
            asked = call.given[1]
            if asked is None or asked.size != 2:
                raise self._refusal("a shape other than one row for each image")
        if len(shape) == 4 and shape[3] > 1 and shape[1] * shape[2] > 1:
            first = tuple(shape[axis] for axis in TO_CHANNELS_FIRST)
            x = self._add("TRANSPOSE", (x, self._constant(np.array(TO_CHANNELS_FIRST, np.int32))), first)
        features = int(np.prod(shape))
        row = self._constant(np.array((-1, features), np.int32))
        return self._add("RESHAPE", (x, row), (1, features), call.output)

    def concat(self, call: "_Call") -> str:
        """Channels beside channels."""
        shapes = [self.shapes[x] for x in call.reads]
        if len(call.reads) != len(call.given) or call.get("axis", 1) != 1 or len({len(s) for s in shapes}) != 1:
            raise self._refusal("tensors joined otherwise than by channels")
        channels = sum(shape[-1] for shape in shapes)
        return self._add("CONCATENATION", call.reads, (*shapes[0][:-1], channels), call.output, axis=len(shapes[0]) - 1)

    def same(self, call: "_Call") -> str:
        """Nothing."""
        (x,) = call.reads
        return x


@dataclass(frozen=True)
class _Call:
    """A node of ONNX: the tensors that it reads, by their names here; its constants, where it has some; the rest."""

    reads: list[str]
    given: list[Array | None]
    attributes: Mapping[str, Any]
    output: str
    others: list[str]
    """More outputs, of an operator that has several."""

    def get(self, name: str, otherwise: Any) -> Any:
        """An attribute, or what it is where it is not said."""
        return self.attributes.get(name, otherwise)

    def pair(self, name: str, otherwise: int) -> tuple[int, ...]:
        """An attribute for height and width."""
        return tuple(int(value) for value in self.attributes.get(name, (otherwise, otherwise)))


OPERATORS: Mapping[str, Callable[[_Translation, _Call], str]] = {
    "Add": partial(_Translation.elementwise, kind="ADD"),
    "AveragePool": partial(_Translation.pool, kind="AVERAGE_POOL_2D"),
    "BatchNormalization": _Translation.batch_norm,
    "Clip": _Translation.clip,
    "Concat": _Translation.concat,
    "Conv": _Translation.conv,
    "Div": partial(_Translation.elementwise, kind="DIV"),
    "Elu": partial(_Translation.unary, kind="ELU"),
    "Flatten": _Translation.flatten,
    "Gemm": _Translation.fully_connected,
    "GlobalAveragePool": _Translation.global_mean,
    "HardSigmoid": _Translation.hard_sigmoid,
    "HardSwish": partial(_Translation.unary, kind="HARD_SWISH"),
    "Identity": _Translation.same,
    "LeakyRelu": _Translation.leaky_relu,
    "MatMul": _Translation.fully_connected,
    "MaxPool": partial(_Translation.pool, kind="MAX_POOL_2D"),
    "Mul": partial(_Translation.elementwise, kind="MUL"),
    "ReduceMean": _Translation.mean,
    "Relu": partial(_Translation.unary, kind="RELU"),
    "Reshape": _Translation.reshape,
    "Sigmoid": partial(_Translation.unary, kind="LOGISTIC"),
    "Softmax": _Translation.softmax,
    "Split": _Translation.split,
    "Sub": partial(_Translation.elementwise, kind="SUB"),
    "Tanh": partial(_Translation.unary, kind="TANH"),
    "Transpose": _Translation.transpose,
}
"""What writes each operator of ONNX."""
