"""From a name or a path to a `DataSet`: read or fetch, resize, divide into the four splits."""

import hashlib
import math
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainonce.data import formats
from trainonce.data.augment import augment
from trainonce.data.download import PublishedFile, fetch, missing_sentence
from trainonce.data.folder import read_folder
from trainonce.data.picture import Interpolation
from trainonce.data.splits import Fold, Published, Split, carve, default_sizes, fewer
from trainonce.data.table import COLOUR_AUGMENTATION, IMAGENET_MEAN, IMAGENET_STD, TABLE, TableEntry
from trainonce.data.trivial import GREY_WEIGHTS
from trainonce.errors import UserError
from trainonce.files import expanded
from trainonce.limits import refuse_beyond_memory
from trainonce.names import import_named, is_unicode, printable
from trainonce.parallel.distributed import BatchShard
from trainonce.recipes import VARIATIONS, Augmentation, Own, Recipe
from trainonce.settings import JsonObject, Settings, refuse_subclass

FOLDER_IMAGE_SIZE = 64
FINGERPRINT_IMAGES = 64  # of each split, evenly spaced
FIT_CHUNK = 1000  # images turned into float32 at a time, or fewer of large ones
FIT_BYTES = 1 << 30
FUNCTION = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")
"""What names a person's own function: `package.module:function`."""
DATA_DIR_VARIABLE = "TRAINONCE_DATA"


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

    def load(
        self,
        *,
        data_dir: str | Path | None = None,
        download: bool = True,
        workers: int | None = None,
        beside: str | Path | None = None,
    ) -> "DataSet":
        """Load it; arguments and errors as `load_dataset`."""
        if not self.name_or_path:
            raise UserError("this run's images were made in Python: load them there too")
        return load_dataset(**self.model_dump(), data_dir=data_dir, download=download, workers=workers, beside=beside)


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """Images in four disjoint splits, and all that is needed to use them.

    `mean` and `std` are of pixels in 0..1, one for each channel; `augmentation` is for training and
    calibrating. Images are square.
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
        """Raise `UserError` for class names that no file could hold, and for what is no augmentation."""
        for name in self.class_names:
            if not is_unicode(name):
                raise UserError(f"the class name '{printable(name)}' is not text that UTF-8 can hold: rename the class")
        if not isinstance(self.augmentation, tuple):
            raise UserError("`augmentation` is a tuple of variations, such as (Crop(), Flip()); () for none")
        for one in self.augmentation:
            refuse_subclass(one, next((kind for kind in VARIATIONS if isinstance(one, kind)), Own))

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

    def fingerprint(self) -> str:
        """Give 16 hexadecimal digits that other splits, other labels or other images would change.

        Covers the class names, every label, the shapes, and evenly spaced images of each split; not the
        device, the name, how the images are normalised and varied, or whether they are streamed.
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


