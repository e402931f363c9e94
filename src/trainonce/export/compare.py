"""How far two networks' logits are apart, and whether they say the same."""

from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-4
"""How far float32 logits may be apart, as a part of the largest logit, or absolutely where that is below 1."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Logits of the same images held against each other."""

    images: int
    identical: bool
    """Whether every logit is the same to the last bit."""
    largest_difference: float | None
    """The largest absolute difference of two logits; None where one is not a finite number."""
    largest_logit: float
    """The largest absolute value of a logit of the network that is held to be right."""
    unequal_top1: int
    """Images whose best class differs, near ties left out."""
    near_ties: int
    """Images whose best class differs where the two classes are within twice the tolerance of each other: rounding
    alone decides there."""
    tolerance: float
    """How far logits may be apart: `TOLERANCE` times the largest logit, or times 1 where that is less."""

    @property
    def agrees(self) -> bool:
        """Whether the difference is within the tolerance and the best classes are the same."""
        near = self.largest_difference is not None and self.largest_difference <= self.tolerance
        return near and self.unequal_top1 == 0


def compare(expected_NK: Tensor, found_NK: Tensor) -> Comparison:
    """Compare logits [N, classes], finite in `expected_NK`, with others of the same images."""
    largest = float(expected_NK.abs().max())
    tolerance = TOLERANCE * max(1.0, largest)
    if expected_NK.shape != found_NK.shape or not found_NK.isfinite().all():
        return Comparison(
            images=len(expected_NK),
            identical=False,
            largest_difference=None,
            largest_logit=largest,
            unequal_top1=len(expected_NK),
            near_ties=0,
            tolerance=tolerance,
        )
    best_N, other_N = expected_NK.argmax(1), found_NK.argmax(1)
    rows_M = (best_N != other_N).nonzero().flatten()
    margin_M = expected_NK[rows_M, best_N[rows_M]] - expected_NK[rows_M, other_N[rows_M]]
    ties = int((margin_M <= 2 * tolerance).sum())
    return Comparison(
        images=len(expected_NK),
        identical=torch.equal(expected_NK, found_NK),
        largest_difference=float((expected_NK - found_NK).abs().max()),
        largest_logit=largest,
        unequal_top1=len(rows_M) - ties,
        near_ties=ties,
        tolerance=tolerance,
    )
