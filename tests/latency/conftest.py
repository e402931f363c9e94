"""A machine whose times are known: what each part takes follows from its sizes, and calls move a clock."""

import random
from collections.abc import Callable
from functools import partial

import pytest
from torch import nn

from trainonce.latency.bench import time_ms
from trainonce.latency.parts import PartModule
from trainonce.nn.plain import MBConv, PlainNetwork
from trainonce.nn.sizes import out_size
from trainonce.space import derived_seed


class KnownMachine:
    """What stands in for a runtime and the clock.

    A block takes 0.1 to 0.3 ms, an end 0.5, in a network. A block alone takes `alone` of that. The machine's pace is
    `pace(seconds since the start)`.
    """

    def __init__(
        self,
        alone: Callable[[float], float] = lambda ms: 0.5 * ms + 0.02,
        pace: Callable[[float], float] = lambda now: 1.0,
    ) -> None:
        self.now, self.alone, self.pace = 0.0, alone, pace
        self.prepared = 0
        self.timer = partial(time_ms, clock=lambda: self.now)

    def block_ms(self, block: nn.Module, size: int) -> float:
        assert isinstance(block, MBConv)
        return 0.1 + 0.2 * random.Random(derived_seed(size, repr(block))).random()

    def network_ms(self, network: PlainNetwork) -> float:
        size, total = out_size(network.spec.resolution, network.spec.stem_stride), 1.0
        for block, spec in zip(network.blocks, network.spec.blocks, strict=True):
            total += self.block_ms(block, size)
            size = out_size(size, spec.stride)
        return total

    def prepare(self, module: nn.Module, shape: tuple[int, ...]) -> Callable[[], object]:
        if isinstance(module, PlainNetwork):
            ms = self.network_ms(module)
        else:
            assert isinstance(module, PartModule)
            assert shape[1:] == module.shape
            ms = self.alone(self.block_ms(module.module, shape[-1]) if isinstance(module.module, MBConv) else 0.5)
        self.prepared += 1

        def call() -> None:
            self.now += 1e-3 * ms * self.pace(self.now)

        return call


@pytest.fixture
def known_machine() -> type[KnownMachine]:
    return KnownMachine
