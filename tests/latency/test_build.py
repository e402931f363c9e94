"""Building a table on a machine whose times are known; resuming; the real thing on tiny networks."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.small_resnet import SmallResNet, SmallSettings

from trainonce.errors import UserError
from trainonce.latency import BuildSettings, LatencyTable, TableCheck, bench, build_table, check_table, table_seconds
from trainonce.latency.bench import time_ms
from trainonce.latency.build import make_plan
from trainonce.latency.fit import counted, part_times
from trainonce.latency.parts import PartModule, sized_network
from trainonce.models import MobileNetV3
from trainonce.nn.kinds import spec_of
from trainonce.records import append_line, read_lines, write_lines
from trainonce.space import derived_rng

MakeNet = Callable[..., MobileNetV3]
FEW = BuildSettings(networks=40, held_out=12, rounds=2)
SMALL: dict[str, Any] = {"depths": (1,), "expand_ratios": (3, 4)}
"""A space of 1024 subnets."""


def build(net: MobileNetV3, machine: Any, settings: BuildSettings = FEW, **more: Any) -> LatencyTable:
    return build_table(net, settings, prepare=machine.prepare, timer=machine.timer, **more)


def unseen(net: MobileNetV3) -> list[Any]:
    rng = derived_rng("unseen")
    return [
        net.describe(arch) for arch in (net.space.smallest(), net.space.largest(), *map(net.space.sample, [rng] * 4))
    ]


def test_times_that_add_up_are_recovered(make_net: MakeNet, known_machine: Any) -> None:
    net, machine = make_net(resolutions=(8, 12), expand_ratios=(3, 4)), known_machine()
    table = build(net, machine)
    for spec in unseen(net):
        assert table.predict_ms(spec) == pytest.approx(machine.network_ms(sized_network(spec)), rel=1e-4)
    assert table.error.mean < 1e-4
    assert table.error.networks == 12
    assert table.error.spearman == pytest.approx(1, abs=0.01)
    assert table.drift == pytest.approx((1, 1))
    assert table.resolutions == (8, 12)


def test_parts_alone_that_say_little_are_outvoted_by_networks(make_net: MakeNet, known_machine: Any) -> None:
    """Alone all parts take the same: what they take in a network shows in networks only."""
    net, machine = make_net(**SMALL), known_machine(alone=lambda ms: 0.2)
    table = build(net, machine, BuildSettings(networks=60, held_out=12, rounds=1))
    assert table.error.mean < 0.01
    took = [machine.network_ms(sized_network(spec)) for spec in unseen(net)]
    assert np.std(took) / np.mean(took) > 3 * table.error.mean  # predicting the same for all would not do


def test_what_the_machine_was_slower_is_taken_out(make_net: MakeNet, known_machine: Any) -> None:
    net = make_net(**SMALL)
    machine = known_machine()
    build(net, machine)
    half = machine.now / 2
    slowing = known_machine(pace=lambda now: 1.0 if now < half else 1.6)
    table = build(net, slowing)
    assert table.error.mean < 0.02
    assert table.error.scaled_mean < 0.015  # one group straddles the change
    assert table.drift[0] / table.drift[1] == pytest.approx(1.6, rel=0.01)


def test_the_error_is_that_of_the_networks_held_out(make_net: MakeNet, known_machine: Any) -> None:
    """A machine with a cost that no sum over parts has: the error reported is the one computed here."""
    net = make_net(**SMALL)

    class Uneven(known_machine):  # type: ignore[misc]
        def network_ms(self, network: Any) -> float:
            return float(super().network_ms(network) * (1 + 0.2 * random.Random(str(network.spec)).random()))

    machine = Uneven()
    table = build(net, machine)
    plan = make_plan(net, FEW)
    held_out = [spec for spec, held in zip(plan.networks, plan.held_out, strict=True) if held]
    fitted = [spec for spec, held in zip(plan.networks, plan.held_out, strict=True) if not held]
    assert len(held_out) == 12
    assert len(fitted) == 40
    assert not set(held_out) & set(fitted)
    measured = [machine.network_ms(sized_network(spec)) for spec in held_out]
    errors = [abs(table.predict_ms(spec) / ms - 1) for spec, ms in zip(held_out, measured, strict=True)]
    assert table.error.mean == pytest.approx(np.mean(errors), rel=1e-6)
    assert table.error.worst == pytest.approx(max(errors), rel=1e-6)
    assert table.error.mean > 0.01


def test_measuring_twice_says_how_well_measuring_repeats(make_net: MakeNet, known_machine: Any) -> None:
    """A machine on which a network takes up to a tenth more by how it was prepared, whatever the network."""
    net = make_net(**SMALL)
    rng = random.Random(0)

    class Moody(known_machine):  # type: ignore[misc]
        def network_ms(self, network: Any) -> float:
            return float(super().network_ms(network) * (1 + 0.1 * rng.random()))

    steady = build(net, known_machine())
    assert steady.repeat.networks == steady.error.networks == 12
    assert steady.repeat.worst < 1e-9
    # of two numbers that are even over a tenth, the difference is a thirtieth in the mean
    assert build(net, Moody()).repeat.mean == pytest.approx(0.1 / 3, rel=0.5)


def test_a_check_elsewhere_says_how_much_slower_it_is(make_net: MakeNet, known_machine: Any) -> None:
    net = make_net(**SMALL)
    table = build(net, known_machine())
    there = known_machine(pace=lambda now: 2.5)
    found = check_table(table, net, networks=8, rounds=1, prepare=there.prepare, timer=there.timer)
    error = found.error
    assert found.drift == pytest.approx((1, 1))
    assert error.factor == pytest.approx(2.5, rel=1e-3)
    assert error.mean == pytest.approx(1.5 / 2.5, rel=1e-3)
    assert error.scaled_mean < 1e-3
    assert error.networks == 8


def test_a_check_takes_out_what_the_machine_was_slower_meanwhile(make_net: MakeNet, known_machine: Any) -> None:
    """By the anchors that are in every group, as a table does; what is left is the factor between then and now."""
    net = make_net(**SMALL)
    table = build(net, known_machine())

    def checked(machine: Any) -> TableCheck:
        return check_table(table, net, networks=60, rounds=1, prepare=machine.prepare, timer=machine.timer)

    steady = known_machine()
    assert checked(steady).error.mean < 1e-3
    part = 0.7 * steady.now * 2  # at twice the table's pace all takes twice as long
    found = checked(known_machine(pace=lambda now: 2.0 if now < part else 3.2))
    assert found.error.factor == pytest.approx(2, rel=0.01)
    assert found.drift[0] / found.drift[1] == pytest.approx(1.6, rel=0.01)
    assert found.error.scaled_mean < 0.02  # one group straddles the change
    assert found.error.spearman == pytest.approx(1, abs=0.03)


def test_a_network_of_another_space_is_refused(make_net: MakeNet, known_machine: Any) -> None:
    table = build(make_net(**SMALL), known_machine())
    other = make_net(**SMALL, kernel_sizes=(3, 7))
    with pytest.raises(UserError, match=r"of another space: it has no block with .*kernel_size 7"):
        table.predict_ms(other.describe(other.space.largest()))
    with pytest.raises(UserError, match="it has no ends with"):
        table.predict_ms(make_net(**SMALL, num_classes=4).describe(make_net(**SMALL).space.smallest()))
    with pytest.raises(UserError, match="of another space"):
        check_table(table, other)


def test_too_few_subnets_are_refused(make_net: MakeNet, known_machine: Any) -> None:
    net = make_net(depths=(1,), kernel_sizes=(3,), expand_ratios=(3, 4))
    with pytest.raises(UserError, match="the space has 32 subnets, too few for a table"):
        build(net, known_machine())


def test_at_most_half_of_a_small_space_is_measured(make_net: MakeNet) -> None:
    net = make_net(depths=(1,), kernel_sizes=(3,))  # 243 subnets
    plan = make_plan(net, BuildSettings(networks=200, held_out=50))
    assert len(set(plan.networks) | set(plan.anchors)) == 121
    assert sum(plan.held_out) == 118 // 5


def test_a_check_measures_all_that_a_small_space_has_beside_the_table(make_net: MakeNet, known_machine: Any) -> None:
    """64 subnets, of which the table is made from half."""
    net = make_net(depths=(1,), kernel_sizes=(3,), expand_ratios=(3, 4), resolutions=(8, 12))
    settings = BuildSettings(rounds=1, seed=3)
    table = build(net, known_machine(), settings)
    seen = set[Any]()

    class Noting(known_machine):  # type: ignore[misc]
        def network_ms(self, network: Any) -> float:
            seen.add(network.spec)
            return float(super().network_ms(network))

    machine = Noting()
    found = check_table(table, net, networks=999, rounds=1, prepare=machine.prepare, timer=machine.timer)
    plan = make_plan(net, settings)
    assert found.error.networks == 32
    assert seen > set(plan.anchors), "they are measured beside the others"
    assert len(seen - set(plan.anchors)) == 32
    assert seen.isdisjoint(plan.networks)


def test_an_interrupted_measurement_goes_on(make_net: MakeNet, known_machine: Any, tmp_path: Path) -> None:
    net, whole, first, second = make_net(**SMALL), known_machine(), known_machine(), known_machine()
    expected = build(net, whole)
    partial = tmp_path / "deep" / "measured.jsonl"

    class Stopped(Exception):
        pass

    def stop(done: int, total: int, text: str) -> None:
        if done == 4:
            raise Stopped

    with pytest.raises(Stopped):
        build(net, first, partial_file=partial, on_progress=stop)
    seen: list[int] = []
    table = build(net, second, partial_file=partial, on_progress=lambda done, total, text: seen.append(done))
    assert seen[0] == 4
    assert second.prepared < whole.prepared - 20
    assert [entry.ms for entry in table.parts] == pytest.approx([entry.ms for entry in expected.parts])
    assert not partial.exists()


@pytest.mark.parametrize("change", [{"seed": 1}, {"threads": 2}, {"rounds": 1}])
def test_what_was_measured_otherwise_does_not_count(
    make_net: MakeNet, known_machine: Any, tmp_path: Path, change: dict[str, int]
) -> None:
    partial = tmp_path / "measured.jsonl"
    net, machine = make_net(**SMALL), known_machine()
    append_line(partial, {"plan": "of another"}, counted=False)
    append_line(partial, {"parts": {}}, counted=False)
    small = BuildSettings(networks=10, held_out=5, rounds=2)

    def stop(done: int, total: int, text: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(net, machine, small, partial_file=partial, on_progress=stop)
    assert len(partial.read_text().splitlines()) == 3
    seen: list[int] = []
    other = small.model_copy(update=change)
    build(net, machine, other, partial_file=partial, on_progress=lambda done, total, text: seen.append(done))
    assert seen[0] == 0


def test_a_damaged_log_is_a_sentence(make_net: MakeNet, known_machine: Any, tmp_path: Path) -> None:
    (tmp_path / "measured.jsonl").write_text("{}\nnonsense\n")
    with pytest.raises(UserError, match="line 2 is not JSON"):
        build(make_net(**SMALL), known_machine(), partial_file=tmp_path / "measured.jsonl")


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (1, {"parts": []}),
        (1, {"parts": 3}),
        (1, {}),
        (2, {"anchors": [1.0, 1.0, 1.0], "ms": [1.0]}),
        (2, {"anchors": [1.0, 1.0, 1.0], "ms": [0.0] * 12}),
        (2, {"anchors": [1.0, 1.0, "1"], "ms": [1.0] * 12}),
        (2, {"parts": [1.0]}),
        (2, {"number": 2, "anchors": [1.0, 1.0, 1.0], "ms": [1.0] * 12}),
    ],
)
def test_a_log_of_something_else_is_a_sentence(
    make_net: MakeNet, known_machine: Any, tmp_path: Path, number: int, line: dict[str, Any]
) -> None:
    net, path = make_net(**SMALL), tmp_path / "measured.jsonl"
    settings = BuildSettings(networks=12, held_out=5, rounds=1)

    def stop(done: int, total: int, text: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(net, known_machine(), settings, partial_file=path, on_progress=stop)
    lines = read_lines(path)
    assert len(lines) == 3
    lines[number] = {"number": number - 1, **line}
    write_lines(path, lines)
    with pytest.raises(UserError, match=f"measured.jsonl, line {number + 1} is damaged: delete the file"):
        build(net, known_machine(), settings, partial_file=path)


class TestFit:
    def test_two_parts_by_hand(self) -> None:
        """Networks a + b = 3, a + 2b = 5: a 1, b 2, whatever they took alone, once networks outweigh."""
        counts = np.array([[1.0, 1.0], [1.0, 2.0]] * 10)
        times = part_times(counts, np.array([3.0, 5.0] * 10), np.array([7.0, 7.0]), np.array([True, False]))
        assert times == pytest.approx([1, 2], rel=1e-3)

    def test_no_time_is_negative(self) -> None:
        rng = np.random.default_rng(0)
        counts = rng.integers(0, 3, (30, 8)).astype(float)
        counts[:, 0] = 1
        measured = 1 + rng.random(30)
        times = part_times(counts, measured, rng.random(8), np.arange(8) == 0)
        assert (times >= 0).all()

    def test_a_part_that_no_network_has_follows_from_the_line(self) -> None:
        """Five parts take three times what they take alone; so does the sixth, which no network to fit has."""
        rng = np.random.default_rng(1)
        alone = np.array([1.0, 1.0, 2.0, 3.0, 4.0, 5.0])
        counts = rng.integers(0, 3, (40, 6)).astype(float)
        counts[:, 0], counts[:, 5] = 1, 0
        times = part_times(counts, 3 * counts @ alone, alone, np.arange(6) == 0)
        assert times == pytest.approx(3 * alone, rel=1e-3)

    def test_counting(self) -> None:
        assert counted([{"x": 2, "y": 1}, {"z": 1}], ["x", "y", "z"]).tolist() == [[2, 1, 0], [0, 0, 1]]


EXTRA = [pytest.param(name, marks=pytest.mark.export) for name in ("openvino", "litert", "litert-int8", "ncnn")]


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", *EXTRA])
def test_a_real_table(make_net: MakeNet, runtime: str, tmp_path: Path) -> None:
    """Everything real, with few turns: what comes is a table; how good it is depends on the machine."""
    for package in [] if runtime == "torch" else ["onnx", bench.RUNTIMES[runtime][1].replace("-", "_")]:
        pytest.importorskip(package)
    net, batch = make_net(**SMALL), 1 if runtime in ("litert", "litert-int8", "ncnn") else 2
    settings = BuildSettings(runtime=runtime, networks=10, held_out=5, rounds=1, batch=batch)
    assert table_seconds(net, settings) > 0
    table = build_table(net, settings)
    table.write(tmp_path / "table.json")
    assert LatencyTable.read(tmp_path / "table.json") == table
    assert table.runtime == runtime
    assert (runtime if runtime == "torch" else bench.RUNTIMES[runtime][1]) in table.versions
    assert {entry.name for entry in table.parts} == set(make_plan(net, settings).parts)
    assert all(entry.alone_ms and entry.alone_ms > 0 for entry in table.parts)
    assert all(table.predict_ms(spec) > 0 for spec in unseen(net))
    assert check_table(table, net, networks=3, rounds=1).error.networks == 3


def test_networks_that_are_no_blocks_are_measured_whole() -> None:
    """Each takes what its channels say."""
    net, now = SmallResNet(SmallSettings(num_classes=3, blocks=5), seed=0), [0.0]

    def prepare(module: Any, shape: tuple[int, ...]) -> Callable[[], None]:
        network = module.module if isinstance(module, PartModule) else module
        assert shape[1:] == (3, 32, 32)
        ms = sum(spec_of(network).to_json()["widths"])

        def call() -> None:
            now[0] += 1e-3 * ms

        return call

    table = build_table(net, FEW, prepare=prepare, timer=partial(time_ms, clock=lambda: now[0]))
    for arch in net.space.architectures():
        assert table.predict_ms(net.describe(arch)) == pytest.approx(sum(arch.values()), rel=0.02)
