"""The yardstick: what its table says of made-up results, its rivals' parts, and a run of seconds on the digits."""

import statistics
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trainonce.data import load_dataset
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.models.mbconv_cost import network_cost
from trainonce.recipes import RECIPES
from trainonce.records import read_lines

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def made_up(side: str, tests: tuple[float, float, float], **fields: Any) -> list[Any]:
    """A side's results on the three devices; validate is test unless it is given."""
    table = import_module("worth_table")
    validate = fields.pop("validate", None)
    given = {"data": "d", "geometry": "tiny", "minutes": 2, "seed": 0, "settings": "", "sharing": 3}
    rest = given | {"macs": 1, "params": 1, "seconds": 40.0} | fields
    return [
        table.Result(side=side, device=device, test=test, validate=test if validate is None else validate, **rest)
        for device, test in zip((0.25, 0.5, 1.0), tests, strict=True)
    ]


def test_the_break_even_is_the_fewest_devices_from_which_on_ours_is_ahead() -> None:
    break_even = import_module("worth_table").break_even
    ours = {0: 80.0, 1: 82.0}
    alone = {3: {0: 75.0, 1: 76.0}, 2: {0: 82.0, 1: 79.0}, 1: {0: 90.0, 1: 91.0}}
    found = break_even(ours, alone)
    assert (found.devices, found.measured, str(found)) == (2, (1, 2, 3), "2")
    assert str(break_even(ours, {3: alone[3]})) == "3 or fewer"
    assert str(break_even(ours, {3: {0: 81.0, 1: 81.5}, 2: alone[2]})) == "more than 3", "ahead at 2 alone is chance"


def test_without_a_rival_of_the_same_seeds_no_break_even_is_measured() -> None:
    break_even = import_module("worth_table").break_even
    assert str(break_even({0: 80.0}, {})) == "none measured"
    assert str(break_even({0: 80.0}, {3: {1: 70.0}})) == "none measured"
    assert break_even({0: 80.0, 1: 0.0}, {3: {0: 79.0}}).devices == 3


def test_the_break_even_of_results_takes_the_settings_that_validate_chose() -> None:
    table = import_module("worth_table")
    alone = made_up("alone", (70, 70, 70), settings="low", validate=60)
    better = made_up("alone", (75, 75, 75), settings="high", validate=65)
    ours = made_up("ours", (60, 75, 84))
    assert table.break_even_of(table.chosen_settings([*ours, *alone])).devices == 3
    assert table.break_even_of(table.chosen_settings([*ours, *alone, *better])).devices is None


def test_the_table_has_means_intervals_and_paired_differences() -> None:
    table = import_module("worth_table").table
    results = []
    for seed, top1 in enumerate((60.0, 62.0, 64.0)):
        results += made_up("ours", (top1, top1, top1 + 3), seed=seed)
        results += made_up("resnet", (50, 50, 56), seed=seed, settings="a", validate=70, seconds=30.0)
        results += made_up("resnet", (99, 99, 99), seed=seed, settings="b", validate=69)
    results += made_up("ours", (0, 0, 0), seed=3)[:2]  # a device is missing
    heads, _, ours, resnet = table(results).splitlines()
    assert [cell.strip() for cell in heads.split("|")[6:11]] == ["25%", "50%", "100%", "mean", "mean on validate"]
    # t(0.975, 2 degrees of freedom) * 2 / sqrt(3) = 4.303 * 1.155
    spread = " | ".join(f"{mean:.1f} ± 5.0" for mean in (62, 62, 65, 63, 63))
    assert ours == f"| d | tiny | 2 | ours |  | {spread} | – | 120 | 3 |"
    none = " | ".join(f"{mean:.1f} ± 0.0" for mean in (50, 50, 56, 52, 70))
    assert resnet == f"| d | tiny | 2 | resnet | a | {none} | 11.0 ± 5.0 | 90 | 3 |"
    assert len(table(results, every_setting=True).splitlines()) == 5


