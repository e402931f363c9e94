"""Every recipe in the training loop: each trains; teachers, sorting and what does not fit."""

import copy
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import MakeData, MakeNet
from tests.support.training import LR, Spy, State, differing, images_of, one_step, recipe_of, state_of, uniform
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.data.augment import drawn_mix, mix
from trainonce.errors import UserError
from trainonce.models import MobileNetV3
from trainonce.nn.cropping import crop_kernels
from trainonce.nn.plain import PlainNetwork
from trainonce.recipes import RECIPES, AugmentationChange, CutMix, Flip, Mixup, Own, Phase, Recipe, Slot, timetable
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.space import SearchSpace, derived_rng, derived_seed
from trainonce.training.loop import train_supernet
from trainonce.training.settings import TrainSettings
from trainonce.training.step_sums import Known

WATCHED: list[Tensor] = []
SECOND = Slot(
    about="Every choice at its second value.",
    draw=lambda draw: [draw.space.build(lambda _, values: values[min(1, len(values) - 1)])],
)
WORST = Slot(
    about="The worse of the two ends.",
    draw=lambda draw: [draw.space.smallest(), draw.space.largest()],
    candidates=2,
    keeps="highest",
)


def squared(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """A distillation of a person's own."""
    WATCHED.append(student_BK)
    return F.mse_loss(student_BK, teacher_BK)


class TestRecipes:
    @pytest.mark.parametrize("name", list(RECIPES))
    def test_each_trains(self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, name: str) -> None:
        """About a dozen steps; exactly one line of metrics a phase, of finite numbers; global generators untouched."""
        recipe = RECIPES[name].with_batch_size(8)
        recipe = recipe.scaled(3 / recipe.epochs)
        coupled = {"expand_ratios": (3, 6)} if name == "compofa" else {}  # as many as there are depths
        net, run = make_net(**coupled), RunDirectory(tmp_path)
        before, spy = state_of(net), Spy(net)
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        generators = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
        finished = train_supernet(net, recipe, make_data(augmentation=(Flip(),)), run)
        assert finished
        assert torch.equal(torch.get_rng_state(), generators[0])
        assert (random.getstate(), repr(np.random.get_state())) == generators[1:]
        lines = run.metrics()
        assert [line.phase for line in lines] == [phase.name for phase in recipe.phases]
        assert all(math.isfinite(line.loss) for line in lines)
        assert all(tensor.isfinite().all() for tensor in net.state_dict().values())
        assert lines[-1].passes == sum(
            (line.step - previous) / 4 * len(phase.subnets)
            for line, previous, phase in zip(lines, [0, *(li.step for li in lines)], recipe.phases, strict=False)
        )
        assert differing(before, state_of(net))
        assert all(arch in net.space for arch in spy.archs)
        final = checkpoint.load_latest(run.checkpoints)
        assert final is not None
        assert differing(final.tensors["weights"], state_of(net)) == []

    def test_rss_holds_a_subnet_for_an_epoch(self, make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
        net = make_net()
        spy = Spy(net)
        phase = RECIPES["rss"].phases[0].model_copy(update={"epochs": 4.5})
        train_supernet(net, recipe_of(phase), make_data(), RunDirectory(tmp_path))
        assert len(spy.archs) == 18
        held = [set(spy.archs[start : start + 4]) for start in range(0, 18, 4)]
        assert [len(archs) for archs in held] == [1] * 5
        assert held == [{uniform(net, 0, 0, epoch)} for epoch in range(5)]
        assert len(set.union(*held)) == 5

    def test_a_hold_of_half_an_epoch(self, make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
        net = make_net()
        spy = Spy(net)
        phase = RECIPES["rss"].phases[0].model_copy(update={"epochs": 2.0, "hold_epochs": 0.5})
        train_supernet(net, recipe_of(phase), make_data(), RunDirectory(tmp_path))
        assert spy.archs == [uniform(net, 0, 0, turn) for turn in (0, 0, 1, 1, 2, 2, 3, 3)]

    def test_spos_draws_anew_each_step(self, make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
        net = make_net()
        spy = Spy(net)
        train_supernet(net, RECIPES["spos"].with_batch_size(8).scaled(2 / 590), make_data(), RunDirectory(tmp_path))
        assert spy.archs == [uniform(net, 0, 0, step) for step in range(8)]
        assert len(set(spy.archs)) == 8

    def test_anchor_alternates_by_epoch(self, make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
        net = make_net()
        spy = Spy(net)
        phase = RECIPES["anchor"].phases[0].model_copy(update={"epochs": 3.0})
        train_supernet(net, recipe_of(phase), make_data(), RunDirectory(tmp_path))
        smallest, largest = net.space.smallest(), net.space.largest()
        assert spy.archs == [smallest] * 4 + [largest] * 4 + [smallest] * 4

    def test_slots_and_losses_of_ones_own(self, make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
        net, seen = make_net(), list[Tensor]()
        spy = Spy(net)
        recipe = one_step(
            subnets=("largest", f"{__name__}:SECOND", f"{__name__}:WORST"),
            target="largest",
            distillation=f"{__name__}:squared",
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{__name__}.WATCHED", seen)
            train_supernet(net, recipe, make_data(), RunDirectory(tmp_path))
        second, tried, trained = spy.archs[1], spy.archs[2:4], spy.archs[4]
        assert second == net.space.build(lambda _, values: values[min(1, len(values) - 1)])
        assert tried == [net.space.smallest(), net.space.largest()]
        assert trained in tried
        assert len(seen) == 2, "the loss of each but the first"
        assert recipe.own_code() == {
            f"{__name__}:SECOND": "slot",
            f"{__name__}:WORST": "slot",
            f"{__name__}:squared": "loss",
        }

    def test_a_slot_that_is_none(self, make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
        for name, said in (
            (f"{__name__}:squared", "is not a Slot"),
            ("no_such:slot", "the slot no_such:slot cannot be"),
        ):
            with pytest.raises(UserError, match=said):
                train_supernet(make_net(), one_step(subnets=(name,)), make_data(), RunDirectory(tmp_path))

    def test_own_parts_that_are_not_there_are_refused_before_anything_is_written(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path
    ) -> None:
        lost = AugmentationChange(also=(Own(function="no_such:haze"),))
        for recipe in (
            one_step(subnets=("largest", "uniform"), target="largest", distillation="no_such:loss"),
            one_step().model_copy(update={"augmentation": lost}),
        ):
            with pytest.raises(UserError, match=r"the (loss|function) no_such:\w+ cannot be imported"):
                train_supernet(make_net(), recipe, make_data(), RunDirectory(tmp_path / "run"))
            assert not (tmp_path / "run" / "run.json").exists()

    def test_mixed_images_and_labels(self, make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
        """A step on mixed images learns the mean of two labels, with the step's own weight."""
        for way in (Mixup(alpha=1.0), CutMix()):
            net, data = make_net(dropout=0.0), make_data()
            reference = copy.deepcopy(net).train()
            change = AugmentationChange(also=(way,))
            recipe = one_step(subnets=("largest",)).model_copy(update={"augmentation": change})
            run = RunDirectory(tmp_path / way.kind)
            train_supernet(net, recipe, data, run)
            x, y = images_of(data, seed=0, phase=0, step=0)
            rng = derived_rng(0, "mix", 0, 0)
            x, labels_BK = mix(x, y, drawn_mix((way,), known=0.0, rng=rng), classes=3, rng=rng)
            logits = reference(x.contiguous(memory_format=torch.channels_last), net.space.largest())
            loss = -(labels_BK * logits.log_softmax(1)).sum(1).mean()
            assert run.metrics()[0].loss == pytest.approx(float(loss.detach()), rel=1e-5)

    def test_what_is_known_is_of_batches_that_are_not_mixed(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those of every second step, two subnets each, as the lines of metrics have them."""
        monkeypatch.setattr(Known, "PER_LOOK", 2)
        for once in (0.999, None):  # nothing is mixed; everything is
            change = AugmentationChange(also=(CutMix(once_known=once),))
            recipe = one_step(epochs=2, subnets=("largest", "smallest")).model_copy(update={"augmentation": change})
            run = RunDirectory(tmp_path / str(once))
            train_supernet(make_net(), recipe, make_data(), run, settings=TrainSettings(log_every=1))
            top1 = [line.top1 / 100 for line in run.metrics()]
            expected = 0.0
            for one, two in zip(top1[::2], top1[1::2], strict=True):
                expected += (1 - Known.KEPT) * ((one + two) / 2 - expected)
            found = checkpoint.load_latest(run.checkpoints)
            assert found is not None
            assert expected > 0
            assert found.state["known"]["share"] == (pytest.approx(expected) if once else 0)

    def test_a_line_of_mixed_batches_says_what_is_known(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A line for each step, and what is known is that of the last batch that was not mixed."""
        monkeypatch.setattr(Known, "PER_LOOK", 1)
        monkeypatch.setattr(Known, "KEPT", 0.0)
        ways = (CutMix(once_known=0.0),)
        recipe = one_step(epochs=8).model_copy(update={"augmentation": AugmentationChange(also=ways)})
        run, known, mixed = RunDirectory(tmp_path), 0.0, 0
        train_supernet(make_net(), recipe, make_data(), run, settings=TrainSettings(log_every=1))
        for step, line in enumerate(run.metrics()):
            if drawn_mix(ways, known=known, rng=derived_rng(0, "mix", 0, step)) is None:
                known = line.top1 / 100
            else:
                mixed += 1
                assert line.top1 == pytest.approx(100 * known)
        assert 3 <= mixed <= step - 3

    def test_dropout_of_the_largest_only(self, make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
        for only in (True, False):
            net = make_net()
            spy = Spy(net)
            recipe = one_step(subnets=("largest", "smallest", "uniform"), target="largest", dropout_largest_only=only)
            train_supernet(net, recipe, make_data(), RunDirectory(tmp_path / str(only)))
            assert spy.archs[:2] == [net.space.largest(), net.space.smallest()]
            assert spy.dropout == [True, not only, not only]

    @pytest.mark.parametrize("slot", ["best_up", "worst_up"])
    def test_best_and_worst_by_this_batch(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, slot: str
    ) -> None:
        net = make_net(dropout=0.0)
        reference, spy, data = copy.deepcopy(net).train(), Spy(net), make_data()
        train_supernet(net, one_step(subnets=(slot,)), data, RunDirectory(tmp_path))
        assert len(spy.archs) == 4  # three trials and the one trained
        x, y = images_of(data, seed=0, phase=0, step=0)
        losses = [float(F.cross_entropy(reference(x, arch).detach(), y)) for arch in spy.archs[:3]]
        wanted = min(losses) if slot == "best_up" else max(losses)
        assert spy.archs[3] == spy.archs[losses.index(wanted)]
        assert len(set(losses)) > 1

    def test_bignas_starts_residual_blocks_at_zero(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path
    ) -> None:
        scales: list[State] = []
        for name in ("sandwich", "spos"):
            net = make_net()
            net.register_forward_pre_hook(lambda module, _: scales.append(state_of(module)))
            recipe = RECIPES[name].with_batch_size(8)
            train_supernet(net, recipe.scaled(0.25 / recipe.epochs), make_data(), RunDirectory(tmp_path / name))
        zeros = {k for k, v in scales[0].items() if k.endswith("bn.weight") and (v == 0).all()}
        assert zeros == {f"blocks.stage{stage}_block2.project_bn.weight" for stage in range(1, 6)} | {
            k for k in zeros if "block1" in k
        }
        assert not [k for k, v in scales[-1].items() if k.endswith("bn.weight") and (v == 0).all()]


class TestTeachers:
    def test_ps_teaches_by_the_largest_of_phase_one_throughout(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path
    ) -> None:
        recipe = RECIPES["ps"].with_batch_size(8).scaled(2 / 590)
        net, run, teachers = make_net(), RunDirectory(tmp_path), {}
        first: list[State] = []
        settings = TrainSettings(checkpoint_every_s=0)

        def note() -> bool:
            found = checkpoint.load_latest(run.checkpoints)
            if found is not None and "teacher" in found.tensors:
                teachers[found.step] = found.tensors["teacher"]
            if found is not None and found.state["step"] == 2:
                first.append(found.tensors["weights"])
            return False

        train_supernet(net, recipe, make_data(), run, settings=settings, should_stop=note)
        table = timetable(recipe, 4)
        assert table[0].end == 2
        largest = make_net()
        largest.load_state_dict(first[0])
        expected = crop_kernels(largest.extract(largest.space.largest())).state_dict()
        assert sorted(teachers) == list(range(3, table[-1].end))
        for state in teachers.values():
            assert differing(state, dict(expected)) == []

    @pytest.mark.parametrize("name", ["ps", "ps-ofa", "ps-released"])
    def test_it_runs_once_a_step(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """However many subnets learn from it; the others in training mode without dropout, as both codes build it."""
        modes: list[tuple[bool, bool]] = []
        plain = PlainNetwork.forward

        def note(network: PlainNetwork, x_BCHW: Tensor) -> Tensor:
            dropouts = [layer.training for layer in network.modules() if isinstance(layer, nn.Dropout)]
            modes.append((network.training, any(dropouts)))
            return plain(network, x_BCHW)

        monkeypatch.setattr(PlainNetwork, "forward", note)
        recipe = RECIPES[name].with_batch_size(8).scaled(2 / 590)
        train_supernet(make_net(dropout=0.1), recipe, make_data(), RunDirectory(tmp_path))
        table = timetable(recipe, 4)
        mode = {"ps": (False, False), "ps-ofa": (True, False), "ps-released": (True, False)}[name]
        assert modes == [mode] * (table[-1].end - table[0].end)

    def test_it_is_the_largest_as_the_first_phase_that_it_teaches_begins(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path
    ) -> None:
        def learning(name: str, **fields: Any) -> Phase:
            return Phase(name=name, epochs=0.5, lr=LR, **fields)

        first = learning("first")
        before = [first, learning("labels"), learning("released", target="labels+teacher", teacher="untrained")]
        taught = [learning(name, target="labels+teacher") for name in ("largest", "again")]
        train_supernet(make_net(), recipe_of(*before, *taught), make_data(), RunDirectory(tmp_path / "all"))
        train_supernet(alone := make_net(), recipe_of(*before), make_data(), RunDirectory(tmp_path / "before"))
        found = checkpoint.load_latest(tmp_path / "all" / "checkpoints")
        assert found is not None
        expected = crop_kernels(alone.extract(alone.space.largest())).state_dict()
        assert found.tensors["teacher"].keys() == expected.keys()
        assert all(torch.equal(found.tensors["teacher"][name], expected[name]) for name in expected)

    def test_the_released_teacher_has_random_weights(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = RECIPES["ps-released"].with_batch_size(8).scaled(2 / 590)
        net, run, teachers = make_net(), RunDirectory(tmp_path), list[PlainNetwork]()

        def note(network: PlainNetwork) -> PlainNetwork:
            teachers.append(crop_kernels(network))
            return network

        monkeypatch.setattr("trainonce.training.teacher.crop_kernels", note)
        train_supernet(net, recipe, make_data(), run)
        assert len(teachers) == 5, "one for each phase after the first"
        found = checkpoint.load_latest(run.checkpoints)
        assert found is not None
        assert "teacher" not in found.tensors, "it follows from the seed"
        fresh = make_net(seed=derived_seed(0, "untrained teacher"))
        expected = crop_kernels(fresh.extract(fresh.space.largest())).state_dict()
        learned = [k for k in expected if "running" not in k and "num_batches" not in k]
        for teacher in teachers:
            state = teacher.state_dict()
            assert all(torch.equal(state[k], expected[k]) for k in learned)
            # It is in training mode, so its statistics have moved.
            assert not torch.equal(state["stem.1.running_mean"], expected["stem.1.running_mean"])
        start = crop_kernels(make_net().extract(net.space.largest())).state_dict()
        assert not torch.equal(start["stem.0.weight"], expected["stem.0.weight"])


class TestSorting:
    @pytest.mark.parametrize(
        ("name", "times"), [("ps", 2), ("ps-released", 0), ("compofa", 1), ("deps", 1), ("rss", 0)]
    )
    def test_when_and_inside_which_widths(
        self,
        make_net: MakeNet,
        make_data: MakeData,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        times: int,
    ) -> None:
        recipe = RECIPES[name].with_batch_size(8)
        recipe = recipe.scaled(2 / recipe.epochs)
        kept: list[tuple[int, ...]] = []
        real = MobileNetV3.sort_channels

        def note(net: MobileNetV3, space: SearchSpace) -> None:
            kept.append(space["stage1.block1.expand_ratio"].values)
            x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
            before = net.eval()(x, net.space.largest()).detach()
            real(net, space)
            assert torch.allclose(net(x, net.space.largest()), before, atol=1e-4)
            net.train()
            for block in net.blocks.values():
                outermost = block.project.weight[:, -8:].abs().sum((0, 2, 3))  # type: ignore[union-attr, index]
                assert (outermost.diff() <= 0).all()

        monkeypatch.setattr(MobileNetV3, "sort_channels", note)
        coupled = {"expand_ratios": (3, 6)} if name == "compofa" else {}
        train_supernet(make_net(**coupled), recipe, make_data(), RunDirectory(tmp_path))
        # The widths that were trained before: of `ps` all phases before "expand 1" know the largest only.
        assert kept == {"ps": [(6,), (4, 6)], "compofa": [(6,)], "deps": [(6,)]}.get(name, [])
        assert len(kept) == times


def test_a_recipe_that_does_not_fit_leaves_no_run(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    phase = Phase(name="a", epochs=1, couple={"depth": "kernel"})
    with pytest.raises(UserError, match="does not depend on a choice 'kernel'"):
        train_supernet(make_net(), Recipe(name="mine", about="", phases=(phase,)), make_data(), run)
    assert not run.config_file.exists()
