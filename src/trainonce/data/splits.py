"""Labelled images, and the four disjoint splits that everything else is measured on.

`train` updates weights, `calibrate` gives batch-norm statistics, `validate` guides every choice
(search, stopping, comparing), `test` is looked at once, at the end.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import tee
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainonce.data.augment import refuse_other_images
from trainonce.data.stream import ImageFiles
from trainonce.errors import UserError
from trainonce.names import plural

Indices = npt.NDArray[np.int64]

TEST_FRACTION = 0.15
VALIDATE_FRACTION = 0.10
CALIBRATE_FRACTION = 0.05
CALIBRATE_MOST = 2000

Fold = tuple[int, int]
"""Which fold, from 1, and of how many."""


class Batch(NamedTuple):
    """Some images of a split: their rows in it, the images as uint8 [B, C, H, W] in 0..255, and their labels."""

    rows_B: Tensor
    images_BCHW: Tensor
    labels_B: Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels: whole in memory on one device, or streamed from files that stay on disk.

    `pixels` is uint8 [N, C, H, W] in 0..255, or the files that are decoded to that; `labels` is int64 [N], class
    numbers from 0. Labels are on the images' device where those are in memory, and on the CPU where they are
    streamed. What works on both is `batch` and `batches`; the same rows give the same pixels.
    """

    pixels: Tensor | ImageFiles
    labels: Tensor
    decoded_from: ImageFiles | None = None
    """The files of images that are in memory, where they were read from a folder."""

    def __post_init__(self) -> None:
        """Raise `UserError` where pixels or labels are of another type or shape."""
        if isinstance(self.pixels, Tensor):
            refuse_other_images(self.pixels)
        if self.labels.dtype != torch.int64:
            raise UserError(f"labels must be int64, not {str(self.labels.dtype).removeprefix('torch.')}")
        if tuple(self.labels.shape) != self.shape[:1]:
            raise UserError(
                f"{self.shape[0]} images need labels of the shape [{self.shape[0]}], not {list(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all the images together: [N, C, H, W]."""
        return tuple(self.pixels.shape)

    @property
    def device(self) -> torch.device:
        """Where the images of a batch are."""
        return self.pixels.device

    @property
    def streamed(self) -> bool:
        """Whether the images stay on disk."""
        return isinstance(self.pixels, ImageFiles)

    @property
    def images(self) -> Tensor:
        """All the images, uint8 [N, C, H, W], of a split that is in memory."""
        assert isinstance(self.pixels, Tensor), "these images are streamed: take them by batch or batches"
        return self.pixels

    @property
    def files(self) -> ImageFiles | None:
        """The image files that this is made of, a row each; None where it was not read from a folder."""
        return self.pixels if isinstance(self.pixels, ImageFiles) else self.decoded_from

    def to(self, device: torch.device | str) -> Self:
        """Give the same split with its images on `device`."""
        labels = self.labels if self.streamed else self.labels.to(device)
        return type(self)(self.pixels.to(device), labels, self.decoded_from)

    def take(self, indices: Indices) -> Self:
        """Give the images and labels at `indices`, int64 [M], in that order: copied, but for files, which stay."""
        index = torch.from_numpy(indices).to(self.labels.device)
        taken = self.pixels[index] if isinstance(self.pixels, Tensor) else self.pixels.take(indices)
        files = None if self.decoded_from is None else self.decoded_from.take(indices)
        return type(self)(taken, self.labels[index], files)

    def drawn(self, count: int, *, seed: int) -> Self:
        """Give `count` images drawn from `seed`, all where there are fewer, in memory even where these are streamed."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        _, images, labels = self.batch(order[:count].sort().values.to(self.labels.device))
        return type(self)(images, labels)

    def batch(self, rows_B: Tensor) -> Batch:
        """Give the images and labels at `rows_B`, int64 [B] from 0, on the labels' device; streamed: decoded now."""
        images_BCHW = (
            self.pixels.index_select(0, rows_B) if isinstance(self.pixels, Tensor) else self.pixels.batch(rows_B)
        )
        return Batch(rows_B, images_BCHW, self.labels[rows_B].to(self.device, non_blocking=True))

    def batches(self, rows: Iterable[Tensor]) -> Generator[Batch, None, None]:
        """Give a batch for each of `rows`, as `batch` does; streamed ones are decoded ahead by worker processes.

        A streamed split reads `rows` ahead, and its workers end when the generator is closed or exhausted. Raises
        `UserError` that names a broken file, and `RunError` where a worker died.
        """
        if isinstance(self.pixels, Tensor):
            for rows_B in rows:
                yield self.batch(rows_B)
            return
        asked, ahead = tee(rows)
        with closing(self.pixels.batches(ahead)) as decoded:
            for rows_B, images_BCHW in zip(asked, decoded, strict=False):
                yield Batch(rows_B, images_BCHW, self.labels[rows_B].to(self.device, non_blocking=True))

    def in_order(self, size: int) -> Generator[Batch, None, None]:
        """Give all images once, in batches of `size`; errors as `batches`."""
        return self.batches(torch.split(torch.arange(len(self), device=self.labels.device), size))


@dataclass(frozen=True, kw_only=True, eq=False)
class Published:
    """A data set as its publisher divided it: a training split, perhaps others, and class names.

    Label `i` means `class_names[i]`, the same in every split. `skipped` are files that were left out.
    """

    class_names: tuple[str, ...]
    train: Split
    validate: Split | None = None
    test: Split | None = None
    skipped: tuple[str, ...] = ()

    def given(self) -> Iterator[tuple[str, Split]]:
        """Give (name, split) of each split that is there, train first."""
        yield "train", self.train
        for name, split in (("validate", self.validate), ("test", self.test)):
            if split is not None:
                yield name, split


class Sizes(NamedTuple):
    """How many images to carve out of the published training split; 0 where the publisher gave the split."""

    calibrate: int
    validate: int
    test: int


class Splits(NamedTuple):
    """Four splits of which no two share an image."""

    train: Split
    calibrate: Split
    validate: Split
    test: Split


def default_sizes(published: Published) -> Sizes:
    """Give the sizes to carve from a data set that is not in the table.

    Fractions of the published training split: test 15 %, validate 10 % (each only where it is not
    given), calibrate 5 % and at most 2,000; each at least 1.
    """
    total = len(published.train)

    def part(fraction: float) -> int:
        return max(1, round(fraction * total))

    return Sizes(
        calibrate=min(CALIBRATE_MOST, part(CALIBRATE_FRACTION)),
        validate=0 if published.validate is not None else part(VALIDATE_FRACTION),
        test=0 if published.test is not None else part(TEST_FRACTION),
    )


def carve(published: Published, *, sizes: Sizes, seed: int, where: str, fold: Fold | None = None) -> Splits:
    """Carve calibrate, and the splits the publisher did not give, out of the training split.

    Stratified: every class keeps its share to within one image, and has at least one image in train
    and in a carved validate and test. What is drawn follows from `seed` (0 or more) alone; no global
    generator is touched. `where` names the data in errors. With `fold` the test split is that fold: the folds of a
    seed are disjoint, cover all the images, and are of sizes that differ by one at most, in every class too. Raises
    `UserError` where a class has too few images, saying how many are needed, and for folds of images that have a test
    split of their own.
    """
    assert (sizes.validate > 0) == (published.validate is None), sizes
    assert (sizes.test > 0) == (published.test is None), sizes
    if seed < 0:
        raise UserError(f"the split seed must be 0 or more, not {seed}")
    labels = published.train.labels.cpu().numpy()
    if fold is None:
        parts = _carve_indices(labels, published.class_names, sizes=sizes, seed=seed, where=where)
    else:
        if published.test is not None:
            raise UserError(f"{where} has a test split of its own: folds are of images that are not divided")
        folds = _folds_of(labels, published.class_names, fold, seed=seed, where=where)
        (held_out,), (rest,) = np.nonzero(folds == fold[0] - 1), np.nonzero(folds != fold[0] - 1)
        inner = sizes._replace(test=0)
        others = _carve_indices(labels[rest], published.class_names, sizes=inner, seed=seed, where=where)
        parts = *(rest[indices] for indices in others[:3]), held_out
    train, calibrate, validate, test = parts
    return Splits(
        train=published.train.take(train),
        calibrate=published.train.take(calibrate),
        validate=published.train.take(validate) if published.validate is None else published.validate,
        test=published.train.take(test) if published.test is None else published.test,
    )


def fewer(split: Split, count: int, *, seed: int, where: str) -> Split:
    """Give `count` images of a split, every class keeping its share to within one image, at least one each.

    Which ones follows from `seed`, the labels and their order alone; those of a smaller count are among those of a
    larger one, but for the rounding of shares. Raises `UserError` where there are fewer images, or fewer asked for
    than classes.
    """
    labels = split.labels.cpu().numpy()
    classes = np.unique(labels)
    if not len(classes) <= count <= len(labels):
        raise UserError(
            f"{where} has {len(labels)} training images of {len(classes)} classes: the number to train on must lie "
            f"between {len(classes)} and {len(labels)}, and {count} does not"
        )
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(np.flatnonzero(labels == c)) for c in classes]
    counts = np.array([len(indices) for indices in shuffled], dtype=np.int64)
    quota = _quotas(counts, size=count, minimum=1, keep=0)
    while quota.sum() > count:  # many classes have their one image
        quota[quota.argmax()] -= 1
    return split.take(_pick(shuffled, np.zeros_like(counts), quota))