def test_the_overview_has_ours_on_each_device_and_the_means_of_the_others() -> None:
    overview = import_module("worth_table").overview
    results = [*made_up("ours", (60, 62, 67)), *made_up("alone", (50, 52, 57)), *made_up("svm", (70,) * 3)[:1]]
    results[-1] = replace(results[-1], device=None)
    heads, _, row = overview([*results, *made_up("ours", (0, 0, 0), seed=1)[:2]]).splitlines()
    assert heads.endswith("| ours, mean | alone, 1/3 each | svm | break-even in devices |")
    assert row == "| d, tiny | 2 | 1 | 60.0 | 62.0 | 67.0 | 63.0 | 53.0 | 70.0 | 3 or fewer |"


@pytest.mark.parametrize(
    ("minutes", "top1", "rows"),
    [
        (10, 60, ["**-1.0** | 0.0 | 4.0 | 1.0", "**-1.1** | -1.0 | 60.0 | 19.3", "**4.0** | 5.0 | 9.0 | 6.0"]),
        (10, 96, ["**-1.0** | 0.0 | 4.0 | 1.0", "**-1.1** | -1.0 | 96.0 | 31.3", "4.0 | 5.0 | 9.0 | 6.0"]),
        (40, 60, ["-1.0 | 0.0 | 4.0 | 1.0", "-1.1 | -1.0 | 60.0 | 19.3", "4.0 | 5.0 | 9.0 | 6.0"]),
    ],
)
def test_what_misses_a_goal_is_in_bold(minutes: float, top1: float, rows: list[str]) -> None:
    ahead = import_module("worth_table").ahead
    ours = made_up("ours", (top1, top1, top1), minutes=minutes)
    alone = made_up("alone", (top1 + 1, top1, top1 - 4), minutes=minutes)
    resnet = made_up("resnet", (top1 + 1.1, top1 + 1, 0), minutes=minutes)
    svm = made_up("svm", (top1 - 4, top1 - 5, top1 - 9), minutes=minutes)
    logistic = made_up("logistic", (top1, top1, top1), minutes=minutes, validate=top1 - 20)  # the worse on validate
    lines = ahead([*ours, *alone, *resnet, *svm, *logistic]).splitlines()[2:]
    names = ("alone, 1/3 each", "resnet", "svm")
    assert lines == [f"| d, tiny | {minutes} | {name} | {row} |" for name, row in zip(names, rows, strict=True)]


@pytest.mark.parametrize(
    ("logistic", "row"), [((75, 60), "svm | **4.0 ± 0.0** |"), ((75, 70), "logistic | **3.0 ± 0.0** |")]
)
def test_of_the_classifiers_the_better_on_validate_counts(logistic: tuple[float, float], row: str) -> None:
    """Over all seeds, whichever it is: the support vector machine has 70 there."""
    results = []
    for seed in (0, 1):
        results += made_up("ours", (60, 60, 60), seed=seed)
        results += made_up("svm", (56, 56, 56), validate=70, seed=seed)
        results += made_up("logistic", (57, 57, 57), validate=logistic[seed], seed=seed)
    _, _, *rows = import_module("worth_table").ahead(results).splitlines()
    assert len(rows) == 1
    assert rows[0].startswith(f"| d, tiny | 2 | {row}")


def test_networks_alone_that_had_more_time_are_no_goal() -> None:
    ahead = import_module("worth_table").ahead
    results = [*made_up("ours", (60, 60, 60)), *made_up("alone", (65, 65, 65), sharing=1)]
    assert ahead(results).splitlines()[-1] == "| d, tiny | 2 | alone, 1/1 each | -5.0 | -5.0 | -5.0 | -5.0 |"


