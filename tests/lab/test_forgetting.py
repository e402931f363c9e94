"""Looking at probes while training: what is recorded, how often, and that it disturbs nothing."""

import gc
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trainonce.data import DataSet, load_dataset
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.lab.measures.forgetting import Prober, ProberSettings, default_probes, epochs_between_looks, forgetting
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.nn.segments import Segment
from trainonce.pipeline.training import prober
from trainonce.recipes import RECIPES, Crop, Flip, Phase, Recipe
from trainonce.run.directory import RunDirectory
from trainonce.run.lines import ForgettingLine
from trainonce.space import Architecture
from trainonce.training.loop import train_supernet
from trainonce.training.settings import EpochEnd

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
OFTEN = ProberSettings(images=20, calibration_images=16, share=1000)


def recipe_of(name: str, epochs: float) -> Recipe:
    recipe = RECIPES[name].with_batch_size(8)
    return recipe.scaled(epochs / recipe.epochs)


@pytest.fixture
def data(make_data: MakeData) -> DataSet:
    """Four batches of 8 an epoch."""
    return make_data(augmentation=(Crop(scale=(0.5, 1.0)), Flip()))


class TestForgetting:
    def test_by_hand(self) -> None:
        looks = {"a": [50.0, 60.0, 55.0, 70.0, 40.0], "b": [10.0, 9.0, 9.5, 8.0, 12.0]}
        lines = [
            ForgettingLine(step=i, epoch=i, probe=p, macs=1, top1=looks[p][i], loss=1.0, images=1)
            for i in range(5)
            for p in ("a", "b")
        ]
        assert forgetting(lines) == {"a": [0, 0, 5, 0, 30], "b": [0, 1, 0.5, 2, 0]}
        assert forgetting([]) == {}


class TestProbes:
    def test_they_span_the_space_evenly(self, make_net: MakeNet) -> None:
        net = make_net()
        probes = default_probes(net, 4, seed=0)
        macs = [net.cost_of(probe).macs for probe in probes]
        assert (probes[0], probes[-1]) == (net.space.smallest(), net.space.largest())
        thirds = [macs[0] + i * (macs[-1] - macs[0]) / 3 for i in range(4)]
        assert macs == pytest.approx(thirds, abs=(macs[-1] - macs[0]) / 50)
        assert default_probes(net, 4, seed=0) == probes
        assert default_probes(net, 4, seed=1)[1:3] != probes[1:3]

    def test_few(self, make_net: MakeNet) -> None:
        net = make_net()
        assert default_probes(net, 0, seed=0) == ()
        assert default_probes(net, 1, seed=0) == (net.space.largest(),)
        assert default_probes(net, 2, seed=0) == (net.space.smallest(), net.space.largest())
        only = {"depths": (1,), "kernel_sizes": (3,), "expand_ratios": (3,)}
        assert len(default_probes(make_net(**only), 4, seed=0)) == 1


