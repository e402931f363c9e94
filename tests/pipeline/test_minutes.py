"""A training as long as a person says in minutes."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support.pace import an_epoch_a_second
from torch import nn

from trainonce import pipeline
from trainonce.data import DataSet
from trainonce.data.splits import Split
from trainonce.errors import UserError
from trainonce.models import MobileNetV3
from trainonce.pipeline import pace
from trainonce.pipeline.pace import Pace
from trainonce.recipes import RECIPES, Recipe
from trainonce.training.settings import TrainSettings


def test_the_recipe_is_as_long_as_the_pace_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a second for an epoch, half a minute is 30 epochs, but for what the timing took."""
    an_epoch_a_second(monkeypatch)
    done = pipeline.train("digits", recipe="quick", minutes=0.5, dry_run=True, out=tmp_path / "run")
    scaled = RECIPES["quick"].scaled(30 / RECIPES["quick"].epochs)
    assert [phase.epochs for phase in done.plan.recipe.phases] == pytest.approx(
        [phase.epochs for phase in scaled.phases], rel=1e-2
    )
    with pytest.raises(UserError, match=r"0\.017 minutes are 1(\.0\d*)? passes over the 1,?\d+ .* give at least 0\.0"):
        pipeline.train("digits", minutes=0.017, dry_run=True, out=tmp_path / "run")


def test_it_takes_about_so_long(tmp_path: Path) -> None:
    """Within a factor that only a broken plan would miss, whatever else the machine does."""
    done = pipeline.train("digits", recipe="quick", minutes=0.07, train_images=320, probes=0, out=tmp_path / "run")
    assert done.finished
    assert 0.5 < done.seconds < 40


def test_a_dry_run_says_how_long_it_will_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a second for an epoch; of what is planned for some minutes these, but for what the timing took."""
    an_epoch_a_second(monkeypatch)
    lengths: tuple[tuple[dict[str, Any], int], ...] = ({"epochs": 7}, 7), ({"minutes": 0.5}, 30)
    for length, seconds in lengths:
        done = pipeline.train("digits", recipe="quick", dry_run=True, out=tmp_path / "run", **length)
        assert done.seconds == pytest.approx(seconds, rel=1e-2)


def test_each_of_several_processes_times_its_share_of_a_batch(
    make_net: Callable[..., MobileNetV3], make_data: Callable[..., DataSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second an image: 32 in steps of 16 are 32 s for one process, 12 s for three, whose largest share is 6."""

    def step_seconds(_pace: object, _net: object, recipe: Recipe, *, passes: int) -> tuple[float, ...]:
        assert passes == 4
        return (float(recipe.batch_size),)

    monkeypatch.setattr(Pace, "step_seconds", step_seconds)
    data, recipe = make_data(), RECIPES["spos"].with_batch_size(16)
    assert len(data.train) == 32
    for processes, seconds in ((1, 32), (3, 12)):
        whole = Pace(data).seconds(make_net(), recipe, processes=processes)
        assert whole == pytest.approx(recipe.epochs * seconds)


def test_the_pace_is_that_of_the_training_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TrainSettings] = []

    def train(*_: object, settings: TrainSettings, on_progress: Callable[[None], None]) -> None:
        asked.append(settings)
        for _step in range(40):
            time.sleep(1e-3)
            on_progress(None)

    monkeypatch.setattr(pace, "train_supernet", train)
    how: dict[str, Any] = {"precision": "bfloat16", "cuda_graphs": False, "keep_at": [0.5]}
    lengths: tuple[dict[str, Any], ...] = {"minutes": 1}, {"epochs": 1}
    for length in lengths:
        pipeline.train("digits", recipe="quick", dry_run=True, out=tmp_path / "run", **how, **length)
        assert {(one.precision, one.cuda_graphs, one.keep_at) for one in asked} == {("bfloat16", False, ())}
        asked.clear()


def test_one_length_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--minutes is in place of --epochs and --passes"):
        pipeline.train("digits", minutes=1, epochs=2, out=tmp_path / "run")
    with pytest.raises(UserError, match="--minutes cannot be given together with --resume"):
        pipeline.train(resume=tmp_path / "run", minutes=1)


def test_what_a_run_is_made_of_is_not_given_to_go_on(tmp_path: Path) -> None:
    made_of: dict[str, Any] = {"class_balance": 0.0, "weights": "w", "rigid": ["a"], "seed": 1, "dry_run": True}
    for name, value in made_of.items():
        option = "from" if name == "weights" else name.replace("_", "-")
        with pytest.raises(UserError, match=f"^--{option} cannot be given together with --resume$"):
            pipeline.train(resume=tmp_path / "run", **{name: value})
    how: dict[str, Any] = {"rigid": [], "threads": 1, "keep_at": [0.5], "on_progress": print, "where": "here"}
    with pytest.raises(UserError, match="holds no run"):
        pipeline.train(resume=tmp_path / "run", **how)


def test_scoring_takes_as_long_as_it_did_for_a_batch(
    make_net: Callable[..., MobileNetV3], make_data: Callable[..., DataSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For two networks, and 100 images of which 16 are scored at once: the first time, which warms up, takes 7 s more.

    There are fewer than 16 images, so that some are scored twice.
    """
    net, data, now = make_net(), make_data(), [0.0]
    networks: dict[nn.Module, list[float]] = {
        net.extract(net.space.smallest()): [8.0, 1.0],
        net.extract(net.space.largest()): [11.0, 4.0],
    }
    few = data.validate.drawn(10, seed=0)

    def score(network: nn.Module, split: Split, _data: DataSet) -> None:
        assert torch.equal(split.images, torch.cat([few.images, few.images[:6]]))
        now[0] += networks[network].pop(0)

    monkeypatch.setattr(pace, "score_batch", lambda _split: 16)
    monkeypatch.setattr(pace, "score", score)
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now[0]))
    assert pace.seconds_to_score(list(networks), few, data, 100) == pytest.approx((4 + 1) * 100 / 16)
