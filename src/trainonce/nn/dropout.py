"""Dropout that draws from an explicit generator, for the whole batch."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainonce.parallel.distributed import BatchShard

Masks = Callable[[Tensor, float], Tensor]
"""Gives the factors for x [B, ...], of which entries are dropped with a probability: 0, or what scales them up."""


@dataclass(frozen=True)
class DrawnMasks:
    """Masks drawn from a generator for the whole batch, of which the rows of a shard are used."""

    generator: torch.Generator
    """Must be on the device of the masks."""
    shard: BatchShard
    """The rows that x has."""

    def __call__(self, x: Tensor, p: float) -> Tensor:
        """The mask for x [B, ...], a new one each time."""
        return _drawn(_for_whole_batch(x, self.shard), p, self.generator)[self.shard.rows]


class HeldMasks:
    """Masks that stay at the same places while `draw` fills them anew, so that a captured step can read them.

    From the same generator they are those that `DrawnMasks` gives.
    """

    def __init__(self, shard: BatchShard) -> None:
        self.shard = shard
        self.held: list[tuple[Tensor, float]] = []
        self.used = 0

    def __call__(self, x: Tensor, p: float) -> Tensor:
        """The next mask since `draw`, for x [B, ...]; it is made, without being filled, where there is none yet."""
        if self.used == len(self.held):
            self.held.append((_for_whole_batch(x, self.shard), p))
        mask, _ = self.held[self.used]
        self.used += 1
        return mask[self.shard.rows]

    def draw(self, generator: torch.Generator) -> None:
        """Fill all masks, in the order in which they were first asked for."""
        for mask, p in self.held:
            _drawn(mask, p, generator)
        self.used = 0


def _for_whole_batch(x: Tensor, shard: BatchShard) -> Tensor:
    assert len(x) == len(shard), (len(x), len(shard))
    return x.new_empty((shard.total, *x.shape[1:]))


def _drawn(mask: Tensor, p: float, generator: torch.Generator) -> Tensor:
    return mask.bernoulli_(1 - p, generator=generator).div_(1 - p)


class BatchDropout(nn.Dropout):
    """Dropout whose mask can be the same however a batch is divided among ranks.

    Inside `drawing` it takes its masks from there. Elsewhere it is `nn.Dropout`, which draws from the global generator.
    """

    masks: Masks | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of [B, ...] with probability `p`, in training mode, and scale the others up."""
        if not self.training or self.p == 0 or self.masks is None:
            return super().forward(x)
        return x * self.masks(x, self.p)


def dropouts(network: nn.Module) -> list[nn.Dropout]:
    """Every dropout layer of a network."""
    return [module for module in network.modules() if isinstance(module, nn.Dropout)]


def batch_dropouts(network: nn.Module) -> list[BatchDropout]:
    """Every dropout layer of a network; plain ones, the same objects, become `BatchDropout` first."""
    for layer in dropouts(network):
        if type(layer) is nn.Dropout:
            layer.__class__ = BatchDropout
    return [layer for layer in dropouts(network) if isinstance(layer, BatchDropout)]


@contextmanager
def drawing(layers: Iterable[BatchDropout], masks: Masks) -> Iterator[None]:
    """Inside, these layers take their masks from `masks`."""
    layers = list(layers)
    for layer in layers:
        layer.masks = masks
    try:
        yield
    finally:
        for layer in layers:
            del layer.masks
