"""How far two networks' outputs are apart, and whether they say the same."""

import torch
from torch import Tensor

from trainonce.settings import Record, Whole

TOLERANCE = 1e-4
"""How far an image's float32 outputs may be apart: as a part of the largest, or absolutely where that is below 1."""
FLOAT16_TOLERANCE = 2e-2
"""The same of float16. Its numbers have 11 bits, so a rounding is off by up to 5e-4 of a number; those of all weights
and, where maps are float16 too, of all layers' outputs add up, to 6e-3 in networks of 20 layers."""


MOSTLY = 0.9
"""The share of images of one class from which on a network may well say that class of all of them."""


class LogitComparison(Record):
    """Logits of the same images held against each other."""

    images: Whole
    identical: bool
    """Whether every logit is the same to the last bit."""
    largest_difference: float | None
    """The largest absolute difference of two logits; None where one is not a finite number."""
    largest_ratio: float | None = None
    """The largest difference of two logits as a part of what the tolerance allows for their image; None likewise. It
    need not be the image with the largest difference: what is allowed grows with an image's logits."""
    largest_logit: float
    """The largest absolute value of a logit of the network that is held to be right."""
    constant: bool = False
    """Whether every image gets the same logits, or the same class where no class should have nine tenths of them."""
    unequal_top1: Whole
    """Images whose best class differs. Within the tolerance those are near ties: rounding alone decides there."""

    @property
    def agrees(self) -> bool:
        """Whether the logits of every image are within its tolerance."""
        return self.largest_ratio is not None and self.largest_ratio <= 1


def compare(expected_NK: Tensor, found_NK: Tensor, tolerance: float = TOLERANCE) -> LogitComparison:
    """Compare logits [N, classes], finite in `expected_NK`, with others of the same images."""
    apart = expected_NK.shape != found_NK.shape or not found_NK.isfinite().all()
    return LogitComparison(
        images=len(expected_NK),
        identical=torch.equal(expected_NK, found_NK),
        largest_difference=None if apart else float((expected_NK.double() - found_NK.double()).abs().max()),
        largest_ratio=None if apart else float(ratios(expected_NK, found_NK, tolerance).max()),
        largest_logit=float(expected_NK.abs().max()),
        constant=not apart and _constant(expected_NK, found_NK),
        unequal_top1=len(expected_NK) if apart else int((expected_NK.argmax(1) != found_NK.argmax(1)).sum()),
    )


def _constant(expected_NK: Tensor, found_NK: Tensor) -> bool:
    if (found_NK == found_NK[:1]).all():
        return not bool((expected_NK == expected_NK[:1]).all())
    most_frequent = int(expected_NK.argmax(1).bincount().max())
    return len(torch.unique(found_NK.argmax(1))) == 1 and most_frequent < MOSTLY * len(expected_NK)


def ratios(expected: Tensor, found: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """For each image the largest difference of outputs [N, …], as a part of what the tolerance allows there, [N]."""
    expected_NM, found_NM = expected.flatten(1).double(), found.flatten(1).double()
    allowed_N = tolerance * expected_NM.abs().amax(1).clamp(min=1)
    return (expected_NM - found_NM).abs().amax(1) / allowed_N
