"""Resources: what a person writes as a limit, and costs against what they are of."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.support.latency_tables import table_with

from trainonce.cost.memory import model_size, peak_memory
from trainonce.errors import UserError
from trainonce.latency import LatencyTable
from trainonce.latency.parts import part_names
from trainonce.models import MobileNetV3
from trainonce.run.directory import RunDirectory
from trainonce.search import Limit, Problem, Resource, feasible_subnet, quantity, resource_named
from trainonce.search.resources import NAMES, table_at
from trainonce.space import Architecture, derived_rng


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
    with pytest.raises(UserError, match=f"--max-{name} takes a positive number, perhaps with a unit, such as"):
        quantity(name, text)


@pytest.mark.parametrize("written", ["123456", "2500000", "123456789", "1000000000000", "999999999999999"])
def test_what_a_refused_count_is_told_to_say_is_that_count(written: str) -> None:
    with pytest.raises(UserError, match="in millions where no unit is given") as refused:
        quantity("macs", written)
    said = str(refused.value).partition(" Say ")[2].partition(" for ")[0]
    assert quantity("macs", said) == float(written)


def test_a_number_is_read_as_if_it_were_written() -> None:
    """Whatever arithmetic gave it, and of whatever type it is."""
    for number in (25 / 12, 0.1 + 0.2, 1e-5, 10.0, float(np.float32(0.3))):
        assert quantity("macs", number) == pytest.approx(1e6 * float(number))
    for number in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="takes a positive number"):
            quantity("macs", number)


def test_counts_are_those_of_the_extracted_network(net: MobileNetV3) -> None:
    for arch in (net.space.smallest(), net.space.sample(derived_rng(0)), net.space.largest()):
        plain = net.extract(arch)
        assert resource_named("params", net).of(arch) == sum(p.numel() for p in plain.parameters())
        assert resource_named("macs", net).of(arch) == net.cost_of(arch).macs
        assert resource_named("memory", net).of(arch) == peak_memory(plain.spec)
        assert resource_named("size", net).of(arch) == model_size(plain.spec)


def test_a_violation_is_a_part_of_the_limit(net: MobileNetV3) -> None:
    macs, arch = resource_named("macs", net), net.space.smallest()
    value = macs.of(arch)
    assert Limit(resource=macs, most=value).violation(arch) == 0
    assert Limit(resource=macs, most=value / 2).violation(arch) == pytest.approx(1)
    assert Limit(resource=macs, most=2 * value).violation(arch) == pytest.approx(-0.5)
    assert Limit(resource=macs, most=0).violation(arch) > 0


def table_of(net: MobileNetV3, *archs: Architecture) -> LatencyTable:
    """A table of the parts of these subnets, which take 1, 2, 3, … ms."""
    parts = dict.fromkeys(part for arch in archs for part in part_names(net.describe(arch)))
    return table_with({part: 1.0 + i for i, part in enumerate(parts)})


def test_latency_is_what_the_table_predicts(net: MobileNetV3, tmp_path: Path) -> None:
    arch = net.space.largest()
    table = table_of(net, arch, net.space.smallest())
    table.write(tmp_path / "table.json")
    assert resource_named("latency", net, latency_table=tmp_path / "table.json").of(arch) == table.predict_ms(
        net.describe(arch)
    )


def test_a_table_of_another_geometry_is_refused(net: MobileNetV3, tmp_path: Path) -> None:
    table_of(net, net.space.smallest()).write(tmp_path / "x.json")
    with pytest.raises(UserError, match=r"the latency table .*x\.json is not of this supernet: "):
        resource_named("latency", net, latency_table=tmp_path / "x.json")


def test_a_table_of_several_images_is_refused(net: MobileNetV3, tmp_path: Path) -> None:
    """A limit is on one image; half of what two take together is another time."""
    table = table_of(net, net.space.smallest(), net.space.largest())
    table.model_copy(update={"batch": 2}).write(tmp_path / "x.json")
    with pytest.raises(UserError, match=r"table .*x\.json is of 2 images in a call.*make one with --batch 1"):
        resource_named("latency", net, latency_table=tmp_path / "x.json")


def test_a_measure_of_ones_own_says_its_name(net: MobileNetV3) -> None:
    """Also where no subnet keeps its limit, which is when a sentence needs it."""
    depth = Resource(name="depth", of=lambda arch: float(sum(arch[name] for name in arch if name.endswith("depth"))))
    problem = Problem(cost=net.cost, limits=(Limit(resource=depth, most=1.5),), minimised=(depth,))
    with pytest.raises(UserError, match=r"has at most 1\.5 depth; the smallest has 5 depth"):
        feasible_subnet(problem)


def test_what_is_no_measure_and_latency_without_a_table(net: MobileNetV3) -> None:
    with pytest.raises(UserError, match=f"no resource 'energy'; the resources are {', '.join(NAMES)}"):
        resource_named("energy", net)
    with pytest.raises(UserError, match="trainonce latency build"):
        resource_named("latency", net)


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
    assert table_at(run, None) is None, "none is needed"
    with pytest.raises(UserError, match=r"/latency has laptop, phone: say which with --latency"):
        table_at(run, None, needed=True)


def test_memory_and_size_are_counted_in_the_targets_numbers(net: MobileNetV3) -> None:
    arch = net.space.largest()
    plain = net.extract(arch)
    narrow = {name: resource_named(name, net, numbers="int8") for name in ("memory", "size", "macs")}
    assert narrow["memory"].of(arch) * 4 == peak_memory(plain.spec)
    matrices = sum(tensor.numel() for tensor in plain.state_dict().values() if tensor.dim() > 1)
    saved = model_size(plain.spec) - narrow["size"].of(arch)
    assert abs(saved - 3 * matrices) < 1000, "but for the digits of offsets in the header"
    assert narrow["size"].text(512_000) == "0.512 MB file in int8"
    assert narrow["macs"].text(1e6) == "1 M MACs"


def test_a_search_in_other_numbers_is_another_search(net: MobileNetV3) -> None:
    problems = [
        Problem(cost=net.cost, limits=(Limit(resource=resource_named("size", net, numbers=numbers), most=1e6),))
        for numbers in ("float32", "int8")
    ]
    assert problems[0].to_json() == {"limits": {"size": 1e6}, "minimised": []}, "as it was before there were others"
    assert problems[1].to_json() == {"limits": {"size": 1e6}, "numbers": "int8", "minimised": []}
