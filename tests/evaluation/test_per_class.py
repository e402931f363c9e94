"""Class by class: against scikit-learn's metrics, and the calibration error against its definition."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_score, recall_score, top_k_accuracy_score

from trainonce.evaluation.evaluator import Score
from trainonce.evaluation.per_class import CONFIDENCE_BINS, by_class


@given(classes=st.integers(2, 14), images=st.integers(1, 60), seed=st.integers(0, 10**6))
def test_it_is_what_scikit_learn_says(classes: int, images: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = (
        torch.randn(images, classes, generator=generator),
        torch.randint(classes, (images,), generator=generator),
    )
    found, guess, names = by_class(logits, labels), logits.argmax(1), list(range(classes))
    assert found.confusion == tuple(map(tuple, confusion_matrix(labels, guess, labels=names).tolist()))
    for ours, theirs, there in (
        (found.recall, recall_score(labels, guess, labels=names, average=None, zero_division=0), labels),
        (found.precision, precision_score(labels, guess, labels=names, average=None, zero_division=0), guess),
    ):
        for name, value in enumerate(ours):
            if name in there.tolist():
                assert value == pytest.approx(100 * theirs[name])
            else:
                assert value is None
    if classes > 10:
        assert found.top5 == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=5, labels=names))
    else:
        assert found.top5 is None


@given(images=st.integers(1, 60), seed=st.integers(0, 10**6))
def test_the_calibration_error_is_its_definition(images: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = 3 * torch.randn(images, 3, generator=generator), torch.randint(3, (images,), generator=generator)
    confidence = logits.double().softmax(1).amax(1).numpy()
    right = (logits.argmax(1) == labels).numpy()
    error = 0.0
    for number in range(CONFIDENCE_BINS):
        inside = (confidence > number / CONFIDENCE_BINS) & (confidence <= (number + 1) / CONFIDENCE_BINS)
        if inside.any():
            error += inside.sum() / images * abs(right[inside].mean() - confidence[inside].mean())
    assert by_class(logits, labels).calibration_error == pytest.approx(100 * error)


def test_classes_that_are_never_found_are_named() -> None:
    guess = torch.tensor([0, 0, 1, 1])
    found = by_class(torch.eye(4)[guess] * 9, torch.tensor([0, 3, 1, 0]))
    assert found.sentences(("cat", "dog", "emu", "fox")) == [
        "Found least: fox 0%, cat 50%, dog 100%",
        "No image at all is taken for emu, fox",
    ]


@given(images=st.integers(1, 5000), share=st.floats(0, 1))
def test_the_interval_is_wilsons(images: int, share: float) -> None:
    correct = round(share * images)
    expected = binomtest(correct, images).proportion_ci(method="wilson")
    found = Score(top1=100 * correct / images, loss=1.0, images=images).interval()
    np.testing.assert_allclose(found, (100 * expected.low, 100 * expected.high), atol=1e-4)


def test_no_warning_reaches_a_person() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_class(torch.zeros(2, 12), torch.tensor([0, 5]))