def load_dataset(
    name_or_path: DataSet | str | Path,
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    grey: bool = False,
    split_seed: int = 0,
    fold: Fold | None = None,
    train_images: int | None = None,
    train_images_seed: int = 0,
    download: bool = True,
    stream: bool | None = None,
    workers: int | None = None,
    skip_broken: bool = False,
    skipped: Collection[str] = (),
    mean: Collection[float] | None = None,
    std: Collection[float] | None = None,
    interpolation: Interpolation | None = None,
    beside: str | Path | None = None,
) -> DataSet:
    """Load a data set by its name in the table, from an npz file or an image folder, or from your own function.

    A `DataSet` is given back as it is, and takes no options. A function is named `package.module:function`, is called
    without arguments, and gives a `DataSet`; it is not imported from inside the directory `beside`.

    `data_dir` is where published files are or go to: None means the environment's TRAINONCE_DATA, else
    ./data. `image_size` in pixels resizes every image (folders: 64 unless told); `grey` turns colour into
    grey. `split_seed` (0 or more) alone decides which images are held out; with `fold`, such as (2, 5), the test
    split is that fold of the images (see `trainonce.data.splits.carve`). `train_images` keeps that many images of the
    training split, a share of every class drawn from `train_images_seed`, and every other split whole. `stream` and
    `workers` say whether the images of a folder stay on disk, and how many processes decode them, `skip_broken` and
    `skipped` which files of it are left out: see `read_folder`; what was left out is in the `source` of what is given.
    `mean` and `std` of pixels in 0..1, one number a channel, take the place of the data set's own.
    Images are resized bilinearly, unless `interpolation` says otherwise.
    Raises `UserError` on an unknown name, on unreadable or malformed files, on files that are absent and cannot be
    fetched, on images that would not fit into memory, on a number of training images that there is not, and on
    `stream`, `skip_broken` and `skipped` for anything but a folder.
    """
    if isinstance(name_or_path, DataSet):
        shape, which = (image_size, grey, mean, std, interpolation), (split_seed, fold, train_images, skipped)
        if any((*shape, *which, stream, skip_broken)):
            raise UserError("the images of a DataSet are made already: choose their size, number and splits there")
        return name_or_path
    name_or_path = str(name_or_path)
    if image_size is not None and image_size < 1:
        raise UserError(f"the image size must be 1 pixel or more, not {image_size}")
    if workers is not None and workers < 0:
        raise UserError(f"the number of worker processes must be 0 or more, not {workers}")
    if name_or_path in TABLE or Path(name_or_path).suffix in formats.FORMATS:
        if stream:
            raise UserError(f"only a folder of images can be streamed, and '{name_or_path}' is not one")
        if skip_broken or skipped:
            raise UserError(f"only files of a folder can be skipped, and '{name_or_path}' is not a folder")
    source = partial(
        DataSource,
        image_size=image_size,
        grey=grey,
        split_seed=split_seed,
        fold=fold,
        train_images=train_images,
        train_images_seed=train_images_seed,
        stream=stream,
        mean=mean,
        std=std,
        interpolation=interpolation,
    )
    how = interpolation or "bilinear"
    if name_or_path in TABLE:
        folder = Path(data_dir or os.environ.get(DATA_DIR_VARIABLE) or "data")
        entry = TABLE[name_or_path]
        data = load_entry(
            entry,
            data_dir=folder,
            image_size=image_size,
            grey=grey,
            split_seed=split_seed,
            fold=fold,
            download=download,
            interpolation=how,
        )
        return as_asked(replace(data, source=source(name_or_path=name_or_path)))
    path = expanded(name_or_path)
    if FUNCTION.fullmatch(name_or_path) and not path.exists():
        if skip_broken or skipped:
            raise UserError(f"only files of a folder can be skipped, and '{name_or_path}' is not a folder")
        return _of_function(name_or_path, source, beside)
    absolute = _absolute(path)
    if path.suffix in formats.FORMATS:
        published = _read_file(path, image_size=image_size, grey=grey, interpolation=how)
    elif name_or_path and path.is_dir():
        published = read_folder(
            path,
            image_size=image_size or FOLDER_IMAGE_SIZE,
            grey=grey,
            stream=stream,
            workers=workers,
            skip_broken=skip_broken,
            skipped=skipped,
            interpolation=how,
        )
    else:
        state = (
            f"is neither an {formats.FILES} file nor a folder"
            if name_or_path and path.exists()
            else "is not a data set"
        )
        raise UserError(
            f"'{name_or_path}' {state}: give one of {', '.join(TABLE)}, or the path of an existing "
            f"folder of images or {formats.FILES} file, or your own package.module:function"
        )
    asked = source(name_or_path=absolute, skipped=published.skipped)
    return as_asked(divided(published, asked, where=str(path)))


