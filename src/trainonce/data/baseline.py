"""What a plain classifier makes of the same images in seconds: the figure that a network has to beat.

A support vector machine (Cortes and Vapnik 1995) with a Gaussian kernel, on the principal components of the pixels, or
of histograms of oriented gradients (Dalal and Triggs, CVPR 2005) with the colours beside them.
"""

import time
import warnings
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from trainonce.data import DataSet
from trainonce.data.splits import Split
from trainonce.settings import Record

TRAIN_IMAGES = 3000
"""The most images that it learns from, drawn at random."""
SCORED_IMAGES = 2000
"""The most images that it is scored on, drawn at random."""
SIDE = 32
"""Larger images are made this small."""
CELL, ANGLES = 4, 9
"""Pixels of a side of a cell of the histograms, and their bins over half a turn."""
COMPONENTS = 100
"""Principal components that the machine sees."""
PENALTY = 10.0
"""The machine's C."""
BELOW_IT = (
    "Train longer, or from trained weights (--from of fit and train); as it is, the plain classifier is the better one."
)
"""What to do where a network is worse."""


@final
class Baseline(Record):
    """What the plain classifier came to."""

    features: str
    """Which features were better on validate: pixels, or gradients."""
    top1: float
    """Percent of `images` that it classifies correctly. The better of two, which flatters a little."""
    images: int = Field(ge=1)
    """How many validate images it was scored on."""
    train_images: int = Field(ge=1)
    """How many training images it learned from."""
    seconds: float = Field(ge=0)
    """How long it took, both features together."""

    def __str__(self) -> str:
        return (
            f"a support vector machine on {self.features}, {self.seconds:.1f} s for {self.train_images} images: "
            f"{self.top1:.1f}% on {self.images} validate images"
        )


def baseline(data: DataSet) -> Baseline:
    """Fit and score it on the validate split. The same images give the same figures, but for the seconds.

    Where all the training images that are drawn are of one class, that class is its answer.
    """
    from sklearn.decomposition import PCA  # takes a second, in which the command line must already be able to stop
    from sklearn.dummy import DummyClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    began = time.monotonic()
    train, validate = _small(data.train.drawn(TRAIN_IMAGES, seed=0)), _small(scored_on(data))
    scores: dict[str, float] = {}
    for name, features in (("pixels", _pixels), ("gradients and colours", gradients)):
        x_NF = features(train[0])
        machine: Any = make_pipeline(
            StandardScaler(),
            PCA(min(COMPONENTS, *x_NF.shape), svd_solver="randomized", random_state=0),
            SVC(C=PENALTY) if np.ptp(train[1]) else DummyClassifier(),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # images that are all alike have no variance
            found = machine.fit(x_NF, train[1]).predict(features(validate[0]))
        scores[name] = 100 * float(np.mean(found == validate[1]))
    best = max(scores, key=lambda name: scores[name])
    return Baseline(
        features=best,
        top1=scores[best],
        images=len(validate[1]),
        train_images=len(train[1]),
        seconds=time.monotonic() - began,
    )


def scored_on(data: DataSet) -> Split:
    """The validate images that it is scored on: all, or `SCORED_IMAGES` drawn from them."""
    return data.validate.drawn(SCORED_IMAGES, seed=0)


def _small(split: Split) -> tuple[Tensor, NDArray[np.int64]]:
    """Images as float32 [N, C, H, W] in 0..1, no larger than `SIDE`, and their labels, int64 [N]."""
    drawn = split.to("cpu")
    x_NCHW = drawn.images.to(torch.float32) / 255
    if max(x_NCHW.shape[2:]) > SIDE:
        x_NCHW = F.interpolate(x_NCHW, size=(SIDE, SIDE), mode="area")
    return x_NCHW, drawn.labels.numpy()


def _pixels(x_NCHW: Tensor) -> NDArray[np.float32]:
    return x_NCHW.flatten(1).numpy()


def gradients(x_NCHW: Tensor) -> NDArray[np.float32]:
    """Histograms of oriented gradients of images in 0..1, and the mean colour of each cell; one row an image.

    At each pixel the channel of the steepest gradient counts; it votes for the two nearest of `ANGLES` bins over half
    a turn, by its length. Cells of `CELL` pixels, normalised in overlapping blocks of 2 x 2 (L2-hys; Dalal and Triggs,
    CVPR 2005).
    """
    padded = F.pad(x_NCHW, (1, 1, 1, 1), mode="replicate")
    dx, dy = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2], padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    length, steepest = (dx.square() + dy.square()).sqrt().max(dim=1, keepdim=True)
    angle = torch.atan2(dy.gather(1, steepest), dx.gather(1, steepest)) % torch.pi * (ANGLES / torch.pi)
    low = angle.floor()
    votes = torch.zeros(len(x_NCHW), ANGLES, *x_NCHW.shape[2:])
    votes.scatter_add_(1, low.long() % ANGLES, length * (1 - (angle - low)))
    votes.scatter_add_(1, (low.long() + 1) % ANGLES, length * (angle - low))
    cells = F.avg_pool2d(votes, CELL, ceil_mode=True, count_include_pad=False)
    parts = [F.avg_pool2d(x_NCHW, CELL, ceil_mode=True, count_include_pad=False).flatten(1)]
    if min(cells.shape[2:]) > 1:
        blocks = torch.cat([cells[:, :, i : i - 1 or None, j : j - 1 or None] for i in (0, 1) for j in (0, 1)], dim=1)
        for _ in range(2):  # normalised, cut off, normalised again
            blocks = F.normalize(blocks, dim=1).clamp_max(0.2)
        parts.append(blocks.flatten(1))
    else:
        parts.append(cells.flatten(1))
    return torch.cat(parts, dim=1).numpy()
