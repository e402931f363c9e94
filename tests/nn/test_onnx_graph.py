"""The ONNX graph that is written here computes what torch computes; of what it does not know it says so."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainonce.models import MobileNetV3
from trainonce.nn.onnx_graph import onnx_model, written_model
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
    content = onnx_model(module, tuple(x.shape)).SerializeToString()
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


class ReadTwice(nn.Module):
    """A convolution whose output is read beside the batch norm that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        out: Tensor = self.norm(y) + y
        return out


class Scaled(nn.Module):
    """One that reads a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.get_buffer("scale")


class PlusOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


UNKNOWN = {
    "layer": nn.GELU(),
    "operation": Sine(),
    "branch": Branching(),
    "tensor": Scaled(),
    "number": PlusOne(),
    "gaps": nn.Conv2d(2, 2, 3, dilation=2, padding=1),
    "mirrored": nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
    "same": nn.Conv2d(2, 2, 3, padding="same"),
    "read twice": ReadTwice(),
}


@pytest.mark.parametrize("module", UNKNOWN.values(), ids=UNKNOWN)
def test_what_has_no_translation_is_said_to_have_none(module: nn.Module) -> None:
    assert written_model(with_statistics(module, seed=5), (1, 2, 5, 5)) is None


@pytest.mark.parametrize("module", [nn.GELU(), Branching()], ids=["layer", "branch"])
def test_what_has_no_translation_goes_through_the_exporter(module: nn.Module) -> None:
    x = torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(4))
    np.testing.assert_allclose(run(module, x), module(x).numpy(), rtol=1e-5, atol=1e-5)


def test_what_gives_what_it_is_given_is_a_graph_too() -> None:
    x = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(6))
    np.testing.assert_array_equal(run(nn.Identity(), x), x.numpy())
