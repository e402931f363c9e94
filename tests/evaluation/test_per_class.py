"""Class by class: against scikit-learn's metrics, and the calibration error against its definition."""

import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, log_loss, precision_score, recall_score, top_k_accuracy_score
from torch import nn

from trainonce.cli.results import per_class_table
from trainonce.data import load_dataset
from trainonce.evaluation.evaluator import Score
from trainonce.evaluation.per_class import CONFIDENCE_BINS, WORST_IMAGES, by_class, score_by_class


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
        "Found least: fox 0%, cat 50%",
        "No image at all is taken for emu, fox",
        "Confidence and accuracy are 50.0 points apart (expected calibration error)",
    ]
    assert (
        by_class(torch.eye(4)[guess] * 9, guess).sentences(("cat", "dog", "emu", "fox"))[0]
        == "All images are recognised"
    )


@given(images=st.integers(1, 60), seed=st.integers(0, 10**6))
def test_the_worst_images_are_those_of_the_highest_log_loss_that_are_wrong(images: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = 3 * torch.randn(images, 4, generator=generator), torch.randint(4, (images,), generator=generator)
    chances, guess = np.asarray(logits.double().softmax(1)), logits.argmax(1).tolist()
    losses = [log_loss([label], [row], labels=range(4)) for label, row in zip(labels.tolist(), chances, strict=True)]
    wrong = [row for row in range(images) if guess[row] != labels[row]]
    found = by_class(logits, labels).worst
    assert len(found) == min(len(wrong), WORST_IMAGES)
    assert [losses[one.row] for one in found] == pytest.approx(sorted(losses[row] for row in wrong)[::-1][: len(found)])
    for one in found:
        assert (one.actual, one.taken_for, one.file) == (int(labels[one.row]), guess[one.row], None)
        assert (one.probability, one.of_actual) == pytest.approx((chances[one.row].max(), chances[one.row, one.actual]))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("divided", [True, False])
def test_an_image_is_named_by_its_file(tmp_path: Path, stream: bool, divided: bool) -> None:
    """Every image has a colour of its own, so that what is scored and what is named can be held against each other."""
    folders = [tmp_path / name for name in (("train", "test") if divided else ("",))]
    for number, (folder, label, image) in enumerate(product(folders, "ab", range(20))):
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (3 * number, 0, 0)).save(folder / label / f"{image}.png")
    data = load_dataset(tmp_path, image_size=8, stream=stream)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    network[2].load_state_dict({"weight": torch.tensor([[0.0] * 3, [0.5] * 3]), "bias": torch.tensor([0.0, 9.0])})
    score, found = score_by_class(network, data.test, data, "test")
    assert len(found.worst) == found.counts()[0] == len(data.test) - round(score.top1 * len(data.test) / 100)
    for one in found.worst:
        assert one.file is not None
        colour = int(data.test.batch(torch.tensor([one.row])).images_BCHW[0, 0, 0, 0])
        assert Image.open(tmp_path / one.file).convert("RGB").getpixel((0, 0)) == (colour, 0, 0)
        assert (tmp_path / one.file).parent.name == data.class_names[one.actual]


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


def test_of_many_classes_those_found_least_are_shown() -> None:
    labels = torch.arange(30).repeat_interleave(4)
    guess = labels.clone()
    guess[[0, 1, 2, 3, 117]] = 7  # all of class 0, and one of class 29
    found = by_class(torch.eye(30)[guess] * 9, labels)
    table = per_class_table(found, [f"c{number:02d}" for number in range(30)])
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ["c00", "c29", *(f"c{number:02d}" for number in range(1, 19)), "and 10 more, found better"]
    assert columns[2][:3] == ["0.0%", "75.0%", "100.0%"]
    assert columns[4][:3] == ["c07 4", "c07 1", ""]
