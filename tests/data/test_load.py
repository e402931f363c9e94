"""From a name or a path to a whole data set."""

import gzip
import hashlib
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from trainonce.data import DataSet, DataSource, load_dataset
from trainonce.data.load import load_source
from trainonce.data.published import load_entry
from trainonce.data.sizing import sized
from trainonce.data.splits import Sizes
from trainonce.data.table import IMAGENET_MEAN, TABLE, TableEntry
from trainonce.errors import UserError
from trainonce.recipes import Flip

SPLITS = ("train", "calibrate", "validate", "test")


def sizes(data: DataSet) -> list[int]:
    return [len(split) for split in (data.train, data.calibrate, data.validate, data.test)]


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_dataset("digits", data_dir=None)


class TestDigits:
    def test_what_it_is(self, digits: DataSet) -> None:
        assert digits.name == "digits"
        assert (digits.image_size, digits.channels, digits.num_classes) == (8, 1, 10)
        assert sizes(digits) == [1078, 180, 180, 359]
        assert (digits.mean, digits.std) == ((0.0,), (1.0,))
        assert digits.train.images.max() == 255

    def test_every_image_is_in_one_split(self, digits: DataSet) -> None:
        bunch = load_digits()
        pixels = np.round(bunch["data"] * 255 / 16).astype(int)
        expected = sorted([*row, int(label)] for row, label in zip(pixels.tolist(), bunch["target"], strict=True))
        found = sorted(
            [*image.flatten().tolist(), int(label)]
            for split in (digits.train, digits.calibrate, digits.validate, digits.test)
            for image, label in zip(split.images, split.labels, strict=True)
        )
        assert found == expected

    def test_to(self, digits: DataSet) -> None:
        moved = digits.to("meta")
        assert moved.test.images.device.type == "meta"
        assert moved.name == digits.name

    def test_fingerprint_sees_seed_size_pixels_and_labels(self, digits: DataSet) -> None:
        first = digits.fingerprint()
        assert len(first) == 16
        assert load_dataset("digits", data_dir=None).fingerprint() == first
        assert load_dataset("digits", data_dir=None, split_seed=1).fingerprint() != first
        assert load_dataset("digits", data_dir=None, image_size=9).fingerprint() != first
        labels = digits.test.labels.clone()
        labels[5] = (labels[5] + 1) % 10
        assert replace(digits, test=replace(digits.test, labels=labels)).fingerprint() != first
        images = 255 - digits.validate.images
        assert replace(digits, validate=replace(digits.validate, pixels=images)).fingerprint() != first
        assert replace(digits, name="other", augmentation=()).fingerprint() == first

    def test_resized(self) -> None:
        data = load_dataset("digits", data_dir=None, image_size=12)
        assert data.image_size == 12
        assert data.train.images.dtype == torch.uint8


class TestDataSource:
    def test_what_was_asked_for_can_be_asked_again(self) -> None:
        data = load_dataset("digits", data_dir=None, image_size=10, split_seed=3)
        again = load_source(DataSource.model_validate_json(data.source.model_dump_json()))
        assert again.source == data.source
        assert again.fingerprint() == data.fingerprint()

    def test_fewer_training_images(self, digits: DataSet) -> None:
        """Only the training split shrinks, the same images at any size, and what is recorded brings them back."""
        few = load_dataset("digits", train_images=100)
        assert len(few.train) == 100
        for name in ("calibrate", "validate", "test"):
            assert torch.equal(getattr(few, name).images, getattr(digits, name).images)
        every = {image.numpy().tobytes() for image in digits.train.images}
        assert all(image.numpy().tobytes() in every for image in few.train.images)
        assert few.augmentation == digits.augmentation
        assert few.fingerprint() != digits.fingerprint()
        assert load_source(few.source).fingerprint() == few.fingerprint()
        larger = load_dataset("digits", train_images=100, image_size=12)
        assert larger.train.labels.tolist() == few.train.labels.tolist()

    def test_images_made_in_python_cannot(self) -> None:
        with pytest.raises(UserError, match="made in Python"):
            load_source(DataSource())


