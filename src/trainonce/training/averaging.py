"""The moving average of a network's weights while it trains, which can stand in the network's place."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average of the parameters of a network, from what they are when it is made.

    `keeps` is how much of itself it keeps in a step, in (0, 1), and `since` the step that it begins before. Step n
    from there, from 1, keeps at most (1 + n) / (10 + n), as TensorFlow's ExponentialMovingAverage does.
    """

    def __init__(self, network: nn.Module, keeps: float, *, since: int) -> None:
        self.keeps, self.since = keeps, since
        self.parameters: list[Tensor] = list(network.parameters())
        self.tensors = {name: weight.detach().clone() for name, weight in network.named_parameters()}

    @torch.no_grad()
    def add(self, step: int) -> None:
        """Take in the weights that a step of the run, from 0, has left."""
        done = step + 1 - self.since
        keeps = min(self.keeps, (1 + done) / (10 + done))
        torch._foreach_lerp_(list(self.tensors.values()), self.parameters, 1 - keeps)

    @torch.no_grad()
    def exchange(self) -> None:
        """Let the average and the weights of the network change places. Both keep their tensors."""
        for average, weight in zip(self.tensors.values(), self.parameters, strict=True):
            before = weight.detach().clone()
            weight.copy_(average)
            average.copy_(before)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, the network has the average as its weights."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()
