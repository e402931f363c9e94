"""The readers of IDX, CIFAR binary and npz files: right on files made by hand, `UserError` on all others."""

import gzip
import io
import pickle
import random
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainonce import limits
from trainonce.data import formats
from trainonce.errors import UserError


def idx_bytes(array: npt.NDArray[np.uint8]) -> bytes:
    """Write an IDX file as its description says: 0, 0, 8 for bytes, dimensions, sizes, content."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", side) for side in array.shape)
    return header + array.tobytes()


def pixels(*shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def npz_bytes(**arrays: npt.NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def peak_of(work: Callable[[], object], wrong: str = r"of memory, and .* are there$") -> int:
    """The most bytes that Python and numpy held while something was refused."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=wrong):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class TestMemory:
    """A machine of 50 MB: what would not fit is refused before it is inflated."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "memory_bytes", lambda: 50_000_000)

    def test_npz_of_zeros(self, tmp_path: Path) -> None:
        content = zipped({"train_images": np.zeros((1000, 300, 300), np.uint8), "train_labels": np.arange(1000) % 2})
        path = put(tmp_path, "x.npz", content)
        assert len(content) < 1_000_000
        assert peak_of(lambda: formats.read_npz(path)) < 5_000_000

    def test_npz_that_understates_its_sizes(self, tmp_path: Path) -> None:
        """What is inflated beyond the size that the directory states is never asked for."""
        content = zipped({"train_images": np.zeros((1000, 300, 300), np.uint8)})
        size = struct.pack("<I", 128 + 90_000_000)
        assert content.count(size) == 2, "in the member's own header and in the directory"
        path = put(tmp_path, "x.npz", content.replace(size, struct.pack("<I", 1000)))
        assert peak_of(lambda: formats.read_npz(path), r"x\.npz") < 5_000_000

    def test_idx_that_announces_more_than_there_is(self, tmp_path: Path) -> None:
        header = bytes([0, 0, 8, 3]) + struct.pack(">III", 2**31, 2**16, 2**16)
        path = put(tmp_path, "x.gz", gzip.compress(header + bytes(100)))
        assert peak_of(lambda: formats.read_idx(path, ndim=3)) < 1_000_000
        path = put(tmp_path, "x", header + bytes(100))
        with pytest.raises(UserError, match="x is truncated: its IDX header promises"):
            formats.read_idx(path, ndim=3)

    def test_idx_that_holds_more_than_it_announces(self, tmp_path: Path) -> None:
        header = bytes([0, 0, 8, 3]) + struct.pack(">III", 2, 2, 2)
        path = put(tmp_path, "x.gz", gzip.compress(header + bytes(100_000_000)))
        assert peak_of(lambda: formats.read_idx(path, ndim=3), r"x\.gz is too long") < 1_000_000

    @pytest.mark.parametrize("read", [formats.read_npz, lambda path: formats.read_cifar10([path])])
    def test_a_file_larger_than_the_memory(self, tmp_path: Path, read: Callable[[Path], object]) -> None:
        with (tmp_path / "sparse").open("wb") as file:
            file.truncate(10**11)
        assert peak_of(lambda: read(tmp_path / "sparse")) < 1_000_000


def zipped(arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


class TestIdx:
    @pytest.mark.parametrize("wrap", [bytes, gzip.compress], ids=["plain", "gzip"])
    def test_reads_what_was_written_by_hand(self, tmp_path: Path, wrap: Callable[[bytes], bytes]) -> None:
        images, labels = pixels(5, 4, 3), np.array([0, 1, 2, 2, 0], dtype=np.uint8)
        images_path = put(tmp_path, "images", wrap(idx_bytes(images)))
        labels_path = put(tmp_path, "labels", wrap(idx_bytes(labels)))
        split = formats.read_idx_pair(images_path, labels_path, num_classes=3)
        assert split.images.shape == (5, 1, 4, 3)
        assert (split.images[:, 0].numpy() == images).all()
        assert split.labels.tolist() == [0, 1, 2, 2, 0]

    @pytest.mark.parametrize(
        ("content", "wrong"),
        [
            (b"", "not an IDX file"),
            (b"\x00\x00\x08", "not an IDX file"),
            (idx_bytes(pixels(4)), "not an IDX file of 3-dimensional bytes"),
            (b"\x00\x00\x0d\x03" + bytes(40), "not an IDX file"),  # floats
            (idx_bytes(pixels(2, 3, 4))[:10], "ends inside the IDX header"),
            (idx_bytes(pixels(2, 3, 4))[:-1], "truncated"),
            (idx_bytes(pixels(2, 3, 4)) + b"x", "too long"),
            (idx_bytes(pixels(0, 3, 4)), "holds nothing"),
            (b"\x00\x00\x08\x03" + b"\xff" * 12, "truncated"),  # 2**96 bytes promised
            (gzip.compress(idx_bytes(pixels(2, 3, 4)), mtime=0)[:-9], "not a whole gzip file"),
            (gzip.compress(idx_bytes(pixels(2, 3, 4)), mtime=0)[:-8] + bytes(8), "not a whole gzip file"),
            (b"\x1f\x8b" + bytes(30), "not a whole gzip file"),
        ],
    )
    def test_malformed(self, tmp_path: Path, content: bytes, wrong: str) -> None:
        path = put(tmp_path, "broken-idx", content)
        with pytest.raises(UserError, match=rf"broken-idx.* {wrong}"):
            formats.read_idx(path, ndim=3)

    def test_counts_that_differ(self, tmp_path: Path) -> None:
        images = put(tmp_path, "images", idx_bytes(pixels(5, 4, 4)))
        labels = put(tmp_path, "labels", idx_bytes(np.zeros(4, np.uint8)))
        with pytest.raises(UserError, match=r"holds 5 images but .* 4 labels"):
            formats.read_idx_pair(images, labels, num_classes=10)

    def test_label_out_of_range(self, tmp_path: Path) -> None:
        images = put(tmp_path, "images", idx_bytes(pixels(2, 4, 4)))
        labels = put(tmp_path, "labels", idx_bytes(np.array([0, 10], np.uint8)))
        with pytest.raises(UserError, match="labels: label 1 is 10, but labels go from 0 to 9"):
            formats.read_idx_pair(images, labels, num_classes=10)

    def test_paths_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="nowhere does not exist"):
            formats.read_idx(tmp_path / "nowhere", ndim=1)
        with pytest.raises(UserError, match="cannot be read: Is a directory"):
            formats.read_idx(tmp_path, ndim=1)


class TestCifar:
    def test_ten(self, tmp_path: Path) -> None:
        images, labels = pixels(4, 3, 32, 32), [3, 0, 9, 1]
        records = [bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True)]
        paths = [put(tmp_path, "a.bin", b"".join(records[:3])), put(tmp_path, "b.bin", records[3])]
        split = formats.read_cifar10(paths)
        assert (split.images.numpy() == images).all()
        assert split.labels.tolist() == labels

    def test_hundred_gives_the_fine_labels(self, tmp_path: Path) -> None:
        images = pixels(2, 3, 32, 32)
        content = bytes([19, 99]) + images[0].tobytes() + bytes([4, 7]) + images[1].tobytes()
        split = formats.read_cifar100([put(tmp_path, "train.bin", content)])
        assert (split.images.numpy() == images).all()
        assert split.labels.tolist() == [99, 7]

    @pytest.mark.parametrize(
        ("content", "wrong"),
        [
            (b"", "not whole CIFAR records"),
            (bytes(3072), "not whole CIFAR records"),
            (bytes(3073 * 2 - 1), "not whole CIFAR records"),
            (bytes(3073) + b"\x0a" + bytes(3072), "label 1 is 10"),
        ],
    )
    def test_malformed(self, tmp_path: Path, content: bytes, wrong: str) -> None:
        with pytest.raises(UserError, match=rf"broken\.bin.* {wrong}"):
            formats.read_cifar10([put(tmp_path, "broken.bin", content)])

    @pytest.mark.parametrize(("labels", "wrong"), [((20, 0), "from 0 to 19"), ((0, 100), "from 0 to 99")])
    def test_malformed_hundred(self, tmp_path: Path, labels: tuple[int, int], wrong: str) -> None:
        with pytest.raises(UserError, match=wrong):
            formats.read_cifar100([put(tmp_path, "broken.bin", bytes(labels) + bytes(3072))])


GOOD = {"train_images": pixels(4, 6, 6), "train_labels": np.array([0, 1, 1, 0])}


class TestNpz:
    def test_what_python_2_wrote_is_read_without_a_word(self, tmp_path: Path) -> None:
        """Its long numbers end in L; numpy warns of it, and warnings are errors here."""
        file = io.BytesIO()
        np.save(file, GOOD["train_images"])
        written = file.getvalue().replace(b"(4, 6, 6)", b"(4L, 6, 6)").replace(b" \n", b"\n", 1)
        path = put(tmp_path, "old.npz", npz_bytes(train_labels=GOOD["train_labels"]))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("train_images.npy", written)
        assert (formats.read_npz(path).train.images[:, 0].numpy() == GOOD["train_images"]).all()

    def test_grey(self, tmp_path: Path) -> None:
        published = formats.read_npz(put(tmp_path, "a.npz", npz_bytes(**GOOD)))
        assert published.class_names == ("0", "1")
        assert (published.train.images[:, 0].numpy() == GOOD["train_images"]).all()
        assert published.train.labels.tolist() == [0, 1, 1, 0]
        assert published.validate is None
        assert published.test is None

    def test_colour_with_every_split_and_names(self, tmp_path: Path) -> None:
        images = pixels(3, 5, 6, 3)
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "train_images": images,
            "train_labels": np.array([[1], [0], [1]], np.uint8),  # [N, 1], as MedMNIST stores them
            "val_images": images,
            "val_labels": np.array([0, 1, 0], np.int16),
            "test_images": images[:2],
            "test_labels": np.array([0, 1]),
            "class_names": np.array(["cat", "dog"]),
        }
        published = formats.read_npz(put(tmp_path, "a.npz", npz_bytes(**arrays)))
        assert published.class_names == ("cat", "dog")
        assert published.validate is not None
        assert published.test is not None
        assert len(published.test) == 2
        assert published.train.images.shape == (3, 3, 5, 6)
        assert published.train.images[2, 1, 4, 3] == images[2, 4, 3, 1]
        assert published.train.labels.tolist() == [1, 0, 1]

    @pytest.mark.parametrize(
        ("changes", "wrong"),
        [
            ({"train_images": None}, "the key 'train_images' is missing"),
            ({"train_labels": None}, "the key 'train_labels' is missing"),
            ({"test_images": pixels(2, 6, 6)}, "the key 'test_labels' is missing"),
            ({"tset_images": pixels(2, 6, 6)}, "unknown key 'tset_images'; the keys are train_images"),
            ({"train_images": np.zeros((4, 6, 6), np.float32)}, "must be uint8, not float32"),
            ({"train_images": pixels(4, 36)}, r"must have the shape .* not \[4, 36\]"),
            ({"train_images": pixels(4, 6, 6, 2)}, "with C 1 or 3"),
            ({"train_images": pixels(0, 6, 6), "train_labels": np.zeros(0, int)}, "must have the shape"),
            ({"train_labels": np.zeros(4)}, "must be integers, not float64"),
            ({"train_labels": np.array([0, 1, 1])}, r"must have the shape \[4\]"),
            ({"train_labels": np.array([0, 1, -1, 0])}, "label 2 is -1"),
            ({"train_labels": np.array([0, 1, 2**63, 0], np.uint64)}, "label 2 is 9223372036854775808"),
            ({"train_labels": np.array([0, 1, 3, 0])}, "no image of class '2'"),
            ({"train_labels": np.array([0, 0, 0, 0])}, "1 class; at least 2"),
            ({"class_names": np.array(["a", "b", "c"])}, "train_labels has no image of class 'c'"),
            ({"class_names": np.array(["a", "a"])}, "names a class twice"),
            ({"class_names": np.array([1, 2])}, "must be strings"),
            ({"class_names": np.array(["a"])}, "1 class; at least 2|label 1 is 1"),
            ({"test_images": pixels(1, 6, 6), "test_labels": np.array([1])}, "no image of class '0'"),
            ({"test_images": pixels(1, 6, 6), "test_labels": np.array([2])}, "label 0 is 2"),
            (
                {f"{a}_{k}": GOOD[f"train_{k}"] for a in ("val", "valid") for k in ("images", "labels")},
                "both 'val' and 'valid'",
            ),
            ({"train_images": np.array([[1], [2, 3]], dtype=object)}, "'train_images' is not a plain array"),
        ],
    )
    def test_malformed(self, tmp_path: Path, changes: dict[str, npt.NDArray[np.generic] | None], wrong: str) -> None:
        arrays = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
        path = put(tmp_path, "broken.npz", npz_bytes(**arrays))
        with pytest.raises(UserError, match=rf"broken\.npz.*{wrong}"):
            formats.read_npz(path)

    def test_not_an_archive(self, tmp_path: Path) -> None:
        for content in (b"", b"hello", npz_bytes(**GOOD)[:-30], pickle.dumps(GOOD)):
            with pytest.raises(UserError, match="not a whole npz"):
                formats.read_npz(put(tmp_path, "broken.npz", content))

    def test_a_pickle_inside_is_never_run(self, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
                return (Path(tmp_path / "ran").write_text, ("",))

        with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
            archive.writestr("train_images.npy", pickle.dumps(Bomb()))
        with pytest.raises(UserError, match="not a plain array"):
            formats.read_npz(tmp_path / "bomb.npz")
        assert not (tmp_path / "ran").exists()

    def test_a_flipped_bit_is_found_by_the_checksum(self, tmp_path: Path) -> None:
        content = bytearray(npz_bytes(**GOOD))
        content[content.index(GOOD["train_images"].tobytes()) + 3] ^= 1
        with pytest.raises(UserError, match="Bad CRC-32"):
            formats.read_npz(put(tmp_path, "broken.npz", bytes(content)))


def only_user_errors(read: Callable[[], object]) -> None:
    """Call a reader; anything it raises but `UserError` fails the test."""
    try:
        read()
    except UserError as error:
        sentence = str(error)
    else:
        return
    assert "broken" in sentence
    assert "\n" not in sentence


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Give truncations of a good file, and copies with a few bytes changed."""

    def change(seed: int) -> bytes:
        rng = random.Random(seed)
        copy = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            copy[rng.randrange(len(copy))] = rng.randrange(256)
        return bytes(copy)

    cut = st.integers(0, len(content)).map(lambda stop: content[:stop])
    return st.one_of(cut, st.integers(0, 2**32).map(change))


