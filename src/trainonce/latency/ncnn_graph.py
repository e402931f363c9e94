"""A network of an ONNX graph as ncnn's files: quickly, for measuring.

pnnx, which writes the files that are exported, takes half a second or more for each network. The dozen operators that
built-in networks consist of are written down here as it writes them; for others it is asked. A test holds the layers
against its.
"""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainonce.errors import UserError
from trainonce.nn.onnx_graph import initializers_of

MAGIC = 7767517
FLOAT32 = bytes(4)
"""What stands before weights in float32, though not before biases."""
RELU, CLIP = 1, 3
"""The numbers of activations that a convolution applies itself."""
Files = tuple[bytes, bytes]


def ncnn_files(model: Any, shape: tuple[int, ...]) -> Files:
    """The .param and the .bin of an `onnx.ModelProto` with one input of this shape [1, C, H, W] and one output.

    Raises `ImportError` without pnnx where that is needed, `UserError` for what it does not know.
    """
    try:
        return _Layers(model).files()
    except _UnwrittenError:
        return _converted(model, shape)


class _UnwrittenError(Exception):
    """An operator is none of those that are written down here."""


def _converted(model: Any, shape: tuple[int, ...]) -> Files:
    """The files that pnnx makes."""
    import pnnx

    with TemporaryDirectory() as folder:
        (Path(folder) / "model.onnx").write_bytes(model.SerializeToString())
        sizes = f"inputshape=[{','.join(map(str, shape))}]"
        subprocess.run([pnnx.EXEC_PATH, "model.onnx", sizes, "fp16=0"], cwd=folder, capture_output=True, check=False)
        try:
            param, weights = ((Path(folder) / f"model.ncnn.{end}").read_bytes() for end in ("param", "bin"))
        except FileNotFoundError as error:
            raise UserError("pnnx writes no ncnn files of this network") from error
    return param, weights


