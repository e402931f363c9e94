"""How `fit` shares the time that it is given."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.support.fitting import RECIPE, budgets, planned_alike, settings_of
from torch import nn

from trainonce.data import DataSet
from trainonce.data.splits import Split
from trainonce.errors import UserError
from trainonce.evaluation.population import draw_candidates
from trainonce.files import write_atomic
from trainonce.models import MobileNetV3
from trainonce.pipeline import fitting
from trainonce.pipeline.fitted import FitSettings, fit_recorded
from trainonce.pipeline.fitting import Watch, fit_supernet, planned_recipe
from trainonce.records import to_json
from trainonce.run.directory import RunDirectory
from trainonce.space import Architecture

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]


pace = pytest.fixture(autouse=True, scope="module")(planned_alike)


def test_training_takes_its_share_of_the_time(make_net: MakeNet, make_data: MakeData) -> None:
    net, data = make_net(), make_data()
    recipe, step_s = planned_recipe(net, RECIPE, data, FitSettings(minutes=10, max_macs=budgets(net)))
    assert recipe.epochs == pytest.approx(0.75 * 600, rel=1e-2)
    assert step_s == (0.25,)
    with pytest.raises(UserError, match=r"0\.[45]\d* passes over the 32 .* give at least 0\.\d*[1-9]\b"):
        planned_recipe(net, RECIPE, data, FitSettings(minutes=0.7 / 60, max_macs=budgets(net)))
    later, _ = planned_recipe(net, RECIPE, data, FitSettings(minutes=10, max_macs=budgets(net)), spent_s=60)
    assert later.epochs == pytest.approx(0.75 * 540, rel=1e-2)


def test_choosing_has_its_share_of_what_is_left(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 100 s ten are for scoring on test; of the rest all is for choosing, or a fifth beside fine-tuning's 20%.

    The largest network takes a second, so two subnets, one of them with half of its MACs at most, take one and a half.
    """
    net, now = make_net(), [0.0]
    largest = net.space.largest()
    macs = float(net.cost_of(largest).macs)
    monkeypatch.setattr(fitting, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(fitting, "testing_seconds", lambda *_: 10.0)
    monkeypatch.setattr(fitting._Fit, "left", lambda _self: 100.0)
    settings = FitSettings(minutes=10, max_macs=(macs / 2, 2 * macs))
    fit = fitting._Fit(net, RECIPE, make_data(), RunDirectory(tmp_path / "run"), settings, Watch(), None)

    def evaluator(_net: MobileNetV3, arch: Architecture) -> None:
        now[0] += 1.0 if arch == largest else 7.0

    drawn = draw_candidates(net.cost, settings.max_macs, 100, seed=0)
    for share, count in ((0.0, 60), (0.2, 12)):
        fit.finetune_share = share
        wanted = fit._in_time(drawn, evaluator)  # type: ignore[arg-type]
        assert wanted == list(dict.fromkeys(arch for archs in drawn for arch in archs[:count]))


def test_scoring_on_test_has_its_time(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second an image for the largest network, less for smaller ones: off training's two minutes, and off 2,000 s for
    fine-tuning, which has 50 an epoch."""
    net, data, said = make_net(), make_data(), list[str]()
    data = replace(data, validate=data.train)  # what larger networks learn better: devices get different ones
    assert len(data.test) != len(data.validate)

    def seconds(networks: list[nn.Module], _split: Split, _data: DataSet, images: int) -> float:
        return float(images * len(networks))

    monkeypatch.setattr(fitting, "seconds_to_score", seconds)
    monkeypatch.setattr(fitting._Fit, "left", lambda _self: 2000.0)
    low, high = budgets(net)
    largest, images = net.cost_of(net.space.largest()).macs, len(data.test)
    settings = FitSettings(minutes=2, max_macs=(low, high), seed=3)
    recipe, _ = planned_recipe(net, RECIPE, data, settings)
    assert recipe.epochs == pytest.approx(0.75 * (120 - images * (1 + low / largest)), rel=2e-2)
    fitted = fit_supernet(*(net, RECIPE, data, RunDirectory(tmp_path / "run"), settings), Watch(stage=said.append))
    assert fitted is not None
    assert len({one.arch for one in fitted}) == 2
    share = fitted[0].macs ** 0.5 / sum(one.macs**0.5 for one in fitted)
    epochs = [int(sentence.split()[-2]) for sentence in said if sentence.startswith("Fine-tuning")]
    assert epochs == [int((2000 - 2 * images) * share / 50), int((2000 - images) / 50)]


def test_the_comparisons_time_is_taken_off(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting._Fit, "seconds", lambda _self: 300.0)
    monkeypatch.setattr(fitting, "planned_recipe", planned_recipe)  # the real one
    run = RunDirectory(tmp_path / "run")
    net, settings = make_net(), FitSettings(minutes=10, max_macs=(1e9,))
    plan = []
    monkeypatch.setattr(fitting, "train_supernet", lambda _net, recipe, *_a, **_k: plan.append(recipe))
    assert fit_supernet(net, RECIPE, make_data(), run, settings) is None
    assert plan[0].epochs == pytest.approx(0.75 * 300, rel=1e-2)


def test_a_recipe_may_leave_no_time_for_fine_tuning(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    """Then 95% of it trains, and what is handed over is as it was. A fit that was begun with time for it goes on."""
    net, data, said = make_net(), make_data(), list[str]()
    recipe = RECIPE.model_copy(update={"finetune_share": 0.0})
    settings = settings_of(net)
    run = RunDirectory(tmp_path / "run")
    fitted = fit_supernet(net, recipe, data, run, settings, Watch(stage=said.append))
    assert fitted is not None
    assert run.config().recipe.epochs == pytest.approx(0.95 * 8)
    assert all((one.finetuned_epochs, one.after) == (0, one.before) for one in fitted)
    assert not any("ine-tun" in sentence for sentence in said)
    tuned = settings.model_copy(update={"finetune_lr": 0.01})
    with pytest.raises(UserError, match=r"the recipe spos has no time for fine-tuning .* leave --finetune-lr out"):
        fit_supernet(net, recipe, data, RunDirectory(tmp_path / "other"), tuned)
    assert not (tmp_path / "other").exists()
    older = RunDirectory(tmp_path / "older")
    first = fit_supernet(make_net(), RECIPE, data, older, tuned)
    record = fit_recorded(older).model_copy(update={"recipe": None})  # as it was recorded before
    write_atomic(older.fit_file, to_json(record.model_dump(mode="json")))
    assert fit_supernet(make_net(), recipe, data, older, tuned) == first
