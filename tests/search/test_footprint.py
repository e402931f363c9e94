"""What files and arenas are said to take, against files that are written and the runtime that plans them."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.support.small_resnet import SmallResNet, SmallSettings

from trainonce.cost.memory import BYTES_PER_VALUE, model_size, peak_memory
from trainonce.latency import bench
from trainonce.latency.parts import sized_network
from trainonce.latency.runtimes import RANGE, with_random_weights
from trainonce.models import MobileNetV3, ProxylessNAS, ProxylessNASSettings, ResNet, ResNetSettings, Supernet
from trainonce.nn.kinds import PlainSpec
from trainonce.nn.onnx_graph import onnx_model
from trainonce.pipeline.searching import problem_of
from trainonce.search.footprint import file_bytes, operators_in, ram_bytes
from trainonce.space import derived_rng
from trainonce.tflite.arena import Operator, Operators, operators_of, planned_bytes
from trainonce.tflite.file import to_tflite
from trainonce.tflite.graph import Graph, graph_in
from trainonce.tflite.int8 import in_int8

pytest.importorskip("onnx")
MakeNet = Callable[..., MobileNetV3]
MICRO = {"numbers": "int8", "target": "tflite-micro"}


def families(make_net: MakeNet) -> dict[str, Supernet]:
    sizes: dict[str, Any] = {"num_classes": 3, "in_channels": 1, "resolutions": (16,)}
    resnet = ResNetSettings.parse({**sizes, "channels": (32, 64), "strides": (1, 2)}, where="here")
    proxyless = {**sizes, "width_mult": 0.25, "depths": (1, 2), "strides": (1, 2, 1, 1, 1, 1), "stem_stride": 1}
    return {
        "mobilenet": make_net(resolutions=(16,)),
        "resnet": ResNet(resnet, seed=0),
        "proxyless": ProxylessNAS(ProxylessNASSettings.parse(proxyless, where="here"), seed=0),
    }


def some(net: Supernet, count: int) -> list[PlainSpec]:
    rng = derived_rng("footprint")
    archs = [net.space.smallest(), net.space.largest(), *(net.space.sample(rng) for _ in range(count))]
    return [net.describe(arch) for arch in archs]


def graph_of(spec: PlainSpec) -> Graph:
    """The whole network at once, written as it is for measuring."""
    shape = (1, spec.in_channels, spec.resolution, spec.resolution)
    return graph_in(onnx_model(with_random_weights(sized_network(spec)), shape), shape)


def in_a_row(*sizes: int, more: dict[int, tuple[int, ...]]) -> Operators:
    """Operators that each read the map before, and those that `more` names; map 0 has the first size."""
    operators = [
        Operator(kind="ADD", reads=(number, *more.get(number + 1, ())), makes=number + 1, values=size)
        for number, size in enumerate(sizes[1:])
    ]
    return Operators(values=sizes[0], operators=tuple(operators), returned=len(operators))


class TestPlanning:
    def test_a_row_needs_its_two_largest_neighbours(self) -> None:
        assert planned_bytes(in_a_row(16, 64, 48, 16, more={})) == 64 + 48

    def test_a_map_that_is_read_later_stays(self) -> None:
        assert planned_bytes(in_a_row(16, 64, 48, 16, more={3: (1,)})) == 64 + 48 + 16

    def test_sizes_are_multiples_of_16(self) -> None:
        assert planned_bytes(in_a_row(1, 17, more={})) == 16 + 32

    def test_the_largest_is_placed_first_and_gaps_are_wasted(self) -> None:
        """Map 3 lies at 0, so 2, from which it is made, lies behind it; 1 fits below 2, and 0 only above it."""
        operators = in_a_row(64, 64, 64, 80, more={2: (0,)})
        live = 3 * 64
        assert planned_bytes(operators) == 80 + 64 + 64 > live


@pytest.mark.parametrize("family", ["mobilenet", "resnet", "proxyless"])
def test_parts_in_a_row_are_the_network(make_net: MakeNet, family: str) -> None:
    for spec in some(families(make_net)[family], 4):
        assert operators_in(spec) == operators_of(graph_of(spec))


def test_what_is_not_counted_is_what_the_weights_and_activations_take(make_net: MakeNet) -> None:
    net = make_net()
    spec = net.describe(net.space.largest())
    for target in (None, "onnx", "ncnn"):
        assert file_bytes(spec, target=target) == model_size(spec)
        assert ram_bytes(spec, target=target) == peak_memory(spec)
    assert ram_bytes(spec, numbers="int8", target="onnx-int8") == peak_memory(spec, bytes_per_value=1)
    other = SmallResNet(SmallSettings(num_classes=3, blocks=2), seed=0)
    small = other.describe(other.space.largest())
    assert operators_in(small) is None
    assert file_bytes(small, **MICRO) == model_size(small, bytes_per_value=1)
    assert ram_bytes(small, **MICRO) == peak_memory(small, bytes_per_value=1)


def test_a_search_is_called_by_what_is_counted(make_net: MakeNet) -> None:
    net = make_net()
    micro = problem_of(net, {"memory": "50KB", "size": "1MB"}, None, target="tflite-micro")
    assert micro.to_json()["target"] == "tflite-micro"
    assert micro.to_json()["numbers"] == "int8"
    arch = net.space.smallest()
    assert micro.values(arch) == {
        "memory": ram_bytes(net.describe(arch), **MICRO),
        "size": file_bytes(net.describe(arch), **MICRO),
    }
    assert "target" not in problem_of(net, {"memory": "50KB"}, None, target="onnx-int8").to_json()
    assert "target" not in problem_of(net, {"size": "1MB"}, None, target="ncnn").to_json()


def int8_file(graph: Graph, schema: Any) -> bytes:
    ranges = dict.fromkeys([graph.given, *(node.output for node in graph.nodes)], RANGE)
    made = in_int8(graph, ranges, in_float=lambda _: False, ends="INT8")
    return to_tflite(made, schema, named=False)


@pytest.mark.export
@pytest.mark.parametrize("family", ["mobilenet", "resnet", "proxyless"])
def test_tflite_micro_plans_and_takes_what_was_said(make_net: MakeNet, family: str) -> None:
    pytest.importorskip("tflite_micro")
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

    from trainonce.export.tflite_micro import _interpreter, arena_of
    from trainonce.export.tools import printed

    for spec in some(families(make_net)[family], 10):
        content = int8_file(graph_of(spec), schema)
        planned = re.search(r"Arena allocation head (\d+) bytes", printed(_interpreter(content, "x").print_allocations))
        assert planned is not None
        network = operators_in(spec)
        assert network is not None
        assert planned_bytes(network) == int(planned[1])
        assert ram_bytes(spec, **MICRO) == pytest.approx(arena_of(content), rel=0.01)
        assert file_bytes(spec, **MICRO) == pytest.approx(len(content), rel=0.01)


@pytest.mark.export
@pytest.mark.parametrize("family", ["mobilenet", "resnet"])
def test_a_file_of_onnx_or_openvino_takes_what_was_said(make_net: MakeNet, family: str) -> None:
    """As it is exported; the networks are small, and with them what little a network differs from others counts."""
    from trainonce.export.description import FileDescription
    from trainonce.export.int8 import quantise
    from trainonce.export.onnx import to_onnx
    from trainonce.export.openvino import write_openvino
    from trainonce.nn.kinds import written

    pytest.importorskip("openvino")
    net = families(make_net)[family]
    spec = net.describe(net.space.largest())
    network = with_random_weights(sized_network(spec))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.ndim == 1:  # biases that are all zero would stand in the file once
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    how = {"resolution": 16, "channels": 1, "layout": "NCHW", "mean": [0.5], "std": [0.2]}
    values = {"architecture": "a" * 300, "classes": ["one", "two", "three"], "preprocessing": how}
    described = FileDescription.parse(
        {**values, "network": written(spec), "weights_sha256": "0" * 64}, where="this test"
    )
    content = to_onnx(network, described)
    images = torch.from_numpy(bench.numbers((2, 1, 16, 16)))
    int8 = quantise(content, [images], in_float32=lambda _: False)
    files = {
        "onnx-int8": [int8],
        "openvino": write_openvino(content).files.values(),
        "openvino-int8": write_openvino(int8).files.values(),
    }
    for target, parts in files.items():
        numbers = "float32" if target == "openvino" else "int8"
        size = sum(map(len, parts))
        assert file_bytes(spec, numbers=numbers, target=target) == pytest.approx(size, rel=0.05), target
        before = model_size(spec, bytes_per_value=BYTES_PER_VALUE[numbers])
        assert before < 0.93 * size, "what it was said to be before"
