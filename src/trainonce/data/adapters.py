"""Images that Python code has already: arrays, a torch `Dataset`, a Hugging Face dataset, or a function that gives one.

    data = from_arrays(images, labels)                       # uint8 [N, H, W], [N, H, W, C] or [N, C, H, W]
    data = from_pairs(torchvision.datasets.Flowers102("."))  # anything of (image, label) pairs
    data = from_hugging_face(datasets.load_dataset("beans"))

A run that is made of them can be used from Python, where its images are given again. Where a function makes them,
`package.module:function` names it everywhere that takes images, on the command line too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from trainonce.data.dataset import DataSet, DataSource
from trainonce.data.load import FOLDER_IMAGE_SIZE, as_asked, divided
from trainonce.data.picture import square_picture
from trainonce.data.sizing import fitted
from trainonce.data.splits import Published, Split
from trainonce.errors import UserError
from trainonce.limits import refuse_beyond_memory

Pixels = NDArray[np.uint8] | Tensor
VALIDATE_NAMES = ("validate", "validation", "valid", "val")
"""What the split that guides choices is called."""


LOOKED_AT = 32
"""How many images are looked at to learn their size and whether they are grey."""


class Pairs(Protocol):
    """What a torch `Dataset` with a length is: `dataset[i]` gives an image and its label."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def from_arrays(
    images: Pixels,
    labels: ArrayLike | Tensor,
    *,
    class_names: Sequence[str] | None = None,
    validate: tuple[Pixels, ArrayLike | Tensor] | None = None,
    test: tuple[Pixels, ArrayLike | Tensor] | None = None,
    image_size: int | None = None,
    grey: bool = False,
    split_seed: int = 0,
    train_images: int | None = None,
    name: str = "images",
) -> DataSet:
    """A data set of arrays: uint8 images [N, H, W], [N, H, W, C] or [N, C, H, W] of 1 or 3 channels, labels [N] from 0.

    Splits that are not given are carved out of `images`, as from a folder; options are those of `load_dataset`.
    `class_names` are by label; by default the numbers. Images that are not square, or of another size in another split,
    need an `image_size`. Raises `UserError` for arrays of another type or shape, labels that are no class, and classes
    of too few images.
    """
    made = Published(
        class_names=(),
        train=_split(images, labels, "images"),
        validate=None if validate is None else _split(*validate, "validate"),
        test=None if test is None else _split(*test, "test"),
    )
    highest = max(int(split.labels.max()) for _, split in made.given())
    names = tuple(map(str, range(highest + 1) if class_names is None else class_names))
    if highest >= len(names):
        raise UserError(f"there is a label {highest}, but {len(names)} class names")
    published = fitted(replace(made, class_names=names), image_size=image_size, grey=grey, where=name)
    source = DataSource(split_seed=split_seed, train_images=train_images)
    return as_asked(divided(published, source, where=name, name=name))


def from_pairs(
    dataset: Pairs,
    *,
    class_names: Sequence[str] | None = None,
    validate: Pairs | None = None,
    test: Pairs | None = None,
    image_size: int | None = None,
    grey: bool = False,
    split_seed: int = 0,
    train_images: int | None = None,
    name: str = "images",
) -> DataSet:
    """A data set of (image, label) pairs: a torch `Dataset`, of torchvision or your own.

    Images are PIL's, uint8 arrays, or float tensors [C, H, W] from 0 to 1, of any size: of each the central square is
    brought to `image_size` (by default 64 pixels where they differ, else their own). They are grey where the first ones
    of every split are, or `grey` says so. `class_names` are by default what the dataset's attribute `classes` says.
    Other options and errors are those of `from_arrays`.
    """
    size = image_size or _own_size(dataset)
    grey = grey or all(_looks_grey(split) for split in (dataset, validate, test) if split is not None)
    if class_names is None and hasattr(dataset, "classes"):
        class_names = list(dataset.classes)
    images, labels = _arrays(dataset, size, grey)
    return from_arrays(
        images,
        labels,
        class_names=class_names,
        validate=None if validate is None else _arrays(validate, size, grey),
        test=None if test is None else _arrays(test, size, grey),
        split_seed=split_seed,
        train_images=train_images,
        name=name,
    )


