"""Dropout that draws from an explicit generator, for the whole batch."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainonce.distributed import Share


class BatchDropout(nn.Dropout):
    """Dropout whose mask can be the same however a batch is divided among ranks.

    Inside `drawing` the mask is drawn for the whole batch from a generator, and the rows of this rank's share are
    used. Elsewhere it is `nn.Dropout`, which draws from the global generator.
    """

    draws: tuple[torch.Generator, Share] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of [B, ...] with probability `p`, in training mode, and scale the others up."""
        if not self.training or self.p == 0 or self.draws is None:
            return super().forward(x)
        generator, share = self.draws
        assert len(x) == len(share), (len(x), len(share))
        mask = x.new_empty((share.total, *x.shape[1:])).bernoulli_(1 - self.p, generator=generator)
        return x * mask[share.rows].div_(1 - self.p)


def batch_dropouts(network: nn.Module) -> list[BatchDropout]:
    """Every dropout layer of a network; plain ones are exchanged for `BatchDropout` first."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout:
                setattr(parent, name, BatchDropout(child.p, child.inplace).train(child.training))
    return [module for module in network.modules() if isinstance(module, BatchDropout)]


@contextmanager
def drawing(layers: Iterable[BatchDropout], generator: torch.Generator, share: Share) -> Iterator[None]:
    """Inside, these layers take their masks from `generator`, which must be on their device, for these rows."""
    layers = list(layers)
    for layer in layers:
        layer.draws = generator, share
    try:
        yield
    finally:
        for layer in layers:
            layer.draws = None
