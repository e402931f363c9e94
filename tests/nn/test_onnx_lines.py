"""Operations of a person's own network as ONNX: each computes what torch computes."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.other_libraries import imported
from torch import Tensor, nn

from trainonce.latency.parts import sized_network
from trainonce.latency.runtimes import with_random_weights
from trainonce.models.traced import elastic
from trainonce.nn.onnx_graph import onnx_model
from trainonce.nn.onnx_lines import OPERATORS
from trainonce.nn.plain_graph import DROPOUT, IMAGES, ITEM, NORM, GraphNetwork, GraphSpec, Line, TensorSpec

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

X = f"%{IMAGES}"
TENSORS = {
    "conv.weight": (6, 2, 3, 3),
    "each.weight": (4, 1, 5, 5),
    "along.weight": (6, 4, 3),
    "bias": (6,),
    "matrix.weight": (3, 8),
    "out": (3,),
    "scale": (8,),
    "shift": (8,),
    "channels": (4,),
    "norm.weight": (4,),
    "norm.bias": (4,),
    "norm.running_mean": (4,),
    "norm.running_var": (4,),
    "after.running_mean": (6,),
    "after.running_var": (6,),
}
"""Tensors of the networks below, whose images are [2, 4, 8, 8]."""


def lines(*steps: tuple[str, tuple[Any, ...]]) -> tuple[Line, ...]:
    """Operations one after the other, called a, b, c."""
    return tuple(Line("abcdef"[n], op, args) for n, (op, args) in enumerate(steps))


CASES = [
    lines(("conv2d.default", (X, "%conv.weight", "%bias", (2, 1), (1, 0), (1, 2), 2))),
    lines(("conv2d.default", (X, "%conv.weight", None, (2, 2), (1, 1), (1, 1), 2)), (NORM, ("%a", "after", 0.1, 1e-3))),
    lines(
        ("conv2d.default", (X, "%each.weight", "%channels", (1, 1), (2, 2), (1, 1), 4)),
        (NORM, ("%a", "norm", 0.1, 1e-5)),
    ),
    lines(("conv2d.padding", (X, "%conv.weight", "%bias", (1, 1), "same", (1, 1), 2))),
    lines(("conv2d.padding", (X, "%conv.weight", "%bias", (1, 1), "valid", (1, 1), 2))),
    lines(("flatten.using_ints", (X, 2)), ("conv1d.default", ("%a", "%along.weight", "%bias", (2,), (1,)))),
    lines(
        ("conv2d.default", (X, "%each.weight", None, (1, 1), (2, 2), (1, 1), 4)),
        ("add.Tensor", ("%a", X)),
        (DROPOUT, ("%b", 0.2)),
    ),
    lines((NORM, (X, "norm", 0.1, 1e-5)), ("relu.default", ("%a",))),
    lines(("linear.default", (X, "%matrix.weight", "%out"))),
    lines(("mean.dim", (X, (1, 2))), ("linear.default", ("%a", "%matrix.weight", "%out"))),
    lines(("mean.dim", (X, (1,), True)), ("linear.default", ("%a", "%matrix.weight"))),
    lines(("amax.default", (X, (2, 3)))),
    lines(("linalg_vector_norm.default", (X, 2, (2, 3), True))),
    lines(("adaptive_avg_pool2d.default", (X, (1, 1))), ("squeeze.dim", ("%a", 3)), ("unsqueeze.default", ("%b", 1))),
    lines(("adaptive_avg_pool2d.default", (X, (4, 2)))),
    lines(("avg_pool2d.default", (X, (3, 3), (2, 2), (1, 1), True))),
    lines(("avg_pool2d.default", (X, (2,)))),
    lines(("max_pool2d.default", (X, (3, 3), (2, 2), (0, 0), (1, 1), True))),
    lines(("max_pool2d.default", (X, (3,), (2,), (1,)))),
    lines(*((f"{op}.default", (X if n == 0 else f"%{'abcdef'[n - 1]}",)) for n, op in enumerate(("gelu", "silu")))),
    lines(("hardswish.default", (X,)), ("hardsigmoid.default", ("%a",)), ("sigmoid.default", ("%b",))),
    lines(("hardtanh.default", (X, 0.0, 6.0)), ("tanh.default", ("%a",)), ("hardtanh.default", ("%b",))),
    lines(("relu6.default", (X,)), ("softmax.int", ("%a", -2))),
    lines(("mul.Tensor", (X, 2.5)), ("div.Tensor", (X, "%a")), ("sub.Tensor", ("%b", X)), ("add.Tensor", ("%c", 0))),
    lines(("permute.default", (X, (0, 2, -1, 1))), ("addcmul.default", ("%channels", "%channels", "%a"))),
    lines(("view.default", ("%channels", (1, -1, 1, 1))), ("mul.Tensor", (X, "%a"))),
    lines(("layer_norm.default", (X, (8,), "%scale", "%shift", 1e-6, False))),
    lines(("layer_norm.default", (X, (8,), "%scale", None, 1e-2))),
    lines(("transpose.int", (X, 1, -1)), ("matmul.default", (X, X)), ("cat.default", ((X, "%b"), -3))),
    lines(("view.default", (X, (8, 8, 8))), ("bmm.default", ("%a", "%a")), ("reshape.default", ("%b", (2, -1)))),
    lines(
        ("scaled_dot_product_attention.default", (X, X, X)), ("contiguous.default", ("%a",)), ("clone.default", ("%b",))
    ),
    lines(("split_with_sizes.default", (X, (1, 3), 1)), (ITEM, ("%a", 1)), ("select.int", ("%b", 2, -1))),
    lines(("split.Tensor", (X, 3, 2)), (ITEM, ("%a", 2)), ("to.dtype", ("%b", "torch.float32"))),
    lines(("chunk.default", (X, 2, 3)), (ITEM, ("%a", 0))),
    lines(("unbind.int", (X, 1)), (ITEM, ("%a", 3)), ("pad.default", ("%b", (0, 1, 2, 0), "constant", 1.0))),
    lines(("slice.Tensor", (X, 3, 1, -2)), ("slice.Tensor", ("%a", 0, 0, 9223372036854775807))),
    lines(("select.int", ("%channels", 0, 1)), ("expand.default", (X, (2, 4, -1, 8))), ("mul.Tensor", ("%b", "%a"))),
    lines(("mean.dim", (X, (1,), True)), ("expand.default", ("%a", (-1, 3, -1, -1)))),
]


def network_of(steps: tuple[Line, ...]) -> GraphNetwork:
    """A network of these operations, with weights; its batch norms are unlike the identity."""
    read = {name for line in steps for name in line.reads}
    read |= {name for line in steps if line.op == NORM for name in TENSORS if name.startswith(f"{line.args[1]}.")}
    tensors = [TensorSpec(name, shape, "running" not in name) for name, shape in TENSORS.items() if name in read]
    spec = GraphSpec(
        resolution=8, in_channels=4, num_classes=2, tensors=tuple(tensors), lines=steps, output=steps[-1].out
    )
    network, generator = spec.build(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return network.eval()


def run(content: bytes, x: Tensor) -> np.ndarray[Any, Any]:
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    (output,) = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(
        None, {"input": x.numpy()}
    )
    return np.asarray(output)


@pytest.mark.parametrize("steps", CASES, ids=lambda steps: "-".join(line.op for line in steps))
@torch.inference_mode()
def test_an_operation_is_that_of_torch(steps: tuple[Line, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("trainonce.nn.onnx_graph._exported")  # written, not exported
    network = network_of(steps)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network(x).numpy()
    np.testing.assert_allclose(
        run(onnx_model(network, (2, 4, 8, 8)).SerializeToString(), x), expected, rtol=1e-4, atol=1e-5
    )


def test_every_operation_that_is_written_is_tried() -> None:
    assert {line.op for steps in CASES for line in steps} == set(OPERATORS)


def test_norms_are_folded_where_nothing_else_reads_the_convolution() -> None:
    def kinds(steps: tuple[Line, ...]) -> list[str]:
        return [node.op_type for node in onnx_model(network_of(steps), (2, 4, 8, 8)).graph.node]

    convolution = ("conv2d.default", (X, "%each.weight", None, (1, 1), (2, 2), (1, 1), 4))
    norm = (NORM, ("%a", "norm", 0.1, 1e-5))
    assert kinds(lines(convolution, norm)) == ["Conv", "Identity"]
    assert kinds(lines(convolution, norm, ("add.Tensor", ("%a", "%b")))) == [
        "Conv",
        "BatchNormalization",
        "Add",
        "Identity",
    ]


OTHERS = [
    lines(("sin.default", (X,))),
    lines(("layer_norm.default", (X, (8,)))),
    lines(("adaptive_avg_pool2d.default", (X, (3, 3)))),
    lines(("conv2d.default", (X, X))),
    lines(("to.dtype", (X, "torch.int64"))),
    lines(("pad.default", (X, (1, 1, 1, 1), "reflect"))),
]


@pytest.mark.parametrize("steps", OTHERS, ids=lambda steps: steps[-1].op)
def test_what_is_not_written_goes_through_the_exporter(
    steps: tuple[Line, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[nn.Module] = []

    def exported(module: nn.Module, shape: tuple[int, ...]) -> Any:
        asked.append(module)
        return onnx.helper.make_model(onnx.helper.make_graph([], "exported", [], []))

    monkeypatch.setattr("trainonce.nn.onnx_graph._exported", exported)
    network = network_of(steps)
    onnx_model(network, (2, 4, 8, 8))
    assert asked == [network]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x1_0", "googlenet", "squeezenet1_0"])
def test_the_operations_are_those_of_torchs_exporter(name: str) -> None:
    pytest.importorskip("onnxscript")
    model = imported("torchvision").models.get_model(name, weights=None).eval()
    net = elastic(model, torch.zeros(1, 3, 96, 96))
    network = with_random_weights(sized_network(net.describe(net.space.smallest())))
    exported = torch.onnx.export(network, (torch.zeros(1, 3, 96, 96),), dynamo=True, opset_version=18, verbose=False)
    assert exported is not None
    expected = Counter(node.op_type for node in exported.model_proto.graph.node)
    found = Counter(node.op_type for node in onnx_model(network, (1, 3, 96, 96)).graph.node)
    del found["Identity"]
    assert found == expected
