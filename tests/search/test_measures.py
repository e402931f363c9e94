"""Measures: what a person writes as a limit, and costs against what they are of."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import save

from trainonce.errors import UserError
from trainonce.models import MobileNetV3
from trainonce.run import RunDirectory
from trainonce.search import Limit, measure_named, quantity
from trainonce.search.measures import NAMES, table_at
from trainonce.space import derived_rng


@pytest.fixture(scope="module")
def net(make_net: Callable[..., MobileNetV3]) -> MobileNetV3:
    return make_net().eval()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("macs", "10", 10e6),
        ("macs", "1.5M", 1.5e6),
        ("macs", "0.9G", 0.9e9),
        ("params", " 800 k ", 800e3),
        ("params", "0", 0),
        ("latency", "5ms", 5),
        ("latency", ".5", 0.5),
        ("latency", "0.25 s", 250),
        ("latency", "800us", 0.8),
        ("memory", "500kB", 500e3),
        ("memory", "2MiB", 2 * 1024**2),
        ("size", "10", 10e6),
    ],
)
def test_quantities(name: str, text: str, value: float) -> None:
    assert quantity(name, text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("latency", "5 parsecs"), ("macs", "-1"), ("macs", "nan"), ("size", ""), ("params", "3ms"), ("macs", "9" * 30)],
)
def test_what_is_no_quantity(name: str, text: str) -> None:
    with pytest.raises(UserError, match=f"--max-{name} takes a number and its unit, such as"):
        quantity(name, text)


def test_counts_are_those_of_the_extracted_network(net: MobileNetV3) -> None:
    for arch in (net.space.smallest(), net.space.sample(derived_rng(0)), net.space.largest()):
        plain = net.extract(arch)
        assert measure_named("params", net).of(arch) == sum(p.numel() for p in plain.parameters())
        assert measure_named("macs", net).of(arch) == net.cost_of(arch).macs
        state = {name: tensor.contiguous() for name, tensor in plain.state_dict().items()}
        assert measure_named("size", net).of(arch) == len(save(state)), "to the byte"


def test_a_violation_is_a_part_of_the_limit(net: MobileNetV3) -> None:
    macs, arch = measure_named("macs", net), net.space.smallest()
    value = macs.of(arch)
    assert Limit(measure=macs, most=value).violation(arch) == 0
    assert Limit(measure=macs, most=value / 2).violation(arch) == pytest.approx(1)
    assert Limit(measure=macs, most=2 * value).violation(arch) == pytest.approx(-0.5)
    assert Limit(measure=macs, most=0).violation(arch) > 0


def of_blocks(_path: Path) -> Any:
    """A table by which every block takes half a millisecond."""
    return SimpleNamespace(predict_ms=lambda spec: 0.5 * len(spec.blocks))


def of_others(_path: Path) -> Any:
    def refuse(_spec: Any) -> float:
        raise UserError("no block like that")

    return SimpleNamespace(predict_ms=refuse)


def test_latency_and_memory_come_from_their_modules(net: MobileNetV3, monkeypatch: pytest.MonkeyPatch) -> None:
    table = SimpleNamespace(LatencyTable=SimpleNamespace(read=of_blocks))
    monkeypatch.setitem(sys.modules, "trainonce.latency", table)
    memory = SimpleNamespace(peak_memory=lambda spec: 4 * len(spec.blocks))
    monkeypatch.setitem(sys.modules, "trainonce.memory", memory)
    arch = net.space.smallest()
    blocks = len(net.describe(arch).blocks)
    assert measure_named("latency", net, latency_table=Path("x")).of(arch) == 0.5 * blocks
    assert measure_named("memory", net).of(arch) == 4 * blocks


def test_a_table_of_another_geometry_is_refused(net: MobileNetV3, monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(LatencyTable=SimpleNamespace(read=of_others))
    monkeypatch.setitem(sys.modules, "trainonce.latency", other)
    with pytest.raises(UserError, match=r"the latency table x\.json is not of this supernet: no block like that"):
        measure_named("latency", net, latency_table=Path("x.json"))


def test_what_is_no_measure_and_latency_without_a_table(net: MobileNetV3) -> None:
    with pytest.raises(UserError, match=f"no measure 'energy'; the measures are {', '.join(NAMES)}"):
        measure_named("energy", net)
    with pytest.raises(UserError, match="trainonce latency build"):
        measure_named("latency", net)


def test_where_tables_are(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert table_at(run, None) is None
    run.latency.mkdir()
    one, other = run.latency / "phone.json", tmp_path / "board.json"
    one.write_text("{}")
    other.write_text("{}")
    assert table_at(run, None) == one, "the only one"
    assert table_at(run, "phone") == one
    assert table_at(run, str(other)) == other
    with pytest.raises(UserError, match=r"no latency table watch .*has phone"):
        table_at(run, "watch")
    (run.latency / "laptop.json").write_text("{}")
    assert table_at(run, None) is None, "one of several must be named"
