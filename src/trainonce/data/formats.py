"""Readers of published image files: IDX (MNIST), CIFAR binary records, and npz archives.

Every reader checks the whole file and raises `UserError` naming the file and what is wrong with it.
Nothing is ever unpickled. Image folders are read in `folder.py`.
"""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainonce.data.splits import Published, Split
from trainonce.errors import UserError
from trainonce.files import read_arrays, read_bytes
from trainonce.limits import refuse_beyond_memory

Bytes = npt.NDArray[np.uint8]

CIFAR_SIDE = 32
CIFAR_PIXELS = 3 * CIFAR_SIDE * CIFAR_SIDE

# What the standard library and numpy raise on bytes that are not what they claim to be.
_GZIP_ERRORS = (OSError, EOFError, zlib.error)

# The first name of each split is ours; the others are in common use (MedMNIST says `val_images`).
_NPZ_SPLITS = {"train": ("train",), "validate": ("validate", "val", "valid"), "test": ("test",)}


def make_split(images: Bytes, labels: npt.NDArray[np.integer[Any]]) -> Split:
    """Make a split of arrays that are already checked: uint8 [N, C, H, W] and integers [N]."""
    own = np.require(images, requirements=["C", "O", "W"])
    return Split(torch.from_numpy(own), torch.from_numpy(labels.astype(np.int64)))


