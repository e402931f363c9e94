"""Images of a person's own, made by functions."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from trainonce.data import DataSet, from_arrays


def images(count: int = 120, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Grey images [N, side, side] whose brightness is their class, of three."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    return (rng.integers(0, 40, (count, side, side)) + 90 * labels[:, None, None]).astype(np.uint8), labels


def make() -> DataSet:
    """A data set of them."""
    return from_arrays(*images(), class_names=["dark", "middle", "bright"])


def nothing() -> str:
    """What is no data set."""
    return "nothing"


def few_digits(folder: Path, count: int = 300) -> Path:
    """A file of so many of scikit-learn's digits, grey images of 8 x 8 in 10 classes, as a person's own images."""
    found = load_digits()
    path = folder / "few.npz"
    images = found.images[:count].astype(np.uint8) * 15
    np.savez(path, train_images=images, train_labels=found.target[:count])
    return path
