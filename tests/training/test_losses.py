"""Losses against labels and a teacher: against loops over images and classes, and against each other."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainonce.recipes import DISTILLATIONS
from trainonce.training.losses import (
    adaptive_alpha_divergence,
    class_weights,
    distillation,
    kl_divergence,
    label_loss,
    soft_cross_entropy,
)


def logits(seed: int, *, batch: int = 6, classes: int = 5, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, classes, generator=generator, dtype=torch.float64)


def gradient(loss: Callable[[Tensor, Tensor], Tensor], student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    student_BK = student_BK.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(student_BK, teacher_BK), student_BK)
    return found


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    total = sum(math.exp(value - top) for value in row)
    return [math.exp(value - top) / total for value in row]


def alpha_image(student: list[float], teacher: list[float], alpha: int) -> tuple[float, list[float]]:
    """One image's divergence and the weights -c of its surrogate sum of c log q, as RECIPES.md writes them."""
    p, q = softmax(teacher), softmax(student)
    if alpha == 1:
        return sum(p_k * math.log(p_k / q_k) for p_k, q_k in zip(p, q, strict=True)), p
    value, weights = 0.0, []
    for p_k, q_k in zip(p, q, strict=True):
        clipped = min((p_k / q_k) ** alpha, 5)
        value += q_k * (clipped - 1) / (alpha * (alpha - 1))
        weights.append(q_k * (clipped / alpha + 1 / (alpha * (alpha - 1))))
    return value, weights


def adaptive_reference(student_BK: Tensor, teacher_BK: Tensor) -> tuple[float, Tensor, list[int]]:
    """The mean value, its gradient by the surrogate, and the alpha that each image took."""
    total, rows, alphas = 0.0, [], []
    for student, teacher in zip(student_BK.tolist(), teacher_BK.tolist(), strict=True):
        value, weights, alpha = max(
            ((*alpha_image(student, teacher, alpha), alpha) for alpha in (-1, 1)), key=lambda found: found[0]
        )
        total += value
        # d(-sum_k c_k log q_k) / d z_j = q_j sum_k c_k - c_j
        q = softmax(student)
        rows.append([q_j * sum(weights) - c_j for q_j, c_j in zip(q, weights, strict=True)])
        alphas.append(alpha)
    return total / len(rows), torch.tensor(rows, dtype=torch.float64) / len(rows), alphas


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_soft_cross_entropy_is_the_loop(seed: int) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    expected = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        expected -= sum(p_k * math.log(q_k) for p_k, q_k in zip(softmax(t), softmax(s), strict=True)) / len(student)
    assert float(soft_cross_entropy(student, teacher)) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_soft_cross_entropy_and_kl_have_one_gradient(seed: int) -> None:
    """They differ by the teacher's entropy alone; the gradient is (q - p) / batch."""
    student, teacher = logits(seed), logits(seed + 1)
    expected = (student.softmax(1) - teacher.softmax(1)) / len(student)
    assert torch.allclose(gradient(soft_cross_entropy, student, teacher), expected, atol=1e-12)
    assert torch.allclose(gradient(kl_divergence, student, teacher), expected, atol=1e-12)
    p = teacher.softmax(1)
    entropy = -(p * p.log()).sum(1).mean()
    difference = soft_cross_entropy(student, teacher) - kl_divergence(student, teacher)
    assert float(difference) == pytest.approx(float(entropy), rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_kl_is_zero_at_equality_and_positive_elsewhere(seed: int) -> None:
    teacher = logits(seed)
    assert float(kl_divergence(teacher + 3.0, teacher)) == pytest.approx(0, abs=1e-12)
    assert float(kl_divergence(logits(seed + 1), teacher)) > 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from((0.5, 2.0, 5.0)))
def test_adaptive_alpha_divergence_is_the_loop(seed: int, scale: float) -> None:
    student, teacher = logits(seed, scale=scale), logits(seed + 1, scale=scale)
    value, expected, _ = adaptive_reference(student, teacher)
    assert float(adaptive_alpha_divergence(student, teacher)) == pytest.approx(value, rel=1e-9)
    assert torch.allclose(gradient(adaptive_alpha_divergence, student, teacher), expected, atol=1e-12)


