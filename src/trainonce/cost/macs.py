"""What an architecture costs: multiply-accumulates and parameters, exactly, without building it.

A cost is counted from the same `NetworkSpec` from which the plain network is built. Over a whole space
it is a sum of terms that each look at a few choices (`CostModel`), which is what makes sampling at a
cost exact (`trainonce.sampling`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from trainonce.nn.plain import BlockSpec, NetworkSpec
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


def out_size(size: int, stride: int) -> int:
    """The side of the map after a convolution that pads by half its kernel."""
    return -(-size // stride)


def block_cost(spec: BlockSpec, size: int) -> Cost:
    """One MBConv block on an input map of `size` x `size`."""
    mid, after = spec.mid_channels, out_size(size, spec.stride)
    total = conv_cost(after, mid, mid, spec.kernel_size, groups=mid) + bn_cost(mid)
    if spec.expand:
        total += conv_cost(size, spec.in_channels, mid, 1) + bn_cost(mid)
    if spec.se_channels:
        total += conv_cost(1, mid, spec.se_channels, 1) + conv_cost(1, spec.se_channels, mid, 1)
        total += Cost(0, spec.se_channels + mid)
    return total + conv_cost(after, mid, spec.out_channels, 1) + bn_cost(spec.out_channels)


def fixed_cost(spec: NetworkSpec) -> Cost:
    """Everything but the blocks: stem, final convolution, feature layer if there is one, classifier."""
    size = out_size(spec.resolution, spec.stem_stride)
    total = conv_cost(size, spec.in_channels, spec.stem_channels, 3) + bn_cost(spec.stem_channels)
    for block in spec.blocks:
        size = out_size(size, block.stride)
    total += conv_cost(size, spec.blocks[-1].out_channels, spec.final_channels, 1) + bn_cost(spec.final_channels)
    features = spec.feature_channels or spec.final_channels
    if spec.feature_channels:
        total += conv_cost(1, spec.final_channels, features, 1)
    return total + conv_cost(1, features, spec.num_classes, 1) + Cost(0, spec.num_classes)


def network_cost(spec: NetworkSpec) -> Cost:
    """The whole network."""
    total, size = fixed_cost(spec), out_size(spec.resolution, spec.stem_stride)
    for block in spec.blocks:
        total += block_cost(block, size)
        size = out_size(size, block.stride)
    return total


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
