"""The population's figure: what it shows is what the lines say, and the file is the picture asked for."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainonce.data import DataSet
from trainonce.errors import UserError
from trainonce.models import MobileNetV3
from trainonce.population import PAPER_BUCKETS_M, make_buckets
from trainonce.population import draw_population as draw_subnets
from trainonce.recipes import RECIPES
from trainonce.report.population import draw_population, population_info
from trainonce.run import RunConfig, RunDirectory

MakeRun = Callable[..., RunDirectory]


@pytest.fixture
def make_run(make_net: Callable[..., MobileNetV3], make_data: Callable[..., DataSet], tmp_path: Path) -> MakeRun:
    """A run that was scored but whose weights were not kept: top-1 rises with MACs, the same for each."""

    def make(name: str, *, recipe: str = "rss", data_seed: int = 0, steps: tuple[int, ...] = (7,)) -> RunDirectory:
        net, data = make_net(), make_data(seed=data_seed)
        run = RunDirectory(tmp_path / name)
        run.create(
            RunConfig(
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
                line: dict[str, Any] = {"arch": f"a{i}", "macs": int(macs), "params": 1, "top1": i + step, "loss": 1.0}
                run.append_population(line | {"images": 30, "split": "validate", "step": step})
        return run

    return make


def test_the_buckets_are_summed_up_from_the_newest_weights(make_run: MakeRun) -> None:
    run = make_run("one", steps=(3, 9))
    info = population_info([run])
    assert len(info.runs[0].lines) == 40
    assert {line["step"] for line in info.runs[0].lines} == {9}
    first = info.runs[0].summaries[0]
    inside = [line["top1"] for line in info.runs[0].lines if line["macs"] in first.bucket]
    assert (first.count, first.median) == (len(inside), np.median(inside))
    assert info.runs[0].front == info.runs[0].lines, "top-1 rises with MACs, so every subnet is on the front"


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_the_picture_is_of_the_kind_its_name_says(make_run: MakeRun, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"population{ending}"
    draw_population(population_info([make_run("one"), make_run("two", recipe="ps")]), path)
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
        draw_population(population_info([one]), tmp_path / "population.jpeg")
    with pytest.raises(UserError, match="no scores on the test split"):
        population_info([one], "test")
    with pytest.raises(UserError, match="different data"):
        population_info([one, make_run("other", data_seed=1)])
    with pytest.raises(UserError, match="holds no run"):
        population_info([RunDirectory(tmp_path / "nowhere")])


RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize("name", ["cifar10-rss", "cifar10-ps"])
def test_the_committed_results_are_the_draw_that_their_command_makes(name: str) -> None:
    """docs/results.md: --buckets 4,6,8,10,12,14 --per-bucket 25, seed 0, on the test split; the table's medians too."""
    run = RunDirectory(RESULTS / name)
    net = run.build_supernet()
    drawn = draw_subnets(net.cost, make_buckets(net.cost, PAPER_BUCKETS_M), 25, seed=0)
    lines = run.population()
    assert [line["arch"] for line in lines] == [str(arch) for _, arch in drawn]
    assert all(line["macs"] == net.cost_of(arch).macs for line, (_, arch) in zip(lines, drawn, strict=True))
    page = (RESULTS.parent / "results.md").read_text(encoding="utf-8")
    for summary in population_info([run], "test", PAPER_BUCKETS_M).runs[0].summaries:
        assert f"| {summary.median:.2f} | {summary.lower_quartile:.2f} to {summary.upper_quartile:.2f} |" in page
