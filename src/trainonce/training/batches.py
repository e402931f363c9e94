"""The batches of a training: which images they have, how these are varied and mixed, and each rank's shard."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import tee
from typing import NamedTuple

import torch
from torch import Tensor

from trainonce.data import DataSet
from trainonce.data.augment import drawn_mix, mix
from trainonce.data.splits import Batch
from trainonce.parallel.distributed import BatchShard
from trainonce.recipes import PhaseSteps, mixes
from trainonce.space import derived_rng, derived_seed


def generator_on(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A generator on a device that follows from `key` alone, such as (seed, "augment", step)."""
    return torch.Generator(device).manual_seed(derived_seed(*key))


def shuffled(count: int, *key: int | str) -> Tensor:
    """The rows [count] of a split in an order that follows from `key` alone, on the CPU."""
    return torch.randperm(count, generator=generator_on("cpu", *key))


class TrainBatch(NamedTuple):
    """A rank's shard of a batch."""

    x_BCHW: Tensor
    """Images, varied and normalised."""
    y_B: Tensor
    """Labels: [B], or where any batch may be mixed [B, classes]."""
    rows_B: Tensor
    """The rows in the training split of the whole batch."""
    mixed: bool
    """Whether its images were mixed."""


class Batches:
    """Every batch of a training, whole batches alone: a new order of the images in each epoch of each phase.

    What a batch is follows from the seed and its place; whether it is mixed may hang on what is known, too.
    """

    def __init__(
        self,
        data: DataSet,
        table: Sequence[PhaseSteps],
        shard: BatchShard,
        *,
        steps_per_epoch: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.data, self.table, self.shard = data, table, shard
        self.steps_per_epoch, self.seed, self.device = steps_per_epoch, seed, device
        self.mixes = mixes(data.augmentation)
        self.loaded = BatchShard(0, shard.total, shard.total) if self.mixes else shard
        """The rows that this rank loads and varies: all, where batches may be mixed; it then takes its shard."""
        self._next: Iterator[tuple[Tensor, Batch]] = iter(())

    @contextmanager
    def loading(self, first: int) -> Iterator[None]:
        """Load them from the batch of number `first` on, from 0; `take` gives them meanwhile."""
        whole, own = tee(self._rows(first))
        with closing(self.data.train.batches(rows_B[self.loaded.rows] for rows_B in own)) as batches:
            self._next = zip(whole, batches, strict=False)
            yield

    def _rows(self, first: int) -> Iterator[Tensor]:
        """The rows of every whole batch from `first` to the end; a ragged end of an epoch is left out of it."""
        size, order = self.shard.total, torch.empty(0)
        for entry in self.table:
            start = max(0, first - entry.start)
            for in_phase in range(start, entry.steps):
                epoch, batch = divmod(in_phase, self.steps_per_epoch)
                if batch == 0 or in_phase == start:
                    order = shuffled(len(self.data.train), self.seed, "order", entry.index, epoch)
                    order = order.to(self.data.train.labels.device, non_blocking=True)
                yield order[batch * size : (batch + 1) * size]

    def take(self, phase: int, in_phase: int, *, known: float) -> TrainBatch:
        """The next batch, for a step of a phase; `known` is the share of training images that are known."""
        rows_B, (_, images_BCHW, y_B) = next(self._next)
        varying = generator_on(self.device, self.seed, "augment", phase, in_phase)
        x_BCHW = self.data.vary(images_BCHW, varying, self.loaded)
        if not self.mixes:
            return TrainBatch(x_BCHW, y_B, rows_B, mixed=False)
        rng = derived_rng(self.seed, "mix", phase, in_phase)
        way = drawn_mix(self.data.augmentation, known=known, rng=rng)
        x_BCHW, y_BK = mix(x_BCHW, y_B, way, classes=self.data.num_classes, rng=rng)
        return TrainBatch(x_BCHW[self.shard.rows], y_BK[self.shard.rows], rows_B, mixed=way is not None)
