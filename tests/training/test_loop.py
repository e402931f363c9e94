"""The training loop against loops and gradients written out by hand."""

import copy
import math
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from trainonce.data import Augmentation, DataSet
from trainonce.data.augment import augment
from trainonce.errors import RunError, UserError
from trainonce.models import MobileNetV3
from trainonce.nn.cropping import crop_kernels
from trainonce.nn.plain import PlainNetwork
from trainonce.recipes import RECIPES, Phase, PhaseSteps, Recipe, timetable
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.space import Architecture, SearchSpace, derived_rng, derived_seed
from trainonce.training import loop as train
from trainonce.training.loop import LOOK_EVERY, Progress, TrainSettings, train_supernet

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
State = dict[str, Tensor]
LR, MOMENTUM, DECAY = 0.05, 0.9, 1e-3


def recipe_of(*phases: Phase, **fields: Any) -> Recipe:
    return Recipe(name="test", about="A test.", phases=phases, batch_size=8, weight_decay=DECAY, **fields)


def one_step(**fields: Any) -> Recipe:
    """A recipe of a single step of 8 images."""
    return recipe_of(Phase(**{"name": "only", "epochs": 0.25, "lr": LR, **fields}))


def state_of(net: nn.Module) -> State:
    return {k: v.detach().clone() for k, v in net.state_dict().items()}


def differing(one: State, other: State) -> list[str]:
    assert one.keys() == other.keys()
    return [k for k, v in one.items() if not torch.equal(v, other[k])]