def _of_function(name: str, source: Callable[..., DataSource], beside: str | Path | None) -> DataSet:
    """What a person's own function gives. Raises `UserError` where it gives something else."""
    asked = source(name_or_path=name)
    for option in ("image_size", "grey", "split_seed", "fold", "stream", "interpolation"):
        if getattr(asked, option):
            raise UserError(f"{name} makes its images itself: {option.replace('_', ' ')} cannot be chosen for it")
    made = import_named(name, "function", TABLE, beside=beside)()
    if not isinstance(made, DataSet):
        raise UserError(f"{name} gives no trainonce.DataSet but a {type(made).__name__}: see docs/data.md")
    return as_asked(replace(made, source=asked))


def as_asked(data: DataSet) -> DataSet:
    """The data set with as many training images, and normalised, as its source asks.

    Raises `UserError` where it cannot be.
    """
    asked = data.source
    for name, numbers in (("mean", asked.mean), ("std", asked.std)):
        if numbers is not None and len(numbers) != data.channels:
            raise UserError(
                f"{name} has {len(numbers)} numbers, but the images of {data.name} {data.channels} channels"
            )
    data = replace(data, mean=asked.mean or data.mean, std=asked.std or data.std)
    if asked.train_images is None:
        return data
    return replace(data, train=fewer(data.train, asked.train_images, seed=asked.train_images_seed, where=data.name))


def load_entry(
    entry: TableEntry,
    *,
    data_dir: Path,
    image_size: int | None,
    grey: bool,
    split_seed: int,
    download: bool,
    fold: Fold | None = None,
    interpolation: Interpolation = "bilinear",
) -> DataSet:
    """Load a data set of the table; arguments and errors as `load_dataset`."""
    if entry.layout == "sklearn":
        published = _read_digits(entry)
    else:
        folder = data_dir / entry.folder
        for file in entry.downloads:
            _ensure(file, folder, download=download)
        published = _read_entry(entry, folder)
    _refuse_count(entry, "training", len(published.train), entry.train_images)
    if published.test is not None:
        _refuse_count(entry, "test", len(published.test), entry.test_images)
    published = fitted(published, image_size=image_size, grey=grey, where=entry.name, interpolation=interpolation)
    splits = carve(published, sizes=entry.sizes, seed=split_seed, where=entry.name, fold=fold)
    turned_grey = grey and entry.channels == 3
    return DataSet(
        name=entry.name,
        class_names=entry.class_names,
        mean=(0.0,) if turned_grey else entry.mean,
        std=(1.0,) if turned_grey else entry.std,
        augmentation=entry.augmentation,
        **splits._asdict(),
    )


