"""From a name or a path to a `DataSet`: read or fetch, resize, divide into the four splits."""

import os
import re
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

from trainonce.data import formats
from trainonce.data.dataset import DataSet, DataSource
from trainonce.data.folder import read_folder
from trainonce.data.picture import Interpolation
from trainonce.data.published import load_entry
from trainonce.data.sizing import fitted
from trainonce.data.splits import Fold, Published, carve, default_sizes, fewer
from trainonce.data.table import COLOUR_AUGMENTATION, IMAGENET_MEAN, IMAGENET_STD, TABLE
from trainonce.errors import UserError
from trainonce.files import expanded
from trainonce.names import import_named, is_unicode, printable

FOLDER_IMAGE_SIZE = 64
FUNCTION = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")
"""What names a person's own function: `package.module:function`."""
DATA_DIR_VARIABLE = "TRAINONCE_DATA"


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


def load_source(
    source: DataSource,
    *,
    data_dir: str | Path | None = None,
    download: bool = True,
    workers: int | None = None,
    beside: str | Path | None = None,
) -> DataSet:
    """Load again what a data set was asked for as; arguments and errors as `load_dataset`."""
    if not source.name_or_path:
        raise UserError("this run's images were made in Python: load them there too")
    return load_dataset(**source.model_dump(), data_dir=data_dir, download=download, workers=workers, beside=beside)


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
    data = replace(data, mean=asked.mean or data.mean, std=asked.std or data.std)
    if asked.train_images is None:
        return data
    return replace(data, train=fewer(data.train, asked.train_images, seed=asked.train_images_seed, where=data.name))


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
    return fitted(published, image_size=image_size, grey=grey, where=str(path), interpolation=interpolation)


def divided(published: Published, source: DataSource, *, where: str, name: str | None = None) -> DataSet:
    """The data set, by default of its source's name, of what was read from a path or is in memory; `where` names that.

    Raises `UserError` where it cannot be divided, and for images that no data set can hold.
    """
    sizes = default_sizes(published)
    splits = carve(published, sizes=sizes, seed=source.split_seed, where=where, fold=source.fold)
    colour = splits.train.shape[1] == 3
    return DataSet(
        name=name or source.name,
        class_names=published.class_names,
        mean=IMAGENET_MEAN if colour else (0.0,),
        std=IMAGENET_STD if colour else (1.0,),
        augmentation=COLOUR_AUGMENTATION,
        source=source,
        **splits._asdict(),
    )
