"""What a network does class by class: recall, precision, what is taken for what, and how good its confidence is."""

import os
from collections.abc import Sequence
from typing import Self, final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from trainonce.data import DataSet
from trainonce.data.splits import Split
from trainonce.evaluation.evaluator import Score, finite, logits_of, score_of
from trainonce.names import printable
from trainonce.settings import JsonObject, Settings

CONFIDENCE_BINS = 15
"""Bins of the calibration error (Guo et al., ICML 2017, section 2)."""
TOP5_CLASSES = 10
"""Top-5 says something where there are more classes than these."""
MOST_NAMED = 3
"""At most so many classes are named in a sentence."""
WORST_IMAGES = 24
"""At most so many of the images that are classified worst are kept."""


@final
class WorstImage(Settings):
    """An image that is taken for another class."""

    row: int
    """Its row in the split, from 0."""
    file: str | None
    """Its path below the folder of images; None where they were not read from a folder."""
    actual: int
    """Its class."""
    taken_for: int
    """The class it is taken for."""
    probability: float
    """What the network gives `taken_for`, in 0..1."""
    of_actual: float
    """What it gives `actual`: the less, the worse."""


@final
class PerClass(Settings):
    """What a network does with the images of a split; classes in the order of the data set's."""

    confusion: tuple[tuple[int, ...], ...]
    """How many images of class i (row) are taken for class j (column)."""
    recall: tuple[float | None, ...]
    """Percent of each class's images that are classified correctly; None where the split has no image of it."""
    precision: tuple[float | None, ...]
    """Percent of the images taken for a class that are of it; None where none is taken for it."""
    top5: float | None = Field(default=None)
    """Percent of the images whose class is among the five likeliest; None up to `TOP5_CLASSES` classes."""
    calibration_error: float
    """Expected calibration error in points (Guo et al., ICML 2017, equation 3): images are put into `CONFIDENCE_BINS`
    equal bins by the probability of their likeliest class; the mean over the images of how far accuracy and mean
    probability of their bin are apart."""
    worst: tuple[WorstImage, ...] = ()
    """The images that are taken for another class, those whose own class gets the least probability first; at most
    `WORST_IMAGES`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        classes = len(self.recall)
        if {len(self.confusion), len(self.precision), *map(len, self.confusion)} != {classes}:
            raise ValueError("its confusion, recall and precision are of different numbers of classes")
        if any(not 0 <= number < classes for one in self.worst for number in (one.actual, one.taken_for)):
            raise ValueError("an image in its 'worst' is of no class")
        return self

    def sentences(self, class_names: Sequence[str]) -> list[str]:
        """The classes that are found least, in words, those that are never found, top-5 and the calibration error."""
        least = [f"{class_names[number]} {recall}" for number, recall in self.missed()[:MOST_NAMED]]
        said = [f"Found least: {', '.join(least)}" if least else "All images are recognised"]
        never = [name for name, precision in zip(class_names, self.precision, strict=True) if precision is None]
        if never:
            more = f" and {len(never) - MOST_NAMED} more" if len(never) > MOST_NAMED else ""
            said.append(f"No image at all is taken for {', '.join(never[:MOST_NAMED])}{more}")
        top5 = "" if self.top5 is None else f"Top-5 {self.top5:.2f}%; "
        apart = f"confidence and accuracy are {self.calibration_error:.1f} points apart (expected calibration error)"
        return [*said, top5 + (apart if top5 else apart.capitalize())]

    def recorded(self, split: str) -> JsonObject:
        """As the description of a subnet holds it, with the split that it is of."""
        return {"split": split, **self.model_dump(mode="json")}

    def counts(self) -> tuple[int, ...]:
        """How many images each class has."""
        return tuple(map(sum, self.confusion))

    def taken_for(self, number: int) -> list[tuple[int, int]]:
        """The other classes that images of a class are taken for, as (how many, class), the most first."""
        others = [(count, other) for other, count in enumerate(self.confusion[number]) if count and other != number]
        return sorted(others, key=lambda pair: (-pair[0], pair[1]))

    def missed(self) -> list[tuple[int, str]]:
        """The classes of which images are taken for others, by rising recall, with it in words: never "100%"."""
        recalls = [(number, self.recall[number] or 0.0) for number in self.least_found()]
        return [(number, f"{min(recall, 99.9):.3g}%") for number, recall in recalls if recall < 100]

    def least_found(self) -> list[int]:
        """The classes that the split has images of, by rising recall."""
        recalls = [(recall, number) for number, recall in enumerate(self.recall) if recall is not None]
        return [number for _, number in sorted(recalls)]


@torch.inference_mode()
def score_by_class(network: nn.Module, split: Split, data: DataSet, name: str) -> tuple[Score, PerClass]:
    """Score a network on the split of `data` of that name, as `score` does and class by class, in one pass.

    Raises `RunError` where its loss is no number that records can hold.
    """
    logits = list(logits_of(network, split, data))
    found = finite(score_of(logits, split), name)
    classes = by_class(torch.cat(logits).cpu(), split.labels.cpu())
    rows = [one.row for one in classes.worst]
    names = file_names(split, rows, data.source.name_or_path)
    worst = [one.model_copy(update={"file": name}) for one, name in zip(classes.worst, names, strict=True)]
    return found, classes.model_copy(update={"worst": tuple(worst)})


def file_names(split: Split, rows: Sequence[int], folder: str) -> list[str | None]:
    """The paths below `folder` of the images at `rows`, as a terminal can show them; None where they have no files."""
    files = split.files
    if files is None:
        return [None] * len(rows)
    within = "" if os.path.realpath(files.root) == os.path.realpath(folder) else f"{files.root.name}/"
    return [printable(within + os.fsdecode(name)) for name in files.names[list(rows)].tolist()]


def by_class(logits_NK: Tensor, labels_N: Tensor) -> PerClass:
    """What logits [N, classes] say of images with these labels, int64 [N]."""
    classes = logits_NK.shape[1]
    probabilities_NK = logits_NK.double().softmax(1)
    confidence_N, guess_N = probabilities_NK.max(1)
    confusion = torch.bincount(labels_N * classes + guess_N, minlength=classes**2).view(classes, classes)
    right = confusion.diag().tolist()

    def percent(of: Tensor) -> tuple[float | None, ...]:
        return tuple(100 * hits / count if count else None for hits, count in zip(right, of.tolist(), strict=True))

    top5 = None
    if classes > TOP5_CLASSES:
        among_N = (logits_NK.topk(5, dim=1).indices == labels_N[:, None]).any(1)
        top5 = 100 * float(among_N.double().mean())
    bin_N = (confidence_N * CONFIDENCE_BINS).ceil().long().clamp(1, CONFIDENCE_BINS) - 1
    apart_N = (guess_N == labels_N).double() - confidence_N
    apart_by_bin = torch.zeros(CONFIDENCE_BINS, dtype=torch.float64).index_add_(0, bin_N, apart_N)
    return PerClass(
        confusion=tuple(map(tuple, confusion.tolist())),
        recall=percent(confusion.sum(1)),
        precision=percent(confusion.sum(0)),
        top5=top5,
        calibration_error=100 * float(apart_by_bin.abs().sum()) / len(labels_N),
        worst=_worst(probabilities_NK, labels_N),
    )


def _worst(probabilities_NK: Tensor, labels_N: Tensor) -> tuple[WorstImage, ...]:
    probability_N, guess_N = probabilities_NK.max(1)
    own_N = probabilities_NK.gather(1, labels_N[:, None])[:, 0]
    wrong = (guess_N != labels_N).nonzero()[:, 0]
    rows = wrong[own_N[wrong].argsort(stable=True)[:WORST_IMAGES]].tolist()
    return tuple(
        WorstImage(
            row=row,
            file=None,
            actual=int(labels_N[row]),
            taken_for=int(guess_N[row]),
            probability=float(probability_N[row]),
            of_actual=float(own_N[row]),
        )
        for row in rows
    )
