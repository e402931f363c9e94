"""A data set: images in four disjoint splits, and what it was asked for as."""

import hashlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from trainonce.data import formats
from trainonce.data.augment import augment
from trainonce.data.picture import Interpolation
from trainonce.data.splits import Fold, Split
from trainonce.errors import UserError
from trainonce.names import is_unicode, plural, printable
from trainonce.parallel.distributed import BatchShard
from trainonce.recipes import VARIATIONS, Augmentation, Own, Recipe
from trainonce.settings import JsonObject, Settings, refuse_subclass

FINGERPRINT_IMAGES = 64  # of each split, evenly spaced


class DataSource(Settings):
    """What `load_dataset` was asked for, so that it can be asked again."""

    name_or_path: str = ""
    """A data set's name, the path of an image folder or npz file, or `package.module:function`; empty for images that
    Python code gave."""

    image_size: int | None = None
    """Side in pixels to which the images are brought; None keeps the data set's own."""

    grey: bool = False
    """Whether colour is turned into grey."""

    split_seed: int = 0
    """Seed of the division into the four splits."""

    fold: Fold | None = None
    """Which fold is the test split, from 1, and of how many; None where there are none."""

    train_images: int | None = None
    """How many images of the training split are trained on; None for all. The other splits stay whole."""

    train_images_seed: int = 0
    """Seed of which ones."""

    stream: bool | None = None
    """Whether the images of a folder stay on disk and are decoded as they are needed; None streams those that would
    fill too much memory. The images are the same."""

    skipped: tuple[str, ...] = ()
    """Files of a folder that are left out because they were broken, by their paths below it."""

    mean: tuple[float, ...] | None = None
    """What is taken off pixels in 0..1, one number a channel; None for the data set's own."""

    std: tuple[float, ...] | None = None
    """What the rest is divided by, one number a channel; None for the data set's own."""

    interpolation: Interpolation | None = None
    """How images are resized; None is bilinear."""

    @property
    def name(self) -> str:
        """The data set's name, or the folder's or file's."""
        path = Path(self.name_or_path.rpartition(":")[2])
        return (path.stem if path.suffix in formats.FORMATS else path.name) or "images"

    def identity(self) -> JsonObject:
        """Which images these are: everything but whether they stay on disk."""
        values = self.model_dump(mode="json", exclude={"stream"})
        later = ("skipped", "mean", "std", "fold", "interpolation")
        for name in later:  # so that it is the identity of before they could be chosen
            if not values[name]:
                del values[name]
        return values