def read_idx(path: Path, *, ndim: int) -> Bytes:
    """Read an IDX file of unsigned bytes, plain or compressed with gzip.

    Gives uint8 with `ndim` dimensions. Raises `UserError` on a broken gzip stream, another magic
    number, a length that is not what the header says, no content, or more than the memory there is.
    Source: the format's description at http://yann.lecun.com/exdb/mnist/.
    """
    data = read_bytes(path)
    compressed = data[:2] == b"\x1f\x8b"
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) if compressed else io.BytesIO(data) as file:
            shape = _idx_shape(file.read(4 + 4 * ndim), ndim, path)
            expected = math.prod(shape)
            taken = expected if compressed else min(expected, len(data))
            refuse_beyond_memory(2 * taken, f"what {path} announces")  # read, and copied
            content = file.read(taken)
            rest = len(file.read(1))
    except _GZIP_ERRORS as error:
        raise UserError(f"{path} is not a whole gzip file: {error}") from error
    if len(content) != expected or rest:
        state = "too long" if rest else "truncated"
        follow = "more" if rest else len(content)
        raise UserError(
            f"{path} is {state}: its IDX header promises {expected} bytes of shape {shape}, but {follow} follow"
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()


def _idx_shape(header: bytes, ndim: int, path: Path) -> tuple[int, ...]:
    """The shape that the first bytes of an IDX file announce."""
    magic = bytes((0, 0, 8, ndim))
    if header[:4] != magic:
        raise UserError(
            f"{path} is not an IDX file of {ndim}-dimensional bytes: it starts with "
            f"'{header[:4].hex()}' where '{magic.hex()}' is expected"
        )
    if len(header) < 4 + 4 * ndim:
        raise UserError(f"{path} is truncated: it ends inside the IDX header")
    shape = struct.unpack(f">{ndim}I", header[4:])
    if 0 in shape:
        raise UserError(f"{path} holds nothing: its IDX header says the shape {shape}")
    return shape


def read_idx_pair(images_path: Path, labels_path: Path, *, num_classes: int) -> Split:
    """Read grey images [N, 1, H, W] and their labels [N] from two IDX files.

    Raises `UserError` as `read_idx` does, and where the counts differ or a label is `num_classes` or more.
    """
    images = read_idx(images_path, ndim=3)
    labels = read_idx(labels_path, ndim=1)
    if len(images) != len(labels):
        raise UserError(f"{images_path} holds {len(images)} images but {labels_path} holds {len(labels)} labels")
    _refuse_labels(labels, num_classes=num_classes, where=str(labels_path))
    return make_split(images[:, None], labels)


def read_cifar10(paths: Sequence[Path]) -> Split:
    """Read CIFAR-10 binary batches: records of 1 label byte and 3,072 pixels; [N, 3, 32, 32].

    Raises `UserError` on a length that is not whole records, or a label over 9.
    Source: https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    return _read_cifar(paths, label_ranges=(10,))


def read_cifar100(paths: Sequence[Path]) -> Split:
    """Read CIFAR-100 binary files: records of a coarse label, a fine label and 3,072 pixels; [N, 3, 32, 32].

    The labels given are the fine ones. Raises `UserError` on a length that is not whole records, a
    coarse label over 19 or a fine one over 99. Source: https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    return _read_cifar(paths, label_ranges=(20, 100))


def _read_cifar(paths: Sequence[Path], *, label_ranges: tuple[int, ...]) -> Split:
    """Read records of `len(label_ranges)` label bytes, the last of which counts, and one image each."""
    record = len(label_ranges) + CIFAR_PIXELS
    batches = []
    for path in paths:
        data = read_bytes(path)
        if not data or len(data) % record:
            raise UserError(f"{path} is not whole CIFAR records: its {len(data)} bytes are not a multiple of {record}")
        batch = np.frombuffer(data, dtype=np.uint8).reshape(-1, record)
        for column, num_classes in enumerate(label_ranges):
            _refuse_labels(batch[:, column], num_classes=num_classes, where=str(path))
        batches.append(batch)
    records = np.concatenate(batches)
    pixels = records[:, len(label_ranges) :].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    return make_split(pixels, records[:, len(label_ranges) - 1])


def _refuse_labels(labels: npt.NDArray[np.integer[Any]], *, num_classes: int, where: str) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise UserError(f"{where}: label {wrong[0]} is {labels[wrong[0]]}, but labels go from 0 to {num_classes - 1}")


def read_npz(path: Path) -> Published:
    """Read an npz archive of images and labels that are already divided into splits, each of images of one shape.

    Keys: `train_images` and `train_labels`; where given, `validate_...` (or `val_`, `valid_`) and
    `test_...`; where given, `class_names`, strings [K]. Images are uint8 [N, H, W] or [N, H, W, C] with C 1
    or 3; labels are integers [N] or [N, 1] from 0, every class in every split.
    Raises `UserError` on anything else, object arrays among it: nothing is unpickled.
    """
    return published_in(read_arrays(path), path)


def published_in(arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> Published:
    """The images and labels of a file, by the keys that `read_npz` names. Raises `UserError` as it does."""
    splits = _splits_in(arrays, path)
    class_names = _class_names_in(arrays, splits, path)
    for name, split in splits.items():
        where = f"{path}: {name}_labels"
        _refuse_labels(split.labels.numpy(), num_classes=len(class_names), where=where)
        refuse_missing_class(split, class_names, where=where)
    return Published(
        class_names=class_names,
        train=splits["train"],
        validate=splits.get("validate"),
        test=splits.get("test"),
    )


def refuse_missing_class(split: Split, class_names: tuple[str, ...], *, where: str) -> None:
    """Raise `UserError` that names the first class of which `split` has no image."""
    counts = torch.bincount(split.labels, minlength=len(class_names))
    if not bool(counts.all()):
        missing = int(torch.nonzero(counts == 0)[0])
        raise UserError(f"{where} has no image of class '{class_names[missing]}'")


def _splits_in(arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> dict[str, Split]:
    aliases = [alias for names in _NPZ_SPLITS.values() for alias in names]
    known = [f"{alias}_{kind}" for alias in aliases for kind in ("images", "labels")] + ["class_names"]
    for key in arrays:
        if key not in known:
            raise UserError(f"{path}: unknown key '{key}'; the keys are {', '.join(known)}")
    splits = {}
    for split, names in _NPZ_SPLITS.items():
        found = [alias for alias in names if f"{alias}_images" in arrays or f"{alias}_labels" in arrays]
        if len(found) > 1:
            raise UserError(f"{path} has both '{found[0]}' and '{found[1]}' arrays: keep one")
        if not found and split == "train":
            raise UserError(f"{path}: the key 'train_images' is missing")
        if found:
            splits[split] = _split_in(arrays, found[0], path)
    return splits


def _split_in(arrays: Mapping[str, npt.NDArray[Any]], alias: str, path: Path) -> Split:
    for kind in ("images", "labels"):
        if f"{alias}_{kind}" not in arrays:
            raise UserError(f"{path}: the key '{alias}_{kind}' is missing")
    images, labels = arrays[f"{alias}_images"], arrays[f"{alias}_labels"]
    if images.dtype != np.uint8:
        raise UserError(f"{path}: '{alias}_images' must be uint8, not {images.dtype}")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise UserError(
            f"{path}: '{alias}_images' must have the shape [N, H, W] or [N, H, W, C] with C 1 or 3, "
            f"not {list(arrays[f'{alias}_images'].shape)}"
        )
    if labels.dtype.kind not in "iu":
        raise UserError(f"{path}: '{alias}_labels' must be integers, not {labels.dtype}")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != images.shape[:1]:
        raise UserError(
            f"{path}: '{alias}_labels' must have the shape [{len(images)}], one label for each image, "
            f"not {list(labels.shape)}"
        )
    largest = np.iinfo(np.int32).max  # far above any class count, and safe to turn into int64
    _refuse_labels(labels, num_classes=largest, where=f"{path}: {alias}_labels")
    return make_split(images.transpose(0, 3, 1, 2), labels)


def _class_names_in(arrays: Mapping[str, npt.NDArray[Any]], splits: Mapping[str, Split], path: Path) -> tuple[str, ...]:
    """Give the names stored, else '0', '1', ... for the labels of the training split."""
    if "class_names" in arrays:
        stored = arrays["class_names"]
        if stored.ndim != 1 or stored.dtype.kind != "U":
            raise UserError(f"{path}: 'class_names' must be strings of shape [K], not {stored.dtype}")
        names = tuple(str(name) for name in stored)
        if len(set(names)) != len(names):
            raise UserError(f"{path}: 'class_names' names a class twice")
    else:
        present = torch.unique(splits["train"].labels)  # sorted
        gaps = torch.nonzero(present != torch.arange(len(present)))
        if len(gaps):
            raise UserError(f"{path}: train_labels has no image of class '{int(gaps[0])}'")
        names = tuple(str(label) for label in range(len(present)))
    if len(names) < 2:
        raise UserError(f"{path} holds {len(names)} class; at least 2 are needed")
    return names


FORMATS: dict[str, Callable[[Path], Published]] = {".npz": read_npz}
"""What reads a file that holds a whole data set, by its ending. Each gives images uint8 [N, C, H, W] of one shape."""
FILES = " or ".join(FORMATS)
"""Their endings as sentences name them."""
