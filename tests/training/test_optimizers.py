"""Optimizers against torch's own, run plainly beside the loop, and against their formula."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from trainonce.data import DataSet
from trainonce.models import MobileNetV3
from trainonce.recipes import Phase, Recipe
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.training.loop import train_supernet
from trainonce.training.muon import scale_of, takes_orthogonal_steps
from trainonce.training.optimizers import optimizer_for, restore_state, set_lr, state_groups, stepper_for
from trainonce.training.settings import TrainSettings

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
LR, DECAY, BETAS = 0.01, 0.1, (0.8, 0.95)
WEIGHT, BIAS = "classifier.weight", "classifier.bias"


def recipe_of(phase: Phase, **fields: Any) -> Recipe:
    given: dict[str, Any] = {"optimizer": "adamw", "betas": BETAS, "weight_decay": DECAY, "batch_size": 8, **fields}
    return Recipe(name="test", about="A test.", phases=(phase,), **given)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_steps_are_torchs_own_to_the_last_bit(make_net: MakeNet, name: Literal["sgd", "adamw"]) -> None:
    """Though what torch wraps its optimizers in, for torch.compile, is left out."""
    phase = Phase(name="all", epochs=1, lr=LR)
    recipe = recipe_of(phase, optimizer=name)
    nets = make_net(dropout=0.0), make_net(dropout=0.0)
    ours, model = (optimizer_for(net, recipe, phase) for net in nets)
    theirs = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name](model.param_groups)
    theirs.state.update(model.state)
    x_BCHW = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for net, optimizer in zip(nets, (ours, theirs), strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            net(x_BCHW, net.space.largest()).square().sum().backward()
            optimizer.step()
    fresh = make_net().state_dict()
    for (key, found), expected in zip(nets[0].state_dict().items(), nets[1].state_dict().values(), strict=True):
        assert torch.equal(found, expected)
        assert "conv.weight" not in key or not torch.equal(found, fresh[key])


class Watch:
    """Notes parameters and their gradients after every step of a run."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.weights = [self.now()]
        self.gradients: list[dict[str, Tensor | None]] = []

    def now(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.net.named_parameters()}

    def __call__(self) -> bool:
        self.weights.append(self.now())
        self.gradients.append(
            {name: None if w.grad is None else w.grad.clone() for name, w in self.net.named_parameters()}
        )
        return False


def trained(net: MobileNetV3, recipe: Recipe, data: DataSet, folder: Path) -> tuple[Watch, list[float]]:
    """What a run's steps left, and their learning rates."""
    watch, run = Watch(net), RunDirectory(folder)
    assert train_supernet(net, recipe, data, run, settings=TrainSettings(log_every=1), should_stop=watch)
    return watch, [line.lr for line in run.metrics()]