class TestRefusals:
    @pytest.mark.parametrize("name", ["cifar11", "", "some/where", "nowhere.txt"])
    def test_unknown_name(self, name: str) -> None:
        wrong = "is not a data set: give one of digits, mnist, fashion-mnist, cifar10, cifar100, or the path of"
        with pytest.raises(UserError, match=wrong):
            load_dataset(name, data_dir=None)

    def test_a_file_of_another_kind(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("1,2")
        with pytest.raises(UserError, match=r"is neither an \.npz file nor a folder"):
            load_dataset(str(tmp_path / "a.csv"), data_dir=None)

    def test_missing_npz(self) -> None:
        with pytest.raises(UserError, match=r"nowhere\.npz does not exist"):
            load_dataset("nowhere.npz", data_dir=None)

    def test_sizes_and_seeds(self) -> None:
        with pytest.raises(UserError, match="image size must be 1 pixel or more, not 0"):
            load_dataset("digits", data_dir=None, image_size=0)
        with pytest.raises(UserError, match="split seed"):
            load_dataset("digits", data_dir=None, split_seed=-1)

    def test_absent_and_not_to_be_fetched(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wrong = r"train\.bin does not exist: fetch https://www\.cs\..*/cifar-100-binary\.tar\.gz by hand"
        with pytest.raises(UserError, match=wrong):
            load_dataset("cifar100", data_dir=tmp_path, download=False)
        monkeypatch.setenv("TRAINONCE_DATA", str(tmp_path / "from-environment"))
        with pytest.raises(UserError, match="from-environment/mnist/train-images"):
            load_dataset("mnist", data_dir=None, download=False)
        monkeypatch.delenv("TRAINONCE_DATA")
        with pytest.raises(UserError, match=r"^data/mnist/train-images"):
            load_dataset("mnist", data_dir=None, download=False)


def tiny_mnist(
    folder: Path, count: int = 200, test: int = 40, wrap: Callable[[bytes], bytes] = gzip.compress
) -> TableEntry:
    """Write small files in MNIST's form and give the entry that describes them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    suffix = "" if wrap is bytes else ".gz"
    for prefix, n in (("train", count), ("t10k", test)):
        images = struct.pack(">IIII", 0x803, n, 28, 28) + rng.bytes(n * 784)
        labels = struct.pack(">II", 0x801, n) + bytes(i % 10 for i in range(n))
        (folder / f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(wrap(images))
        (folder / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(wrap(labels))
    return replace(TABLE["mnist"], train_images=count, test_images=test, sizes=Sizes(20, 40, 0))


def load_tiny(entry: TableEntry, data_dir: Path, *, grey: bool = False, download: bool = False) -> DataSet:
    return load_entry(entry, data_dir=data_dir, image_size=None, grey=grey, split_seed=0, download=download)


class TestTableFiles:
    @pytest.mark.parametrize("wrap", [gzip.compress, bytes], ids=["gzip", "unpacked"])
    def test_mnist(self, tmp_path: Path, wrap: Callable[[bytes], bytes]) -> None:
        data = load_tiny(tiny_mnist(tmp_path / "mnist", wrap=wrap), tmp_path)
        assert sizes(data) == [140, 20, 40, 40]
        assert (data.image_size, data.channels) == (28, 1)

    def test_a_count_that_was_not_published(self, tmp_path: Path) -> None:
        entry = tiny_mnist(tmp_path / "mnist")
        with pytest.raises(UserError, match="mnist hold 40 test images, not 41"):
            load_tiny(replace(entry, test_images=41), tmp_path)

    def test_images_of_another_size(self, tmp_path: Path) -> None:
        entry = tiny_mnist(tmp_path / "mnist")
        with pytest.raises(UserError, match="holds 28 x 28 images, but those of mnist are 30 x 30"):
            load_tiny(replace(entry, image_size=30), tmp_path)

    def test_missing_files_are_fetched(self, tmp_path: Path) -> None:
        entry = tiny_mnist(tmp_path / "server")
        files = sorted((tmp_path / "server").iterdir())
        downloads = tuple(
            replace(entry.downloads[0], url=f.as_uri(), checksum=hashlib.md5(f.read_bytes()).hexdigest()) for f in files
        )
        data = load_tiny(replace(entry, downloads=downloads), tmp_path / "data", download=True)
        assert sizes(data) == [140, 20, 40, 40]
        shutil.rmtree(tmp_path / "server")  # the second time nothing is fetched
        again = load_tiny(replace(entry, downloads=downloads), tmp_path / "data", download=True)
        assert again.fingerprint() == data.fingerprint()

    @pytest.mark.parametrize("name", ["cifar10", "cifar100"])
    def test_cifar(self, tmp_path: Path, name: str) -> None:
        entry = TABLE[name]
        labels = 10 if name == "cifar10" else 100
        folder = tmp_path / entry.folder
        folder.mkdir()
        rng = np.random.default_rng(0)
        for file in (*entry.train_files, *entry.test_files):
            label_bytes = [bytes([i]) if labels == 10 else bytes([i // 5, i]) for i in range(labels)] * 4
            (folder / file).write_bytes(b"".join(label + rng.bytes(3072) for label in label_bytes))
        count = 4 * labels
        entry = replace(
            entry, train_images=count * len(entry.train_files), test_images=count, sizes=Sizes(10, labels, 0)
        )
        data = load_tiny(entry, tmp_path)
        assert data.channels == 3
        assert data.mean == IMAGENET_MEAN
        assert data.test.labels.tolist() == list(range(labels)) * 4
        assert torch.bincount(data.validate.labels).tolist() == [1] * labels
        grey = load_tiny(entry, tmp_path, grey=True)
        assert (grey.channels, grey.mean, grey.std) == (1, (0.0,), (1.0,))


class TestPaths:
    def test_npz(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        arrays: dict[str, npt.NDArray[Any]] = {
            "train_images": rng.integers(0, 256, (100, 10, 12, 3), dtype=np.uint8),
            "train_labels": np.arange(100) % 4,
        }
        np.savez(tmp_path / "mine.npz", **arrays)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="images of mine are 10 x 12: give an image size"):
            load_dataset(str(tmp_path / "mine.npz"), data_dir=None)
        data = load_dataset(str(tmp_path / "mine.npz"), data_dir=None, image_size=10)
        assert data.name == "mine"
        assert sizes(data) == [70, 5, 10, 15]
        assert data.mean == IMAGENET_MEAN
        middle = {image.tobytes() for image in arrays["train_images"][:, :, 1:11].transpose(0, 3, 1, 2).copy()}
        assert {image.numpy().tobytes() for image in data.train.images} < middle

    def test_grey_npz(self, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / "mine.npz", train_images=images, train_labels=np.arange(60) % 3)
        data = load_dataset(str(tmp_path / "mine.npz"), data_dir=None)
        assert (data.channels, data.mean, data.std) == (1, (0.0,), (1.0,))
        assert Flip() in data.augmentation

    def test_folder(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        for split, count in (("train", 20), ("test", 3)):
            for name in ("cat", "dog"):
                folder = tmp_path / "pets" / split / name
                folder.mkdir(parents=True)
                for i in range(count):
                    Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        data = load_dataset(str(tmp_path / "pets"), data_dir=None)
        assert data.name == "pets"
        assert data.class_names == ("cat", "dog")
        assert (data.image_size, data.channels) == (64, 3)
        assert sizes(data) == [34, 2, 4, 6]
        small = load_dataset(str(tmp_path / "pets"), data_dir=None, image_size=16, grey=True)
        assert (small.image_size, small.channels, small.mean) == (16, 1, (0.0,))

    def test_folder_with_a_rare_class(self, tmp_path: Path) -> None:
        for name in ("cat/1", "cat/2", "cat/3", "dog/1"):
            path = tmp_path / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8)).save(path)
        with pytest.raises(UserError, match="class 'dog' has 1 training image, but at least 3 are needed"):
            load_dataset(str(tmp_path), data_dir=None)


class TestFit:
    def test_nothing_to_do(self) -> None:
        images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
        assert sized(images, image_size=4, grey=False) is images
        assert sized(images[:, :1], image_size=None, grey=True).shape == (2, 1, 4, 4)

    def test_grey_and_resized_against_pillow(self) -> None:
        rng = np.random.default_rng(0)
        array = rng.integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
        images = torch.from_numpy(array.transpose(0, 3, 1, 2).copy())
        colour, grey = sized(images, image_size=7, grey=False), sized(images, image_size=7, grey=True)
        cubic = sized(images, image_size=7, grey=False, interpolation="bicubic")
        for i in range(3):
            picture = Image.fromarray(array[i])
            expected = np.asarray(picture.resize((7, 7), Image.Resampling.BICUBIC)).astype(int)
            assert np.abs(cubic[i].permute(1, 2, 0).numpy() - expected).max() <= 1
            expected = np.asarray(picture.resize((7, 7), Image.Resampling.BILINEAR)).astype(int)
            assert np.abs(colour[i].permute(1, 2, 0).numpy() - expected).max() <= 1
            expected = np.asarray(picture.convert("L").resize((7, 7), Image.Resampling.BILINEAR)).astype(int)
            assert np.abs(grey[i, 0].numpy() - expected).max() <= 1


@pytest.fixture
def data_dir() -> Path:
    return Path(os.environ["TRAINONCE_DATA"])


needs_data = pytest.mark.skipif(not os.environ.get("TRAINONCE_DATA"), reason="TRAINONCE_DATA is not set")


@pytest.mark.real_data
@needs_data
class TestRealData:
    @pytest.mark.parametrize(("name", "train", "size"), [("mnist", 50_000, 28), ("cifar10", 40_000, 32)])
    def test_published_files(self, data_dir: Path, name: str, train: int, size: int) -> None:
        data = load_dataset(name, data_dir=data_dir, download=False)
        assert sizes(data) == [train, 2000, 8000, 10_000]
        assert data.image_size == size
        shares = [
            torch.bincount(getattr(data, split).labels).float() / len(getattr(data, split)) for split in SPLITS[:3]
        ]
        for share in shares[1:]:
            assert (share - shares[0]).abs().max() < 2e-3

    def test_cifar10_as_a_folder_holds_the_same_test_images(self, data_dir: Path, tmp_path: Path) -> None:
        source = data_dir / "cifar10-folder"
        for split in ("train", "test"):
            for folder in sorted((source / split).iterdir()):
                (tmp_path / split / folder.name).mkdir(parents=True)
                for image in sorted(folder.iterdir())[:30]:
                    (tmp_path / split / folder.name / image.name).symlink_to(image)
        data = load_dataset(str(tmp_path), data_dir=None, image_size=32)
        published = load_dataset("cifar10", data_dir=data_dir, download=False)
        assert data.class_names == published.class_names
        assert sizes(data) == [255, 15, 30, 300]
        of_class = published.test.images[published.test.labels == 3].float()
        for image in data.test.images[data.test.labels == 3][:5].float():
            nearest = (of_class - image).abs().mean((1, 2, 3)).min()
            assert nearest < 12  # of 255: what JPEG changes
