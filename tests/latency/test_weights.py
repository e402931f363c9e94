"""Tables of a person's own network: what its weights take, found from whole subnets alone."""

import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.own_networks import Attention, Inverted, Residual

from trainonce.errors import UserError
from trainonce.latency import BuildSettings, LatencyTable, bench, build_table, check_table, pack_bench, unpack_table
from trainonce.latency.bench import measure_folder, time_ms
from trainonce.latency.parts import amounts_of, part_names, representatives
from trainonce.models.traced import Traced, elastic
from trainonce.nn.kinds import spec_of
from trainonce.nn.plain_graph import GraphSpec
from trainonce.search.resources import resource_named
from trainonce.space import derived_rng, derived_seed

FEW = BuildSettings(networks=40, held_out=10, rounds=1)
FINE: dict[str, Any] = {"widths": (15, 25, 35, 50, 65, 75, 85), "multiple": 4}


def supernet(hidden: tuple[int, ...] = (32, 64, 64, 96), **fields: Any) -> Traced:
    torch.manual_seed(0)
    return elastic(Residual(hidden=hidden).eval(), torch.zeros(1, 1, 8, 8), **fields)


class WeighingMachine:
    """A runtime and clock where each weight takes `per_number` of what is used of it, and a little for being there."""

    def __init__(self, per_number: Callable[[str], float] = lambda name: 1e-3) -> None:
        self.now, self.per_number = 0.0, per_number
        self.timer = partial(time_ms, clock=lambda: self.now)

    def ms(self, spec: GraphSpec) -> float:
        weights = [tensor for tensor in spec.tensors if tensor.learned and len(tensor.shape) > 1]
        return sum(0.1 + self.per_number(tensor.name) * math.prod(tensor.shape) for tensor in weights)

    def prepare(self, module: Any, shape: tuple[int, ...]) -> Callable[[], None]:
        spec = spec_of(module)
        assert isinstance(spec, GraphSpec)
        assert shape[1:] == (1, spec.resolution, spec.resolution)

        def call() -> None:
            self.now += 1e-3 * self.ms(spec)

        return call


def build(net: Traced, machine: WeighingMachine, settings: BuildSettings = FEW) -> LatencyTable:
    return build_table(net, settings, prepare=machine.prepare, timer=machine.timer)


def unlike(name: str) -> float:
    """What a number of a weight takes, from one to five parts, by the weight."""
    return 1e-3 * (1 + 4 * random.Random(derived_seed(name)).random())


def unseen(net: Traced) -> list[GraphSpec]:
    rng = derived_rng("unseen")
    archs = (net.space.smallest(), net.space.largest(), *(net.space.sample(rng) for _ in range(6)))
    return [net.describe(arch) for arch in archs]


def test_what_each_weight_takes_is_found_from_whole_networks(tmp_path: Path) -> None:
    net, machine = supernet(stages=True), WeighingMachine(unlike)
    table = build(net, machine)
    assert table.error.mean < 0.01
    assert table.error.spearman == pytest.approx(1, abs=0.02)
    for spec in unseen(net):
        assert table.predict_ms(spec) == pytest.approx(machine.ms(spec), rel=0.05)
    assert {part.name for part in table.parts} == set(part_names(net.describe(net.space.largest())))
    assert all(part.alone_ms is None and part.most is not None for part in table.parts)
    table.write(tmp_path / "table.json")
    assert LatencyTable.read(tmp_path / "table.json") == table
    resource_named("latency", net, latency_table=tmp_path / "table.json").of(net.space.smallest())


def test_few_networks_are_enough_where_a_kind_of_work_takes_the_same_everywhere() -> None:
    net, machine = supernet(stages=True), WeighingMachine()
    table = build(net, machine, BuildSettings(networks=12, held_out=10, rounds=1))
    assert table.error.mean < 0.02
    assert len(table.parts) > 12  # there are more parts than networks


def test_every_resolution_has_parts_of_its_own() -> None:
    net, machine = supernet(resolutions=(6,)), WeighingMachine(unlike)
    table = build(net, machine)
    assert table.resolutions == (6, 8)
    assert {spec.resolution for spec in representatives(net).values()} == {6, 8}
    for spec in unseen(net):
        assert table.predict_ms(spec) == pytest.approx(machine.ms(spec), rel=0.05)


def test_amounts_are_those_of_the_weights() -> None:
    net = supernet()
    spec = net.describe(net.space.smallest())
    amounts = amounts_of(spec)
    shapes = {tensor.name: tensor.shape for tensor in spec.tensors if tensor.learned and len(tensor.shape) > 1}
    assert len(amounts) == 3 * len(shapes)
    assert sum(amount for name, amount in amounts.items() if '"numbers"' in name) == sum(
        map(math.prod, shapes.values())
    )
    assert sum(amount for name, amount in amounts.items() if '"channels"' in name) == sum(s[0] for s in shapes.values())


def test_networks_of_another_space_are_refused() -> None:
    table = build(supernet(), WeighingMachine())
    for hidden, has_no in [
        ((32, 64, 64, 128), r"\d+ of numbers .*blocks.3"),
        ((32, 64, 64, 96, 96), "numbers .*blocks.4"),
    ]:
        other = supernet(hidden=hidden)
        with pytest.raises(UserError, match=f"of another space: it has no {has_no}"):
            table.predict_ms(other.describe(other.space.largest()))
    small = elastic(Residual(hidden=(32, 64, 64, 96)).eval(), torch.zeros(1, 1, 6, 6))
    with pytest.raises(UserError, match="resolution 6"):
        table.predict_ms(small.describe(small.space.largest()))


REAL = [pytest.param(name, marks=pytest.mark.export) for name in ("openvino", "litert", "litert-int8", "ncnn")]


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", *REAL])
def test_a_real_table(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything real, with few turns, and no network by way of torch's exporter."""
    for package in [] if runtime == "torch" else ["onnx", bench.RUNTIMES[runtime][1].replace("-", "_")]:
        pytest.importorskip(package)
    monkeypatch.delattr("trainonce.nn.onnx_graph._exported")
    net = elastic(Inverted().eval(), torch.zeros(1, 1, 8, 8), stages=True, **FINE)
    table = build_table(net, BuildSettings(runtime=runtime, networks=10, held_out=5, rounds=1))
    assert all(table.predict_ms(spec) > 0 for spec in unseen(net))
    assert check_table(table, net, networks=3, rounds=1).error.networks == 3


def test_another_machine_makes_the_same_table(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    net = elastic(Attention(hidden=96).eval(), torch.zeros(1, 1, 8, 8), stages=True, **FINE)
    pack_bench(net, BuildSettings(networks=10, held_out=5, rounds=1), tmp_path / "folder")
    measure_folder(tmp_path / "folder")
    table = unpack_table(tmp_path / "folder", net)
    assert {part.name for part in table.parts} == set(representatives(net))
    assert all(table.predict_ms(spec) > 0 for spec in unseen(net))
