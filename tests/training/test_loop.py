"""The training loop against loops and gradients written out by hand."""

import copy
import math
import random
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tests.conftest import MakeData, MakeNet
from tests.support.training import (
    DECAY,
    LR,
    MOMENTUM,
    State,
    decayed,
    differing,
    images_of,
    one_step,
    recipe_of,
    state_of,
    uniform,
)
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.data.augment import augment
from trainonce.models import MobileNetV3
from trainonce.nn.plain import PlainNetwork
from trainonce.recipes import Colour, Crop, Flip, Phase
from trainonce.run.directory import RunDirectory
from trainonce.space import Architecture, derived_rng, derived_seed
from trainonce.training.loop import train_supernet
from trainonce.training.settings import Progress, TrainSettings


class TestReference:
    @pytest.mark.parametrize("seed", [0, 3])
    def test_spos(self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, seed: int) -> None:
        """Seven steps over two epochs, with augmentation and dropout, as a plain loop."""
        data = make_data(augmentation=(Crop(scale=(0.5, 1.0)), Flip(), Colour(brightness=0.1)), train=35)
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

    @pytest.mark.parametrize(("smoothing", "balance"), [(0.0, 0.0), (0.2, 0.0), (0.2, 0.5)])
    def test_label_gradient(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, smoothing: float, balance: float
    ) -> None:
        data, net = make_data(), make_net(dropout=0.0)
        recipe = one_step(label_smoothing=smoothing).model_copy(update={"class_balance": balance})
        train_supernet(net, recipe, data, RunDirectory(tmp_path))
        reference = make_net(dropout=0.0).train()
        x, y = images_of(data, seed=0, phase=0, step=0)
        arch = uniform(reference, 0, 0, 0)
        target = (1 - smoothing) * F.one_hot(y, 3) + smoothing / 3
        gradient = (copy.deepcopy(reference)(x, arch).detach().softmax(1) - target) / 8
        counts = [data.train.labels.tolist().count(label) for label in y.tolist()]
        mean = sum(count**-balance for count in map(data.train.labels.tolist().count, data.train.labels.tolist())) / 32
        gradient *= torch.tensor([count**-balance / mean for count in counts])[:, None]
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
            data.train.images, (), mean=data.mean, std=data.std, generator=torch.Generator().manual_seed(0)
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
        means = [line.loss for line in run.metrics()]
        ratios = [
            small / (2 * mean - large) for large, small, mean in zip(weighted[::2], weighted[1::2], means, strict=True)
        ]
        assert ratios == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 1.0], rel=1e-4)


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
        assert [line.step for line in lines] == [2, 4, 5, 7, 8]
        for line, at, (start, end) in zip(lines, progress, [(0, 2), (2, 4), (4, 5), (5, 7), (7, 8)], strict=True):
            inside_line = [subnet for step in steps[start:end] for subnet in step]
            assert line.loss == pytest.approx(sum(s[0] for s in inside_line) / len(inside_line), rel=1e-5)
            assert line.top1 == pytest.approx(100 * sum(s[1] for s in inside_line) / (8 * len(inside_line)))
            assert line.macs == inside_line[-1][2]
            assert line.phase == ("first" if end <= 5 else "second")
            assert line.epoch == end / 4
            assert line.passes == (min(end, 5) + 2 * max(0, end - 5)) / 4
            last, length, top = (end - 1, 5, LR) if end <= 5 else (end - 6, 3, LR / 2)
            assert line.lr == pytest.approx(top * 0.5 * (1 + math.cos(math.pi * last / length)))
            assert line.arch == str(at.arch)
            assert net.cost_of(net.space.parse(line.arch)).macs == line.macs
            assert (at.step, at.steps, at.loss) == (end, 8, line.loss)
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
    assert [line.arch for line in run.metrics()] == [archs[i % 3] for i in range(7)]