def test_each_image_takes_its_own_alpha_and_the_clip_is_met() -> None:
    student, teacher = logits(0, batch=64, scale=2.0), logits(1, batch=64, scale=2.0)
    assert set(adaptive_reference(student, teacher)[2]) == {-1, 1}
    assert float((student.softmax(1) / teacher.softmax(1)).max()) > 5


def test_alpha_divergence_by_hand() -> None:
    """Teacher (3/4, 1/4), student (1/4, 3/4): at alpha -1 q²/p is 1/12 and 9/4, so f is (7/3 - 1) / 2 = 2/3.

    KL is log(3) / 2 = 0.549, the smaller; neither ratio (1/3, 3) is clipped.
    The weights are q (1/2 - q/p): 1/4 (1/2 - 1/3) = 1/24 and 3/4 (1/2 - 3) = -15/8.
    """
    teacher = torch.tensor([[0.75, 0.25]], dtype=torch.float64).log()
    student = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    assert float(adaptive_alpha_divergence(student, teacher)) == pytest.approx(2 / 3)
    total = 1 / 24 - 15 / 8
    expected = [[total / 4 - 1 / 24, total * 3 / 4 + 15 / 8]]
    assert gradient(adaptive_alpha_divergence, student, teacher).tolist() == [pytest.approx(expected[0])]


def test_alpha_divergence_is_zero_at_equality() -> None:
    assert float(adaptive_alpha_divergence(logits(0), logits(0) + 1)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["soft", "kl", "alpha"])
def test_far_apart_logits_stay_finite(name: str) -> None:
    student = torch.tensor([[200.0, 0.0, -200.0]])
    teacher = torch.tensor([[-200.0, 0.0, 200.0]])
    loss = distillation(name)
    assert torch.isfinite(loss(student, teacher))
    assert torch.isfinite(gradient(loss, student, teacher)).all()


def test_names() -> None:
    named = {"soft": soft_cross_entropy, "kl": kl_divergence, "alpha": adaptive_alpha_divergence}
    assert {name: distillation(name) for name in DISTILLATIONS} == named


class TestClassBalance:
    @given(
        labels=st.lists(st.integers(0, 4), min_size=1, max_size=40).map(lambda found: torch.tensor(found)),
        balance=st.floats(0.01, 1),
    )
    def test_rare_classes_count_more_and_an_image_counts_one_on_average(self, labels: Tensor, balance: float) -> None:
        weights_K = class_weights(labels, 6, balance)
        assert weights_K is not None
        assert weights_K[labels].mean().item() == pytest.approx(1, rel=1e-5)
        counts = torch.bincount(labels, minlength=6).tolist()
        there = [k for k in range(6) if counts[k]]
        for k in there:
            expected = (counts[there[0]] / counts[k]) ** balance
            assert (weights_K[k] / weights_K[there[0]]).item() == pytest.approx(expected, rel=1e-4)
        assert all(weights_K[k] == 1 for k in range(6) if not counts[k])

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_wholly_balanced_is_as_if_each_class_had_as_many_images(self, smoothing: float) -> None:
        """Three images of class 0 and one of class 2, against the same with that one three times."""
        labels, x = torch.tensor([0, 0, 0, 2]), logits(3, batch=4, classes=3)
        weights_K = class_weights(labels, 3, 1.0)
        assert weights_K is not None
        found = label_loss(x, labels, weights_K.double(), label_smoothing=smoothing)
        rows = torch.tensor([0, 1, 2, 3, 3, 3])
        expected = label_loss(x[rows], labels[rows], None, label_smoothing=smoothing)
        assert found.item() == pytest.approx(expected.item())

    def test_mixed_labels_count_by_their_parts(self) -> None:
        x, weights_K = logits(5, batch=2, classes=2), torch.tensor([0.5, 2.0], dtype=torch.float64)
        labels = torch.tensor([[1.0, 0.0], [0.25, 0.75]], dtype=torch.float64)
        whole = label_loss(x[:1], torch.tensor([0]), weights_K)
        assert label_loss(x[:1], labels[:1], weights_K).item() == pytest.approx(whole.item())
        log_p = x[1].log_softmax(0)
        by_hand = (0.25 * 0.5 + 0.75 * 2.0) * -(0.25 * log_p[0] + 0.75 * log_p[1])
        assert label_loss(x[1:], labels[1:], weights_K).item() == pytest.approx(by_hand.item())

    def test_none_is_none(self) -> None:
        assert class_weights(torch.tensor([0, 1, 1]), 2, 0.0) is None
