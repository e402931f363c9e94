"""What the runtimes of files are given: they compute what torch computes, written as their own converters write it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trainonce.errors import UserError
from trainonce.latency import BuildSettings, bench, build_table, ncnn_graph
from trainonce.latency.parts import part_modules, part_names, sized_network
from trainonce.latency.runtimes import model_files, with_random_weights
from trainonce.models import MobileNetV3, ProxylessNAS, ProxylessNASSettings, ResNet, ResNetSettings, Supernet
from trainonce.nn.onnx_graph import onnx_model
from trainonce.search.resources import unsuited
from trainonce.space import derived_rng

MakeNet = Callable[..., MobileNetV3]
MODULES = {"litert": "ai_edge_litert", "litert-int8": "ai_edge_litert", "ncnn": "ncnn", "onnxruntime": "onnxruntime"}


def families(make_net: MakeNet) -> list[Supernet]:
    sizes: dict[str, Any] = {"num_classes": 3, "in_channels": 1, "resolutions": (8,)}
    resnet = ResNetSettings.parse({**sizes, "channels": (32, 64), "strides": (1, 2)}, where="here")
    proxyless = {**sizes, "width_mult": 0.25, "depths": (1, 2), "strides": (1, 2, 1, 1, 1, 1), "stem_stride": 1}
    return [
        make_net(),
        ResNet(resnet, seed=0),
        ProxylessNAS(ProxylessNASSettings.parse(proxyless, where="here"), seed=0),
    ]


def computed(runtime: str, module: nn.Module, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """What a runtime gives for `bench.numbers`."""
    found: Any = bench.RUNTIMES[runtime][0](1)(model_files(runtime, module, shape).files, shape)()
    return np.array(found[0]) if isinstance(found, list | tuple) else np.array(found)


@pytest.mark.export
@pytest.mark.parametrize("runtime", ["onnxruntime", "litert", "ncnn"])
def test_a_network_is_the_network_of_torch(make_net: MakeNet, runtime: str) -> None:
    pytest.importorskip(MODULES[runtime])
    for net in families(make_net):
        rng = derived_rng("runtimes")
        for arch in (net.space.smallest(), net.space.largest(), net.space.sample(rng)):
            network = with_random_weights(sized_network(net.describe(arch)))
            with torch.inference_mode():
                expected = network(torch.from_numpy(bench.numbers((1, 1, 8, 8)))).numpy()
            found = computed(runtime, sized_network(net.describe(arch)), (1, 1, 8, 8))
            assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.export
def test_a_part_for_litert_takes_and_gives_maps_as_they_are_inside(make_net: MakeNet) -> None:
    pytest.importorskip("ai_edge_litert")
    net = make_net()
    spec = net.describe(net.space.largest())
    for name in part_names(spec)[1:4]:
        (part,) = part_modules(name, spec)
        channels, height, width = part.shape
        x = torch.from_numpy(bench.numbers((1, height, width, channels)))
        with torch.inference_mode():
            expected = with_random_weights(part)(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
        (fresh,) = part_modules(name, spec)
        assert np.abs(computed("litert", fresh, (1, *part.shape)) - expected).max() < 1e-4 * np.abs(expected).max()
        (fresh,) = part_modules(name, spec)
        assert computed("litert-int8", fresh, (1, *part.shape)).dtype == np.int8


@pytest.mark.export
def test_what_is_written_for_ncnn_is_what_pnnx_writes(make_net: MakeNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer by layer, but for the names; the weights to the last bit."""
    pytest.importorskip("pnnx")

    def layers(param: bytes) -> list[tuple[str, str, str, dict[str, list[float]]]]:
        found = []
        for line in param.decode().splitlines()[2:]:
            kind, _, reads, makes, *rest = line.split()
            values = [one.split("=") for one in rest if "=" in one]
            found.append((kind, reads, makes, {key: [float(v) for v in value.split(",")] for key, value in values}))
        return found

    for net in families(make_net):
        network = with_random_weights(sized_network(net.describe(net.space.largest())))
        model = onnx_model(network, (1, 1, 8, 8))
        param, weights = ncnn_graph.ncnn_files(model, (1, 1, 8, 8))
        their_param, their_weights = ncnn_graph._converted(model, (1, 1, 8, 8))
        assert layers(param) == layers(their_param)
        assert weights == their_weights


@pytest.mark.export
def test_what_is_not_written_for_ncnn_is_asked_of_pnnx() -> None:
    pytest.importorskip("ncnn")
    module = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.Tanh(), nn.Flatten(1), nn.Linear(4 * 36, 3))
    module = with_random_weights(module)
    with torch.inference_mode():
        expected = module(torch.from_numpy(bench.numbers((1, 2, 8, 8)))).numpy()
    assert computed("ncnn", module, (1, 2, 8, 8)) == pytest.approx(expected[0], abs=1e-4)


@pytest.mark.export
@pytest.mark.parametrize("runtime", ["litert", "ncnn"])
def test_files_of_one_image_are_not_for_several(make_net: MakeNet, runtime: str) -> None:
    pytest.importorskip(MODULES[runtime])
    with pytest.raises(UserError, match=f"files of {runtime} take one image a call: --batch 1"):
        build_table(make_net(), BuildSettings(runtime=runtime, batch=2))


def test_a_table_that_is_not_of_the_targets_runtime_is_said(table_of: Callable[[str], Path]) -> None:
    ort, litert, torchs = map(table_of, ("onnxruntime", "litert", "torch"))
    assert unsuited(None, "ncnn") is unsuited(ort, None) is unsuited(ort, "onnx") is unsuited(litert, "litert") is None
    said = unsuited(ort, "litert-int8")
    assert said == (
        f"the latency table {ort} says what onnxruntime takes, not what files of litert-int8 take: make one with "
        "--runtime litert-int8"
    )
    assert str(unsuited(torchs, "tflite-micro")).endswith("take: no runtime of tables runs those")


@pytest.fixture
def table_of(make_net: MakeNet, known_machine: Any, tmp_path: Path) -> Callable[[str], Path]:
    """A table of a runtime."""

    def make(runtime: str) -> Path:
        net, machine = make_net(depths=(1,), expand_ratios=(3, 4)), known_machine()
        settings = BuildSettings(runtime="torch", networks=12, held_out=5, rounds=1)
        table = build_table(net, settings, prepare=machine.prepare, timer=machine.timer)
        path = tmp_path / f"{runtime}.json"
        table.model_copy(update={"runtime": runtime}).write(path)
        return path

    return make