def images_of(data: DataSet, *, seed: int, phase: int, step: int) -> tuple[Tensor, Tensor]:
    """The batch of 8 of a step, from the seeds that the loop documents."""
    epoch, place = divmod(step, len(data.train) // 8)
    order = torch.randperm(
        len(data.train), generator=torch.Generator().manual_seed(derived_seed(seed, "order", phase, epoch))
    )
    rows = order[8 * place : 8 * place + 8]
    generator = torch.Generator().manual_seed(derived_seed(seed, "augment", phase, step))
    x = augment(data.train.images[rows], data.augmentation, mean=data.mean, std=data.std, generator=generator)
    return x.contiguous(memory_format=torch.channels_last), data.train.labels[rows]


def uniform(net: MobileNetV3, *key: int) -> Architecture:
    return net.space.sample(derived_rng(key[0], "subnets", *key[1:]))


def decayed(name: str, tensor: Tensor) -> float:
    """Weight decay: none on biases and batch norms, which are the vectors."""
    return 0.0 if name.endswith("bias") or tensor.ndim == 1 else DECAY


class Spy:
    """Notes every forward pass: architecture, dropout, and what the net's state was."""

    def __init__(self, net: MobileNetV3) -> None:
        self.archs: list[Architecture] = []
        self.dropout: list[bool] = []
        net.register_forward_pre_hook(self.note)

    def note(self, net: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(net, MobileNetV3)
        self.archs.append(arguments[1])
        self.dropout.append(net.dropout.training)


class TestReference:
    @pytest.mark.parametrize("seed", [0, 3])
    def test_spos(self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, seed: int) -> None:
        """Seven steps over two epochs, with augmentation and dropout, as a plain loop."""
        data = make_data(augmentation=Augmentation(crop_scale=(0.5, 1.0), flip=True, brightness=0.1), train=35)
        phase = Phase(name="random", epochs=1.75, lr=LR)  # 35 images are 4 steps of 8 an epoch
        net = make_net(seed=1)
        train_supernet(net, recipe_of(phase), data, RunDirectory(tmp_path), seed=seed)

        reference = make_net(seed=1).train()
        velocity: State = {}
        for step in range(7):
            x, y = images_of(data, seed=seed, phase=0, step=step)
            arch = uniform(reference, seed, 0, step)
            torch.manual_seed(derived_seed(seed, "dropout", 0, step))
            reference.zero_grad(set_to_none=False)
            torch.autograd.backward(F.cross_entropy(reference(x, arch), y))
            lr = LR * 0.5 * (1 + math.cos(math.pi * step / 7))
            with torch.no_grad():
                for name, w in reference.named_parameters():
                    gradient = torch.zeros_like(w) if w.grad is None else w.grad.clone()
                    if decayed(name, w):
                        gradient = gradient.add(w, alpha=DECAY)
                    if name in velocity:
                        velocity[name].mul_(MOMENTUM).add_(gradient)
                    else:
                        velocity[name] = gradient.clone()
                    w.add_(gradient.add(velocity[name], alpha=MOMENTUM), alpha=-lr)
        for name, tensor in state_of(reference).items():  # torch's fused step rounds a few tails otherwise
            torch.testing.assert_close(state_of(net)[name], tensor, rtol=1e-5, atol=1e-7, msg=name)
        assert differing(state_of(net), state_of(make_net(seed=1)))

    @staticmethod
    def stepped(before: MobileNetV3, passes: list[tuple[Architecture, Tensor, Tensor]], clip: float | None) -> State:
        """The state after one first Nesterov step with given gradients of the loss by the logits."""
        for arch, x, gradient in passes:
            torch.autograd.backward(before(x, arch), gradient)
        for name, w in before.named_parameters():
            gradient = torch.zeros_like(w) if w.grad is None else w.grad
            if clip is not None:
                gradient = gradient.clamp(-clip, clip)
            w.data -= LR * (1 + MOMENTUM) * (gradient + decayed(name, w) * w.data)
        return state_of(before)

    @staticmethod
    def assert_close(found: State, expected: State) -> None:
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)

    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_label_gradient(self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, smoothing: float) -> None:
        data, net = make_data(), make_net(dropout=0.0)
        train_supernet(net, one_step(label_smoothing=smoothing), data, RunDirectory(tmp_path))
        reference = make_net(dropout=0.0).train()
        x, y = images_of(data, seed=0, phase=0, step=0)
        arch = uniform(reference, 0, 0, 0)
        target = (1 - smoothing) * F.one_hot(y, 3) + smoothing / 3
        gradient = (copy.deepcopy(reference)(x, arch).detach().softmax(1) - target) / 8
        self.assert_close(state_of(net), self.stepped(reference, [(arch, x, gradient)], None))

    @pytest.mark.parametrize("distillation", ["soft", "kl"])
    def test_teacher_gradient(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, distillation: Literal["soft", "kl"]
    ) -> None:
        """Two subnets in the second phase: labels plus the largest as the first phase left it, summed."""
        data, net = make_data(), make_net(dropout=0.0)
        first = Phase(name="first", epochs=0.25, lr=LR, subnets=("largest",))
        second = Phase(
            name="second",
            epochs=0.25,
            lr=LR,
            subnets=("uniform", "uniform"),
            target="labels+teacher",
            distillation=distillation,
        )
        train_supernet(net, recipe_of(first, second), data, RunDirectory(tmp_path))

        reference = make_net(dropout=0.0)
        train_supernet(reference, recipe_of(first), data, RunDirectory(tmp_path / "first"))
        x, y = images_of(data, seed=0, phase=1, step=0)
        teacher = copy.deepcopy(reference).eval()
        target = teacher(x, reference.space.largest()).detach().softmax(1)
        rng = derived_rng(0, "subnets", 1, 0)
        passes, trial = [], copy.deepcopy(reference).train()
        for arch in [reference.space.sample(rng) for _ in range(2)]:
            probabilities = trial(x, arch).detach().softmax(1)
            passes.append((arch, x, (2 * probabilities - F.one_hot(y, 3) - target) / 8))
        reference.train().zero_grad()
        self.assert_close(state_of(net), self.stepped(reference, passes, None))

    def test_weights_that_sum_to_one_keep_the_size_of_a_step(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A teacher that says what the labels say, with half the weight, leaves the step that labels alone make."""

        def sure(network: nn.Module, x_BCHW: Tensor) -> Tensor:
            """The logits of a teacher that is certain of the right class of each image."""
            right_B = torch.stack([(images == image).flatten(1).all(1).nonzero()[0, 0] for image in x_BCHW])
            return 1e4 * F.one_hot(data.train.labels[right_B], 3).float()

        data = make_data()
        images = augment(
            data.train.images, None, mean=data.mean, std=data.std, generator=torch.Generator().manual_seed(0)
        )
        monkeypatch.setattr(PlainNetwork, "forward", sure)
        first = Phase(name="first", epochs=0.25, lr=LR, subnets=("largest",))
        states = []
        ways: dict[str, dict[str, Any]] = {
            "labels": {},
            "averaged": {"target": "labels+teacher", "label_weight": 0.5, "teacher_weight": 0.5},
            "summed": {"target": "labels+teacher"},
        }
        for name, fields in ways.items():
            net = make_net(dropout=0.0)
            second = Phase(name="second", epochs=0.25, lr=LR, **fields)
            train_supernet(net, recipe_of(first, second), data, RunDirectory(tmp_path / name))
            states.append(state_of(net))
        self.assert_close(states[1], states[0])
        with pytest.raises(AssertionError):
            self.assert_close(states[2], states[0])

    @pytest.mark.parametrize("clip", [None, 1e-3])
    def test_sandwich_gradient(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, clip: float | None
    ) -> None:
        """The largest on smoothed labels; smallest and two more on its output, through which nothing flows."""
        data, net = make_data(), make_net(dropout=0.0)
        recipe = one_step(
            subnets=("largest", "smallest", "uniform", "uniform"),
            target="largest",
            distillation="kl",
            label_smoothing=0.1,
            clip_value=clip,
        )
        train_supernet(net, recipe, data, RunDirectory(tmp_path))
        reference = make_net(dropout=0.0).train()
        space, rng = reference.space, derived_rng(0, "subnets", 0, 0)
        x, y = images_of(data, seed=0, phase=0, step=0)
        trial = copy.deepcopy(reference)
        largest = trial(x, space.largest()).detach().softmax(1)
        passes = [(space.largest(), x, (largest - 0.9 * F.one_hot(y, 3) - 0.1 / 3) / 8)]
        for arch in (space.smallest(), space.sample(rng), space.sample(rng)):
            passes.append((arch, x, (trial(x, arch).detach().softmax(1) - largest) / 8))
        self.assert_close(state_of(net), self.stepped(reference, passes, clip))

    def test_ramp(self, make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
        """At the first step the losses after the first weigh nothing; later they rise to 1 and stay."""
        data, net = make_data(), make_net(dropout=0.0)
        fields: dict[str, Any] = {"subnets": ("largest", "smallest"), "target": "largest"}
        train_supernet(net, one_step(**fields, ramp_epochs=1), data, RunDirectory(tmp_path))
        reference = make_net(dropout=0.0).train()
        x, y = images_of(data, seed=0, phase=0, step=0)
        trial, space = copy.deepcopy(reference), reference.space
        gradient = (trial(x, space.largest()).detach().softmax(1) - F.one_hot(y, 3)) / 8
        passes = [(space.largest(), x, gradient), (space.smallest(), x, torch.zeros(8, 3))]
        self.assert_close(state_of(net), self.stepped(reference, passes, None))

    def test_the_ramp_rises_to_one(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What goes into backward, over the loss itself as the metrics have it, is the weight."""
        weighted: list[float] = []
        real = torch.autograd.backward

        def note(loss: Tensor) -> None:
            weighted.append(float(loss.detach()))
            real(loss)

        monkeypatch.setattr(torch.autograd, "backward", note)
        phase = Phase(name="ramp", epochs=1.5, lr=LR, subnets=("largest", "smallest"), target="largest", ramp_epochs=1)
        run = RunDirectory(tmp_path)
        train_supernet(make_net(), recipe_of(phase), make_data(), run, settings=TrainSettings(log_every=1))
        means = [line["loss"] for line in run.metrics()]
        ratios = [
            small / (2 * mean - large) for large, small, mean in zip(weighted[::2], weighted[1::2], means, strict=True)
        ]
        assert ratios == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 1.0], rel=1e-4)


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
        finished = train_supernet(net, recipe, make_data(augmentation=Augmentation(flip=True)), run)
        assert finished
        assert torch.equal(torch.get_rng_state(), generators[0])
        assert (random.getstate(), repr(np.random.get_state())) == generators[1:]
        lines = run.metrics()
        assert [line["phase"] for line in lines] == [phase.name for phase in recipe.phases]
        assert all(math.isfinite(line["loss"]) for line in lines)
        assert all(tensor.isfinite().all() for tensor in net.state_dict().values())
        assert lines[-1]["passes"] == sum(
            (line["step"] - previous) / 4 * len(phase.subnets)
            for line, previous, phase in zip(lines, [0, *(li["step"] for li in lines)], recipe.phases, strict=False)
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


class TestIdleWeights:
    @pytest.mark.parametrize("idle", ["move", "rest"])
    def test_blocks_that_a_step_leaves_out(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, idle: str
    ) -> None:
        """One step of the largest, then one of the smallest, which leaves out the second block of each stage."""
        phase = Phase(name="alternate", epochs=0.5, lr=LR, subnets=("alternate",))
        states: list[State] = []
        net = make_net()

        def note() -> bool:
            states.append(state_of(net))
            return False

        train_supernet(
            net,
            recipe_of(phase.model_copy(update={"epochs": 0.75}), idle_weights=idle),
            make_data(),
            RunDirectory(tmp_path),
            should_stop=note,
        )
        start, smallest, largest, again = state_of(make_net()), *states
        idle_names = [n for n, _ in net.named_parameters() if "block2" in n]
        used_names = [n for n, w in net.named_parameters() if "block1.project.weight" in n.replace("_", ".")]
        assert idle_names
        assert used_names
        decay_only = {n: decayed(n, start[n]) > 0 for n in idle_names}
        for name in idle_names:
            # The first step leaves them out with no momentum yet: only decay can move them.
            moved = not torch.equal(start[name], smallest[name])
            assert moved == (idle == "move" and decay_only[name]), name
            if moved:
                expected = start[name] * (1 - LR * (1 + MOMENTUM) * DECAY)
                torch.testing.assert_close(smallest[name], expected, rtol=1e-6, atol=1e-9)
        projections = [n for n in idle_names if "project.weight" in n]
        for name in projections:
            assert not torch.equal(smallest[name], largest[name])  # the second step trains them
            assert torch.equal(largest[name], again[name]) == (idle == "rest")  # in the third only momentum moves
        for name in used_names:
            assert not torch.equal(largest[name], again[name])


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

    def test_it_is_of_the_first_phase_whatever_lies_between(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path
    ) -> None:
        def learning(name: str, **fields: Any) -> Phase:
            return Phase(name=name, epochs=0.5, lr=LR, **fields)

        first = learning("first")
        later = [
            learning("labels"),
            learning("released", target="labels+teacher", teacher="untrained"),
            learning("largest", target="labels+teacher"),
        ]
        train_supernet(make_net(), recipe_of(first, *later), make_data(), RunDirectory(tmp_path / "all"))
        train_supernet(alone := make_net(), recipe_of(first), make_data(), RunDirectory(tmp_path / "first"))
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

        monkeypatch.setattr("trainonce.training.state.crop_kernels", note)
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
    with pytest.raises(UserError, match="coupling needs as many"):
        train_supernet(make_net(), RECIPES["compofa"], make_data(), run)
    assert not run.config_file.exists()


class TestNotFinite:
    def test_it_stops_before_the_step_and_says_where(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path
    ) -> None:
        net, data, run = make_net(), make_data(), RunDirectory(tmp_path / "run")
        recipe = RECIPES["spos"].with_batch_size(8).scaled(2.5 / 590)
        asked = 0

        def stop_at_4() -> bool:
            nonlocal asked
            asked += 1
            return asked == 4

        planted: list[State] = []

        def plant() -> bool:
            with torch.no_grad():
                net.classifier.bias[1] = float("nan")
            planted.append(state_of(net))
            return False

        assert not train_supernet(net, recipe, data, run, should_stop=stop_at_4)
        with pytest.raises(RunError) as caught:
            train_supernet(net, recipe, data, run, resume=True, should_stop=plant)
        shuffle = torch.Generator().manual_seed(derived_seed(0, "order", 0, 1))
        rows = torch.randperm(32, generator=shuffle)[8:12].tolist()
        lr = RECIPES["spos"].phases[0].lr / 8 * 0.5 * (1 + math.cos(math.pi * 5 / 10))
        assert str(caught.value) == (
            f"the loss is nan at step 5 (phase 'random', learning rate {lr:.3g}) for subnet {uniform(net, 0, 0, 5)} "
            f"on training images {rows}…; stopped before the step. Last good checkpoint: step-000004"
        )
        assert len(planted) == 1
        parameters = {name for name, _ in net.named_parameters()}
        after = {k: v.nan_to_num() for k, v in state_of(net).items() if k in parameters}
        before = {k: v.nan_to_num() for k, v in planted[0].items() if k in parameters}
        assert differing(after, before) == []

        assert train_supernet(net, recipe, data, run, resume=True)  # the checkpoint is good, and so is what follows
        straight = make_net()
        train_supernet(straight, recipe, data, RunDirectory(tmp_path / "straight"))
        assert differing(state_of(net), state_of(straight)) == []

    def test_weights_that_are_not_finite_are_not_saved(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path
    ) -> None:
        """The last step's loss is finite, but the step itself is not."""
        net, run = make_net(), RunDirectory(tmp_path)
        recipe = recipe_of(Phase(name="one step", epochs=0.25, lr=3e38))
        with pytest.raises(RunError, match=r"after step 1 the weights of .* are not finite.*step-000000"):
            train_supernet(net, recipe, make_data(), run)
        found = checkpoint.load_latest(run.checkpoints)
        assert found is not None
        assert found.step == 0

    def test_a_learning_rate_far_too_large(self, make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
        recipe = recipe_of(Phase(name="steep", epochs=5, lr=1e30))
        run = RunDirectory(tmp_path)
        with pytest.raises(
            RunError, match=r"the loss is (nan|inf) at step \d+ \(phase 'steep', learning rate [\d.]+e\+\d+\)"
        ):
            train_supernet(make_net(), recipe, make_data(), run)
        found = checkpoint.load_latest(run.checkpoints)
        assert found is not None
        assert found.step == 0, "the weights as they began are the last good ones"
        assert torch.equal(found.tensors["weights"]["stem.0.weight"], make_net().state_dict()["stem.0.weight"])


READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "lift_fresh")
"""Operations that make a host wait for its GPU: reading a number, a result of unknown size, a tensor from numbers."""


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation whose result a host would have to wait for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.seen += [name] if any(name.startswith(read) for read in READS) else []
        return func(*args, **(kwargs or {}))


class TestNoWaiting:
    """Where looks are seldom, as on a GPU, a step itself reads nothing back from the device."""

    def steps_within(
        self, monkeypatch: pytest.MonkeyPatch, watch: Callable[[], AbstractContextManager[object]]
    ) -> None:
        real = train._Loop._step

        def watched(loop: train._Loop, entry: PhaseSteps) -> tuple[float, Architecture]:
            if loop.state.step == entry.start:  # the optimizer and the libraries set themselves up
                return real(loop, entry)
            with watch():
                return real(loop, entry)

        monkeypatch.setattr(train._Loop, "_step", watched)

    @pytest.mark.parametrize("name", ["rss", "sandwich", "alphanet", "ps", "ps-released", "deps", "fair", "quick"])
    def test_nothing_is_read_in_a_step(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(train, "_look_every", lambda _: LOOK_EVERY)
        reads = Reads()
        self.steps_within(monkeypatch, lambda: reads)
        recipe = RECIPES[name].with_batch_size(8)
        data = make_data(augmentation=Augmentation(crop_scale=(0.5, 1.0), flip=True, brightness=0.2))
        recipe = recipe.scaled(4 / recipe.epochs)
        held = tuple(phase.model_copy(update={"hold_epochs": 1.0}) for phase in recipe.phases)
        recipe = recipe.model_copy(update={"phases": held})
        assert train_supernet(make_net(), recipe, data, RunDirectory(tmp_path), settings=TrainSettings(log_every=3))
        assert reads.seen == []

    def test_nothing_is_read_in_a_replayed_step(
        self,
        make_net: MakeNet,
        make_data: MakeData,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        captures: list[Any],
    ) -> None:
        self.test_nothing_is_read_in_a_step(make_net, make_data, tmp_path, monkeypatch, "rss")
        assert captures[0].replays > 0

    def test_the_watch_sees_reads(self) -> None:
        with (reads := Reads()):
            float(torch.zeros(()).sum())
            torch.tensor(3.0)
        assert reads.seen == ["_local_scalar_dense", "lift_fresh"]

    def test_weights_do_not_depend_on_it(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = RECIPES["ps"].with_batch_size(8).scaled(4 / RECIPES["ps"].epochs)
        nets, runs = [make_net(), make_net()], [RunDirectory(tmp_path / "often"), RunDirectory(tmp_path / "seldom")]
        for net, run in zip(nets, runs, strict=True):
            train_supernet(net, recipe, make_data(), run, settings=TrainSettings(log_every=3))
            monkeypatch.setattr(train, "_look_every", lambda _: LOOK_EVERY)
        assert differing(*map(state_of, nets)) == []
        often, seldom = ([line | {"seconds": None} for line in run.metrics()] for run in runs)
        assert often == seldom

    @pytest.mark.parametrize(
        ("settings", "steps"),
        [(TrainSettings(log_every=4), 4), (TrainSettings(checkpoint_every_s=0, log_every=1000), 3)],
    )
    def test_what_is_not_finite_is_found_before_it_is_recorded_or_saved(
        self,
        make_net: MakeNet,
        make_data: MakeData,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        settings: TrainSettings,
        steps: int,
    ) -> None:
        monkeypatch.setattr(train, "_look_every", lambda _: LOOK_EVERY)
        net, run, asked = make_net(), RunDirectory(tmp_path), 0

        def plant_after_two() -> bool:
            nonlocal asked
            asked += 1
            if asked == 2:
                with torch.no_grad():
                    net.classifier.bias[1] = float("nan")
            return False

        recipe = RECIPES["spos"].with_batch_size(8).scaled(5 / 590)
        says = r"the loss is nan at step 2 .*; stopped after the step\. Last good checkpoint: step-00000"
        # With a checkpoint after every step the planted weights themselves are refused first.
        with pytest.raises(RunError, match=says if settings.log_every == 4 else "weights of classifier.bias"):
            train_supernet(net, recipe, make_data(), run, settings=settings, should_stop=plant_after_two)
        assert asked <= steps
        assert run.metrics() == []
        found = checkpoint.load_latest(run.checkpoints)
        assert found is not None
        assert found.tensors["weights"]["classifier.bias"].isfinite().all()

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("name", ["rss", "sandwich", "ps"])
    def test_no_step_waits_on_a_gpu(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        @contextmanager
        def strict() -> Iterator[None]:
            torch.cuda.set_sync_debug_mode("error")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")

        self.steps_within(monkeypatch, strict)  # which does not count torch.cuda.synchronize, as capturing calls it
        recipe = RECIPES[name].with_batch_size(8)
        data = make_data(augmentation=Augmentation(crop_scale=(0.5, 1.0), flip=True, brightness=0.2))
        settings = TrainSettings(device="cuda", log_every=3)
        assert train_supernet(
            make_net(), recipe.scaled(4 / recipe.epochs), data, RunDirectory(tmp_path), settings=settings
        )


class TestMetrics:
    def test_against_recomputation(self, make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
        """Two phases of 5 and 3 steps, a line every 2: each line sums up its own steps."""
        data, net, run = make_data(), make_net(), RunDirectory(tmp_path)
        first = Phase(name="first", epochs=1.25, lr=LR)
        second = Phase(name="second", epochs=0.75, lr=LR / 2, subnets=("largest", "uniform"), target="largest")
        seen: list[tuple[Architecture, Tensor]] = []
        net.register_forward_hook(lambda _, arguments, output: seen.append((arguments[1], output.detach())))
        progress: list[Progress] = []
        train_supernet(
            net,
            recipe_of(first, second),
            data,
            run,
            settings=TrainSettings(log_every=2),
            on_progress=progress.append,
        )
        steps: list[list[tuple[float, float, int]]] = []  # of each step, for each subnet: loss, right ones, MACs
        outputs = iter(seen)
        for step in range(8):
            phase, inside = (0, step) if step < 5 else (1, step - 5)
            _, y = images_of(data, seed=0, phase=phase, step=inside)
            arch, logits = next(outputs)
            losses = [(float(F.cross_entropy(logits, y)), arch, logits)]
            if phase == 1:
                arch, small = next(outputs)
                losses.append((float(F.cross_entropy(small, logits.softmax(1))), arch, small))
            steps.append([(li, float((o.argmax(1) == y).sum()), net.cost_of(a).macs) for li, a, o in losses])
        assert next(outputs, None) is None

        lines = run.metrics()
        assert [line["step"] for line in lines] == [2, 4, 5, 7, 8]
        for line, at, (start, end) in zip(lines, progress, [(0, 2), (2, 4), (4, 5), (5, 7), (7, 8)], strict=True):
            inside_line = [subnet for step in steps[start:end] for subnet in step]
            assert line["loss"] == pytest.approx(sum(s[0] for s in inside_line) / len(inside_line), rel=1e-5)
            assert line["top1"] == pytest.approx(100 * sum(s[1] for s in inside_line) / (8 * len(inside_line)))
            assert line["macs"] == inside_line[-1][2]
            assert line["phase"] == ("first" if end <= 5 else "second")
            assert line["epoch"] == end / 4
            assert line["passes"] == (min(end, 5) + 2 * max(0, end - 5)) / 4
            last, length, top = (end - 1, 5, LR) if end <= 5 else (end - 6, 3, LR / 2)
            assert line["lr"] == pytest.approx(top * 0.5 * (1 + math.cos(math.pi * last / length)))
            assert line["arch"] == str(at.arch)
            assert net.cost_of(net.space.parse(line["arch"])).macs == line["macs"]
            assert (at.step, at.steps, at.loss) == (end, 8, line["loss"])
            assert at.seconds_left >= 0
        assert progress[-1].seconds_left == 0


def test_a_cycle_goes_on_where_it_was(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    """Three architectures over seven steps, stopped after four: turns are counted over the whole phase."""
    space = make_net().space
    archs = [str(space.smallest()), str(space.largest()), str(space.sample(random.Random(3)))]
    recipe = recipe_of(Phase(name="round", epochs=7 / 4, subnets=("cycle",), cycle=tuple(archs)))
    run, asked = RunDirectory(tmp_path), iter(range(100))
    fields: dict[str, Any] = {"resume": True, "settings": TrainSettings(log_every=1)}
    stopped = train_supernet(make_net(), recipe, make_data(), run, should_stop=lambda: next(asked) == 3, **fields)
    assert not stopped
    assert train_supernet(make_net(), recipe, make_data(), run, **fields)
    assert [line["arch"] for line in run.metrics()] == [archs[i % 3] for i in range(7)]
