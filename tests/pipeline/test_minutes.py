"""A training as long as a person says in minutes."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

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
from trainonce.recipes import RECIPES
from trainonce.training.optimizers import stepper_for


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


def test_an_estimate_counts_the_optimizers_steps(
    make_net: Callable[..., MobileNetV3], make_data: Callable[..., DataSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock goes on by the share of the weights that move, a second where all do; the given network stays as it is.

    Weights that a step leaves out move too, unless the recipe lets them rest or they are matrices of Muon.
    """
    net, data, now = make_net(), make_data(), [0.0]
    before = {name: weights.clone() for name, weights in net.state_dict().items()}

    def slow(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        take = stepper_for(optimizer)

        def step() -> None:
            take()
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            now[0] += sum(p.grad is not None for p in weights) / len(weights)

        return step

    monkeypatch.setattr("trainonce.pipeline.pace.stepper_for", slow)
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now[0]))
    head_and_teacher = (2 / 3 + 18 + 12 * 4 / 3) / (2 + 18 + 12)
    for name, whole, idle in (
        ("rss", 1, "move"),
        ("fair", 1, "move"),
        ("transfer", head_and_teacher, "move"),
        ("rss", None, "rest"),
        ("quick", None, "move"),
    ):
        recipe = RECIPES[name].model_copy(update={"batch_size": 8, "idle_weights": idle})
        steps = recipe.epochs * len(data.train) / recipe.images_per_step(len(data.train))
        share = pace.training_seconds(net, data, recipe, "cpu") / steps
        assert share == pytest.approx(whole) if whole else 0.3 < share < 1, name
    assert all(torch.equal(weights, before[name]) for name, weights in net.state_dict().items())


def test_one_length_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--minutes is in place of --epochs and --passes"):
        pipeline.train("digits", minutes=1, epochs=2, out=tmp_path / "run")
    with pytest.raises(UserError, match="--minutes cannot be given together with --resume"):
        pipeline.train(resume=tmp_path / "run", minutes=1)


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
