"""A graph of TensorFlow Lite's operators in 8-bit integers, by TensorFlow Lite's specification of quantisation.

Weights are symmetric, with a scale for each output channel; maps have one scale and one zero point, from their smallest
and largest values over the calibrate split. Where an operator is to stay in float32, what it reads and gives is
converted.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from trainonce.tflite.file import WEIGHTED, FileGraph, FileTensor, in_float32
from trainonce.tflite.graph import Array, Graph, Node

Range = tuple[float, float]
LEVELS = 255
SMALLEST, LARGEST = -128, 127
LARGEST_BIAS = 2**30
"""A bias is an integer of 32 bits: a channel's scale is never so small that its bias would not fit."""
SAME_SCALE = (
    *("RESHAPE", "TRANSPOSE", "PAD", "PADV2", "SLICE", "MAX_POOL_2D", "AVERAGE_POOL_2D", "CONCATENATION"),
    *("MAXIMUM", "MINIMUM"),
)
"""Operators that give numbers of the same scale and zero point as those that they read."""
FIXED: Mapping[str, tuple[float, int]] = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0), "SOFTMAX": (1 / 256, -128)}
"""The scale and the zero point that the specification demands of what these operators give."""


def in_int8(
    graph: Graph, ranges: Mapping[str, Range], *, in_float: Callable[[str], bool], ends: str = "FLOAT32"
) -> FileGraph:
    """The graph in int8, but for the operators of whose names `in_float` is true.

    `ends` is the type of images and logits: FLOAT32, or INT8.
    """
    floats = in_float32(graph)
    scales = _scales(graph, ranges)
    tensors: dict[str, FileTensor] = {}
    nodes: list[Node] = []
    there: dict[tuple[str, str], str] = {}
    """By a tensor's name in the graph, and a type, its name in the file."""

    def added(name: str, kind: str, like: str) -> str:
        tensor = FileTensor(shape=graph.shapes[like])
        tensors[name] = _integers(tensor, *scales[like]) if kind == "INT8" else tensor
        return name

    def wanted(name: str, kind: str, at: str) -> str:
        if (name, kind) not in there:
            other = there[name, "FLOAT32" if kind == "INT8" else "INT8"]
            there[name, kind] = added(f"{name}:{kind.lower()}", kind, name)
            turn = "QUANTIZE" if kind == "INT8" else "DEQUANTIZE"
            nodes.append(Node(kind=turn, name=at, inputs=(other,), output=there[name, kind]))
        return there[name, kind]

    given, returned = graph.given, graph.returned
    there[given, ends] = added(given, ends, given)
    last = {node.output: node for node in graph.nodes}[returned]
    for node in graph.nodes:
        kind = "FLOAT32" if in_float(node.name) else "INT8"
        reads = [name if name in graph.constants else wanted(name, kind, node.name) for name in node.inputs]
        constants = {name: floats.tensors[name] for name in node.inputs if name in graph.constants}
        tensors |= constants if kind == "FLOAT32" else _constants(node, constants, scales)
        own = node.output if node is not last or kind == ends else f"{returned}:{kind.lower()}"
        there[node.output, kind] = added(own, kind, node.output)
        nodes.append(replace(node, inputs=tuple(reads), output=own))
    if (returned, ends) not in there:
        there[returned, ends] = added(returned, ends, returned)
        turn = "QUANTIZE" if ends == "INT8" else "DEQUANTIZE"
        nodes.append(Node(kind=turn, name=last.name, inputs=(f"{returned}:{kind.lower()}",), output=returned))
    return FileGraph(nodes=nodes, tensors=tensors, given=given, returned=returned)


