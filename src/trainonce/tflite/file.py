"""Write a graph of TensorFlow Lite's operators as a file: in float32, or with what another module made of it.

A file is a FlatBuffer by TensorFlow Lite's schema, whose generated classes come with each of its runtimes and are given
here as `schema`. Contents of tensors begin at multiples of 16 bytes, as the schema demands and as processors need that
cannot read across such borders.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainonce.tflite.graph import Array, Graph, Node, Shape

VERSION = 3
ALIGNED = 16
IDENTIFIER = b"TFL3"
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
TABLES = {
    "ADD": "AddOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "CONCATENATION": "ConcatenationOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "LEAKY_RELU": "LeakyReluOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "MUL": "MulOptions",
    "RESHAPE": "ReshapeOptions",
    "SOFTMAX": "SoftmaxOptions",
    "SUB": "SubOptions",
}
"""The table of options of each operator that has one with something in it."""
INT8_VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 12, "HARD_SWISH": 1, "ELU": 1, "RESHAPE": 1}
"""The version of an operator that computes in int8, where it is not the second."""


@dataclass(frozen=True, kw_only=True)
class FileTensor:
    """A tensor as it stands in a file."""

    shape: Shape
    type: str = "FLOAT32"
    value: Array | None = None
    """What a constant holds."""
    scales: Array | None = None
    """float32 [1] or, along the axis, [size]: a number of an int8 tensor stands for `scale * (number - zero_point)`."""
    zero_points: Array | None = None
    axis: int = 0


@dataclass(kw_only=True)
class FileGraph:
    """What a file holds: operators in the order of execution, and tensors by name."""

    nodes: list[Node]
    tensors: dict[str, FileTensor]
    given: str
    """The tensor that comes in."""
    returned: str
    """The tensor that comes out."""


def in_float32(graph: Graph) -> FileGraph:
    """The graph as it is."""
    tensors = {
        name: FileTensor(shape=shape, value=graph.constants.get(name), type=_type_of(graph.constants.get(name)))
        for name, shape in graph.shapes.items()
    }
    return FileGraph(nodes=list(graph.nodes), tensors=tensors, given=graph.given, returned=graph.returned)


def in_float16(graph: Graph) -> FileGraph:
    """Weights in float16, each brought to float32 by an operator that runtimes do away with when they load the file.

    A processor with float16 arithmetic may compute in it; others compute in float32.
    """
    found = in_float32(graph)
    nodes: list[Node] = []
    for node in found.nodes:
        if node.kind in WEIGHTED:
            for name in node.inputs[1:]:
                whole = found.tensors[name]
                assert whole.value is not None
                halved = f"{name}:float16"
                found.tensors[halved] = replace(whole, type="FLOAT16", value=whole.value.astype(np.float16))
                found.tensors[name] = FileTensor(shape=whole.shape)
                nodes.append(Node(kind="DEQUANTIZE", name=node.name, inputs=(halved,), output=name))
        nodes.append(node)
    found.nodes = nodes
    return found


def _type_of(value: Array | None) -> str:
    return "FLOAT32" if value is None or value.dtype == np.float32 else value.dtype.name.upper()


def to_tflite(
    graph: FileGraph,
    schema: Any,
    notes: Mapping[str, bytes] | None = None,
    *,
    named: bool = True,
) -> bytes:
    """The file, with notes inside by their names.

    Without `named` its tensors have no names, which a microcontroller has no use for. Raises `ImportError` without
    flatbuffers.
    """
    import flatbuffers

    used = {name for node in graph.nodes for name in (*node.inputs, node.output)}
    order = [name for name in graph.tensors if name in used]
    places = {name: place for place, name in enumerate(order)}
    contents: list[Array] = [np.zeros(0, np.uint8)]  # the first buffer is of what has no content
    tensors = []
    for name in order:
        tensor = graph.tensors[name]
        made = schema.TensorT()
        made.shape, made.type = list(tensor.shape), getattr(schema.TensorType, tensor.type)
        made.name = name if named or name in (graph.given, graph.returned) else ""
        if tensor.value is not None:
            made.buffer = len(contents)
            contents.append(np.frombuffer(np.ascontiguousarray(tensor.value).tobytes(), np.uint8))
        if tensor.scales is not None and tensor.zero_points is not None:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = tensor.scales.astype(np.float32)
            made.quantization.zeroPoint = tensor.zero_points.astype(np.int64)
            made.quantization.quantizedDimension = tensor.axis
        tensors.append(made)
    model = schema.ModelT()
    model.version, model.description = VERSION, "trainonce"
    codes: dict[tuple[str, int], int] = {}
    operators = [_operator(node, graph, places, codes, schema) for node in graph.nodes]
    model.operatorCodes = [_code(kind, version, schema) for kind, version in codes]
    subgraph = schema.SubGraphT()
    subgraph.tensors, subgraph.operators, subgraph.name = tensors, operators, "main"
    subgraph.inputs, subgraph.outputs = [places[graph.given]], [places[graph.returned]]
    model.subgraphs = [subgraph]
    for name, text in (notes or {}).items():
        note = schema.MetadataT()
        note.name, note.buffer = name, len(contents)
        model.metadata = [*(model.metadata or []), note]
        contents.append(np.frombuffer(text, np.uint8))
    model.buffers = [_buffer(schema)(content) for content in contents]
    builder = flatbuffers.Builder(1024 + 2 * sum(content.nbytes + ALIGNED for content in contents))
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def _buffer(schema: Any) -> Callable[[Array], Any]:
    class Aligned(schema.BufferT):  # type: ignore[misc]
        """A buffer whose content begins at a multiple of 16: the generated class packs it anywhere."""

        def __init__(self, content: Array) -> None:
            super().__init__()
            self.content = content

        def Pack(self, builder: Any) -> Any:
            size = len(self.content)
            if size:
                builder.StartVector(1, size, ALIGNED)
                builder.head = builder.Head() - size
                builder.Bytes[builder.Head() : builder.Head() + size] = self.content.tobytes()
                vector = builder.EndVector()
            schema.BufferStart(builder)
            if size:
                schema.BufferAddData(builder, vector)
            return schema.BufferEnd(builder)

    return Aligned


def _code(kind: str, version: int, schema: Any) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, kind)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = version
    return code


def _operator(
    node: Node, graph: FileGraph, places: Mapping[str, int], codes: dict[tuple[str, int], int], schema: Any
) -> Any:
    made = schema.OperatorT()
    made.opcodeIndex = codes.setdefault((node.kind, _version(node, graph)), len(codes))
    made.inputs, made.outputs = [places[name] for name in node.inputs], [places[node.output]]
    table = TABLES.get(node.kind)
    if table is not None:
        made.builtinOptionsType = getattr(schema.BuiltinOptions, table)
        made.builtinOptions = getattr(schema, f"{table}T")()
        for name, value in node.options.items():
            match name:
                case "activation":
                    made.builtinOptions.fusedActivationFunction = getattr(schema.ActivationFunctionType, value)
                case "padding":
                    made.builtinOptions.padding = getattr(schema.Padding, value)
                case _:
                    setattr(made.builtinOptions, name, value)
    return made


def _version(node: Node, graph: FileGraph) -> int:
    reads = graph.tensors[node.inputs[0]]
    if node.kind == "DEQUANTIZE":
        return 3 if reads.type == "FLOAT16" else 2
    if node.kind == "QUANTIZE":
        return 1
    if reads.type == "INT8":
        return INT8_VERSIONS.get(node.kind, 2)
    gaps = node.options.get("dilationHFactor", 1) != 1 or node.options.get("dilationWFactor", 1) != 1
    return 2 if node.kind == "DEPTHWISE_CONV_2D" and gaps else 1