class Preparation(Settings):
    """How images become what networks are trained on: what a fingerprint leaves out."""

    mean: tuple[float, ...]
    """What is taken off pixels in 0..1, one number a channel."""

    std: tuple[float, ...]
    """What the rest is divided by, one number a channel."""

    augmentation: Augmentation
    """How they are varied in training and in recalibrating."""

    def difference(self, asked: Self) -> str:
        """The first thing in which `asked` is another, in words: "their mean is 0.5 and was 0.0"; empty for none."""
        for name in type(self).model_fields:
            was, now = getattr(self, name), getattr(asked, name)
            if was != now:
                said = [", ".join(map(str, one)) or "none" for one in (was, now)]
                if said[0] == said[1]:  # in settings that are not told in words
                    said = [", ".join(map(repr, one)) for one in (was, now)]
                return f"their {name} is {said[1]} and was {said[0]}"
        return ""


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """Images in four disjoint splits, and all that is needed to use them.

    `mean` and `std` are of pixels in 0..1, one for each channel; `augmentation` is for training and
    calibrating. Images are square, of 1 or 3 channels, and alike in all splits.
    """

    name: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    train: Split
    calibrate: Split
    validate: Split
    test: Split
    source: DataSource = field(default_factory=DataSource)

    def __post_init__(self) -> None:
        """Raise `UserError` for class names that no file could hold, for what is no augmentation, for images that are
        not square or not alike, and for a normalisation that is not theirs."""
        for name in self.class_names:
            if not is_unicode(name):
                raise UserError(f"the class name '{printable(name)}' is not text that UTF-8 can hold: rename the class")
        if not isinstance(self.augmentation, tuple):
            raise UserError("`augmentation` is a tuple of variations, such as (Crop(), Flip()); () for none")
        for one in self.augmentation:
            refuse_subclass(one, next((kind for kind in VARIATIONS if isinstance(one, kind)), Own))
        self._refuse_shapes()
        self._refuse_normalisation()

    def _refuse_shapes(self) -> None:
        _, channels, height, width = self.train.shape
        for name, split in (("calibrate", self.calibrate), ("validate", self.validate), ("test", self.test)):
            if split.shape[1:] != self.train.shape[1:]:
                raise UserError(
                    f"the images of {self.name} are {_shape_in_words(self.train)} in 'train' but "
                    f"{_shape_in_words(split)} in '{name}': bring all to one image size, and to grey or to colour"
                )
        if height != width:
            raise UserError(f"the images of {self.name} are {height} x {width}: give an image size to square them")
        if channels not in (1, 3):
            raise UserError(f"the images of {self.name} have {channels} channels: give 1 for grey or 3 for colour")

    def _refuse_normalisation(self) -> None:
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) != self.channels:
                raise UserError(
                    f"{name} has {plural(len(numbers), 'number')}, but the images of {self.name} "
                    f"{plural(self.channels, 'channel')}: give one number for each"
                )
            if not all(map(math.isfinite, numbers)) or (name == "std" and min(numbers) <= 0):
                must = "finite" if name == "mean" else "finite and over 0"
                raise UserError(f"every number of {name} must be {must}, not {', '.join(f'{x:g}' for x in numbers)}")

    @property
    def image_size(self) -> int:
        """Height and width of every image, in pixels."""
        return self.train.shape[3]

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return self.train.shape[1]

    @property
    def streamed(self) -> bool:
        """Whether images stay on disk and are decoded as they are needed."""
        return self.train.streamed

    @property
    def decoded_bytes(self) -> int:
        """How much memory all images take when they are decoded."""
        return sum(math.prod(split.shape) for split in (self.train, self.calibrate, self.validate, self.test))

    @property
    def num_classes(self) -> int:
        """How many classes there are; labels go from 0 to one less."""
        return len(self.class_names)

    def to(self, device: torch.device | str) -> Self:
        """Give the same data set with every split on `device`."""
        return replace(
            self,
            train=self.train.to(device),
            calibrate=self.calibrate.to(device),
            validate=self.validate.to(device),
            test=self.test.to(device),
        )

    def varied_by(self, recipe: Recipe) -> Self:
        """Give the same data set, its images varied as a recipe says, in training and in recalibrating its subnets.

        It is itself where the recipe says nothing, and where it is varied so already.
        """
        if recipe.augmentation is None:
            return self
        return replace(self, augmentation=recipe.augmentation.of(self.augmentation, self.class_names, self.image_size))

    def vary(self, images_BCHW: Tensor, generator: torch.Generator, shard: BatchShard | None = None) -> Tensor:
        """Give uint8 images of a split as networks train on them: varied at random, normalised, float32, channels last.

        Arguments and errors are those of `trainonce.data.augment`.
        """
        varied_BCHW = augment(
            images_BCHW, self.augmentation, mean=self.mean, std=self.std, generator=generator, shard=shard
        )
        return varied_BCHW.contiguous(memory_format=torch.channels_last)

    @property
    def preparation(self) -> Preparation:
        """How the images are normalised and varied."""
        mean, std = tuple(map(float, self.mean)), tuple(map(float, self.std))
        return Preparation(mean=mean, std=std, augmentation=self.augmentation)

    def fingerprint(self) -> str:
        """Give 16 hexadecimal digits that other splits, other labels or other images would change.

        Covers the class names, every label, the shapes, and evenly spaced images of each split; not the
        device, the name, how the images are normalised and varied (`preparation`), or whether they are streamed.
        """
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        for split in (self.train, self.calibrate, self.validate, self.test):
            every = max(1, len(split) // FINGERPRINT_IMAGES)
            digest.update(str(split.shape).encode())
            digest.update(split.labels.cpu().contiguous().numpy().tobytes())
            some = torch.arange(0, len(split), every, device=split.labels.device)
            for row_1 in torch.split(some, 1):  # large images fit into memory too
                digest.update(split.batch(row_1).images_BCHW.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def _shape_in_words(split: Split) -> str:
    _, channels, height, width = split.shape
    return f"{height} x {width} in {({1: 'grey', 3: 'colour'}).get(channels, f'{channels} channels')}"
