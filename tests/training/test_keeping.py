"""Weights kept along a training: which, that they are those of their step, and that keeping changes nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from trainonce.cli.app import app
from trainonce.data import DataSet, load_dataset
from trainonce.errors import UserError
from trainonce.models import MobileNetV3, MobileNetV3Settings, Supernet
from trainonce.recipes import RECIPES
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.training.loop import train_supernet
from trainonce.training.settings import TrainSettings

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
RECIPE = RECIPES["spos"].with_batch_size(8).scaled(2.5 / RECIPES["spos"].epochs)
"""Ten steps of the tiny images."""
KEEPING = TrainSettings(keep_at=(0.2, 0.5))


def weights(net: Supernet) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_weights_are_those_of_their_step(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    """Beside a run that keeps nothing, and stops after the step."""
    run, stopping = RunDirectory(tmp_path / "keeps"), RunDirectory(tmp_path / "stops")
    train_supernet(net := make_net(), RECIPE, make_data(), run, settings=KEEPING)
    assert run.kept_steps() == [2, 5]
    assert len(checkpoint.steps(run.checkpoints)) <= 2, "the newest are as without"
    asked = iter(range(100))
    train_supernet(other := make_net(), RECIPE, make_data(), stopping, should_stop=lambda: next(asked) == 4)
    assert same(weights(run.load_kept(5)), weights(other))
    assert not same(weights(run.load_kept(2)), weights(other))
    train_supernet(other, RECIPE, make_data(), stopping, resume=True)
    assert same(weights(net), weights(other)), "keeping changes nothing"


def test_a_resumed_run_keeps_what_it_comes_by(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    run, whole = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "whole")
    train_supernet(make_net(), RECIPE, make_data(), whole, settings=KEEPING)
    asked = iter(range(100))
    train_supernet(make_net(), RECIPE, make_data(), run, settings=KEEPING, should_stop=lambda: next(asked) == 2)
    assert run.kept_steps() == [2]
    train_supernet(make_net(), RECIPE, make_data(), run, settings=KEEPING, resume=True)
    assert run.kept_steps() == [2, 5]
    assert all(same(weights(run.load_kept(step)), weights(whole.load_kept(step))) for step in (2, 5))


def test_it_is_no_part_of_a_runs_identity(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    train_supernet(make_net(), RECIPE, make_data(), run, settings=KEEPING)
    assert run.config().keep_at == (0.2, 0.5)
    assert train_supernet(make_net(), RECIPE, make_data(), run, resume=True)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 10.0])
def test_shares_lie_between_nothing_and_all(share: float) -> None:
    with pytest.raises(UserError, match="keep_at"):
        TrainSettings.parse({"keep_at": (share,)}, where="the command line")


def test_a_step_that_was_not_kept_is_a_sentence(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    train_supernet(make_net(), RECIPE, make_data(), run, settings=KEEPING)
    with pytest.raises(UserError, match="step-000003"):
        run.load_kept(3)
    (run.kept / "step-000002" / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="damaged"):
        run.load_kept(2)


def test_the_command_resumes_as_before(tmp_path: Path) -> None:
    """Nothing is said of keeping when it goes on, and what was asked for at first is kept."""
    run, data = RunDirectory(tmp_path), load_dataset("digits")
    settings = MobileNetV3Settings.for_images(image_size=8, in_channels=1, num_classes=10, width_mult=0.25)
    recipe = RECIPES["spos"].scaled(0.5 / RECIPES["spos"].epochs)
    keeping = TrainSettings(keep_at=(0.9,))
    train_supernet(MobileNetV3(settings), recipe, data, run, settings=keeping, should_stop=lambda: True)
    assert run.kept_steps() == []
    done = CliRunner().invoke(app, ["train", "--resume", str(tmp_path), "--device", "cpu"], catch_exceptions=False)
    assert done.exit_code == 0
    assert len(run.kept_steps()) == 1
    refused = CliRunner().invoke(app, ["train", "digits", "--keep-at", "half", "--out", str(tmp_path / "other")])
    assert isinstance(refused.exception, UserError)
    assert "--keep-at takes numbers" in str(refused.exception)