def test_at_forty_minutes_the_mean_counts() -> None:
    ahead = import_module("worth_table").ahead
    results = [*made_up("ours", (60, 60, 60), minutes=40), *made_up("resnet", (59, 60, 62), minutes=40)]
    assert ahead(results).splitlines()[-1].endswith("| 1.0 | 0.0 | -2.0 | **-0.3** |")
    seeds = [one for seed in (0, 1) for one in made_up("resnet", (59, 60, 61 + seed), minutes=40, seed=seed)]
    both = ahead([*results[:3], *made_up("ours", (60, 60, 60), minutes=40, seed=1), *seeds])
    # t(0.975, 1 degree of freedom) * sd / sqrt(2) = 12.706 * 0.5 * range
    assert both.splitlines()[-1].endswith("| 1.0 ± 0.0 | 0.0 ± 0.0 | -1.5 ± 6.4 | **-0.2 ± 2.1** |")


def test_the_page_has_the_tables_of_the_records() -> None:
    docs, table = BENCHMARKS.parent / "docs", import_module("worth_table")
    found = import_module("worth").results_in(docs / "results" / "worth.jsonl")
    page = (docs / "worth.md").read_text(encoding="utf-8")
    assert table.overview(found) in page
    assert table.ahead(found) in page


def test_the_readme_has_means_of_the_records() -> None:
    """Of the settings that validate chose, with a star where a network's are not Muon's."""
    found = import_module("worth").results_in(BENCHMARKS.parent / "docs" / "results" / "worth.jsonl")
    readme = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    named = {"Fashion-MNIST": "fashion-mnist", "CIFAR-10": "cifar10", "flowers": "flowers", "rubbish": "trash"}
    named |= {"clothes": "clothing", "signs": "signs"}
    for name, data in named.items():
        cells = next(line for line in readme.splitlines() if line.startswith(f"| {name}")).split(" | ")[1:]
        for cell, side in zip(cells, ("ours", "alone", "resnet", "svm"), strict=True):
            of = [one for one in found if (one.data, one.minutes, one.side) == (data, 10, side)]
            by = {one.settings: [other for other in of if other.settings == one.settings] for one in of}
            best = max(by, key=lambda settings: statistics.fmean(one.validate for one in by[settings]))
            star = "*" if side in ("alone", "resnet") and not best.startswith("muon") else ""
            assert cell.strip(" |") == f"{statistics.fmean(one.test for one in by[best]):.1f}{star}", (name, side)


def test_macs_are_counted_as_the_library_counts_them() -> None:
    rivals = import_module("worth_rivals")
    net = MobileNetV3(MobileNetV3Settings.for_images(image_size=8, in_channels=1, num_classes=10), seed=0)
    plain = net.extract(net.space.smallest())
    assert rivals.counted_macs(plain, 1, 8) == network_cost(plain.spec).macs


def test_the_resnet_has_the_most_channels_that_the_macs_allow() -> None:
    rivals = import_module("worth_rivals")
    images = rivals.Images(size=28, channels=1, classes=10)
    width = rivals.matched_width(5_000_000, images)
    macs = [rivals.counted_macs(rivals.plain_resnet(w, images), 1, 28) for w in (width, width + 1)]
    assert macs[0] <= 5_000_000 < macs[1]
    assert rivals.plain_resnet(width, images)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_one_cycle_rises_and_falls() -> None:
    one_cycle = import_module("worth_rivals").one_cycle
    assert (one_cycle(0), one_cycle(0.25), one_cycle(1)) == pytest.approx((0.04, 1, 0))


@pytest.mark.parametrize(("axis", "bins"), [(1, {0}), (0, {4, 5})])
def test_hog_finds_the_direction_of_a_ramp(axis: int, bins: set[int]) -> None:
    hog = import_module("worth_rivals").hog
    ramp = np.broadcast_to(np.arange(32, dtype=np.float32), (32, 32))
    found = hog((ramp if axis == 1 else ramp.T)[None], cell=4).reshape(4, 9, 7, 7)
    assert set(np.nonzero(found.sum((0, 2, 3)))[0]) == bins
    np.testing.assert_allclose((found**2).sum((0, 1)), 1, rtol=1e-3)


