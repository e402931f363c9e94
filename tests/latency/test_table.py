"""The file of a table: whole round trips; damaged, foreign and other versions are sentences."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainonce.errors import RunError, UserError
from trainonce.latency import LatencyTable, PredictionError
from trainonce.latency.parts import part_names
from trainonce.latency.table import PartTime
from trainonce.models import MobileNetV3
from trainonce.nn.plain import NetworkSpec


@pytest.fixture(scope="module")
def spec(make_net: Callable[..., MobileNetV3]) -> NetworkSpec:
    net = make_net()
    return net.describe(net.space.largest())


@pytest.fixture(scope="module")
def table(spec: NetworkSpec) -> LatencyTable:
    """A table of one network's parts, which take 1, 2, 4, … ms in their order."""
    names = dict.fromkeys(part_names(spec))
    return LatencyTable(
        runtime="torch",
        threads=2,
        batch=1,
        resolutions=(8,),
        machine={"cpu": "a processor", "cores": 4, "system": "Linux"},
        versions={"torch": "2"},
        made="2026-01-01T00:00:00+00:00",
        settings={"rounds": 3},
        drift=(1.0, 1.0),
        error=PredictionError.of([1.0, 2.0, 3.0], [1.1, 2.0, 3.0]),
        repeat=PredictionError.of([1.0, 2.0, 3.0], [1.1, 2.0, 3.0]),
        parts=tuple(PartTime(part=json.loads(name), ms=2.0**i, alone_ms=1.0) for i, name in enumerate(names)),
    )


@pytest.fixture(scope="module")
def content(table: LatencyTable, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("table") / "new" / "table.json"
    table.write(path)
    return path.read_bytes()


def test_a_prediction_is_the_sum_of_the_parts(table: LatencyTable, spec: NetworkSpec) -> None:
    names = part_names(spec)
    order = list(dict.fromkeys(names))
    assert len(order) < len(names)  # the same block stands twice, and counts twice
    assert table.predict_ms(spec) == sum(2.0 ** order.index(name) for name in names)


def test_what_no_time_follows_from_does_not_matter(table: LatencyTable, spec: NetworkSpec) -> None:
    other = NetworkSpec.from_json({**spec.to_json(), "dropout": 0.7})
    assert table.predict_ms(other) == table.predict_ms(spec)


def test_round_trip(table: LatencyTable, content: bytes, spec: NetworkSpec, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.json"
    path.write_bytes(content)
    read = LatencyTable.read(path)
    assert read == table
    assert read.sha256 == table.sha256 == json.loads(content)["sha256"]
    assert read.predict_ms(spec) == table.predict_ms(spec)
    path.write_text(json.dumps(json.loads(content), separators=(",", ":")), encoding="utf-8")  # another layout
    assert LatencyTable.read(path) == table


def edited(content: bytes, **changes: Any) -> bytes:
    return json.dumps({**json.loads(content), **changes}).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "trainonce-latency-2"}, "is a latency table of another version .'trainonce-latency-2'"),
        ({"format": "trainonce-subnet-2"}, "is not a latency table: make one with `trainonce latency build`"),
        ({"format": 7}, "is not a latency table"),
        ({"threads": 3}, "is damaged"),
        ({"sha256": None}, "is damaged"),
        ({"sha256": "0" * 64}, "is damaged"),
    ],
)
def test_foreign_and_edited(content: bytes, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(edited(content, **change))
    with pytest.raises(UserError, match=message):
        LatencyTable.read(path)


def test_a_table_with_a_right_checksum_of_wrong_values_is_a_sentence(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainonce.latency.table._hash", lambda values: "right")
    path = tmp_path / "table.json"
    for change, message in [
        ({"threads": 0}, "threads: .*greater than or equal to 1"),
        ({"threads": 2000}, "threads: .*less than or equal to 1024"),
        ({"batch": 5000}, "batch: .*less than or equal to 4096"),
        ({"parts": []}, "parts: "),
        ({"parts": [{"part": {}, "ms": -1, "alone_ms": 0}]}, "ms: .*greater than or equal to 0"),
        ({"colour": "blue"}, "unknown key 'colour'"),
        ({"error": None}, "error: "),
    ]:
        path.write_bytes(edited(content, sha256="right", **change))  # type: ignore[arg-type]
        with pytest.raises(UserError, match=message):
            LatencyTable.read(path)


def test_no_file_no_object_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        LatencyTable.read(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot read"):
        LatencyTable.read(tmp_path)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="holds a JSON list"):
        LatencyTable.read(tmp_path / "list.json")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damage_is_a_sentence_or_changes_nothing(
    data: st.DataObject,
    damaged: Callable[[bytes], st.SearchStrategy[bytes]],
    content: bytes,
    table: LatencyTable,
    tmp_path: Path,
) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(data.draw(damaged(content)))
    said = ""
    try:
        read = LatencyTable.read(path)
    except UserError as error:
        said, read = str(error), table
    assert read == table
    assert not said or str(path) in said


def test_a_disk_that_refuses_is_a_sentence(table: LatencyTable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        table.write(tmp_path / "file" / "table.json")
