"""The search's section: what front.json holds, side by side, and refusals of what it cannot hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainonce.data import DataSet
from trainonce.errors import UserError
from trainonce.models import MobileNetV3
from trainonce.recipes import RECIPES
from trainonce.records import to_json
from trainonce.report.figures.search import draw_search, points_of, search_info
from trainonce.report.loading import read_groups
from trainonce.report.sections.search import search_section
from trainonce.run.directory import RunConfig, RunDirectory
from trainonce.search.recorded import RecordedFront


def entry(arch: str, top1: float, macs: float, latency: float, *, known: bool = False) -> dict[str, Any]:
    measures = {"latency": latency, "macs": macs}
    return {"arch": arch, "top1": top1, "macs": macs, "params": 5e5, "measures": measures, "known": known}


def side(count: int, volume: float, *front: dict[str, Any]) -> dict[str, Any]:
    return {"evaluations": count, "hypervolume": volume, "front": list(front), "best": front[0]}


PREDICTOR = {
    "subnets": 60,
    "model": "ridge, alpha 1",
    "held_out": None,
    "mean_alone": 2.5,
    "macs_alone_tau": 0.5,
    "used": True,
    "why": "it is good, so it is used",
}
FOUND = {
    "format": "trainonce-front-1",
    "split": "validate",
    "images": 180,
    "recorded": 60,
    "minimised": ["latency"],
    "limits": {"macs": 2e6, "latency": 5.0},
    "search": side(40, 0.75, entry("d2.k3e6", 91.5, 1.9e6, 4.5), entry("d1.k3e3", 88.0, 0.9e6, 2.5, known=True)),
    "control": side(40, 0.5, entry("d2.k5e3", 90.25, 1.8e6, 4.75)),
    "rounds": [{"scored": 40, "predictor": PREDICTOR}],
    "test": {"arch": "d2.k3e6", "top1": 90.5, "loss": 0.4, "images": 359},
}

SIDE: dict[str, Any] = {"evaluations": 1, "hypervolume": 0.5}


@pytest.fixture
def run(make_net: Callable[..., MobileNetV3], make_data: Callable[..., DataSet], tmp_path: Path) -> RunDirectory:
    net, data, run = make_net(), make_data(), RunDirectory(tmp_path / "my run")
    run.create(
        RunConfig(
            data=data.source,
            data_fingerprint=data.fingerprint(),
            family=net.family,
            model=net.settings.model_dump(mode="json"),
            recipe=RECIPES["rss"],
        )
    )
    run.write_front(RecordedFront.read(FOUND, where="a test"))
    return run


def test_the_section_says_what_both_found(run: RunDirectory) -> None:
    [group] = read_groups([run.path])
    [figure] = search_section(group).figures
    assert figure.title == (
        "Within 2 M MACs and 5 ms, search found 91.50% with 40 true scores; random search found 90.25% with 40, and "
        "its front fills 0.500 of the box around all that was scored, against 0.750."
    )
    for said in ("60 scores recorded before", "chosen one has 90.50%", "predictor: it is good, so it is used"):
        assert said in figure.caption
    [table] = figure.tables
    assert [row[:6] for row in table.rows] == [
        ["search", 91.5, 1.9, 0.5, 4.5, "no"],
        ["search", 88.0, 0.9, 0.5, 2.5, "yes"],
        ["random search", 90.25, 1.8, 0.5, 4.75, "no"],
    ]
    assert table.columns[:5] == ["found by", "top-1, %", "M MACs", "M params", "ms"]
    assert len(figure.summary) > 20


def test_the_chart_is_valid_and_has_each_subnet_and_the_limit(run: RunDirectory) -> None:
    [info] = search_info(read_groups([run.path])[0].runs)
    assert [(row["arm"], row["x"], row["top1"]) for row in points_of(info)] == [
        ("search", 4.5, 91.5),
        ("search", 2.5, 88.0),
        ("random search", 4.75, 90.25),
    ]
    spec = draw_search(info).to_dict()
    drawn = [spec["datasets"][layer["data"]["name"]] for layer in spec["layer"]]
    assert drawn[0] == [{"x": 5.0}]
    assert [len(rows) for rows in drawn[1:]] == [3, 3]


def test_without_a_search_or_a_control_there_is_less(run: RunDirectory) -> None:
    less = FOUND | {"control": None, "rounds": [], "test": None, "limits": {}}
    run.write_front(RecordedFront.read(less, where="a test"))
    [figure] = search_section(read_groups([run.path])[0]).figures
    assert figure.title == "Without a limit, search found 91.50% with 40 true scores."
    run.front_file.unlink()
    assert search_section(read_groups([run.path])[0]).figures == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "else"}, "is not what a search of this version writes"),
        ({"minimised": ["energy"]}, "name no resource"),
        ({"minimised": []}, "name no resource"),
        ({"limits": {"size": 5.0}}, "search: the subnet d2.k3e6 lacks its size"),
        ({"limits": {"macs": "much"}}, "front.json: limits: its 'macs' is missing or of another kind"),
        ({"search": SIDE | {"front": []}}, "front.json: search: its 'front' is empty"),
        (
            {"search": SIDE | {"front": [{"arch": 3}]}},
            "json: search, front 1: its 'arch' is missing",
        ),
        ({"rounds": [{"scored": 40, "predictor": {}}]}, "json: rounds 1, predictor: its 'subnets' is missing"),
        ({"control": [1]}, "'control' is missing or of another kind"),
        ({"images": None}, "'images' is missing"),
    ],
)
def test_a_damaged_front_is_refused(run: RunDirectory, change: dict[str, Any], says: str) -> None:
    run.front_file.write_bytes(to_json(FOUND | change))
    with pytest.raises(UserError, match=says):
        read_groups([run.path])
