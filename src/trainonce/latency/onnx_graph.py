"""A plain network, or a part of one, as an ONNX graph: quickly, for measuring.

The general exporter of torch takes seconds to minutes for each network. Built-in networks consist of a dozen kinds of
layers, which are written down here one by one; others go through the exporter. Batch norms are folded into the
convolutions before them, as the exporter and every runtime do it. What is measured is therefore the graph that an
exported subnet has.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional as F

from trainonce.extras import try_import
from trainonce.nn import plain, plain_resnet
from trainonce.nn.onnx_lines import LinesAsOnnx, UnwrittenError
from trainonce.nn.plain_graph import GraphNetwork

OPSET = 18
IR_VERSION = 10
"""The newest that every ONNX Runtime of the supported versions reads."""

RESIZES = (plain.resize, plain_resnet.resize)
"""What brings the input to a network's resolution. The images that are measured have it already."""

MODULES: dict[type[nn.Module], tuple[str, dict[str, float]]] = {
    nn.ReLU: ("Relu", {}),
    nn.Hardswish: ("HardSwish", {}),
    nn.Hardsigmoid: ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    nn.Sigmoid: ("Sigmoid", {}),
}
"""Activations: a layer of torch, an operator of ONNX and its attributes."""
FUNCTIONS: dict[object, tuple[str, dict[str, float]]] = {
    F.relu: MODULES[nn.ReLU],
    F.hardswish: MODULES[nn.Hardswish],
    F.hardsigmoid: MODULES[nn.Hardsigmoid],
}
ARITHMETIC = {"add": "Add", "iadd": "Add", "mul": "Mul", "imul": "Mul"}
"""What the functions of Python's operator module are called in ONNX."""


class _Tracer(fx.Tracer):
    def __init__(self, leaf: Callable[[str], bool]) -> None:
        super().__init__(autowrap_functions=RESIZES)
        self.leaf = leaf

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.leaf(module_qualified_name) or super().is_leaf_module(m, module_qualified_name)


def trace(module: nn.Module, *, leaf: Callable[[str], bool] = lambda _: False) -> fx.GraphModule:
    """The layers and operations of a module in the order in which they run.

    Resizing of the input stays one node, as do the modules with a name for which `leaf` is true.
    """
    return fx.GraphModule(module, _Tracer(leaf).trace(module))


def onnx_bytes(module: nn.Module, shape: tuple[int, ...]) -> bytes:
    """The ONNX file of a module: `onnx_model` as bytes."""
    content: bytes = onnx_model(module, shape).SerializeToString()
    return content


def initializers_of(model: Any) -> dict[str, NDArray[Any]]:
    """The weights in an `onnx.ModelProto` by name, in its order."""
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def onnx_model(module: nn.Module, shape: tuple[int, ...]) -> Any:
    """The `onnx.ModelProto` of a module in evaluation mode that takes one float32 tensor of this shape, gives another.

    Input `input`, output `output`; weights inside. Raises `UserError` without the extra.
    """
    with try_import("measuring this runtime", "onnx"):
        from onnx import TensorProto, helper
    try:
        module.eval()
        graph: Any = LinesAsOnnx(module, shape) if isinstance(module, GraphNetwork) else _Graph(trace(module))
    except (_UntranslatedError, UnwrittenError, fx.proxy.TraceError):
        return _exported(module, shape)
    value = helper.make_tensor_value_info
    sizes = {name: tensor.to("meta") for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        made: Tensor = torch.func.functional_call(module, sizes, (torch.empty(shape, device="meta"),))
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "part",
            [value("input", TensorProto.FLOAT, shape)],
            [value("output", TensorProto.FLOAT, tuple(made.shape))],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="trainonce",
    )


class _UntranslatedError(Exception):
    """A layer or operation is none of those that are written down here."""


