"""What the tests of training share: recipes of a few steps, the batch of a step, and what a network was asked."""

from typing import Any

import torch
from torch import Tensor, nn

from trainonce.data import DataSet
from trainonce.data.augment import augment
from trainonce.models import MobileNetV3
from trainonce.recipes import Phase, Recipe
from trainonce.space import Architecture, derived_rng, derived_seed

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
