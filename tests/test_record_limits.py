"""Losses that are not finite, or larger than records hold: what is written can be read, and what was scored stays."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.command_line import trainonce

from trainonce.data import DataSet, load_dataset
from trainonce.errors import RunError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, Score
from trainonce.evaluation.population import draw_population, evaluate_population, make_buckets
from trainonce.files import LARGEST_NUMBER, fits_record
from trainonce.lab.measures.forgetting import Prober
from trainonce.lab.measures.measure import to_json
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.recipes import RECIPES
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.space import Architecture
from trainonce.training.loop import train_supernet

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
OVERFLOWS, NOT_RECORDED = 3e38, 1e33
LOSS = r"(nan|inf|\d\.\d+e\+3\d)"
QUICK = ("--calibration-images", "20", "--device", "cpu", "--workers", "1")
COMMANDS = {
    "evaluate": ("--per-bucket", "1", *QUICK),
    "search": ("--scores", "2", "--no-control", "--no-predictor", *QUICK),
    "measure": ("--probes", "2", "--batches", "2", "--calibration-images", "20", "--device", "cpu"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunDirectory(tmp_path_factory.mktemp("limits") / "run")
    settings = MobileNetV3Settings.for_images(image_size=8, in_channels=1, num_classes=10, width_mult=0.25)
    recipe = RECIPES["spos"].with_batch_size(256).scaled(1 / RECIPES["spos"].epochs)
    train_supernet(MobileNetV3(settings), recipe, load_dataset("digits"), run)
    assert trainonce("evaluate", run.path, *COMMANDS["evaluate"]).code == 0
    return run.path


def with_classifier(trained: Path, path: Path, size: float) -> RunDirectory:
    """A copy of the run whose checkpoint, whole by its manifest, has a classifier of weights of that size."""
    shutil.copytree(trained, path)
    run = RunDirectory(path)
    found = checkpoint.load_latest(run.checkpoints)
    assert found is not None
    weight = found.tensors["weights"]["classifier.weight"]
    found.tensors["weights"]["classifier.weight"] = torch.where(weight > 0, size, -size)
    checkpoint.save(run.checkpoints, found.step + 1, found.tensors, found.state | {"step": found.step + 1})
    return run


@pytest.mark.parametrize("size", [OVERFLOWS, NOT_RECORDED])
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_the_subnet_and_lose_nothing(trained: Path, tmp_path: Path, command: str, size: float) -> None:
    run = with_classifier(trained, tmp_path / "run", size)
    before = run.population_file.read_bytes()
    result = trainonce(command, run.path, *COMMANDS[command])
    result.refused(rf"loss .*is {LOSS}", code=1)
    assert re.search(rf"is {LOSS} for d\d\.k\d|the probe d\d\.k\d\S* is {LOSS}", result.err)
    assert run.population_file.read_bytes() == before
    assert (run.searched(), len(run.population())) == ([], 6)
    assert trainonce("report", run.path).code == 0


class OneOverflows(Evaluator):
    """Made-up scores; the loss of some subnets is what no record holds."""

    bad: dict[Architecture, float]

    def __call__(self, _net: Any, arch: Architecture) -> Score:
        return Score(top1=50.0, loss=self.bad.get(arch, 0.5), images=30)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), LARGEST_NUMBER])
def test_the_other_subnets_are_recorded(make_net: MakeNet, make_data: MakeData, tmp_path: Path, loss: float) -> None:
    net, run = make_net(), RunDirectory(tmp_path)
    archs = [arch for _, arch in draw_population(net.cost, make_buckets(net.cost), 2, seed=0)]
    evaluator = OneOverflows(make_data(), "validate", EvaluateSettings(calibration_images=8))
    evaluator.bad = {archs[3]: loss}
    message = f"1 of {len(archs)} subnets have no score on validate.* it is {loss:g} for {archs[3]}".replace("+", r"\+")
    with pytest.raises(RunError, match=message):
        evaluate_population(net, 1, evaluator, run, archs)
    assert {line.arch for line in run.population()} == {str(arch) for arch in archs} - {str(archs[3])}
    evaluator.bad = {}
    assert len(evaluate_population(net, 1, evaluator, run, archs)) == len(archs)


def test_training_stops_at_a_loss_that_its_record_could_not_hold(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path
) -> None:
    net, run = make_net(), RunDirectory(tmp_path)
    with torch.no_grad():
        net.classifier.bias[1] = NOT_RECORDED
    with pytest.raises(RunError, match=r"the loss is \d\.\d+e\+3\d at step 0 .*stopped before the step"):
        train_supernet(net, RECIPES["spos"].with_batch_size(8).scaled(1 / 590), make_data(), run)
    assert run.metrics() == []


def test_a_look_at_a_probe_without_a_loss_is_left_out(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    net, data, run = make_net(), make_data(), RunDirectory(tmp_path)
    recipe = RECIPES["spos"].with_batch_size(8).scaled(1 / 590)
    probes = [net.space.smallest(), net.space.largest()]
    prober = Prober(net, recipe, data, run, probes=probes)
    prober.evaluator = OneOverflows(data, "validate", EvaluateSettings(calibration_images=8))
    prober.evaluator.bad = {probes[0]: float("inf")}
    with pytest.warns(RuntimeWarning, match=f"the loss of the probe {probes[0]} after step 4 is inf"):
        assert train_supernet(net, recipe, data, run, on_epoch=prober)
    assert [line.probe for line in run.forgetting()] == [str(probes[1])]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -LARGEST_NUMBER, 1e300])
def test_a_matrix_has_no_number_that_its_reader_refuses(number: float) -> None:
    assert not fits_record(number)
    assert to_json(torch.tensor([[1.5, number]], dtype=torch.float64).numpy()) == [[1.5, None]]
