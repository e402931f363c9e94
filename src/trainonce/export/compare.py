"""How far two networks' outputs are apart, and whether they say the same."""

import torch
from torch import Tensor

from trainonce.settings import Record, Whole

TOLERANCE = 1e-4
"""How far an image's float32 outputs may be apart: as a part of the largest, or absolutely where that is below 1."""


class LogitComparison(Record):
    """Logits of the same images held against each other."""

    images: Whole
    identical: bool
    """Whether every logit is the same to the last bit."""
    largest_difference: float | None
    """The largest absolute difference of two logits; None where one is not a finite number."""
    largest_ratio: float | None = None
    """The largest difference of two logits as a part of what `TOLERANCE` allows for their image; None likewise. It need
    not be the image with the largest difference: what is allowed grows with an image's logits."""
    largest_logit: float
    """The largest absolute value of a logit of the network that is held to be right."""
    unequal_top1: Whole
    """Images whose best class differs. Within the tolerance those are near ties: rounding alone decides there."""

    @property
    def agrees(self) -> bool:
        """Whether the logits of every image are within its tolerance."""
        return self.largest_ratio is not None and self.largest_ratio <= 1


def compare(expected_NK: Tensor, found_NK: Tensor) -> LogitComparison:
    """Compare logits [N, classes], finite in `expected_NK`, with others of the same images."""
    apart = expected_NK.shape != found_NK.shape or not found_NK.isfinite().all()
    return LogitComparison(
        images=len(expected_NK),
        identical=torch.equal(expected_NK, found_NK),
        largest_difference=None if apart else float((expected_NK.double() - found_NK.double()).abs().max()),
        largest_ratio=None if apart else float(ratios(expected_NK, found_NK).max()),
        largest_logit=float(expected_NK.abs().max()),
        unequal_top1=len(expected_NK) if apart else int((expected_NK.argmax(1) != found_NK.argmax(1)).sum()),
    )


def ratios(expected: Tensor, found: Tensor) -> Tensor:
    """For each image the largest difference of outputs [N, …], as a part of what `TOLERANCE` allows there, [N]."""
    expected_NM, found_NM = expected.flatten(1).double(), found.flatten(1).double()
    allowed_N = TOLERANCE * expected_NM.abs().amax(1).clamp(min=1)
    return (expected_NM - found_NM).abs().amax(1) / allowed_N
