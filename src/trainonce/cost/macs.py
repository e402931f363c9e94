"""What an architecture costs: multiply-accumulates and parameters, exactly, without building it.

Over a whole space it is a sum of terms that each look at a few choices (`CostModel`), which is what makes sampling at a
cost exact (`trainonce.sampling`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from trainonce.nn.kinds import PlainSpec
from trainonce.space import Architecture, SearchSpace


@dataclass(frozen=True, slots=True)
class Cost:
    """`macs`: multiply-accumulates of one image's forward pass; `params`: numbers that training moves.

    MACs count convolutions and linear layers, padding included, as half of what
    `torch.utils.flop_counter` counts on the extracted network.
    """

    macs: int
    params: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.macs + other.macs, self.params + other.params)


ZERO = Cost(0, 0)


def conv_cost(out_size: int, in_channels: int, out_channels: int, kernel_size: int, *, groups: int = 1) -> Cost:
    """A convolution without bias onto a map of `out_size` x `out_size`."""
    params = out_channels * (in_channels // groups) * kernel_size**2
    return Cost(params * out_size**2, params)


def bn_cost(channels: int) -> Cost:
    """A batch norm: two parameters a channel; its arithmetic folds into the convolution before it."""
    return Cost(0, 2 * channels)


def counted_cost(spec: PlainSpec) -> Cost:
    """The cost of any plain network, by running it without numbers and counting its operations."""
    with torch.device("meta"):
        network = spec.build().eval()
        image = torch.empty(1, spec.in_channels, spec.resolution, spec.resolution)
    with FlopCounterMode(display=False) as counter:
        network(image)
    return Cost(counter.get_total_flops() // 2, sum(parameter.numel() for parameter in network.parameters()))


@dataclass(frozen=True)
class CostTerm:
    """A part of the cost that follows from a few choices.

    `cost` takes the values of `choices` in that order, None for one that does not exist.
    """

    choices: tuple[str, ...]
    cost: Callable[..., Cost]


@dataclass(frozen=True)
class CostModel:
    """The cost of every architecture of a space, as a sum of terms."""

    space: SearchSpace
    terms: tuple[CostTerm, ...]

    def __call__(self, arch: Architecture) -> Cost:
        """The cost of one architecture."""
        total = ZERO
        for term in self.terms:
            total += term.cost(*(arch.get(name) for name in term.choices))
        return total

    def within(self, space: SearchSpace) -> "CostModel":
        """The same costs over a part of the space."""
        return CostModel(space, self.terms)


def cached_term(choices: tuple[str, ...], cost: Callable[..., Cost]) -> CostTerm:
    """A term whose values are computed once each."""
    return CostTerm(choices, lru_cache(maxsize=None)(cost))
