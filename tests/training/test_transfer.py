"""Training that begins with weights: the head alone, smaller rates for the rest, the teacher, and going on exactly."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import MakeData, MakeNet
from tests.support.training import LR, differing, one_step, recipe_of, state_of
from torch import nn

from trainonce.models import MobileNetV3, ResNet, ResNetSettings
from trainonce.recipes import RECIPES, Phase
from trainonce.run.directory import RunDirectory, Start
from trainonce.training.loop import train_supernet

HEAD = {"classifier.weight", "classifier.bias"}
START = Start(network="own", trained=True, fresh_head=True)


def test_the_head_alone_is_trained(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    """The other weights stay to the last bit, whatever momentum and decay would do; statistics follow the images."""
    net = make_net()
    before = state_of(net)
    recipe = recipe_of(Phase(name="head", epochs=2, lr=LR, trains="head"))
    assert train_supernet(net, recipe, make_data(), RunDirectory(tmp_path))
    changed = set(differing(before, state_of(net)))
    assert changed & {name for name, _ in net.named_parameters()} == HEAD
    assert any(name.endswith("running_mean") for name in changed)
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_its_gradient_is_that_of_all(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    heads = []
    for trains in ("head", "all"):
        net = make_net()
        train_supernet(net, one_step(trains=trains), make_data(), RunDirectory(tmp_path / trains))
        heads.append({name: state_of(net)[name] for name in HEAD})
    assert not differing(*heads)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_rate_of_the_rest_is_a_part_of_the_heads(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path, optimizer: Any
) -> None:
    """In one step without momentum: a quarter of the way for the rest, all of it for the head."""
    moved = []
    for share in (1.0, 0.25):
        net = make_net()
        before = state_of(net)
        phase = Phase(name="only", epochs=0.25, lr=LR, backbone_lr=share)
        recipe = recipe_of(phase, optimizer=optimizer, momentum=0.0)
        train_supernet(net, recipe, make_data(), RunDirectory(tmp_path / str(share)))
        moved.append({name: (weight - before[name]) for name, weight in net.named_parameters()})
    whole, part = moved
    assert any(whole[name].abs().max() > 1e-4 for name in whole if name not in HEAD)
    for name, way in whole.items():
        torch.testing.assert_close(part[name], way * (1 if name in HEAD else 0.25), rtol=1e-3, atol=1e-7, msg=name)


def test_the_teacher_is_the_largest_as_its_phase_begins(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as the first phase left it, which trained the head alone."""
    net, kept = make_net(), list[dict[str, torch.Tensor]]()
    extract = type(net).extract

    def noted(self: MobileNetV3, arch: Any) -> nn.Module:
        found = extract(self, arch)
        kept.append(state_of(found))
        return found

    monkeypatch.setattr(type(net), "extract", noted)
    recipe = recipe_of(
        Phase(name="head", epochs=0.25, lr=LR, trains="head"),
        Phase(name="largest", epochs=0.5, lr=LR, subnets=("largest",)),
        Phase(name="taught", epochs=0.25, lr=1e-9, target="labels+teacher"),
    )
    train_supernet(net, recipe, make_data(), RunDirectory(tmp_path))
    assert len(kept) == 1
    monkeypatch.undo()
    largest = make_net()
    two = recipe.model_copy(update={"phases": recipe.phases[:2]})
    train_supernet(largest, two, make_data(), RunDirectory(tmp_path / "two"))
    assert not differing(kept[0], state_of(largest.extract(largest.space.largest())))


@pytest.mark.parametrize("stopped", [1, 3, 7])
def test_it_goes_on_exactly(make_net: MakeNet, make_data: MakeData, tmp_path: Path, stopped: int) -> None:
    """Stopped in each of the phases of `transfer`, begun with weights."""
    recipe = RECIPES["transfer"].scaled(2 / 32).with_batch_size(8)
    whole, cut = make_net(seed=3), make_net(seed=3)
    assert train_supernet(whole, recipe, make_data(), RunDirectory(tmp_path / "whole"), start=START)
    run, steps = RunDirectory(tmp_path / "cut"), count(1)
    assert not train_supernet(cut, recipe, make_data(), run, start=START, should_stop=lambda: next(steps) >= stopped)
    again = make_net(seed=4)  # its weights come from the checkpoint
    assert train_supernet(again, recipe, make_data(), run, start=START, resume=True)
    assert not differing(state_of(whole), state_of(again))
    assert run.config().start == START


def test_weights_that_were_trained_are_not_set_to_zero(make_data: MakeData, tmp_path: Path) -> None:
    """`zero_init_residual` is for a network that begins with random weights."""
    recipe = recipe_of(Phase(name="only", epochs=0.25, lr=1e-12), zero_init_residual=True)
    for name, start in (("new", None), ("trained", START)):
        net = ResNet(ResNetSettings.for_images(image_size=8, in_channels=1, num_classes=3))
        before = state_of(net)
        train_supernet(net, recipe, make_data(), RunDirectory(tmp_path / name), start=start)
        zeroed = [key for key in before if before[key].any() and not state_of(net)[key].any()]
        assert bool(zeroed) == (start is None)


@pytest.mark.parametrize("fields", [{"backbone_lr": 0.5}, {"sort_channels": True}])
def test_what_says_nothing_of_a_head_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the head alone is trained"):
        Phase(name="head", epochs=1, trains="head", **fields)