GOOD_IDX = idx_bytes(pixels(3, 4, 5))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


class TestFuzz:
    @settings(deadline=None, max_examples=150)
    @given(content=st.one_of(st.binary(max_size=60), damaged(GOOD_IDX), damaged(gzip.compress(GOOD_IDX, mtime=0))))
    def test_idx(self, scratch: Path, content: bytes) -> None:
        path = put(scratch, "broken-idx", content)
        only_user_errors(lambda: formats.read_idx(path, ndim=3))

    @settings(deadline=None, max_examples=60)
    @given(content=st.one_of(st.binary(max_size=60), damaged(bytes(3073)), damaged(bytes(2 * 3074))))
    def test_cifar(self, scratch: Path, content: bytes) -> None:
        path = put(scratch, "broken.bin", content)
        only_user_errors(lambda: formats.read_cifar10([path]))
        only_user_errors(lambda: formats.read_cifar100([path]))

    @settings(deadline=None, max_examples=250)
    @given(content=st.one_of(st.binary(max_size=60), damaged(npz_bytes(**GOOD))))
    def test_npz(self, scratch: Path, content: bytes) -> None:
        path = put(scratch, "broken.npz", content)
        only_user_errors(lambda: formats.read_npz(path))

    @settings(deadline=None, max_examples=250)
    @given(seed=st.integers(0, 2**32))
    @example(seed=171108)  # what numpy takes for a header of Python 2
    def test_npz_with_a_broken_header_inside_a_whole_zip(self, scratch: Path, seed: int) -> None:
        rng = random.Random(seed)
        file = io.BytesIO()
        np.save(file, GOOD["train_images"])
        member = bytearray(file.getvalue())
        for _ in range(rng.randint(1, 3)):
            member[rng.randrange(90)] = rng.choice(b"\x00\xff(){}[]',:<>0129eLT#\\\n \t")
        path = scratch / "broken.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("train_images.npy", bytes(member))
        only_user_errors(lambda: formats.read_npz(path))