class TestHowOften:
    def test_by_hand(self, make_net: MakeNet) -> None:
        """The largest subnet alone, 40 epochs of 4 steps of 8: 40 * 32 * 3 passes, of which a look takes so many."""
        net = make_net()
        phase = Phase(name="largest", epochs=40, subnets=("largest",))
        recipe = Recipe(name="test", about="A test.", phases=(phase,), batch_size=8)
        one = net.cost_of(net.space.largest()).macs

        def every(passes: int, share: float = 0.1) -> int:
            return epochs_between_looks(net, recipe, images=35, look_macs=passes * one, share=share, seed=0)

        assert every(384 // 11) == 4  # 384 passes are allowed: at most 11 looks
        assert every(384 // 3) == 14  # after 14, 28 and 40 epochs
        assert every(384) == every(10**6) == 40  # not even one: the end alone
        assert every(1) == 1

    def test_looks_stay_in_their_share(self, make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
        """Against the MACs that the network was really called with."""
        data, net, run = make_data(train=160), make_net(), RunDirectory(tmp_path)
        macs: list[int] = []
        net.register_forward_pre_hook(lambda _, arguments: macs.append(net.cost_of(arguments[1]).macs))
        recipe, chosen = recipe_of("spos", 6), ProberSettings(images=10, calibration_images=8, share=0.1)
        probes = default_probes(net, 3, seed=0)
        look = Prober(net, recipe, data, run, probes=probes, settings=chosen)
        train_supernet(net, recipe, data, run, on_epoch=look)
        lines = run.forgetting()
        looking = sum(line.macs for line in lines) * (10 + 8)
        share = looking / (3 * 8 * sum(macs))
        assert len(lines) > len(probes)
        assert 0.04 < share < 0.1


class TestWhileTraining:
    @pytest.mark.parametrize("name", ["rss", "ps"])
    def test_weights_are_the_same_bit_for_bit(
        self, make_net: MakeNet, data: DataSet, tmp_path: Path, name: str
    ) -> None:
        """With and without, statistics too; the global generators are left alone; nothing is left in another mode."""
        recipe, states = recipe_of(name, 3), []
        for look in (False, True):
            net, run = make_net(dropout=0.3), RunDirectory(tmp_path / str(look))
            modes: list[list[bool]] = []
            net.register_forward_pre_hook(lambda n, _, m=modes: m.append([x.training for x in n.modules()]))
            prober = Prober(net, recipe, data, run, probes=default_probes(net, 3, seed=0), settings=OFTEN)
            torch.manual_seed(0)
            train_supernet(net, recipe, data, run, on_epoch=prober if look else None)
            states.append((net.state_dict(), modes, torch.initial_seed(), float(torch.rand(()))))
        (plain, *rest), (looked, *others) = states
        assert [k for k, v in plain.items() if not torch.equal(v, looked[k])] == []
        assert rest == others
        assert len(run.forgetting()) >= 9

    def test_lines_are_the_probes_scores(self, make_net: MakeNet, data: DataSet, tmp_path: Path) -> None:
        net, run, recipe = make_net(), RunDirectory(tmp_path), recipe_of("rss", 2.5)
        probes = default_probes(net, 3, seed=4)
        prober = Prober(net, recipe, data, run, probes=probes, seed=4, settings=OFTEN)
        train_supernet(net, recipe, data, run, on_epoch=prober)
        lines = run.forgetting()
        assert [(line.step, line.epoch) for line in lines[::3]] == [(4, 1.0), (8, 2.0), (10, 2.5)]
        assert [line.probe for line in lines] == [str(probe) for probe in probes] * 3
        net.eval()
        for line, probe in zip(lines[-3:], probes, strict=True):
            score = Evaluator(prober.evaluator.data, "validate", EvaluateSettings(calibration_images=16, seed=4))(
                net, probe
            )
            assert (line.top1, line.images) == (score.top1, 20)
            assert line.loss == pytest.approx(score.loss, rel=1e-6)
            assert line.macs == net.cost_of(probe).macs

    def test_no_maps_stay_in_memory(
        self, make_net: MakeNet, data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[weakref.ref[Tensor]] = []

        def noted(segment: Segment, x_BCHW: Tensor) -> Tensor:
            found = forward(segment, x_BCHW)
            made.append(weakref.ref(found))
            return found

        forward = Segment.forward
        monkeypatch.setattr(Segment, "forward", noted)
        net, run = make_net(), RunDirectory(tmp_path)
        look = Prober(net, recipe_of("rss", 1), data, run, probes=default_probes(net, 2, seed=0), settings=OFTEN)
        look(EpochEnd(step=1, epoch=1.0, last=True))
        gc.collect()
        assert len(made) > 4
        assert not any(one() is not None for one in made)

    @pytest.mark.parametrize("stop", [3, 4, 5, 8, 9])
    def test_resumed_lines_are_the_same(self, make_net: MakeNet, data: DataSet, tmp_path: Path, stop: int) -> None:
        recipe = recipe_of("rss", 2.5)

        def go(run: RunDirectory, *, resume: bool = False, should_stop: Callable[[], bool] | None = None) -> None:
            net = make_net()
            look = Prober(net, recipe, data, run, probes=default_probes(net, 2, seed=0), settings=OFTEN)
            train_supernet(net, recipe, data, run, resume=resume, on_epoch=look, should_stop=should_stop)

        straight, resumed = RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "resumed")
        go(straight)
        asked = iter(range(1, 99))
        go(resumed, should_stop=lambda: next(asked) == stop)
        before = len(resumed.forgetting())
        last = straight.forgetting()[-1].model_copy(update={"top1": -1.0})
        resumed.append_forgetting(last)  # as if killed before the checkpoint
        go(resumed, resume=True)
        assert before == 2 * (stop // 4)
        assert resumed.forgetting_file.read_bytes() == straight.forgetting_file.read_bytes()

    def test_looking_does_not_count_as_training(self, make_net: MakeNet, data: DataSet, tmp_path: Path) -> None:
        run, net = RunDirectory(tmp_path), make_net()
        train_supernet(net, recipe_of("rss", 2), data, run, on_epoch=lambda _: time.sleep(0.5))
        first, second = (run.metrics()[0].seconds, run.metrics()[-1].seconds)
        assert first is not None
        assert second is not None
        assert second - first < 0.5

    def test_streamed_images_give_the_same_lines(self, tmp_path: Path) -> None:
        generator = np.random.default_rng(0)
        for i in range(120):
            path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
        lines = []
        for stream in (False, True):
            data = load_dataset(str(tmp_path / "images"), image_size=8, grey=True, stream=stream, workers=0)
            geometry = MobileNetV3Settings.for_images(image_size=8, in_channels=1, num_classes=2, width_mult=0.25)
            net, run, recipe = MobileNetV3(geometry), RunDirectory(tmp_path / str(stream)), recipe_of("rss", 0.2)
            look = Prober(net, recipe, data, run, probes=default_probes(net, 2, seed=0), settings=OFTEN)
            assert not look.evaluator.split.streamed
            assert data.validate.streamed == stream
            train_supernet(net, recipe, data, run, on_epoch=look)
            lines.append(run.forgetting())
        assert len(lines[0]) == 2
        assert lines[0] == lines[1]


def test_drawn_images(make_data: MakeData) -> None:
    split = make_data().validate
    part = split.drawn(10, seed=3)
    rows = [int((split.images == image).flatten(1).all(1).nonzero()[0]) for image in part.images]
    assert rows == sorted(set(rows))
    assert rows != list(range(10))
    assert part.labels.tolist() == split.labels[rows].tolist()
    assert len(split.drawn(1000, seed=0)) == len(split)


def test_the_command_looks_at_the_same_probes_when_resumed(make_net: MakeNet, data: DataSet, tmp_path: Path) -> None:
    net, run, recipe = make_net(), RunDirectory(tmp_path), recipe_of("rss", 1)

    def probes(count: int | None) -> tuple[Architecture, ...]:
        found = prober(net, recipe, data, run, count=count, seed=3)
        return () if found is None else found.probes

    assert probes(None) == default_probes(net, 4, seed=3)
    assert probes(2) == (net.space.smallest(), net.space.largest())
    assert probes(0) == ()
    before = default_probes(net, 6, seed=9)
    for probe in before * 2:
        run.append_forgetting(ForgettingLine(step=1, epoch=1.0, probe=str(probe), macs=1, top1=1.0, loss=1.0, images=1))
    assert probes(None) == before
    assert probes(2) == (net.space.smallest(), net.space.largest())