class _Layers:
    """The layers and weights of a graph in the order of execution."""

    def __init__(self, model: Any) -> None:
        from onnx import helper

        self.values = initializers_of(model)
        self.nodes = [
            _Node(node, {a.name: helper.get_attribute_value(a) for a in node.attribute}) for node in model.graph.node
        ]
        self.given, self.returned = model.graph.input[0].name, model.graph.output[0].name
        self.lines: list[tuple[str, list[str], list[str], str]] = []
        self.weights: list[bytes] = []
        self.names = {self.given: self.given}
        """What each tensor of ONNX is called here."""
        self.readers: dict[str, int] = {}
        for node in self.nodes:
            for name in node.reads:
                self.readers[name] = self.readers.get(name, 0) + 1
        fused: set[str] = set()
        for node in self.nodes:
            if node.output in fused:
                continue
            write = OPERATORS.get(node.kind)
            if write is None:
                raise _UnwrittenError
            follower = write(self, node)
            fused |= {follower} if follower else set()

    def add(self, kind: str, reads: list[str], output: str, values: str = "") -> None:
        """A layer."""
        self.lines.append((kind, [self.names[name] for name in reads], [output], values))
        self.names[output] = output

    def files(self) -> Files:
        """The two files, with a layer that copies wherever several read what one gives."""
        lines = [("Input", [], [self.given], ""), *self.lines]
        counts: dict[str, int] = {}
        for _, reads, _, _ in lines:
            for name in reads:
                counts[name] = counts.get(name, 0) + 1
        whole, taken = [], dict[str, int]()
        for kind, reads, made, values in lines:
            from_copies = []
            for name in reads:
                number = taken[name] = taken.get(name, 0) + 1
                from_copies.append(f"{name}:{number}" if counts[name] > 1 else name)
            whole.append((kind, from_copies, made, values))
            for name in made:
                if counts.get(name, 0) > 1:
                    whole.append(("Split", [name], [f"{name}:{i + 1}" for i in range(counts[name])], ""))
        blobs = sum(len(made) for _, _, made, _ in whole)
        text = [str(MAGIC), f"{len(whole)} {blobs}"]
        for number, (kind, reads, made, values) in enumerate(whole):
            text.append(" ".join([kind, f"l{number}", str(len(reads)), str(len(made)), *reads, *made, values]).strip())
        return "\n".join([*text, ""]).encode(), b"".join(self.weights)

    def _follower(self, output: str) -> "_Node | None":
        """The only node that reads a tensor."""
        found = [node for node in self.nodes if output in node.reads]
        return found[0] if len(found) == 1 and self.readers[output] == 1 else None

    def _activation(self, node: "_Node") -> tuple[str, str, str | None]:
        """What a convolution gives when it applies the activation after it, how that is said, and what is fused."""
        after = self._follower(node.output)
        if after is not None and after.kind == "Relu":
            return after.output, f" 9={RELU}", after.output
        if after is not None and after.kind == "Clip":
            low, high = (float(self.values[name]) for name in after.reads[1:])
            return after.output, f" 9={CLIP} -23310=2,{low:e},{high:e}", after.output
        return node.output, "", None

    def conv(self, node: "_Node") -> str | None:
        weight = self.values.get(node.reads[1])
        pads, (height, width) = list(node.get("pads", [0, 0, 0, 0])), node.get("kernel_shape", (0, 0))
        strides, gaps = list(node.get("strides", [1, 1])), list(node.get("dilations", [1, 1]))
        even = pads[:2] == pads[2:] and height == width
        if weight is None or weight.ndim != 4 or not even or len({*strides}) > 1 or gaps != [1, 1] or len({*pads}) > 1:
            raise _UnwrittenError
        outputs, groups = len(weight), int(node.get("group", 1))
        bias = self.values[node.reads[2]] if len(node.reads) > 2 else None
        made, activation, fused = self._activation(node)
        values = f"0={outputs} 1={width} 11={height} 12=1 13={strides[0]} 14={pads[0]} 2=1 3={strides[0]} 4={pads[0]}"
        values += f" 5={int(bias is not None)} 6={weight.size}" + (f" 7={groups}" if groups > 1 else "") + activation
        self.add("ConvolutionDepthWise" if groups > 1 else "Convolution", node.reads[:1], made, values)
        self.weigh(weight, bias)
        return fused

    def weigh(self, weight: NDArray[Any], bias: NDArray[Any] | None) -> None:
        self.weights.append(FLOAT32 + weight.astype(np.float32).tobytes())
        if bias is not None:
            self.weights.append(bias.astype(np.float32).tobytes())

    def gemm(self, node: "_Node") -> str | None:
        weight = self.values.get(node.reads[1])
        if weight is None or not node.get("transB", 0):
            raise _UnwrittenError
        bias = self.values[node.reads[2]] if len(node.reads) > 2 else None
        self.add(
            "InnerProduct", node.reads[:1], node.output, f"0={len(weight)} 1={int(bias is not None)} 2={weight.size}"
        )
        self.weigh(weight, bias)
        return None

    def binary(self, node: "_Node", number: int) -> str | None:
        if any(name in self.values for name in node.reads):
            raise _UnwrittenError
        self.add("BinaryOp", node.reads, node.output, f"0={number}")
        return None

    def mean(self, node: "_Node") -> str | None:
        if self.values[node.reads[1]].tolist() not in ([2, 3], [-2, -1]):
            raise _UnwrittenError
        keep = int(node.get("keepdims", 1))
        self.add("Reduction", node.reads[:1], node.output, f"0=3 1=0 -23303=2,1,2 4={keep} 5=1")
        return None

    def unary(self, node: "_Node", kind: str, values: str = "") -> str | None:
        self.add(kind, node.reads, node.output, values)
        return None

    def clip(self, node: "_Node") -> str | None:
        low, high = (float(self.values[name]) for name in node.reads[1:])
        self.add("Clip", node.reads[:1], node.output, f"0={low:e} 1={high:e}")
        return None

    def same(self, node: "_Node") -> str | None:
        self.names[node.output] = self.names[node.reads[0]]
        return None


class _Node:
    """A node of ONNX."""

    def __init__(self, node: Any, attributes: Mapping[str, Any]) -> None:
        self.kind, self.reads, self.output = node.op_type, [name for name in node.input if name], node.output[0]
        self.attributes = attributes

    def get(self, name: str, otherwise: Any) -> Any:
        """An attribute, or what it is where it is not said."""
        return self.attributes.get(name, otherwise)


HARD = "0=0.166666672 1=0.5"
OPERATORS: Mapping[str, Callable[[_Layers, _Node], str | None]] = {
    "Add": lambda layers, node: layers.binary(node, 0),
    "Clip": _Layers.clip,
    "Conv": _Layers.conv,
    "Flatten": lambda layers, node: layers.unary(node, "Flatten"),
    "Gemm": _Layers.gemm,
    "HardSigmoid": lambda layers, node: layers.unary(node, "HardSigmoid", HARD),
    "HardSwish": lambda layers, node: layers.unary(node, "HardSwish", HARD),
    "Identity": _Layers.same,
    "Mul": lambda layers, node: layers.binary(node, 2),
    "ReduceMean": _Layers.mean,
    "Relu": lambda layers, node: layers.unary(node, "ReLU"),
    "Sigmoid": lambda layers, node: layers.unary(node, "Sigmoid"),
}
"""What writes each operator of ONNX."""
