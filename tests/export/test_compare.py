"""Comparing logits: figures worked out by hand."""

import math

import pytest
import torch

from trainonce.export.compare import TOLERANCE, compare


def test_figures() -> None:
    found = compare(torch.tensor([[3.0, -4.0], [0.0, 1.0]]), torch.tensor([[3.0, -4.0], [0.25, 1.0]]))
    assert (found.images, found.largest_difference, found.largest_logit) == (2, 0.25, 4.0)
    assert found.tolerance == pytest.approx(4e-4)
    assert (found.unequal_top1, found.near_ties, found.identical, found.agrees) == (0, 0, False, False)


def test_the_same_is_identical() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    found = compare(logits, logits.clone())
    assert found.identical
    assert found.agrees
    assert found.largest_difference == 0


@pytest.mark.parametrize(("largest", "allowed"), [(0.5, TOLERANCE), (1.0, TOLERANCE), (20.0, 20 * TOLERANCE)])
def test_the_tolerance_grows_with_the_logits_from_one(largest: float, allowed: float) -> None:
    expected = torch.tensor([[largest, -largest / 2]])
    for factor, agrees in ((0.9, True), (1.1, False)):
        assert compare(expected, expected - torch.tensor([[0.0, factor * allowed]])).agrees is agrees


def test_another_class_is_a_difference_unless_the_two_were_tied() -> None:
    """Two classes 1.5e-4 apart can change places within a tolerance of 1e-4 each; at 1 they cannot."""
    tied, swapped = torch.tensor([[0.50015, 0.5]]), torch.tensor([[0.50007, 0.50008]])
    found = compare(tied, swapped)
    assert (found.unequal_top1, found.near_ties, found.agrees) == (0, 1, True)
    apart = compare(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert (apart.unequal_top1, apart.near_ties, apart.agrees) == (1, 0, False)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_never_agrees(bad: float) -> None:
    found = compare(torch.zeros(2, 3), torch.tensor([[0.0, bad, 0.0], [0.0, 0.0, 0.0]]))
    assert found.largest_difference is None
    assert not found.agrees


def test_another_number_of_classes_never_agrees() -> None:
    assert not compare(torch.zeros(2, 3), torch.zeros(2, 4)).agrees
