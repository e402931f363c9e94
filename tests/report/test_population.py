"""The population's figure: what it shows is what the lines say, and the file is the picture asked for."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.support.lines import a_score, a_scored

from trainonce.data import DataSet
from trainonce.errors import UserError
from trainonce.evaluation.population import PAPER_BUCKETS_M, Bucket, make_buckets
from trainonce.evaluation.population import draw_population as draw_subnets
from trainonce.models import MobileNetV3, build
from trainonce.recipes import RECIPES
from trainonce.report.figures.charts import save_chart
from trainonce.report.figures.population import (
    Lead,
    PopulationInfo,
    boxes,
    draw_pareto,
    draw_population,
    extract_command,
    points,
    population_info,
    population_of,
    readable,
    steps_of_fronts,
)
from trainonce.report.loading import PlottedScore, read_groups
from trainonce.report.sections.all import sections_of
from trainonce.report.sections.population import populations
from trainonce.run.directory import RunConfig, RunDirectory
from trainonce.settings import JsonObject

MakeRun = Callable[..., RunDirectory]


@pytest.fixture
def make_run(make_net: Callable[..., MobileNetV3], make_data: Callable[..., DataSet], tmp_path: Path) -> MakeRun:
    """A run that was scored but whose weights were not kept: top-1 rises with MACs, the same for each."""

    def make(
        name: str,
        *,
        recipe: str = "rss",
        data_seed: int = 0,
        steps: tuple[int, ...] = (7,),
        seed: int = 0,
        **fields: Any,
    ) -> RunDirectory:
        net, data = make_net(**fields), make_data(seed=data_seed)
        run = RunDirectory(tmp_path / name)
        run.create(
            RunConfig(
                seed=seed,
                data=data.source,
                data_fingerprint=data.fingerprint(),
                family=net.family,
                model=net.settings.model_dump(mode="json"),
                recipe=RECIPES[recipe],
            )
        )
        low, high = (net.cost_of(arch).macs for arch in (net.space.smallest(), net.space.largest()))
        for step in steps:
            for i, macs in enumerate(np.linspace(low, high, 40)):
                run.append_population(a_score(arch=f"a{i}", macs=int(macs), top1=i + step, step=step))
        return run

    return make


def test_the_buckets_are_summed_up_from_the_newest_weights(make_run: MakeRun) -> None:
    run = make_run("one", steps=(3, 9))
    [arm] = population_info([run]).arms
    assert len(arm.lines) == 40
    assert {line.top1 for line in arm.lines} == {i + 9 for i in range(40)}
    first = arm.summaries[0]
    inside = [line.top1 for line in arm.lines if line.macs in first.bucket]
    assert (first.count, first.median) == (len(inside), np.median(inside))
    assert arm.text == "40 subnets of one supernet"
    assert arm.fronts == {str(run.path): arm.lines}, "top-1 rises with MACs, so every subnet is on the front"


def test_seeds_of_an_arm_are_supernets_of_their_own(make_run: MakeRun) -> None:
    [group] = read_groups([make_run("a").path, make_run("b", seed=1).path])
    [answer] = [section for section in sections_of(group) if section.key == "answer"]
    assert answer.text[0].startswith("80 subnets of 2 supernets (rss) were scored without training again")


def test_networks_that_differ_are_arms_of_their_own(make_run: MakeRun) -> None:
    """The same recipe and seed; of the wider network subnet a39 has 9 points more."""
    runs = [make_run("small"), make_run("wide", width_mult=1.0, steps=(16,))]
    info = population_info(runs)
    assert [(arm.label, arm.seeds, len(arm.lines)) for arm in info.arms] == [
        ("rss (small)", [0], 40),
        ("rss (wide)", [0], 40),
    ]
    assert [arm.label for arm in population_info(runs[:1]).arms] == ["rss"]
    assert info.leads == [Lead(ahead="rss (wide)", behind="rss (small)", points=9.0, subnets=40)]
    [group] = read_groups([run.path for run in runs])
    assert (
        [arm.label for one in populations(group) for arm in one.arms]
        == list(group.arms)
        == [arm.label for arm in info.arms]
    )


def test_another_family_of_the_same_settings_is_another_kind_of_supernet(make_run: MakeRun) -> None:
    """Its subnets have other MACs, so its buckets are its own."""
    [group] = read_groups([make_run("a").path, make_run("b").path])
    model: JsonObject = {"num_classes": 3, "in_channels": 1, "resolutions": [32]}
    families = ("mobilenet_v3", "proxyless_nas")
    runs = [replace(run, family=name, model=model) for run, name in zip(group.runs, families, strict=True)]
    for name, info in zip(families, populations(replace(group, runs=runs)), strict=True):
        assert info.buckets == make_buckets(build(name, model).cost)


def line(arch: str, macs_m: float, top1: float, *, seed: int = 0, run: str = "r") -> PlottedScore:
    return a_scored(arch=arch, macs=macs_m * 1e6, top1=top1, images=50, seed=seed, run=f"{run}{seed}")


SCORED = {
    "a": [line("d2.k3e6", 4.0, 50), line("d3.k5e3", 5.9, 60), line("d2.k3e6", 4.0, 52, seed=1)],
    "b": [line("d2.k3e6", 4.0, 41, run="q"), line("d3.k5e3", 5.9, 62, run="q"), line("d4", 6.0, 10, run="q")],
}
BUCKETS = [Bucket(4e6, 0.5e6), Bucket(6e6, 0.5e6)]


@pytest.fixture
def info() -> PopulationInfo:
    return population_of(SCORED, BUCKETS, data="x", split="test")


def test_a_lead_is_the_mean_difference_on_the_subnets_that_both_have(info: PopulationInfo) -> None:
    """Seed 0 alone is in both. d2.k3e6: 50 against 41; d3.k5e3: 60 against 62; so 9 and -2, 3.5 in the mean, for a."""
    assert info.leads == [Lead(ahead="a", behind="b", points=3.5, subnets=2)]


def test_arms_without_a_common_seed_are_compared_on_all() -> None:
    """51 (two seeds) against 41."""
    scored = {"a": SCORED["a"], "b": [line("d2.k3e6", 4.0, 41, seed=7)]}
    assert population_of(scored, BUCKETS, data="x", split="test").leads == [
        Lead(ahead="a", behind="b", points=10.0, subnets=1)
    ]


def test_a_lead_of_nothing_is_level() -> None:
    assert Lead(ahead="a", behind="b", points=0.04, subnets=2).text == "a is level with b"
    assert Lead(ahead="a", behind="b", points=0.06, subnets=2).text == "a is ahead of b by 0.1 points of top-1"


def test_probes_are_no_population_unless_there_is_nothing_else(studies: Path) -> None:
    """A probe that is far better than all subnets drawn moves no box, no front and no mean."""
    [group] = read_groups([studies / "baseline"])
    [whole] = populations(group)
    best = replace(group.runs[0].scores["test"][0], top1=99.0, probe=True, arch="d2")
    with_probe = replace(group.runs[0], scores={"test": [*group.runs[0].scores["test"], best]})
    assert populations(replace(group, runs=[with_probe, *group.runs[1:]])) == [whole]
    alone = replace(group.runs[0], scores={"test": [best]})
    [probes] = populations(replace(group, runs=[alone]))
    assert [line.top1 for line in probes.arms[0].lines] == [99.0]


def test_boxes_stand_beside_each_other_and_points_lie_in_their_box(info: PopulationInfo) -> None:
    """Centres are 2 M apart, of which 0.8 is used by two boxes: slots of 0.8 M to both sides of the centre."""
    placed = {(row["arm"], round(row["x"], 6)) for row in boxes(info)}
    assert placed == {("a", 3.6), ("b", 4.4), ("a", 5.6), ("b", 6.4)}
    for row in points(info):
        box = next(b for b in boxes(info) if b["arm"] == row["arm"] and b["left"] < row["x"] < b["right"])
        assert box["minimum"] <= row["top1"] <= box["maximum"]


def test_a_front_holds_to_the_end(info: PopulationInfo) -> None:
    corners = [(row["macs"], row["top1"]) for row in steps_of_fronts(info) if row["run"] == "q0"]
    assert corners == [(4.0, 41), (5.9, 62), (6.0, 62)], "the last subnet is worse, so the front goes on flat"


def test_an_architecture_reads_part_by_part() -> None:
    assert readable("r24_d2.k3e6.k7e4_d3.k5e3.k5e3.k3e6") == [
        ("resolution", "r24"),
        ("stage 1", "d2 · k3 e6 · k7 e4"),
        ("stage 2", "d3 · k5 e3 · k5 e3 · k3 e6"),
    ]


def test_the_command_quotes_what_a_shell_would_take_apart() -> None:
    assert extract_command("my runs/a", "d2.k3e6") == "trainonce extract 'my runs/a' d2.k3e6"


def test_the_charts_are_valid_and_hold_every_subnet(info: PopulationInfo) -> None:
    spec = draw_population(info).to_dict()
    drawn = [len(spec["datasets"][layer["data"]["name"]]) for layer in spec["layer"]]
    assert drawn == [4, 4, 6, 4], "whiskers, boxes, subnets, medians"
    draw_pareto(info).to_dict()


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_the_picture_is_of_the_kind_its_name_says(make_run: MakeRun, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"population{ending}"
    save_chart(draw_population(population_info([make_run("one"), make_run("two", recipe="ps")])), path)
    if ending == ".png":
        pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
        assert len(np.unique(pixels, axis=0)) > 50, "two colours of boxes and dots, anti-aliased"
    elif ending == ".svg":
        assert ET.parse(path).getroot().tag.endswith("svg")
    else:
        assert path.read_bytes().startswith(b"%PDF")


def test_what_cannot_be_drawn_is_refused_in_a_sentence(make_run: MakeRun, tmp_path: Path) -> None:
    one = make_run("one")
    with pytest.raises(UserError, match=r"must end in \.png, \.svg, \.pdf"):
        save_chart(draw_population(population_info([one])), tmp_path / "population.jpeg")
    with pytest.raises(UserError, match="no scores on the test split"):
        population_info([one], "test")
    with pytest.raises(UserError, match="different data"):
        population_info([one, make_run("other", data_seed=1)])
    with pytest.raises(UserError, match="holds no run"):
        population_info([RunDirectory(tmp_path / "nowhere")])


def test_drawing_without_the_extra_is_refused(info: PopulationInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainonce.report.figures.charts.find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"pip install 'trainonce\[plot\]'"):
        draw_population(info)


RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.filterwarnings("ignore::trainonce.records.UncheckedWarning")  # they were made before sums
@pytest.mark.parametrize(
    ("name", "page"),
    [("cifar10-rss", "results.md"), ("cifar10-ps", "results.md"), ("cifar100-rss-short", "anchor.md")],
)
def test_the_committed_results_are_the_draw_that_their_command_makes(name: str, page: str) -> None:
    """25 subnets a bucket of the paper, seed 0, on the test split, as the pages say; their tables' medians too."""
    run = RunDirectory(RESULTS / name)
    net = run.build_supernet()
    drawn = draw_subnets(net.cost, make_buckets(net.cost, PAPER_BUCKETS_M), 25, seed=0)
    lines = run.population()
    macs = {str(arch): net.cost_of(arch).macs for _, arch in drawn}
    assert {line.arch: line.macs for line in lines} == macs
    assert len(lines) == len(drawn) == 150
    text = (RESULTS.parent / page).read_text(encoding="utf-8")
    for summary in population_info([run], "test", PAPER_BUCKETS_M).arms[0].summaries:
        assert f"| {summary.median:.2f} | {summary.lower_quartile:.2f} to {summary.upper_quartile:.2f} |" in text
