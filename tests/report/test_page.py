"""The page: whole, self-contained, escaped, with the numbers that the files hold."""

import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from trainonce import RECIPES, EvaluateSettings, Evaluator, MobileNetV3, RunDirectory, train_supernet
from trainonce.cli import app as cli
from trainonce.data import DataSet
from trainonce.errors import RunError, UserError
from trainonce.evaluation.population import draw_population, evaluate_population, make_buckets
from trainonce.lab.studies.results import RecordedConclusion
from trainonce.records import read_json, read_lines
from trainonce.report import build_page, read_groups, write_report
from trainonce.report.figures.charts import standing_alone

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Outline(HTMLParser):
    """Elements that are open, ids, and every attribute that could name something outside."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.described: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        self.described += [found.get("aria-label") or ""] if found.get("role") == "img" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(studies: Path) -> str:
    return build_page(read_groups([studies / "baseline", studies / "solo", studies / "dose"]))


def test_the_page_is_whole_and_asks_for_nothing(page: str) -> None:
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert all(link.startswith("#") and link[1:] in outline.ids for link in outline.links)
    assert "default-src 'none'" in page
    assert "unsafe-eval" not in page
    assert len(outline.described) > 20
    assert all(len(text) > 20 for text in outline.described), "every chart has a text alternative"


def test_every_chart_is_valid_vega_lite(page: str) -> None:
    import altair as alt

    specs = re.findall(r'<script type="application/json" id="g[^"]+">(.*?)</script>', page, re.DOTALL)
    assert len(specs) > 20
    for spec in specs[:: len(specs) // 10]:
        alt.Chart.from_json(spec)


def test_the_answer_comes_first_and_everything_recorded_is_there(page: str) -> None:
    assert "RSS is better than faithful Progressive Shrinking by 2.0 points" in page
    for heading in (
        "The population",
        "Best under each budget",
        "Training time",
        "Learning curves",
        "What was exposed",
        "Selection bias",
        "Interference between probes",
        "Forgetting",
        "Dose and response",
        "Alone against inside",
        "What was run",
    ):
        assert f"<h3>{heading}</h3>" in page
    assert "trainonce study baseline cifar10" in page
    assert page.count("Not recorded, so not shown") == 2, "solo and dose have no population"


def test_several_studies_begin_with_what_each_found(studies: Path, page: str) -> None:
    head, _, rest = page.partition("</header>")
    assert "Cannot tell whether sharing weights with more subnets matters" in head, "which its numbers force"
    for name in ("baseline", "solo"):
        found = read_json(studies / name / "conclusion.json")
        assert html.escape(found["sentence"]) in head
    assert "it is called <em>interference</em>" in head
    assert "it is called <em>interference</em>" not in rest
    alone = build_page(read_groups([studies / "dose"]))
    assert "it is called <em>interference</em>" in alone.partition("</header>")[2]


def test_the_numbers_behind_a_figure_are_those_of_the_file(studies: Path, page: str) -> None:
    line = read_lines(studies / "baseline" / "results.jsonl")[0]
    command = f"trainonce extract {studies}/baseline/runs/{line['run']} {line['arch']}"
    row = next(row for row in re.findall(r"<tr>.*?</tr>", page) if html.escape(command) in row)
    assert f">{line['top1']:g}<" in row


def test_names_cannot_break_out_of_the_page(studies: Path) -> None:
    evil = "</script><script>alert(1)</script><b>\"'&"
    [group] = read_groups([studies / "solo"])
    changed: dict[str, Any] = {"title": evil, "about": evil, "question": evil}
    changed["conclusion"] = RecordedConclusion(sentence=evil, verdict=evil, comparisons=[])
    runs = [replace(run, arm=evil if run.arm == "supernet" else run.arm, recipe=evil) for run in group.runs]
    page = build_page([replace(group, **changed, runs=runs)])
    assert "<script>alert" not in page
    assert "<b>" not in page


@pytest.mark.filterwarnings("ignore::trainonce.records.UncheckedWarning")  # they were made before sums
def test_a_page_of_loose_runs_says_how_sure_it_is() -> None:
    results = Path(__file__).parents[2] / "docs" / "results"
    page = build_page(read_groups([results / "cifar10-rss", results / "cifar10-ps"], centres_m=[4, 6, 8, 10, 12, 14]))
    assert "rss is ahead of ps by 13.7 points of top-1" in page, "as docs/results.md says"
    assert "it does not measure interference" in page
    assert "with one seed it is not known" in page
    assert "interference between probes (trainonce measure RUN)" in page


def test_a_run_that_was_really_trained(
    make_net: Callable[..., MobileNetV3], make_data: Callable[..., DataSet], tmp_path: Path
) -> None:
    net, data, run = make_net(), make_data(), RunDirectory(tmp_path / "run")
    train_supernet(net, RECIPES["rss"].scaled(0.002).with_batch_size(8), data, run, seed=0)
    trained, step = run.load_supernet()
    archs = [arch for _, arch in draw_population(net.cost, make_buckets(net.cost), 2, seed=0)]
    settings = EvaluateSettings(calibration_images=8, calibration_batch=8)
    lines = evaluate_population(trained, step, Evaluator(data, "validate", settings), run, archs)
    page = build_page(read_groups([run.path]))
    best = max(lines, key=lambda line: float(line.top1))
    assert "12 subnets of one supernet (rss) were scored" in page
    assert f"the best has {best.top1:.1f}% top-1" in page
    assert "The weights are not beside these results" not in page


def test_what_the_disk_refuses_is_said(studies: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="cannot write"):
        write_report(read_groups([studies / "dose"]), tmp_path / "file" / "report.html")


def test_a_page_needs_the_extra(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainonce.report.figures.charts.find_spec", lambda _name: None)
    with pytest.raises(UserError, match="needs an extra"):
        build_page(read_groups([studies / "dose"]))


def test_the_command(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "page.html"
    monkeypatch.setattr("sys.argv", ["trainonce", "report", str(studies / "dose"), "--out", str(out), "--json"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code in (0, None)
    said = json.loads(capsys.readouterr().out)
    assert said == {"page": str(out), "bytes": out.stat().st_size, "groups": ["dose"]}
    monkeypatch.setattr("sys.argv", ["trainonce", "report", str(studies / "dose"), "--out", str(tmp_path / "a.txt")])
    with pytest.raises(SystemExit) as refused:
        cli.main()
    assert refused.value.code == 2


def test_a_picture_has_a_width_and_a_ground_of_its_own() -> None:
    assert standing_alone({"width": "container"})["width"] == 720
    assert standing_alone({"width": 100})["width"] == 100
    assert standing_alone({})["config"]["background"] == "white"
