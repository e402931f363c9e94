"""The cache of scores: each is made once and shared by searches; a search that was killed ends as one that was not."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainonce.errors import UserError
from trainonce.evaluation.evaluator import EvaluateSettings
from trainonce.evaluation.population import draw_population, evaluate_population, make_buckets
from trainonce.models import MobileNetV3
from trainonce.records import read_lines, write_lines
from trainonce.run.directory import RunDirectory
from trainonce.search import (
    Problem,
    Resource,
    ScoreCache,
    SearchResult,
    SearchSettings,
    SearchStopped,
    search,
    search_result,
    start_of,
)

SETTINGS = SearchSettings(scores=12, rounds=2, predictor=False, population=8)
PLAN = {"settings": SETTINGS.model_dump()}
STEP = 7


@pytest.fixture(scope="module")
def net(make_net: Callable[..., MobileNetV3]) -> MobileNetV3:
    return make_net()


@pytest.fixture
def populated(net: MobileNetV3, made_up: Callable[..., Any], tmp_path: Path) -> RunDirectory:
    """A run with a population of twelve."""
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    drawn = draw_population(net.cost, make_buckets(net.cost), 2, seed=0)
    evaluate_population(net, STEP, made_up(), run, (arch for _, arch in drawn))
    return run


def look(
    net: MobileNetV3,
    run: RunDirectory,
    evaluator: Any,
    *,
    stop_after: int | None = None,
    plan: dict[str, Any] = PLAN,
    settings: SearchSettings = SETTINGS,
) -> tuple[SearchResult, ScoreCache]:
    """What `trainonce search` does; stopped after so many scores made."""
    macs = Resource(name="macs", of=lambda arch: net.cost(arch).macs)
    problem = Problem(cost=net.cost, minimised=(macs,))
    start = start_of(run, evaluator, STEP, net.space, plan)
    cache = ScoreCache(
        run, net, STEP, evaluator, start, should_stop=lambda: stop_after is not None and cache.made >= stop_after
    )
    return search_result(problem, start.scores, search(problem, start.scores, cache, settings)), cache


def test_scores_are_recorded_beside_the_population(
    net: MobileNetV3, populated: RunDirectory, made_up: Callable[..., Any]
) -> None:
    before = populated.population_file.read_bytes()
    evaluator = made_up()
    result, cache = look(net, populated, evaluator)
    assert populated.population_file.read_bytes() == before, "the population's picture stays unbiased"
    lines = populated.searched()
    assert len(lines) == cache.made == len(evaluator.asked) == len({line.arch for line in lines}) <= 24
    assert cache.asked == 24
    assert result.recorded == 12
    assert {line.arch for line in lines}.isdisjoint(line.arch for line in populated.population())
    for line in lines:
        arch = net.space.parse(line.arch)
        assert (line.macs, line.params) == (net.cost_of(arch).macs, net.cost_of(arch).params)
        assert line.top1 == made_up()(net, arch).top1
        assert line.to_json().keys() == {*populated.population()[0].to_json(), "search", "knew"}
        assert line.knew == [12, 0]


def test_a_second_search_makes_nothing(net: MobileNetV3, populated: RunDirectory, made_up: Callable[..., Any]) -> None:
    first, _ = look(net, populated, made_up())
    before = populated.search_file.read_bytes()
    evaluator = made_up()
    second, cache = look(net, populated, evaluator)
    assert (evaluator.asked, cache.made) == ([], 0)
    assert populated.search_file.read_bytes() == before
    assert second == first


@pytest.mark.parametrize("after", [1, 5, 15])
def test_killed_and_run_again_it_ends_the_same(
    net: MobileNetV3, populated: RunDirectory, made_up: Callable[..., Any], tmp_path: Path, after: int
) -> None:
    """Killed, in the middle of a line; another search works in between; then the same again."""
    whole = RunDirectory(shutil.copytree(populated.path, tmp_path / "whole"))
    expected, _ = look(net, whole, made_up())
    with pytest.raises(SearchStopped):
        look(net, populated, made_up(), stop_after=after)
    content = populated.search_file.read_bytes()
    write_lines(populated.search_file, read_lines(populated.search_file)[:-1])
    with populated.search_file.open("ab") as file:
        file.write(content[populated.search_file.stat().st_size : -10])
    other = SETTINGS.model_copy(update={"seed": 5, "scores": 3})
    if after > 1:  # of the first line nothing is left, so that nothing says that a search began
        look(net, populated, made_up(), plan={"settings": other.model_dump()}, settings=other)
    found, _ = look(net, populated, made_up())
    assert found == expected
    lines = [line.arch for line in populated.searched()]
    assert len(lines) == len(set(lines)), "nothing is made twice"


def test_what_was_scored_anew_meanwhile_does_not_count(
    net: MobileNetV3, populated: RunDirectory, made_up: Callable[..., Any], tmp_path: Path
) -> None:
    """Between the kill and the same search again a population gets other scores of subnets that the search has seen."""
    whole = RunDirectory(shutil.copytree(populated.path, tmp_path / "whole"))
    expected, _ = look(net, whole, made_up())
    with pytest.raises(SearchStopped):
        look(net, populated, made_up(), stop_after=5)
    for line in (*populated.population(), *populated.searched()):
        populated.append_population(line.model_copy(update={"top1": 100.0}))
    found, _ = look(net, populated, made_up())
    assert found == expected


def test_another_search_knows_what_the_first_scored(
    net: MobileNetV3, populated: RunDirectory, made_up: Callable[..., Any]
) -> None:
    _, first = look(net, populated, made_up())
    other = SETTINGS.model_copy(update={"seed": 1})
    result, _ = look(net, populated, made_up(), plan={"settings": other.model_dump()}, settings=other)
    assert result.recorded == 12 + first.made


def test_scores_made_otherwise_do_not_count(
    net: MobileNetV3, populated: RunDirectory, made_up: Callable[..., Any]
) -> None:
    other = made_up(settings=EvaluateSettings(calibration_images=9))
    result, cache = look(net, populated, other)
    assert result.recorded == 0
    assert cache.made == len(other.asked) > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"arch": "d9"}, "a score of a subnet that its supernet does not have: architecture 'd9'"),
        ({"top1": None}, r"search\.jsonl, line 1: its 'top1' is missing"),
        ({"knew": "all"}, r"search\.jsonl, line 1: its 'knew' is missing or of another kind"),
        ({"knew": [1, -1]}, r"its 'knew' is missing or of another kind"),
    ],
)
def test_damaged_lines_are_refused(
    net: MobileNetV3, populated: RunDirectory, made_up: Callable[..., Any], change: dict[str, Any], says: str
) -> None:
    with pytest.raises(SearchStopped):
        look(net, populated, made_up(), stop_after=1)
    [line] = read_lines(populated.search_file)[:1]
    write_lines(populated.search_file, [line | change])
    with pytest.raises(UserError, match=says):
        look(net, populated, made_up())
