"""A plain network, or a part of one, as an ONNX graph: quickly, for files and for measuring.

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
"""What brings the input to a network's resolution. The images that a file takes have it already."""

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


def initializers_of(model: Any) -> dict[str, NDArray[Any]]:
    """The weights in an `onnx.ModelProto` by name, in its order."""
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def onnx_model(module: nn.Module, shape: tuple[int, ...]) -> Any:
    """The `onnx.ModelProto` of a module in evaluation mode that takes one float32 tensor of this shape, gives another.

    Input `input`, output `output`; weights inside. Raises `UserError` without the extra.
    """
    with try_import("writing an ONNX graph", "onnx"):
        import onnx  # noqa: F401
    if isinstance(module, GraphNetwork):
        try:
            return _model(LinesAsOnnx(module.eval(), shape), module, {"input": shape}, "output")
        except UnwrittenError:
            return _exported(module, shape)
    return written_model(module, shape) or _exported(module, shape)


def written_model(
    module: nn.Module, shape: tuple[int, ...], *, given: str = "input", returned: str = "output", batch: str = ""
) -> Any:
    """As `onnx_model`, by the layers that are written down here: None where it has others.

    `given` and `returned` name input and output; with a name for the `batch` it takes any number of images. Nodes are
    named `MODULE/OPERATOR_NUMBER`, by the innermost module that they are part of, or `network` outside of any.
    """
    try:
        graph = _Graph(trace(module.eval()), given, returned)
    except (_UntranslatedError, fx.proxy.TraceError):
        return None
    return _model(graph, module, {given: shape}, returned, batch)


def _model(graph: Any, module: nn.Module, images: dict[str, tuple[int, ...]], returned: str, batch: str = "") -> Any:
    """The `onnx.ModelProto` of a graph's `nodes` and `initializers`; `images` is the input's name and shape."""
    from onnx import TensorProto, helper

    ((_, shape),) = images.items()
    with torch.inference_mode():  # on the device `meta` it would be cheaper, but for the second that its imports take
        made: Tensor = module(torch.zeros(shape))
    first, last = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch or of_end[0], *of_end[1:]])
        for name, of_end in {**images, returned: tuple(made.shape)}.items()
    )
    return helper.make_model(
        helper.make_graph(graph.nodes, "network", [first], [last], graph.initializers),
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

    def __init__(self, traced: fx.GraphModule, given: str, returned: str) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.names: dict[fx.Node, str] = {}
        self.layers = dict(traced.named_modules())
        self.scope = "network"
        for node in traced.graph.nodes:
            stack = node.meta.get("nn_module_stack")  # of the modules around it, by their names, the innermost last
            self.scope = [name for name, _ in stack.values()][-1] if stack else "network"
            if node.op == "placeholder":
                self.names[node] = given
            elif node.op == "output":
                self.give(self.names[node.args[0]], returned)
            elif node not in self.names:
                self.translate(node)

    def add(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        from onnx import helper

        name = f"{self.scope}/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def give(self, name: str, returned: str) -> None:
        """Call a value what the output is called."""
        if self.nodes and list(self.nodes[-1].output) == [name]:
            self.nodes[-1].output[0] = returned
        else:
            self.add("Identity", [name], returned)

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
        elif node.op == "call_function" and getattr(node.target, "__name__", "") in ARITHMETIC and _of_values(node):
            kind = ARITHMETIC[node.target.__name__]  # type: ignore[union-attr]
            self.names[node] = self.add(kind, [self.names[a] for a in node.args], node.name)  # type: ignore[index]
        elif node.op == "call_method" and node.target == "mean" and len(node.args) == 2:
            axes = self.constant(f"{node.name}_axes", np.array(node.args[1], dtype=np.int64))
            keep = int(node.kwargs.get("keepdim") is True)
            self.names[node] = self.add("ReduceMean", [x, axes], node.name, keepdims=keep)
        elif node.op == "call_method" and node.target == "flatten" and len(node.args) == 2:
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
        if conv.dilation != (1, 1) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise _UntranslatedError
        follower = next(iter(node.users))
        norm = self.layers.get(str(follower.target)) if follower.op == "call_module" and len(node.users) == 1 else None
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


def _of_values(node: fx.Node) -> bool:
    return all(isinstance(one, fx.Node) for one in node.args) and not node.kwargs


def _folded(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that gives what the batch norm makes of this one, in double precision."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    shift = norm.bias.double() - norm.running_mean.double() * scale
    return weight * scale[:, None, None, None], shift if bias is None else bias * scale + shift


def _numbers(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().cpu().numpy().astype(np.float32)