def _scales(graph: Graph, ranges: Mapping[str, Range]) -> dict[str, tuple[float, int]]:
    """Scale and zero point of each tensor, those that an operator wants equal being so."""
    leaders: dict[str, str] = {}

    def leader(name: str) -> str:
        while leaders.get(name, name) != name:
            name = leaders[name]
        return name

    for node in graph.nodes:
        if node.kind in SAME_SCALE:  # where it is float32 too: what it gives may have no range of its own
            for name in node.inputs:
                if name not in graph.constants:
                    leaders[leader(name)] = leader(node.output)
    together: dict[str, list[str]] = {}
    maps = [graph.given, *(node.output for node in graph.nodes)]
    for name in maps:
        together.setdefault(leader(name), []).append(name)
    fixed = {node.output: FIXED[node.kind] for node in graph.nodes if node.kind in FIXED}
    found: dict[str, tuple[float, int]] = {}
    for names in together.values():
        demanded = [fixed[name] for name in names if name in fixed]
        known = [ranges[name] for name in names if name in ranges]
        assert known, f"nothing is known of the values of {names}"
        values = demanded[0] if demanded else scale_and_zero_point(known)
        found |= dict.fromkeys(names, values)
    return found


def scale_and_zero_point(ranges: Iterable[Range]) -> tuple[float, int]:
    """Those with which int8 reaches from the smallest to the largest value, 0 being exact.

    For zeros alone any scale does: it is one of the usual size, since LiteRT's kernels take no tiny one.
    """
    low, high = 0.0, 0.0
    for least, most in ranges:
        low, high = min(low, least), max(high, most)
    spread = max(high - low, 1e-6) if high > low else 1.0
    scale = float(np.float32(spread / LEVELS))
    return scale, int(np.clip(round(SMALLEST - low / scale), SMALLEST, LARGEST))


def _integers(tensor: FileTensor, scale: float, zero_point: int, value: Array | None = None) -> FileTensor:
    scales, zero_points = np.array([scale], np.float32), np.array([zero_point])
    return replace(tensor, type="INT8", value=value, scales=scales, zero_points=zero_points)


def _constants(
    node: Node, constants: Mapping[str, FileTensor], scales: Mapping[str, tuple[float, int]]
) -> dict[str, FileTensor]:
    """A node's constants in integers."""
    if node.kind in WEIGHTED:
        filters, bias = node.inputs[1:]
        axis = 3 if node.kind == "DEPTHWISE_CONV_2D" else 0
        made = weights(constants[filters], constants[bias], axis=axis, of_input=scales[node.inputs[0]][0])
        return dict(zip((filters, bias), made, strict=True))
    found = {}
    for name, tensor in constants.items():
        assert tensor.value is not None
        if tensor.type == "INT32":
            found[name] = tensor
            continue
        same = node.kind in SAME_SCALE
        scale, zero = scales[node.output] if same else scale_and_zero_point(_range(tensor.value))
        value = np.clip(np.round(tensor.value.astype(np.float64) / scale) + zero, SMALLEST, LARGEST).astype(np.int8)
        found[name] = _integers(tensor, scale, zero, value)
    return found


def _range(value: Array) -> list[Range]:
    return [(float(value.min()), float(value.max()))]


def weights(filters: FileTensor, bias: FileTensor, *, axis: int, of_input: float) -> tuple[FileTensor, FileTensor]:
    """Filters in int8, symmetric for each channel along `axis`, and their bias in the scale of the sums."""
    assert filters.value is not None
    assert bias.value is not None
    others = tuple(other for other in range(filters.value.ndim) if other != axis)
    largest_O = np.abs(filters.value.astype(np.float64)).max(others)
    bias_O = bias.value.astype(np.float64)
    scales_O = np.maximum(np.maximum(largest_O / LARGEST, np.abs(bias_O) / (of_input * LARGEST_BIAS)), 1e-12)
    scales_O = scales_O.astype(np.float32).astype(np.float64)
    along = np.expand_dims(scales_O, others)
    numbers = np.clip(np.round(filters.value / along), -LARGEST, LARGEST).astype(np.int8)
    sums_O = scales_O * of_input
    zeros = np.zeros(len(scales_O), np.int64)
    return (
        replace(filters, type="INT8", value=numbers, scales=scales_O, zero_points=zeros, axis=axis),
        replace(bias, type="INT32", value=np.round(bias_O / sums_O).astype(np.int32), scales=sums_O, zero_points=zeros),
    )
