"""What training lends to a network, behind one context that takes all of it back, however training ends."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from trainonce.nn.batch_norm import synchronised
from trainonce.nn.blocks import ElasticBlock
from trainonce.nn.dropout import BatchDropout, Masks, batch_dropouts, drawing
from trainonce.parallel.distributed import Ranks

Replays = Mapping[ElasticBlock, Callable[[Tensor, Any], Tensor]]
"""What does the forward passes of blocks in training mode instead of them."""
NOTHING: Replays = {}


@dataclass(frozen=True)
class Lent:
    """A network's loan: what a step can lend it besides."""

    dropouts: list[BatchDropout]
    """All its dropout layers."""

    @contextmanager
    def step(self, masks: Masks, replays: Replays = NOTHING) -> Iterator[None]:
        """Inside, dropout takes its masks from `masks`, and blocks in training mode are replayed."""
        with drawing(self.dropouts, masks):
            for block, replay in replays.items():
                block.replayed = replay
            try:
                yield
            finally:
                for block in replays:
                    del block.replayed


@contextmanager
def lent(network: nn.Module, *, ranks: Ranks | None = None) -> Iterator[Lent]:
    """Inside, a network is as training wants it; outside, it is as it was, but for its weights and statistics.

    It is in training mode, and its dropout layers can take masks that are given to them; with `ranks` its batch norms
    normalise by the images of all of them. Modules stay the objects that they are, so their hooks are called and stay.
    Gradients that are left at the end are dropped, and parameters can be trained or not as they could before.
    """
    trained = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    plain = [layer for layer in network.modules() if type(layer) is nn.Dropout]
    with modes_kept(network), nullcontext() if ranks is None else synchronised(network, ranks):
        try:
            yield Lent(batch_dropouts(network.train()))
        finally:
            for layer in plain:
                layer.__class__ = nn.Dropout
            network.zero_grad()
            for parameter, can_be in trained:
                parameter.requires_grad_(can_be)


@contextmanager
def modes_kept(network: nn.Module) -> Iterator[None]:
    """Afterwards each module is in training or evaluation mode as it was before."""
    modes = {module: module.training for module in network.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