def test_colours_are_shares_of_pixels() -> None:
    image = np.zeros((1, 3, 2, 2), np.float32)
    image[0, :, 0, 0] = (1.0, 0.3, 0.0)  # levels 3, 1, 0
    found = import_module("worth_rivals").colours(image)[0]
    assert found[0] ** 2 == pytest.approx(0.75)
    assert found[3 + 1 * 4] ** 2 == pytest.approx(0.25)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_network_alone_trains_for_its_seconds(optimizer: str) -> None:
    rivals, data = import_module("worth_rivals"), load_dataset("digits")
    network = rivals.plain_resnet(4, rivals.Images(size=8, channels=1, classes=10))
    found = rivals.train_alone(network, data, seconds=1.5, steps=rivals.Steps(optimizer=optimizer, rate=1e-2), seed=0)
    assert 1.2 < found.seconds < 2.5
    assert found.steps > 3
    assert found.validate > 30  # chance is 10


def test_settings_of_networks_alone_are_told_apart() -> None:
    """Those by AdamW as records of before have them."""
    steps = import_module("worth_rivals").Steps
    assert str(steps(rate=3e-3)) == "rate 0.003"
    assert str(steps(optimizer="muon", rate=0.02)) == "muon, rate 0.02"


def test_a_set_that_is_cut_holds_out_as_many_as_a_small_set_would() -> None:
    loaded = import_module("worth").loaded
    name, data = loaded("digits", 500)
    assert (name, len(data.train), len(data.validate), len(data.test)) == ("digits", 500, 100, 359)
    assert len(loaded("digits", 5000)[1].validate) == 180


@pytest.mark.parametrize(
    ("asked", "rate"),
    [(["--recipe", "quick"], 0.01), (["--recipe", "transfer"], 0.001), (["--finetune-rate", "0.02"], 0.02)],
)
def test_networks_are_fine_tuned_as_by_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str], rate: float
) -> None:
    """At the rate of the recipe's optimizer; of `quick` the words are those of the records, which still count."""
    worth, found = import_module("worth"), list[Any]()
    monkeypatch.setattr(worth, "measure", lambda _bench, _asked, settings: found.extend(settings))
    worth.main(["digits", *asked, "--minutes", "1", "--seeds", "1", "--out", str(tmp_path / "worth.jsonl")])
    assert {one.finetune_rate for one in found} == {rate}
    if "quick" in asked:
        lines = read_lines(BENCHMARKS.parent / "docs" / "results" / "worth.jsonl")
        assert str(found[0]) in {line["settings"] for line in lines if line["side"] == "ours"}


def test_rare_classes_count_in_fine_tuning_as_in_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, tuned = import_module("worth_ours"), list[Any]()

    def finetuned(network: nn.Module, before: float, _evaluator: Any, _seconds: float, how: Any) -> Any:
        tuned.append((how.optimizer, how.lr, how.class_balance))
        return ours.Finetuned(network, before, {})

    monkeypatch.setattr(ours, "train_for", lambda *_: (1, None))
    monkeypatch.setattr(ours, "finetuned", finetuned)
    recipe = RECIPES["transfer"].model_copy(update={"class_balance": 0.5})
    monkeypatch.setattr(ours, "load_recipe", lambda _name: recipe)
    settings = ours.OurSettings(
        recipe="balanced",
        lr_factor=1.0,
        split=(0.5, 0.1, 0.4),
        crop_scale=None,
        finetune_rate=None,
        candidates=1,
        calibration_images=20,
    )
    net = MobileNetV3(MobileNetV3Settings.for_images(image_size=8, in_channels=1, num_classes=10), seed=0)
    ours.train_once(net, load_dataset("digits"), settings, seconds=60, seed=0)
    assert set(tuned) == {("adamw", 1e-3, 0.5)}