def from_hugging_face(
    dataset: Any,
    *,
    image: str = "image",
    label: str = "label",
    image_size: int | None = None,
    grey: bool = False,
    split_seed: int = 0,
    train_images: int | None = None,
    name: str = "images",
) -> DataSet:
    """A data set of a Hugging Face `Dataset`, or of a `DatasetDict` with its splits, by the names of its columns.

    Class names are those of the column of labels where it has any. The splits `validation` and `test` are taken where
    there are such. Options and errors are those of `from_pairs`.
    """
    splits = dict(dataset) if isinstance(dataset, Mapping) else {"train": dataset}
    if "train" not in splits:
        raise UserError(f"the dataset has no split 'train': it has {', '.join(splits)}")
    for column in (image, label):
        if column not in splits["train"].column_names:
            there = ", ".join(splits["train"].column_names)
            raise UserError(f"the dataset has no column {column!r}: name it; the columns are {there}")
    features = splits["train"].features[label]
    pairs = {part: _Columns(split, image, label) for part, split in splits.items()}
    return from_pairs(
        pairs["train"],
        class_names=list(features.names) if hasattr(features, "names") else None,
        validate=next((pairs[part] for part in VALIDATE_NAMES if part in pairs), None),
        test=pairs.get("test"),
        image_size=image_size,
        grey=grey,
        split_seed=split_seed,
        train_images=train_images,
        name=name,
    )


class _Columns:
    """The rows of a Hugging Face dataset as pairs."""

    def __init__(self, rows: Any, image: str, label: str) -> None:
        self.rows, self.image, self.label = rows, image, label

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> tuple[Any, Any]:
        row = self.rows[index]
        return row[self.image], row[self.label]


def _split(images: Pixels, labels: ArrayLike | Tensor, what: str) -> Split:
    pixels = torch.as_tensor(images)
    if pixels.dtype != torch.uint8:
        raise UserError(f"{what} must be uint8, 0 to 255, not {str(pixels.dtype).removeprefix('torch.')}")
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and pixels.shape[1] not in (1, 3) and pixels.shape[3] in (1, 3):
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or 0 in pixels.shape:
        shape = list(torch.as_tensor(images).shape)
        raise UserError(f"{what} must be of the shape [N, H, W], [N, H, W, C] or [N, C, H, W], C 1 or 3, not {shape}")
    numbers = labels if isinstance(labels, Tensor) else torch.as_tensor(np.asarray(labels))
    whole = not numbers.is_floating_point() and numbers.dtype != torch.bool
    if not whole or tuple(numbers.shape) != (len(pixels),):
        kind = f"{str(numbers.dtype).removeprefix('torch.')} {list(numbers.shape)}"
        raise UserError(f"the labels of {len(pixels)} {what} must be as many whole numbers, not {kind}")
    if int(numbers.min()) < 0:
        raise UserError(f"labels count from 0, and one of {what} is {int(numbers.min())}")
    return Split(pixels.contiguous(), numbers.to(torch.int64))


def _own_size(pairs: Pairs) -> int:
    """The side that all of the first images have, else that of images from folders."""
    sizes = {_picture(pairs[index][0]).size for index in range(min(len(pairs), LOOKED_AT))}
    width, height = next(iter(sizes), (0, 1))
    return width if len(sizes) == 1 and width == height else FOLDER_IMAGE_SIZE


def _looks_grey(pairs: Pairs) -> bool:
    """Whether all of the first images are grey."""
    return all(_picture(pairs[index][0]).mode == "L" for index in range(min(len(pairs), LOOKED_AT)))


def _arrays(pairs: Pairs, size: int, grey: bool) -> tuple[Tensor, list[int]]:
    """All images uint8 [N, C, size, size], C 1 if `grey`, else 3; and their labels."""
    if not len(pairs):
        raise UserError("the dataset has no images")
    refuse_beyond_memory(len(pairs) * (1 if grey else 3) * size**2, f"{len(pairs)} images of {size} x {size} pixels")
    images, labels = [], []
    for number in range(len(pairs)):
        image, label = pairs[number]
        if not isinstance(label, int | np.integer) and not (isinstance(label, Tensor) and label.numel() == 1):
            raise UserError(f"the label of image {number} is not a class number but {label!r:.60}")
        square = torch.from_numpy(np.array(square_picture(_picture(image), size, "L" if grey else "RGB")))
        images.append(square[None] if grey else square.permute(2, 0, 1))
        labels.append(int(label))
    return torch.stack(images), labels


def _picture(image: Any) -> Image.Image:
    """An image as a picture of Pillow's, as the files of a folder are read."""
    if isinstance(image, Image.Image):
        return image
    pixels = torch.as_tensor(image)
    if pixels.is_floating_point():
        if pixels.min() < 0 or pixels.max() > 1:
            raise UserError("float images must lie between 0 and 1: give them as they are before they are normalised")
        pixels = (pixels * 255).round().to(torch.uint8)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = pixels.permute(1, 2, 0)
    if pixels.dtype != torch.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        kind = f"{str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}"
        raise UserError(f"an image is {kind}: see docs/data.md")
    return Image.fromarray(pixels.squeeze(2).contiguous().numpy() if pixels.ndim == 3 else pixels.contiguous().numpy())
