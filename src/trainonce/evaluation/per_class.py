"""What a network does class by class: recall, precision, what is taken for what, and how good its confidence is."""

from collections.abc import Sequence
from typing import final

import torch
from pydantic import Field
from torch import Tensor, nn

from trainonce.data import DataSet
from trainonce.data.splits import Split
from trainonce.evaluation.evaluator import Score, finite, logits_of, score_of
from trainonce.settings import Settings

CONFIDENCE_BINS = 15
"""Bins of the calibration error (Guo et al., ICML 2017, section 2)."""
TOP5_CLASSES = 10
"""Top-5 says something where there are more classes than these."""
MOST_NAMED = 3
"""At most so many classes are named in a sentence."""


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
    """Expected calibration error in points: how far confidence and accuracy are apart, on average over the images."""

    def sentences(self, class_names: Sequence[str]) -> list[str]:
        """The classes that are found least, in words, and those that are never found."""
        found = sorted(
            (recall, name) for recall, name in zip(self.recall, class_names, strict=True) if recall is not None
        )
        said = [f"Found least: {', '.join(f'{name} {recall:.0f}%' for recall, name in found[:MOST_NAMED])}"]
        never = [name for name, precision in zip(class_names, self.precision, strict=True) if precision is None]
        if never:
            more = f" and {len(never) - MOST_NAMED} more" if len(never) > MOST_NAMED else ""
            said.append(f"No image at all is taken for {', '.join(never[:MOST_NAMED])}{more}")
        return said


@torch.inference_mode()
def score_by_class(network: nn.Module, split: Split, data: DataSet, name: str) -> tuple[Score, PerClass]:
    """Score a network on the split of `data` of that name, as `score` does and class by class, in one pass.

    Raises `RunError` where its loss is no number that records can hold.
    """
    logits = list(logits_of(network, split, data))
    found = finite(score_of(logits, split), name)
    return found, by_class(torch.cat(logits).cpu(), split.labels.cpu())


def by_class(logits_NK: Tensor, labels_N: Tensor) -> PerClass:
    """What logits [N, classes] say of images with these labels, int64 [N]."""
    classes = logits_NK.shape[1]
    confidence_N, guess_N = logits_NK.double().softmax(1).max(1)
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
    )
