"""The data sets that are known by name: fetched if they are absent, read, and divided as their table says."""

from pathlib import Path

import numpy as np

from trainonce.data import formats
from trainonce.data.dataset import DataSet
from trainonce.data.download import PublishedFile, fetch, missing_sentence
from trainonce.data.picture import Interpolation
from trainonce.data.sizing import fitted
from trainonce.data.splits import Fold, Published, Split, carve
from trainonce.data.table import TableEntry
from trainonce.errors import UserError


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
