"""The plain classifier: what it knows of easy images, and its gradients against a loop written by hand."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainonce.data import DataSet, Split, load_dataset
from trainonce.data.baseline import ANGLES, CELL, TRAIN_IMAGES, baseline, gradients

MakeData = Callable[..., DataSet]


def of_splits(data: DataSet, split: Split, **fields: Any) -> DataSet:
    """The data set with the same images in all its splits."""
    return replace(data, train=split, calibrate=split, validate=split, test=split, **fields)


def test_it_knows_the_digits_and_says_the_same_again() -> None:
    data = load_dataset("digits")
    first, again = baseline(data), baseline(data)
    assert first.top1 > 95
    assert (first.images, first.train_images) == (len(data.validate), len(data.train))
    assert first.model_dump(exclude={"seconds"}) == again.model_dump(exclude={"seconds"})


def test_two_colours_are_told_apart(make_data: MakeData) -> None:
    def split(count: int) -> Split:
        labels = torch.arange(count) % 2
        return Split((labels[:, None, None, None] * 200).to(torch.uint8).expand(-1, 1, 8, 8).contiguous(), labels)

    assert baseline(of_splits(make_data(class_names=("dark", "light")), split(20))).top1 == 100


@pytest.mark.parametrize("side", [1, 3, 40])
def test_images_of_any_size_and_all_alike_are_scored(make_data: MakeData, side: int) -> None:
    def split(count: int) -> Split:
        return Split(torch.full((count, 3, side, side), 7, dtype=torch.uint8), torch.arange(count) % 3)

    found = baseline(of_splits(make_data(), split(12), mean=(0.5,) * 3, std=(0.2,) * 3))
    assert found.top1 == pytest.approx(100 / 3), "each class is a third, and nothing tells them apart"


def test_where_only_one_class_is_drawn_it_is_the_answer(make_data: MakeData) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (TRAIN_IMAGES + 1000, 1, 8, 8), dtype=torch.uint8, generator=generator)
    train = Split(images, torch.zeros(len(images), dtype=torch.int64))
    validate = Split(images[:4], torch.tensor([0, 0, 0, 1]))
    assert baseline(replace(of_splits(make_data(), train), validate=validate)).top1 == 75


def by_hand(x_CHW: Tensor) -> NDArray[np.float64]:
    """The features of one image, pixel by pixel, as Dalal and Triggs describe them."""
    channels, height, width = x_CHW.shape
    rows, columns = math.ceil(height / CELL), math.ceil(width / CELL)
    cells, counts = np.zeros((ANGLES, rows, columns)), np.zeros((rows, columns))
    colours = np.zeros((channels, rows, columns))
    image = x_CHW.double().numpy()
    for y in range(height):
        for x in range(width):
            best = (0.0, 0.0, 0.0)
            for c in range(channels):
                dx = image[c, y, min(x + 1, width - 1)] - image[c, y, max(x - 1, 0)]
                dy = image[c, min(y + 1, height - 1), x] - image[c, max(y - 1, 0), x]
                best = max(best, (math.hypot(dx, dy), dx, dy), key=lambda found: found[0])
            length, dx, dy = best
            place = (math.atan2(dy, dx) % math.pi) * ANGLES / math.pi
            low, cell = math.floor(place), (y // CELL, x // CELL)
            cells[(low % ANGLES, *cell)] += length * (1 - (place - low))
            cells[((low + 1) % ANGLES, *cell)] += length * (place - low)
            counts[cell] += 1
            colours[(slice(None), *cell)] += image[:, y, x]
    cells, colours = cells / counts, colours / counts
    blocks = np.concatenate([cells[:, i : rows - 1 + i, j : columns - 1 + j] for i in (0, 1) for j in (0, 1)])
    for _ in range(2):
        blocks = np.minimum(blocks / np.maximum(np.linalg.norm(blocks, axis=0), 1e-12), 0.2)
    return np.concatenate([colours.ravel(), blocks.ravel()])


@pytest.mark.parametrize("shape", [(3, 12, 16), (1, 9, 10)])
def test_gradients_are_those_of_a_loop_by_hand(shape: tuple[int, int, int]) -> None:
    x_NCHW = torch.rand(4, *shape, generator=torch.Generator().manual_seed(1))
    expected = np.stack([by_hand(x_CHW) for x_CHW in x_NCHW])
    np.testing.assert_allclose(gradients(x_NCHW), expected, atol=2e-5)