def sized(images: Tensor, *, image_size: int | None, grey: bool, interpolation: Interpolation = "bilinear") -> Tensor:
    """Turn uint8 images [N, C, H, W] grey if asked, and to `image_size` if given.

    Grey is ITU-R 601. The central square is resized with antialiasing. In chunks, and rounded
    back to uint8.
    """
    height, width = images.shape[2:]
    side = min(height, width)
    turn_grey = grey and images.shape[1] == 3
    size = side if image_size is None else image_size
    resize = image_size is not None and not height == width == size
    if not turn_grey and not resize:
        return images
    top, left = (height - side) // 2, (width - side) // 2
    chunks = []
    of_one = 4 * images.shape[1] * max(height * width, size**2)
    for chunk in torch.split(images, min(FIT_CHUNK, max(1, FIT_BYTES // of_one))):
        x_BCHW = chunk.to(torch.float32)
        if turn_grey:
            x_BCHW = torch.einsum("bchw,c->bhw", x_BCHW, torch.tensor(GREY_WEIGHTS))[:, None]
        if resize:
            square = x_BCHW[:, :, top : top + side, left : left + side]
            x_BCHW = F.interpolate(square, (size, size), mode=interpolation, antialias=True)
        chunks.append(x_BCHW.round_().clamp_(0, 255).to(torch.uint8))
    return torch.cat(chunks)


def _absolute(path: Path) -> str:
    """The path that is recorded, without links. Raises `UserError` where it is not UTF-8, as records are."""
    absolute = os.path.realpath(path)
    if not is_unicode(absolute):
        raise UserError(
            f"the path of the images, {printable(absolute)}, has a name in it that is not UTF-8: rename that"
        )
    return absolute


def _read_file(path: Path, *, image_size: int | None, grey: bool, interpolation: Interpolation) -> Published:
    published = formats.FORMATS[path.suffix](path)
    height, width = published.train.images.shape[2:]
    if image_size is None and height != width:
        raise UserError(f"the images of {path} are {height} x {width}: give an image size to square them")
    return fitted(published, image_size=image_size, grey=grey, where=str(path), interpolation=interpolation)


def fitted(
    published: Published,
    *,
    image_size: int | None,
    grey: bool,
    where: str,
    interpolation: Interpolation = "bilinear",
) -> Published:
    """Bring all images to the size and colours asked for, if they would fit into memory."""
    needed = 0
    for _, split in published.given():
        count, channels, height, width = split.shape
        needed += count * (1 if grey else channels) * (min(height, width) if image_size is None else image_size) ** 2
    copies = 1 if image_size is None and not grey else 2  # beside what is held already: changed, and divided
    refuse_beyond_memory(copies * needed, f"the images of {where}, while they are divided into splits,")

    def fitted(split: Split) -> Split:
        return Split(sized(split.images, image_size=image_size, grey=grey, interpolation=interpolation), split.labels)

    return Published(
        class_names=published.class_names,
        train=fitted(published.train),
        validate=fitted(published.validate) if published.validate is not None else None,
        test=fitted(published.test) if published.test is not None else None,
    )


def divided(published: Published, source: DataSource, *, where: str) -> DataSet:
    """The data set of what was read from a path."""
    sizes = default_sizes(published)
    splits = carve(published, sizes=sizes, seed=source.split_seed, where=where, fold=source.fold)
    colour = splits.train.shape[1] == 3
    return DataSet(
        name=source.name,
        class_names=published.class_names,
        mean=IMAGENET_MEAN if colour else (0.0,),
        std=IMAGENET_STD if colour else (1.0,),
        augmentation=COLOUR_AUGMENTATION,
        source=source,
        **splits._asdict(),
    )


def _ensure(file: PublishedFile, folder: Path, *, download: bool) -> None:
    """Fetch a published file unless what it yields is in `folder` already."""
    for name in (Path(member).name for member in file.members or (file.name,)):
        if not _present(folder / name).exists():
            if not download:
                raise UserError(missing_sentence(file, folder / name))
            fetch(file, folder)
            return


def _present(path: Path) -> Path:
    """Give `path`, or for a missing .gz its unpacked twin if that is there."""
    unpacked = path.with_suffix("") if path.suffix == ".gz" else path
    return unpacked if unpacked.exists() and not path.exists() else path


def _read_entry(entry: TableEntry, folder: Path) -> Published:
    def read(names: tuple[str, ...]) -> Split:
        paths = [_present(folder / name) for name in names]
        if entry.layout == "idx":
            split = formats.read_idx_pair(paths[0], paths[1], num_classes=len(entry.class_names))
        elif entry.layout == "cifar10":
            split = formats.read_cifar10(paths)
        else:
            split = formats.read_cifar100(paths)
        if split.images.shape[2:] != (entry.image_size, entry.image_size):
            height, width = split.images.shape[2:]
            size = entry.image_size
            raise UserError(
                f"{paths[0]} holds {height} x {width} images, but those of {entry.name} are {size} x {size}"
            )
        return split

    train, test = read(entry.train_files), read(entry.test_files)
    return Published(class_names=entry.class_names, train=train, test=test)


def _refuse_count(entry: TableEntry, which: str, found: int, expected: int) -> None:
    if found != expected:
        raise UserError(f"the files of {entry.name} hold {found} {which} images, not {expected}")


def _read_digits(entry: TableEntry) -> Published:
    """Read scikit-learn's bundled digits; values 0..16 become 0..255."""
    from sklearn.datasets import load_digits  # takes a second to import, and only this needs it

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    return Published(class_names=entry.class_names, train=formats.make_split(images[:, None], bunch.target))
