"""ONNX files of the built-in families are written here: they are what torch's own exporter makes of the networks."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tests.support.own_networks import Chain
from torch import nn

from trainonce.export import onnx as onnx_target
from trainonce.export.description import FileDescription
from trainonce.export.first_difference import first_difference
from trainonce.export.onnx import FILE, belongs, open_onnx, to_onnx
from trainonce.export.tools import layer_names
from trainonce.export.torch_export import program_of
from trainonce.models import MobileNetV3, ProxylessNAS, ProxylessNASSettings, ResNet, ResNetSettings, Supernet
from trainonce.nn.kinds import PlainSpec, spec_of, written
from trainonce.space import derived_rng

IMAGES: dict[str, Any] = {"image_size": 16, "in_channels": 3, "num_classes": 4}
SMALL: dict[str, Any] = {"channels": (16, 24), "strides": (1, 2)}
FAMILIES: dict[str, Callable[[Callable[..., MobileNetV3]], Supernet]] = {
    "mobilenet_v3": lambda make_net: make_net(in_channels=3, num_classes=4, resolutions=(16,)),
    "proxyless_nas": lambda _: ProxylessNAS(
        ProxylessNASSettings.for_images(**IMAGES, width_mult=0.25, depths=(1, 2), strides=(1, 2, 1, 1, 1, 1)), seed=1
    ),
    "resnet": lambda _: ResNet(ResNetSettings.for_images(**IMAGES, **SMALL, bottleneck=False), seed=2),
    "resnet, bottleneck": lambda _: ResNet(ResNetSettings.for_images(**IMAGES, **SMALL, bottleneck=True), seed=3),
}


def trained(network: nn.Module) -> nn.Module:
    """The network with batch norms that are not the identity, and whose maps neither vanish nor explode."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            for tensor in (module.weight, module.bias):
                tensor.data.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    with torch.no_grad():
        network.train()(torch.randn(32, 3, 16, 16, generator=generator))
    return network.eval()


def described(spec: PlainSpec) -> FileDescription:
    how = {"resolution": 16, "channels": 3, "layout": "NCHW", "mean": [0.5] * 3, "std": [0.2] * 3}
    values = {"architecture": "a", "classes": list("abcd"), "preprocessing": how, "network": written(spec)}
    return FileDescription.parse({**values, "weights_sha256": "0" * 64}, where="a test")


def operators_by_layer(model: Any, layers: list[str]) -> Counter[tuple[str, str]]:
    return Counter(
        (next((layer for layer in layers if belongs(node.name, layer)), ""), node.op_type) for node in model.graph.node
    )


def no_program(*_: object) -> Any:
    raise AssertionError("torch was asked")


@pytest.fixture(params=FAMILIES)
def network(request: pytest.FixtureRequest, make_net: Callable[..., MobileNetV3]) -> nn.Module:
    net = FAMILIES[request.param](make_net)
    return trained(net.extract(net.space.sample(derived_rng(0, request.param))))


def test_they_are_what_torchs_exporter_makes(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same operators in the same layers, and logits that are the same but for rounding."""
    description = described(spec_of(network))
    ours = to_onnx(network, description, no_program)
    monkeypatch.setattr(onnx_target, "BUILT_IN", ())
    torchs = to_onnx(network, description)
    models = [onnx.load_model_from_string(content) for content in (ours, torchs)]
    onnx.checker.check_model(models[0], full_check=True)
    found = [operators_by_layer(model, layer_names(network)) for model in models]
    assert found[0] - Counter([("", "Flatten")]) == found[1] - Counter([("", "Reshape")])
    opened = [open_onnx({FILE: content}, 1, FILE) for content in (ours, torchs)]
    assert list(opened[0].description.layers) == list(opened[1].description.layers) == layer_names(network)
    for batch in (1, 5):
        x_BCHW = torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(batch))
        mine, other = (one.run(x_BCHW) for one in opened)
        assert mine.std(0, correction=0).max() > 0.01 or batch == 1, "else being close would mean nothing"
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(mine, network(x_BCHW), rtol=1e-4, atol=1e-5)
        assert first_difference(network, opened[0], x_BCHW) is None


def test_a_network_of_ones_own_is_torchs() -> None:
    """By torch's exporter, though its layers might be known here too."""
    torch.manual_seed(0)
    network, asked = Chain().eval(), []

    def program(*given: Any) -> Any:
        asked.append(given)
        return program_of(*given)

    how = {"resolution": 8, "channels": 1, "layout": "NCHW", "mean": [0.5], "std": [0.2]}
    values = {"architecture": "a", "classes": list("abcdefghij"), "preprocessing": how, "network": {}}
    description = FileDescription.parse({**values, "weights_sha256": "0" * 64}, where="a test")
    content = to_onnx(network, description, program)
    assert len(asked) == 1
    x_BCHW = torch.randn(3, 1, 8, 8)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": x_BCHW.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(logits, network(x_BCHW).numpy(), rtol=1e-4, atol=1e-5)
