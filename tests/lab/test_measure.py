"""`trainonce measure`: what it writes, that it touches nothing, and how it refuses."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support.own_networks import Residual
from typer.testing import CliRunner

from trainonce.cli.app import app, main
from trainonce.data import DataSet, Split, load_dataset
from trainonce.errors import UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.lab.measures.forgetting import default_probes
from trainonce.lab.measures.measure import MeasureSettings, _training, measure, verdict
from trainonce.lab.measures.recorded import Interference, TransferMeasures
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.models.traced import elastic
from trainonce.recipes import RECIPES, Crop, Flip
from trainonce.records import read_json
from trainonce.run.directory import RunDirectory
from trainonce.training.loop import train_supernet
from trainonce.training.settings import TrainSettings

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
SETTINGS = MeasureSettings(batches=3, batch_size=10, calibration_images=24)


def bright(split: Split) -> Split:
    return Split(split.images // 8 + 100 * split.labels.to(torch.uint8)[:, None, None, None], split.labels)


@pytest.fixture
def data(make_data: MakeData) -> DataSet:
    return make_data(augmentation=(Crop(scale=(0.5, 1.0)), Flip()))


class TestMeasure:
    def test_what_is_found(self, make_net: MakeNet, data: DataSet) -> None:
        net = make_net(dropout=0.3).eval()
        before = copy.deepcopy(net.state_dict())
        probes = default_probes(net, 4, seed=0)
        torch.manual_seed(0)
        expected = torch.rand(())
        torch.manual_seed(0)
        found = measure(net, data, probes, step=7, settings=SETTINGS)
        assert torch.rand(()) == expected, "the global generator is left alone"
        assert [k for k, v in net.state_dict().items() if not torch.equal(v, before[k])] == []
        assert not net.training
        assert all(p.grad is None for p in net.parameters())
        assert found == measure(net, data, probes, step=7, settings=SETTINGS)
        json.dumps(found.to_json(), allow_nan=False)
        assert found.labels[0] == "smallest"
        assert found.labels[-1] == "largest"
        assert found.macs == [net.cost_of(probe).macs for probe in probes]
        for matrix in (found.gradient.agreement, found.transfer.z, found.bn_shift.mean):
            assert np.array(matrix).shape == (4, 4)
        assert {"stem", "stage1.block1", "stage5.block2", "classifier"} <= set(found.gradient.layers)
        assert found.gradient.layers["stage5.block2"][0] == [None] * 4, "the smallest does not have it"
        assert len(found.gradient.control) == 4
        gradient, transfer = found.gradient, found.transfer
        for errors in (gradient.agreement_error, gradient.conflict_error, transfer.r_error, transfer.z_error):
            assert np.array(errors).shape == (4, 4)
        assert np.array(found.gradient.layers_error["stem"]).shape == (4, 4)
        diagonal = [found.bn_shift.mean[i][i] for i in range(4)]
        assert diagonal == [0, 0, 0, 0]

    def test_of_ones_own_network_each_block_is_measured(self, data: DataSet) -> None:
        """Those that its class has, by its own names for them."""
        net = elastic(Residual(), torch.zeros(1, 1, 8, 8), num_classes=3)
        found = measure(net, data, default_probes(net, 2, seed=0), step=0, settings=SETTINGS)
        assert set(found.gradient.layers) == {"stem", "bn", "blocks.0", "blocks.1", "blocks.2", "fc"}
        assert found.gradient.layers.keys() == found.gradient.layers_error.keys()
        before = found.to_json()  # as it was recorded until 1 December 2026
        before["gradient"]["layers"] = before["gradient"]["layers_error"] = {"network": found.gradient.agreement}
        assert Interference.read(before, where="here").gradient.layers == {"network": found.gradient.agreement}

    @pytest.mark.parametrize(
        ("parameter", "part"),
        [
            ("layer1.0.downsample.0.weight", "layer1.0"),
            ("blocks.2.1.conv_pw.weight", "blocks.2.1"),
            ("blocks.11.attn.qkv.bias", "blocks.11"),
            ("features.denseblock1.denselayer2.conv1.weight", "features.denseblock1.denselayer2.conv1"),
            ("0.weight", "0"),
            ("pos_embed", "pos_embed"),
        ],
    )
    def test_blocks_of_networks_as_libraries_name_them(self, parameter: str, part: str) -> None:
        net = elastic(Residual(), torch.zeros(1, 1, 8, 8))
        assert net.part_of(f"network.{parameter}") == part

    def test_scores_are_the_evaluators(self, make_net: MakeNet, data: DataSet) -> None:
        net = make_net().eval()
        probes = default_probes(net, 2, seed=0)
        found = measure(net, data, probes, step=1, settings=SETTINGS).statistics
        evaluator = Evaluator(data, "validate", EvaluateSettings(calibration_images=24))
        assert found.top1_recalibrated == [evaluator(net, probe).top1 for probe in probes]
        assert found.top1_supernet == [evaluator.score(net.extract(probe)).top1 for probe in probes]

    def test_two_subnets_that_are_the_same_but_for_a_kernel(self, make_net: MakeNet, make_data: MakeData) -> None:
        """They share nearly everything, so what trains the one trains the other. Brightness is the class."""
        net, data = make_net(dropout=0.0, depths=(1,), expand_ratios=(3,)).eval(), make_data()
        data = replace(data, train=bright(data.train), validate=bright(data.validate))
        largest = net.space.largest()
        other = net.space.check(dict(largest) | {"stage5.block1.kernel_size": 3})
        found = measure(net, data, [largest, other], step=1, settings=SETTINGS)
        assert (found.gradient.agreement[0][1] or 0) > 0.6
        assert found.gradient.conflict == [[0, 0], [0, 0]]
        assert np.array(found.transfer.z, float).min() > 0

    def test_small_data(self, make_net: MakeNet, data: DataSet, make_data: MakeData) -> None:
        net = make_net().eval()
        probes = default_probes(net, 2, seed=0)
        found = measure(net, data, probes, step=1, settings=SETTINGS.model_copy(update={"batch_size": 1000}))
        assert found.batch_size == 32
        few = replace(data, train=make_data(train=1).train)
        with pytest.raises(UserError, match="1 training images are too few"):
            measure(net, few, probes, step=1, settings=SETTINGS)
        with pytest.raises(UserError, match="at least two different probes"):
            measure(net, data, probes[:1], step=1, settings=SETTINGS)
        few = replace(data, validate=make_data(validate=2).validate)
        measure(net, few, probes, step=1, settings=SETTINGS)
        few = replace(data, validate=make_data(validate=1).validate)
        with pytest.raises(UserError, match="1 validation images are too few"):
            measure(net, few, probes, step=1, settings=SETTINGS)


class TestBatches:
    def test_a_hundred_unless_told_otherwise(self) -> None:
        assert MeasureSettings().batches == 100

    def test_they_share_no_image_where_there_are_enough(self, data: DataSet) -> None:
        """The labels of 32 images, each once."""
        plain = replace(data, train=Split(data.train.images, torch.arange(32)))
        labels = [batch[1].tolist() for batch in _training(plain, SETTINGS.model_copy(update={"batches": 3}))]
        assert len({label for batch in labels for label in batch}) == 30

    def test_where_there_are_too_few_each_is_drawn_by_itself(self, data: DataSet) -> None:
        """No image twice in a batch, and no two batches alike or without a common image throughout."""
        plain = replace(data, train=Split(data.train.images, torch.arange(32)))
        drawn = [set(batch[1].tolist()) for batch in _training(plain, SETTINGS.model_copy(update={"batches": 40}))]
        assert [len(batch) for batch in drawn] == [10] * 40
        common = [len(one & other) for one, other in pairwise(drawn)]
        assert np.mean(common) == pytest.approx(10 * 10 / 32, abs=0.8), "as independent draws have"


class TestVerdict:
    @pytest.mark.parametrize(
        ("harmful", "helpful", "says"),
        [
            ([[0, 1], [0, 0]], [[1, 0], [0, 1]], "Interference at this step: in 1 of 2 pairs"),
            ([[0, 0], [0, 0]], [[1, 1], [1, 1]], "No interference at this step: a step for any of these 2 subnets"),
            ([[0, 0], [0, 0]], [[1, 1], [0, 1]], "No interference was seen beyond noise at this step: in 1 of 2"),
        ],
    )
    def test_sentences(self, harmful: list[list[int]], helpful: list[list[int]], says: str) -> None:
        transfer = TransferMeasures(
            harmful=[list(map(bool, row)) for row in harmful],
            helpful=[list(map(bool, row)) for row in helpful],
            z=[[0.1, -0.2], [0.3, 0.1]],
        )
        found = Interference(probes=["a", "b"], macs=[1, 2], labels=["smallest", "largest"], transfer=transfer)
        said = verdict(found)
        assert said.startswith(says)
        assert ("largest that of smallest" in said) == (sum(map(sum, harmful)) > 0)


class TestCommand:
    @pytest.fixture(scope="class")
    @classmethod
    def run(cls, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
        run = RunDirectory(tmp_path_factory.mktemp("measure") / "run")
        settings = MobileNetV3Settings.for_images(image_size=8, in_channels=1, num_classes=10, width_mult=0.25)
        recipe = RECIPES["spos"].scaled(0.25 / RECIPES["spos"].epochs)
        keeping = TrainSettings(keep_at=(0.5,))
        train_supernet(MobileNetV3(settings), recipe, load_dataset("digits"), run, settings=keeping)
        return run

    OPTIONS = ("--probes", "3", "--batches", "2", "--calibration-images", "50", "--device", "cpu")

    def test_it_writes_and_says(self, run: RunDirectory) -> None:
        checkpoints = {p: p.read_bytes() for p in run.checkpoints.rglob("*") if p.is_file()}
        done = CliRunner().invoke(app, ["measure", str(run.path), *self.OPTIONS], catch_exceptions=False)
        assert done.exit_code == 0
        assert "nterference" in done.stdout
        assert "largest" in done.stdout
        found = read_json(run.interference_file)
        assert found["batch_size"] == 64
        assert len(found["probes"]) == 3
        assert " ± " in done.stdout
        [before] = found["along"]
        assert 0 < before["step"] < found["step"]
        assert before["probes"] == found["probes"]
        assert before["gradient"] != found["gradient"], "of other weights"
        assert "Along the training" in done.stdout
        assert {p: p.read_bytes() for p in run.checkpoints.rglob("*") if p.is_file()} == checkpoints

    def test_json(self, run: RunDirectory) -> None:
        done = CliRunner().invoke(app, ["measure", str(run.path), *self.OPTIONS, "--json"], catch_exceptions=False)
        assert json.loads(done.stdout) == read_json(run.interference_file)

    @pytest.mark.parametrize("what", ["nothing", "untrained"])
    def test_refusals(
        self,
        run: RunDirectory,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        what: str,
    ) -> None:
        if what == "untrained":
            (tmp_path / "run.json").write_bytes(run.config_file.read_bytes())
        monkeypatch.setattr("sys.argv", ["trainonce", "measure", str(tmp_path)])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2
        said = capsys.readouterr().err
        assert {"nothing": "holds no run", "untrained": "has no trained weights yet: train it first"}[what] in said
        assert not (tmp_path / "interference.json").exists()
