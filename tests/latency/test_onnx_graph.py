"""The graph for measuring computes what torch computes, and has the operations of torch's own exporter."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainonce.latency.onnx_graph import onnx_bytes
from trainonce.models import MobileNetV3
from trainonce.nn.plain import ACTIVATIONS, BlockSpec, MBConv

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def with_statistics(module: nn.Module, seed: int) -> nn.Module:
    """The module in evaluation mode, with batch norms unlike the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.ndim == 1:
            low = 0.0 if name.endswith(("bias", "mean")) else 0.5
            tensor.copy_(low + torch.rand(tensor.shape, generator=generator))
    return module.eval()


def run(module: nn.Module, x: Tensor) -> np.ndarray[Any, Any]:
    content = onnx_bytes(module, tuple(x.shape))
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": x.numpy()})
    return np.asarray(output)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 9), st.integers(1, 20), st.integers(1, 9)),
    same=st.booleans(),
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 2),
    se_channels=st.sampled_from([0, 3]),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    expand=st.booleans(),
    size=st.integers(1, 9),
    batch=st.integers(1, 3),
)
def test_a_block_is_the_block_of_torch(
    channels: tuple[int, int, int], same: bool, expand: bool, size: int, batch: int, **fields: Any
) -> None:
    inside = channels[1] if expand else channels[0]
    out = channels[0] if same else channels[2]
    spec = BlockSpec(in_channels=channels[0], mid_channels=inside, out_channels=out, expand=expand, **fields)
    block = with_statistics(MBConv(spec), seed=size)
    x = torch.randn(batch, channels[0], size, size, generator=torch.Generator().manual_seed(batch))
    with torch.inference_mode():
        np.testing.assert_allclose(run(block, x), block(x).numpy(), rtol=1e-4, atol=1e-4)


def test_a_network_is_the_network_of_torch(make_net: Callable[..., MobileNetV3]) -> None:
    net = make_net().eval()
    for arch in (net.space.smallest(), net.space.largest()):
        network = with_statistics(net.extract(arch), seed=1)
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
        with torch.inference_mode():
            expected = network(x).numpy()
        assert np.abs(expected).max() > 0.1  # there is something to compare
        np.testing.assert_allclose(run(network, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_the_operations_are_those_of_torchs_exporter(make_net: Callable[..., MobileNetV3]) -> None:
    pytest.importorskip("onnxscript")
    net = make_net().eval()
    network = net.extract(net.space.smallest())
    x = torch.randn(2, 1, 8, 8)
    exported = torch.onnx.export(network, (x,), dynamo=True, opset_version=18, verbose=False)
    assert exported is not None
    expected = Counter(node.op_type for node in exported.model_proto.graph.node)
    found = Counter(node.op_type for node in onnx.load_from_string(onnx_bytes(network, (2, 1, 8, 8))).graph.node)
    del found["Identity"]  # names the output; every runtime removes it
    assert found.pop("Flatten") == expected.pop("Reshape") == 1
    assert found == expected


def test_a_convolution_with_a_bias_before_its_batch_norm() -> None:
    layers = with_statistics(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)), seed=3)
    x = torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        np.testing.assert_allclose(run(layers, x), layers(x).numpy(), rtol=1e-5, atol=1e-5)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Branching(nn.Module):
    """What torch.fx cannot trace."""

    def forward(self, x: Tensor) -> Tensor:
        return -x if x.shape[0] > 1 else x + 1


class Scaled(nn.Module):
    """One that reads a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.get_buffer("scale")


@pytest.mark.parametrize(
    "module", [nn.GELU(), Sine(), Branching(), Scaled()], ids=["layer", "operation", "branch", "tensor"]
)
def test_what_has_no_translation_goes_through_the_exporter(module: nn.Module) -> None:
    x = torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(4))
    np.testing.assert_allclose(run(module, x), module(x).numpy(), rtol=1e-5, atol=1e-5)
