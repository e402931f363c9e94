"""The table of data sets: consistent in itself, and what the paper says."""

import pytest

from trainonce.data import DATASET_NAMES
from trainonce.data.table import TABLE
from trainonce.recipes import Colour, Crop, Flip


def test_names() -> None:
    assert DATASET_NAMES == ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100")


@pytest.mark.parametrize("name", DATASET_NAMES)
def test_an_entry_agrees_with_itself(name: str) -> None:
    entry = TABLE[name]
    assert entry.name == name
    assert len(entry.mean) == len(entry.std) == entry.channels
    assert len(set(entry.class_names)) == len(entry.class_names) == (100 if name == "cifar100" else 10)
    wanted = {*entry.train_files, *entry.test_files}
    yielded = [member.split("/")[-1] for file in entry.downloads for member in file.members or (file.name,)]
    assert sorted(yielded) == sorted(wanted)
    for file in entry.downloads:
        assert len(file.checksum) == 32
        assert all(member.startswith(f"{entry.folder}/") for member in file.members)


@pytest.mark.parametrize(
    ("name", "train"),
    [("mnist", 50_000), ("fashion-mnist", 50_000), ("cifar10", 40_000), ("cifar100", 40_000)],
)
def test_training_sets_have_the_papers_size(name: str, train: int) -> None:
    entry = TABLE[name]
    assert entry.train_images - sum(entry.sizes) == train
    assert entry.sizes == (2000, 8000, 0)
    assert entry.test_images == 10_000


def test_augmentation_is_the_papers() -> None:
    for name in ("cifar10", "cifar100"):
        crops, flips, colour = TABLE[name].augmentation
        assert (crops, flips) == (Crop(scale=(0.08, 1.0)), Flip())
        assert colour == Colour(brightness=32 / 255, saturation=0.5)
    assert TABLE["mnist"].augmentation == (Crop(scale=(0.08, 1.0)), Flip())


def test_the_hundred_classes_are_in_the_order_of_the_labels() -> None:
    names = TABLE["cifar100"].class_names
    assert list(names) == sorted(names)
    assert (names[0], names[19], names[51], names[99]) == ("apple", "cattle", "mushroom", "worm")
