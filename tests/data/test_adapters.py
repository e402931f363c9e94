"""Data sets of what Python code has are those that files of the same images give."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.command_line import trainonce
from tests.support.own_images import images, make

from trainonce import pipeline
from trainonce.data import DataSet, from_arrays, from_hugging_face, from_pairs, load_dataset
from trainonce.errors import UserError
from trainonce.run.directory import RunDirectory

KINDS = ("images", "labels")
OWN = "tests.support.own_images:make"


def colours(count: int = 60, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (count, 3, side, side)).astype(np.uint8), np.arange(count) % 3


def same(one: DataSet, other: DataSet) -> bool:
    return one.fingerprint() == other.fingerprint() and (one.mean, one.augmentation) == (other.mean, other.augmentation)


def test_arrays_are_what_an_npz_file_of_them_is(tmp_path: Path) -> None:
    pixels, labels = colours()
    path = tmp_path / "some.npz"
    last = np.moveaxis(pixels, 1, 3)
    np.savez(path, train_images=last, train_labels=labels, test_images=last[:9], test_labels=labels[:9])
    expected = load_dataset(path, train_images=20)
    names = list(expected.class_names)
    found = from_arrays(pixels, labels, test=(pixels[:9], labels[:9]), class_names=names, train_images=20)
    assert same(found, expected)
    assert same(from_arrays(last, labels, test=(last[:9], labels[:9]), class_names=names, train_images=20), expected)
    tensors = torch.from_numpy(pixels), torch.from_numpy(labels)
    test = torch.from_numpy(pixels[:9]), labels[:9].tolist()
    assert same(from_arrays(*tensors, test=test, class_names=names, train_images=20), expected)


def test_pairs_are_what_a_folder_of_them_is(tmp_path: Path) -> None:
    """Images of different sizes, in grey and in colour: squared, resized and turned as files are."""
    rng = np.random.default_rng(2)
    pairs: list[tuple[Any, int]] = []
    for label, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / name).mkdir()
        for number in range(10):
            height, width = rng.integers(20, 40, 2)
            shape = (height, width) if number % 3 == 0 else (height, width, 3)
            image = Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8))
            image.save(tmp_path / name / f"{number}.png")
            pairs.append((image, label))
    found = from_pairs(pairs, class_names=["ant", "bee", "cat"], image_size=16)
    assert same(found, load_dataset(tmp_path, image_size=16))


def test_tensors_between_0_and_1_are_the_pixels_they_were_made_of() -> None:
    pixels, labels = colours()
    floats = [(torch.from_numpy(image) / 255, int(label)) for image, label in zip(pixels, labels, strict=True)]
    assert same(from_pairs(floats), from_arrays(pixels, labels))


class Rows(list[dict[str, Any]]):
    """What a Hugging Face dataset offers of itself."""

    column_names = ("img", "fine_label")
    features: ClassVar = {"fine_label": SimpleNamespace(names=["ant", "bee", "cat"])}


def test_a_hugging_face_dataset() -> None:
    pixels, labels = colours()
    pictures = [Image.fromarray(np.moveaxis(image, 0, 2)) for image in pixels]
    rows = Rows({"img": image, "fine_label": int(label)} for image, label in zip(pictures, labels, strict=True))
    columns = {"image": "img", "label": "fine_label"}
    names = ["ant", "bee", "cat"]
    assert same(from_hugging_face(rows, **columns), from_arrays(pixels, labels, class_names=names))  # type: ignore[arg-type]
    split = {"train": rows, "validation": Rows(rows[:9]), "test": Rows(rows[9:21])}
    expected = from_arrays(
        pixels,
        labels,
        class_names=names,
        validate=(pixels[:9], labels[:9]),
        test=(pixels[9:21], labels[9:21]),
    )
    assert same(from_hugging_face(split, **columns), expected)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no column 'image': name it; the columns are img, fine_label"):
        from_hugging_face(rows)
    with pytest.raises(UserError, match="no split 'train': it has test"):
        from_hugging_face({"test": rows})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((np.zeros((4, 8, 8)), [0, 1, 0, 1]), "images must be uint8, 0 to 255, not float64"),
        ((np.zeros((4, 8), np.uint8), [0, 1, 0, 1]), r"must be of the shape .*, not \[4, 8\]"),
        ((np.zeros((4, 8, 8, 4), np.uint8), [0, 1, 0, 1]), r"C 1 or 3, not \[4, 8, 8, 4\]"),
        ((np.zeros((0, 8, 8), np.uint8), []), r"not \[0, 8, 8\]"),
        (
            (np.zeros((4, 8, 8), np.uint8), [0, 1]),
            r"labels of 4 images must be as many whole numbers, not int64 \[2\]",
        ),
        ((np.zeros((2, 8, 8), np.uint8), [0.0, 1.0]), r"whole numbers, not float64 \[2\]"),
        ((np.zeros((2, 8, 8), np.uint8), [-1, 1]), "labels count from 0, and one of images is -1"),
        ((np.zeros((2, 8, 8), np.uint8), [0, 0]), "class '0' has 2 training images, but at least 3 are needed"),
    ],
)
def test_arrays_that_are_no_images(given: tuple[Any, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        from_arrays(*given)


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ([], "the dataset has no images"),
        ([(torch.zeros(3, 8, 8) - 1, 0)], "float images must lie between 0 and 1"),
        ([(np.zeros((8, 8), np.uint8), "cat")], "the label of image 0 is not a class number but 'cat'"),
        ([(np.zeros((5, 8, 8, 3), np.uint8), 0)], r"an image is uint8 \[5, 8, 8, 3\]"),
    ],
)
def test_pairs_that_are_no_images(pairs: list[Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        from_pairs(pairs)


def grey(side: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    return colours(count, side)[0][:, 0], np.arange(count) % 3


@pytest.mark.parametrize(
    ("images", "others", "sentence", "works"),
    [
        (colours()[0][:, :, :5], None, "images of mine are 5 x 8: give an image size", {"image_size": 5}),
        (
            colours()[0],
            {"test": colours(9, 12)},
            "images of mine are 8 x 8 in colour in 'train' but 12 x 12 in colour in 'test': bring all to one",
            {"image_size": 8},
        ),
        (
            colours()[0],
            {"validate": grey(8, 9)},
            "are 8 x 8 in colour in 'train' but 8 x 8 in grey in 'validate': .*, and to grey or to colour",
            {"grey": True},
        ),
        (
            grey(12)[0],
            {"test": colours(9)},
            "are 12 x 12 in grey in 'train' but 8 x 8 in colour in 'test'",
            {"image_size": 8, "grey": True},
        ),
    ],
)
def test_images_that_are_not_square_or_not_alike(
    images: np.ndarray, others: Any, sentence: str, works: dict[str, Any], tmp_path: Path
) -> None:
    """In arrays and in a file of them; what the sentence says to do gives images that are."""
    labels, others = np.arange(60) % 3, others or {}
    with pytest.raises(UserError, match=sentence):
        from_arrays(images, labels, **others, name="mine")
    given = {f"{split}_{kind}": one for split, pair in others.items() for kind, one in zip(KINDS, pair, strict=True)}
    last = {key: np.moveaxis(one, 1, 3) if one.ndim == 4 else one for key, one in given.items()}
    train = np.moveaxis(images, 1, 3) if images.ndim == 4 else images
    np.savez(tmp_path / "mine.npz", train_images=train, train_labels=labels, **last)
    with pytest.raises(UserError, match=sentence):
        load_dataset(tmp_path / "mine.npz")
    for data in (from_arrays(images, labels, **others, **works), load_dataset(tmp_path / "mine.npz", **works)):
        side, channels = works.get("image_size", 8), 1 if "grey" in works else 3
        shapes = {split.shape[1:] for split in (data.train, data.calibrate, data.validate, data.test)}
        assert shapes == {(channels, side, side)}


def test_splits_of_pairs_in_grey_and_in_colour_are_read_in_colour() -> None:
    """As from a folder: grey alone where all are."""
    (pixels, labels), (coloured, _) = grey(8), colours(9)
    plain = [(Image.fromarray(image), int(label)) for image, label in zip(pixels, labels, strict=True)]
    mixed = [(Image.fromarray(np.moveaxis(image, 0, 2)), number % 3) for number, image in enumerate(coloured)]
    found = from_pairs(plain, test=mixed)
    expected = from_arrays(np.repeat(pixels[:, None], 3, axis=1), labels, test=(coloured, labels[:9]))
    assert same(found, expected)
    assert from_pairs(plain, test=plain[:9]).channels == 1


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"mean": (0.4, 0.4, 0.4)}, "mean has 3 numbers, but the images of tiny 1 channel: give one number for each"),
        ({"std": ()}, "std has 0 numbers, but the images of tiny 1 channel"),
        ({"std": (0.0,)}, "every number of std must be finite and over 0, not 0"),
        ({"mean": (float("nan"),)}, "every number of mean must be finite, not nan"),
        ({"channels": 2}, "the images of tiny have 2 channels: give 1 for grey or 3 for colour"),
    ],
)
def test_data_sets_that_cannot_be(make_data: Callable[..., DataSet], fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_data(**fields)


def test_labels_beyond_the_names() -> None:
    with pytest.raises(UserError, match="there is a label 2, but 2 class names"):
        from_arrays(*images(), class_names=["dark", "bright"])


def test_a_run_of_arrays_is_used_from_python(tmp_path: Path) -> None:
    data, run = make(), tmp_path / "run"
    pipeline.train(data, epochs=2, out=run, probes=0)
    pipeline.evaluate(run, data=data, per_bucket=1, calibration_images=40)
    pipeline.extract(run, "smallest", data=data, test=True)
    for given, sentence in (
        (None, "images were made in Python: load them there too"),
        (from_arrays(*images(90)), "the data set given holds other images than those"),
    ):
        with pytest.raises(UserError, match=sentence):
            pipeline.extract(run, "largest", data=given)


def test_a_function_is_named_on_the_command_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert trainonce("train", OWN, "--epochs", "2", "--out", run, "--probes", "0").code == 0
    assert trainonce("evaluate", run, "--per-bucket", "1", "--calibration-images", "40").code == 0
    done = trainonce("extract", run, "--max-macs", "5", "--test")
    assert done.code == 0, done.err
    assert "bright" in done.out + done.err
    assert RunDirectory(run).config().data.name == "make"
    assert RunDirectory(run).load_data().fingerprint() == make().fingerprint()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("tests.support.own_images:nothing",), "gives no trainonce.DataSet but a str: see docs/data.md"),
        (("tests.support.own_images:absent",), "has no attribute 'absent'"),
        (("no_such_module:make",), "the function no_such_module:make cannot be imported"),
        ((OWN, "--skip-broken"), "only files of a folder can be skipped"),
        (("photos:2024",), "'photos:2024' is not a data set"),
        ((OWN, "--image-size", "16"), "makes its images itself: image size cannot be chosen for it"),
    ],
)
def test_functions_that_give_none(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    trainonce("train", *arguments, "--epochs", "1", "--out", tmp_path / "run").refused(sentence)