def test_timms_networks_are_the_same_for_all_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def create_model(_name: str, *, pretrained: bool, in_chans: int, num_classes: int) -> nn.Module:
        assert not pretrained, "from scratch"
        return nn.Sequential(
            nn.Conv2d(in_chans, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
        )

    worth, out = import_module("worth"), tmp_path / "worth.jsonl"
    steps = import_module("worth_rivals").Steps(rate=0.01)
    bench = worth.Bench(data=load_dataset("digits"), name="digits", geometry=None, minutes=0.01, seed=0, out=out)
    monkeypatch.setitem(sys.modules, "timm", None)  # as where it is not installed
    assert list(worth.timm_networks(bench, steps)) == []
    assert "timm is not installed" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    found = list(worth.timm_networks(bench, steps))
    assert [(one.side, one.device) for one in found] == [("mobilenetv3_small_050", None), ("resnet10t", None)]
    assert [one.macs for one in found] == [6 * 6 * 4 * 9 + 40] * 2
    assert "| 0.01 | resnet10t |" in import_module("worth_table").table(found)


def test_alone_an_architecture_of_two_devices_has_the_time_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worth, rivals = import_module("worth"), import_module("worth_rivals")
    asked: list[float] = []

    def train_alone(_network: nn.Module, _data: Any, *, seconds: float, steps: Any, seed: int) -> Any:
        asked.append(seconds)
        return rivals.Trained(validate=steps.rate, test=float(seed), seconds=seconds, steps=1)

    monkeypatch.setattr(worth, "train_alone", train_alone)
    out = tmp_path / "worth.jsonl"
    bench = worth.Bench(data=load_dataset("digits"), name="digits", geometry=None, minutes=1, seed=0, out=out)
    space = bench.supernet(0).space
    small, large = str(space.smallest()), str(space.largest())
    ours = rivals.Trained(validate=50.0, test=50.0, seconds=20.0, steps=1)
    for device, arch in ((0.25, small), (0.5, large), (1.0, large)):
        bench.record(bench.result("ours", ours, device=device, about={"architecture": arch}))
    for sharing, seconds in ((3, [20.0, 40.0]), (1, [60.0, 60.0])):
        asked.clear()
        found = list(worth.alone(bench, rivals.Steps(rate=0.01), sharing))
        assert asked == seconds
        assert [(one.device, one.about["architecture"]) for one in found] == [(0.25, small), (0.5, large), (1.0, large)]
        assert [one.seconds for one in found] == [seconds[0], seconds[1] / 2, seconds[1] / 2]


@pytest.mark.long
def test_a_run_of_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main, out, picture = import_module("worth").main, tmp_path / "worth.jsonl", tmp_path / "worth.svg"
    threads = torch.get_num_threads()
    asked = ["digits", "--minutes", "0.015", "--seeds", "1", "--recipe", "spos", "--candidates", "2", "--out", str(out)]
    try:
        main([*asked, "--sides", "ours", "alone", "resnet", "sklearn", "--picture", str(picture)])
        lines = read_lines(out)
        assert [(line["side"], line["device"]) for line in lines] == [
            (side, device) for side in ("ours", "alone", "resnet") for device in (0.25, 0.5, 1.0)
        ] + [("svm", None), ("logistic", None)]
        ours, alone, resnets = lines[:3], lines[3:6], lines[6:9]
        assert [one["about"]["architecture"] for one in ours] == [one["about"]["architecture"] for one in alone]
        settings = MobileNetV3Settings.for_images(image_size=8, in_channels=1, num_classes=10)
        largest = MobileNetV3(settings, seed=0)
        most = largest.cost_of(largest.space.largest()).macs
        assert all(one["macs"] <= one["device"] * most for one in [*ours, *resnets])
        assert all(line["test"] > 90 for line in lines[9:])
        assert "<svg" in picture.read_text(encoding="utf-8")
        said = capsys.readouterr().out
        main([*asked, "--sides", "ours", "alone", "resnet", "sklearn"])
        assert read_lines(out) == lines, "what is recorded is not done again"
        again = capsys.readouterr().out
        assert again[again.index("| set |") :] == said[said.index("| set |") :]
        assert "| digits, default | 0.015 | svm |" in again
    finally:
        torch.set_num_threads(threads)
