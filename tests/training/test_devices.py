"""Devices that cannot train are refused before anything is made, from the command line and from Python."""

from pathlib import Path

import pytest
import torch
from tests.conftest import MakeData, MakeNet
from tests.support.command_line import trainonce

from trainonce.errors import UserError
from trainonce.recipes import RECIPES
from trainonce.run.directory import RunDirectory
from trainonce.training.devices import check_device
from trainonce.training.loop import train_supernet
from trainonce.training.settings import TrainSettings

NAMES = ["meta", "abacus", "", "mps", "xpu", "hpu", "mkldnn", "vulkan", "xla", "lazy", "privateuseone", "cuda:77"]


@pytest.mark.parametrize("name", NAMES)
def test_a_device_that_cannot_train_is_a_sentence(name: str) -> None:
    if name in ("mps", "xpu") and getattr(torch, name).is_available():
        pytest.skip("it is there")
    with pytest.raises(UserError, match=f"^the device '{name}' cannot be trained on here: [^\n]+$"):
        check_device(name)


def test_the_processor_can_train() -> None:
    check_device("cpu")


@pytest.mark.parametrize("command", [("train", "digits"), ("study", "baseline", "digits")])
def test_the_command_line_refuses_it(command: tuple[str, ...], tmp_path: Path) -> None:
    trainonce(*command, "--device", "meta", "--out", tmp_path / "out").refused("the device 'meta' cannot be trained on")
    assert not (tmp_path / "out" / "run.json").exists()


def test_python_refuses_it(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(UserError, match="the device 'meta' cannot be trained on"):
        train_supernet(make_net(), RECIPES["rss"], make_data(), run, settings=TrainSettings(device="meta"))
    assert not run.config_file.exists()
