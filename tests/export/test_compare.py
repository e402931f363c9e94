"""Comparing logits: figures worked out by hand."""

import math

import pytest
import torch

from trainonce.export.compare import TOLERANCE, compare


def test_figures() -> None:
    """The second image is off by more, but the first by more of what is allowed: 0.25 of 1e-4 and 0.75 of 4e-4."""
    expected = torch.tensor([[0.0, 1.0], [3.0, -4.0], [3.0, -4.0]])
    found = compare(expected, expected + torch.tensor([[0.25, 0.0], [0.0, 0.75], [0.0, 0.0]]))
    assert (found.images, found.largest_difference, found.largest_logit) == (3, 0.75, 4.0)
    assert found.largest_ratio == pytest.approx(2500)
    assert (found.unequal_top1, found.identical, found.agrees) == (0, False, False)


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


def test_an_image_with_huge_logits_does_not_loosen_the_tolerance_of_others() -> None:
    expected = torch.tensor([[5000.0, 0.0], [1.0, 0.0]])
    assert compare(expected, expected + torch.tensor([[0.4, 0.0], [0.0, 0.0]])).agrees
    assert not compare(expected, expected + torch.tensor([[0.0, 0.0], [0.4, 0.0]])).agrees


def test_classes_that_change_places_are_counted() -> None:
    """Two classes 1.5e-4 apart can within a tolerance of 1e-4 each; at 1 they cannot."""
    tied, swapped = torch.tensor([[0.50015, 0.5]]), torch.tensor([[0.50007, 0.50008]])
    found = compare(tied, swapped)
    assert (found.unequal_top1, found.agrees) == (1, True)
    apart = compare(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert (apart.unequal_top1, apart.agrees) == (1, False)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_never_agrees(bad: float) -> None:
    found = compare(torch.zeros(2, 3), torch.tensor([[0.0, bad, 0.0], [0.0, 0.0, 0.0]]))
    assert found.largest_difference is None
    assert found.largest_ratio is None
    assert not found.agrees


def test_another_number_of_classes_never_agrees() -> None:
    assert not compare(torch.zeros(2, 3), torch.zeros(2, 4)).agrees


def test_the_same_class_for_every_image_is_no_answer() -> None:
    """Unless nearly all images should have it."""
    several = torch.eye(3).repeat(4, 1)
    found = torch.tensor([[1.0, 0.0, 0.0]]) + 0.01 * several
    assert compare(several, found).constant
    assert compare(several, torch.ones(12, 3)).constant
    mostly = torch.tensor([[1.0, 0.0, 0.0]]).repeat(12, 1) + 0.02 * several
    assert not compare(mostly, found).constant
    assert not compare(several, several + 5).constant
