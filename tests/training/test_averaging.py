"""The average of the weights against its definition, and who gets to see it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainonce.data import DataSet
from trainonce.models import MobileNetV3
from trainonce.recipes import Phase, Recipe
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.training.averaging import Average
from trainonce.training.loop import train_supernet
from trainonce.training.settings import EpochEnd, TrainSettings

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
Weights = dict[str, Tensor]
KEEPS = 0.4
"""Over 2 / 11, 3 / 12, 4 / 13 and 5 / 14, which the first four steps of a phase keep, and under 6 / 15."""


def recipe_of(ema: float, **fields: Any) -> Recipe:
    phases = (Phase(name="first", epochs=2, lr=0.05), Phase(name="second", epochs=1.5, lr=0.05, **fields))
    return Recipe(name="test", about="A test.", phases=phases, batch_size=8, ema=ema)


def weights_of(net: nn.Module) -> Weights:
    return {name: weight.detach().clone() for name, weight in net.named_parameters()}


def averaged(steps: list[Weights], start: Weights, keeps: float) -> Weights:
    """The average over a phase that began with `start`, in float64."""
    average = {name: weight.double() for name, weight in start.items()}
    for number, weights in enumerate(steps, start=1):
        share = min(keeps, (1 + number) / (10 + number))
        average = {name: share * average[name] + (1 - share) * weights[name].double() for name in average}
    return average


def assert_close(found: Weights, expected: Weights) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor.double(), rtol=1e-5, atol=1e-6, msg=name)


class Watch:
    def __init__(self, net: nn.Module) -> None:
        self.net, self.steps, self.looks = net, [weights_of(net)], dict[int, Weights]()

    def __call__(self) -> bool:
        self.steps.append(weights_of(self.net))
        return False

    def look(self, at: EpochEnd) -> None:
        self.looks[at.step] = weights_of(self.net)


def test_what_a_run_ends_with(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    """8 steps of a phase, 6 of another: the average begins anew there, looks see it, later stages load it."""
    net, run = make_net(), RunDirectory(tmp_path)
    watch = Watch(net)
    settings = TrainSettings(keep_at=(0.5,))
    train_supernet(net, recipe_of(KEEPS), make_data(), run, on_epoch=watch.look, should_stop=watch, settings=settings)
    assert len(watch.steps) == 15
    expected = averaged(watch.steps[9:], watch.steps[8], KEEPS)
    assert_close(weights_of(net), expected)
    assert not torch.allclose(weights_of(net)["classifier.weight"], watch.steps[-1]["classifier.weight"], atol=1e-4)
    loaded, step = run.load_supernet()
    assert step == 14
    assert all(torch.equal(weights_of(net)[k], v) for k, v in weights_of(loaded).items())
    assert_close(watch.looks[4], averaged(watch.steps[1:5], watch.steps[0], KEEPS))
    assert_close(watch.looks[14], expected)
    assert_close(weights_of(run.load_kept(7)), averaged(watch.steps[1:8], watch.steps[0], KEEPS))


def test_training_is_what_it_is_without(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    """The average sees the steps and does not change them; without, nothing of it is in the checkpoint."""
    nets, watches = [make_net(), make_net()], []
    for ema, net in zip((KEEPS, 0.0), nets, strict=True):
        watches.append(Watch(net))
        run = RunDirectory(tmp_path / str(ema))
        train_supernet(net, recipe_of(ema, sort_channels=True), make_data(), run, should_stop=watches[-1])
    for one, other in zip(watches[0].steps, watches[1].steps, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    groups = [checkpoint.load_latest(RunDirectory(tmp_path / str(ema)).checkpoints) for ema in (KEEPS, 0.0)]
    assert [found is not None and "trained" in found.tensors for found in groups] == [True, False]


def test_changing_places_twice_changes_nothing() -> None:
    layer = nn.Linear(3, 2)
    before = weights_of(layer)
    average = Average(layer, 0.5, since=0)
    with torch.no_grad():
        layer.weight.add_(1)
    with average.shown():
        assert torch.equal(layer.weight, before["weight"])
    assert torch.equal(layer.weight, before["weight"] + 1)
    assert torch.equal(average.tensors["weight"], before["weight"])