def _folds_of(labels: Indices, class_names: tuple[str, ...], fold: Fold, *, seed: int, where: str) -> Indices:
    """Give the fold, from 0, of each image, int64 [N]."""
    number, count = fold
    if not 1 <= number <= count or count < 2:
        raise UserError(f"there are 2 folds or more, numbered from 1: {number} of {count} is none of them")
    shuffled = _shuffled(labels, len(class_names), seed)
    rarest = min(range(len(class_names)), key=lambda c: len(shuffled[c]))
    if len(shuffled[rarest]) < count:
        raise UserError(
            f"{where}: class '{class_names[rarest]}' has {len(shuffled[rarest])} images, which is enough for so "
            f"many folds at most, not for {count}"
        )
    order, folds = np.concatenate(shuffled), np.empty(len(labels), dtype=np.int64)
    folds[order] = np.arange(len(labels)) % count
    return folds


def _shuffled(labels: Indices, num_classes: int, seed: int) -> list[Indices]:
    """Give the indices of each class's images in an order drawn from `seed`."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.flatnonzero(labels == c)) for c in range(num_classes)]


def _carve_indices(
    labels: Indices, class_names: tuple[str, ...], *, sizes: Sizes, seed: int, where: str
) -> tuple[Indices, ...]:
    """Give the indices of (train, calibrate, validate, test) among images of these labels, each in rising order."""
    shuffled = _shuffled(labels, len(class_names), seed)
    counts = np.array([len(indices) for indices in shuffled], dtype=np.int64)
    _refuse_too_few(counts, class_names, sizes, where)

    used = np.zeros_like(counts)  # [K], how many of each class's shuffled indices are taken
    parts = []
    owed = 1 + (sizes.validate > 0)  # images of each class that later splits still need
    for size, minimum in ((sizes.test, 1), (sizes.validate, 1), (sizes.calibrate, 0)):
        quota = np.zeros_like(counts)
        if size > 0:
            quota = _quotas(counts - used, size=size, minimum=minimum, keep=owed)
        parts.append(_pick(shuffled, used, used + quota))
        used += quota
        owed = 1
    test, validate, calibrate = parts
    return _pick(shuffled, used, counts), calibrate, validate, test


def _pick(shuffled: list[Indices], start: Indices, stop: Indices) -> Indices:
    chosen = [indices[a:b] for indices, a, b in zip(shuffled, start, stop, strict=True)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _refuse_too_few(counts: Indices, class_names: tuple[str, ...], sizes: Sizes, where: str) -> None:
    filled = ["train"] + ["validate"] * (sizes.validate > 0) + ["test"] * (sizes.test > 0)
    needed = len(filled)
    rarest = int(counts.argmin())
    if counts[rarest] < needed:
        there = plural(int(counts[rarest]), "training image")
        raise UserError(
            f"{where}: class '{class_names[rarest]}' has {there}, but at least {needed} are needed to put one in each "
            f"of {', '.join(filled)}"
        )
    enough = needed * len(counts) + sizes.calibrate
    if counts.sum() < enough:
        raise UserError(
            f"{where} has {counts.sum()} training images, but at least {enough} are needed to put one of "
            f"each class in each of {', '.join(filled)}, and {sizes.calibrate} in calibrate"
        )


def _quotas(available: Indices, *, size: int, minimum: int, keep: int) -> Indices:
    """Share `size` images among classes in proportion to `available`, int64 [K].

    Largest-remainder rounding, so the shares sum to `size` exactly; but never fewer than `minimum` of
    a class (the sum may then be more than `size`) nor so many that fewer than `keep` stay.
    """
    limit = available - keep
    ideal = available * (size / available.sum())
    quota: Indices = np.clip(np.floor(ideal).astype(np.int64), minimum, limit)
    order = np.argsort(np.floor(ideal) - ideal, kind="stable")  # largest remainder first
    while quota.sum() < size and (quota < limit).any():
        open_classes = [c for c in order if quota[c] < limit[c]]
        quota[open_classes[: size - quota.sum()]] += 1
    return quota