def _exported(module: nn.Module, shape: tuple[int, ...]) -> Any:
    """The model that torch's exporter makes."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of its own insides
        program = torch.onnx.export(
            module, (torch.zeros(shape),), dynamo=True, verbose=False, input_names=["input"], output_names=["output"]
        )
    assert program is not None
    return program.model_proto


class _Graph:
    """The nodes and initializers of a traced module; a name in `names` for the value of each of its nodes."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.names: dict[fx.Node, str] = {}
        self.layers = dict(traced.named_modules())
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                self.names[node] = "input"
            elif node.op == "output":
                self.add("Identity", [self.names[node.args[0]]], "output")
            elif node not in self.names:
                self.translate(node)

    def add(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name: str, array: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(array.copy(order="C"), name))
        return name

    def translate(self, node: fx.Node) -> None:
        first = node.args[0] if node.args else None  # a tensor of the network takes nothing
        x = self.names[first] if isinstance(first, fx.Node) else ""
        if node.op == "call_module":
            self.names[node] = self.layer(node, self.layers[str(node.target)], x)
        elif node.target in (*RESIZES, F.dropout):
            self.names[node] = x
        elif node.target in FUNCTIONS:
            kind, attributes = FUNCTIONS[node.target]
            self.names[node] = self.add(kind, [x], node.name, **attributes)
        elif node.op == "call_function" and getattr(node.target, "__name__", "") in ARITHMETIC:
            kind = ARITHMETIC[node.target.__name__]  # type: ignore[union-attr]
            self.names[node] = self.add(kind, [self.names[a] for a in node.args], node.name)  # type: ignore[index]
        elif node.op == "call_method" and node.target == "mean":
            axes = self.constant(f"{node.name}_axes", np.array(node.args[1], dtype=np.int64))
            keep = int(node.kwargs.get("keepdim") is True)
            self.names[node] = self.add("ReduceMean", [x, axes], node.name, keepdims=keep)
        elif node.op == "call_method" and node.target == "flatten":
            self.names[node] = self.add("Flatten", [x], node.name, axis=node.args[1])
        else:
            raise _UntranslatedError

    def layer(self, node: fx.Node, layer: nn.Module, x: str) -> str:
        if isinstance(layer, nn.Conv2d):
            return self.convolution(node, layer, x)
        if isinstance(layer, nn.Linear):
            weights = [self.constant(f"{node.name}_weight", _numbers(layer.weight))]
            weights += [self.constant(f"{node.name}_bias", _numbers(layer.bias))] if layer.bias is not None else []
            return self.add("Gemm", [x, *weights], node.name, transB=1)
        if isinstance(layer, nn.Dropout | nn.Identity):
            return x
        if isinstance(layer, nn.ReLU6):
            limits = [self.constant(f"{node.name}_{limit}", np.array(limit, dtype=np.float32)) for limit in (0, 6)]
            return self.add("Clip", [x, *limits], node.name)
        if type(layer) in MODULES:
            kind, attributes = MODULES[type(layer)]
            return self.add(kind, [x], node.name, **attributes)
        raise _UntranslatedError

    def convolution(self, node: fx.Node, conv: nn.Conv2d, x: str) -> str:
        """A convolution with the batch norm that follows it, if one does, folded in."""
        follower = next(iter(node.users))
        norm = self.layers.get(str(follower.target)) if follower.op == "call_module" else None
        weight, bias = conv.weight.double(), None if conv.bias is None else conv.bias.double()
        if isinstance(norm, nn.BatchNorm2d):
            weight, bias = _folded(weight, bias, norm)
        inputs = [x, self.constant(f"{node.name}_weight", _numbers(weight))]
        inputs += [] if bias is None else [self.constant(f"{node.name}_bias", _numbers(bias))]
        pads = [*conv.padding, *conv.padding]
        name = self.add(
            "Conv",
            inputs,
            node.name,
            group=conv.groups,
            kernel_shape=list(conv.kernel_size),
            strides=list(conv.stride),
            pads=pads,
        )
        if isinstance(norm, nn.BatchNorm2d):
            self.names[follower] = name
        return name


def _folded(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that gives what the batch norm makes of this one, in double precision."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    shift = norm.bias.double() - norm.running_mean.double() * scale
    return weight * scale[:, None, None, None], shift if bias is None else bias * scale + shift


def _numbers(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().cpu().numpy().astype(np.float32)