def test_two_parameters_beside_torchs_own(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    phase = Phase(name="all", epochs=2, lr=LR, warmup_epochs=0.5, subnets=("largest",))
    watch, rates = trained(make_net(), recipe_of(phase), make_data(), tmp_path)
    weight, bias = (nn.Parameter(watch.weights[0][name].clone()) for name in (WEIGHT, BIAS))
    plain = torch.optim.AdamW(
        [{"params": [weight], "weight_decay": DECAY}, {"params": [bias], "weight_decay": 0.0}],
        lr=1.0,
        betas=BETAS,
        foreach=False,
        fused=False,
    )
    assert rates[:3] == pytest.approx([LR / 2, LR, LR])
    for step, lr in enumerate(rates):
        for group in plain.param_groups:
            group["lr"] = lr
        weight.grad, bias.grad = watch.gradients[step][WEIGHT], watch.gradients[step][BIAS]
        plain.step()
        for name, expected in ((WEIGHT, weight), (BIAS, bias)):
            torch.testing.assert_close(watch.weights[step + 1][name], expected.detach(), rtol=1e-5, atol=1e-7)
    assert not torch.equal(watch.weights[0][WEIGHT], watch.weights[-1][WEIGHT])


@pytest.mark.parametrize("idle", ["move", "rest"])
def test_blocks_that_a_step_leaves_out(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path, idle: Literal["move", "rest"]
) -> None:
    """Smallest, largest, smallest, largest: the second blocks are trained in the second and the fourth step only."""
    phase = Phase(name="alternate", epochs=1, lr=LR, subnets=("alternate",))
    watch, rates = trained(make_net(), recipe_of(phase, idle_weights=idle), make_data(), tmp_path)
    name = next(n for n in watch.weights[0] if "block2" in n and n.endswith("project.weight"))
    weight = watch.weights[0][name].double()
    mean, square, steps = torch.zeros_like(weight), torch.zeros_like(weight), 0
    for step, lr in enumerate(rates):
        gradient = watch.gradients[step][name]
        assert (gradient is None) == (idle == "rest" and step % 2 == 0)
        if gradient is not None:
            steps += 1
            mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient.double()
            square = BETAS[1] * square + (1 - BETAS[1]) * gradient.double() ** 2
            corrected = (square / (1 - BETAS[1] ** steps)).sqrt() + 1e-8
            weight = weight * (1 - lr * DECAY) - lr * mean / (1 - BETAS[0] ** steps) / corrected
        torch.testing.assert_close(watch.weights[step + 1][name].double(), weight, rtol=1e-4, atol=1e-6)
    assert steps == (4 if idle == "move" else 2)


@pytest.mark.parametrize("idle", ["move", "rest"])
def test_of_blocks_that_a_step_leaves_out_muons_matrices_rest(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path, idle: Literal["move", "rest"]
) -> None:
    """The same steps as above; a depthwise kernel, which is no matrix, goes on by its momentum."""
    phase = Phase(name="alternate", epochs=1, lr=LR, subnets=("alternate",))
    recipe = recipe_of(phase, optimizer="muon", idle_weights=idle)
    watch, rates = trained(make_net(), recipe, make_data(), tmp_path)
    matrix = next(n for n in watch.weights[0] if "block2" in n and n.endswith("project.weight"))
    kernel = next(n for n in watch.weights[0] if "block2" in n and watch.weights[0][n].shape[1:2] == (1,))
    for step in range(len(rates)):
        before, after = watch.weights[step], watch.weights[step + 1]
        assert torch.equal(before[matrix], after[matrix]) == (step % 2 == 0)
        assert torch.equal(before[kernel], after[kernel]) == (step % 2 == 0 and idle == "rest")


def test_norms_and_biases_do_not_decay(make_net: MakeNet) -> None:
    net = make_net()
    phase = Phase(name="all", epochs=1, lr=0.5)
    recipe = Recipe(name="own", about="x", phases=(phase,), optimizer="adamw", betas=BETAS, weight_decay=DECAY)
    optimizer = optimizer_for(net, recipe, phase)
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    for weight in net.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in net.named_parameters():
        factor = 1.0 if weight.ndim == 1 or name.endswith("bias") else 1 - 0.5 * DECAY
        torch.testing.assert_close(weight.detach(), before[name] * factor, msg=name)


def test_the_whole_state_is_in_the_checkpoint(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    net = make_net()
    phase = Phase(name="all", epochs=0.75, lr=LR, subnets=("largest",))
    watch, _ = trained(net, recipe_of(phase), make_data(), tmp_path)
    found = checkpoint.load_latest(RunDirectory(tmp_path).checkpoints)
    assert found is not None
    names = {name for name, _ in net.named_parameters()}
    for group in ("optimizer-steps", "optimizer-means", "optimizer-squares"):
        assert set(found.tensors[group]) == names
    assert all(float(steps) == 3 for steps in found.tensors["optimizer-steps"].values())
    gradients = [gradient[BIAS] for gradient in watch.gradients]
    assert all(gradient is not None for gradient in gradients)
    shares = [(1 - BETAS[1]) * BETAS[1] ** (2 - step) for step in range(3)]
    expected = torch.stack([s * g**2 for s, g in zip(shares, gradients, strict=True) if g is not None]).sum(0)
    torch.testing.assert_close(found.tensors["optimizer-squares"][BIAS], expected)
    assert math.isclose(sum(shares), 1 - BETAS[1] ** 3)


def test_muons_state_is_in_the_checkpoint(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    """With the scale that a matrix had as the phase began, though it has moved since."""
    net, phase = make_net(), Phase(name="all", epochs=0.75, lr=LR, subnets=("largest",))
    watch, _ = trained(net, recipe_of(phase, optimizer="muon"), make_data(), tmp_path)
    found = checkpoint.load_latest(RunDirectory(tmp_path).checkpoints)
    assert found is not None
    assert set(found.tensors["optimizer"]) == set(watch.weights[0])
    scales = found.tensors["optimizer-scales"]
    assert set(scales) == {name for name, weight in watch.weights[0].items() if takes_orthogonal_steps(weight)} != set()
    for name, scale in scales.items():
        first, last = (watch.weights[at][name] for at in (0, -1))
        assert torch.equal(scale, scale_of(first))
        assert not torch.equal(first, last)


def test_a_network_with_channels_innermost_goes_on_by_muon() -> None:
    """Its state comes back from tensors that lie as checkpoints have them."""
    recipe = recipe_of(Phase(name="all", epochs=1, lr=LR), optimizer="muon")
    nets = [nn.Sequential(nn.Conv2d(4, 6, 3, bias=False)).to(memory_format=torch.channels_last) for _ in range(2)]  # type: ignore[call-overload]
    nets[1].load_state_dict(nets[0].state_dict())
    gradients = torch.randn(2, 6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    optimizers = [optimizer_for(net, recipe, recipe.phases[0]) for net in nets]
    for net, optimizer in zip(nets, optimizers, strict=True):
        net[0].weight.grad = gradients[0].clone()
        optimizer.step()
    saved = {
        group: {name: state.contiguous().clone() for name, state in those.items()}
        for group, those in state_groups(nets[0], recipe, optimizers[0]).items()
    }
    restore_state(nets[0], recipe, optimizers[0], {group: list(those) for group, those in saved.items()}, saved)
    for net, optimizer in zip(nets, optimizers, strict=True):
        net[0].weight.grad = gradients[1].clone()
        optimizer.step()
    assert torch.equal(nets[0][0].weight, nets[1][0].weight)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_stepper_takes_torchs_own_steps(make_net: MakeNet, momentum: float) -> None:
    """To the last bit, whatever has a gradient, and with rates that differ by group."""
    recipe = recipe_of(Phase(name="all", epochs=1, lr=LR, backbone_lr=0.5), optimizer="sgd", momentum=momentum)
    nets = [make_net(), make_net()]
    plain, ours = (optimizer_for(net, recipe, recipe.phases[0], net.head()) for net in nets)
    step = stepper_for(ours)
    draw = torch.Generator().manual_seed(0)
    for number in range(4):
        set_lr(plain, LR * (number + 1))
        set_lr(ours, LR * (number + 1))
        for at, pair in enumerate(zip(*(net.parameters() for net in nets), strict=True)):
            given = None if (at + number) % 3 == 0 else torch.randn(pair[0].shape, generator=draw)
            for parameter in pair:
                parameter.grad = None if given is None else given.clone()
        plain.step()
        step()
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(one, other)
        if momentum:
            assert torch.equal(plain.state[one]["momentum_buffer"], ours.state[other]["momentum_buffer"])
