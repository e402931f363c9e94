"""Losses against labels and a teacher's output. Logits are [B, classes]; a loss is the mean over the batch."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from trainonce.names import import_named
from trainonce.recipes import DISTILLATIONS

ALPHAS = (-1.0, 1.0)
RATIO_LIMIT = 5.0


def class_weights(labels_N: Tensor, classes: int, balance: float) -> Tensor | None:
    """How much an image of each class counts, [classes]: (images of its class) ** -balance, scaled to a mean of 1 over
    the images with these labels; 1 for a class that none has. None for a balance of 0, where all count the same.

    With 1 every class has the same part in the loss (Cui 2019, arXiv 1901.05555, gives the powers in between).
    """
    if balance == 0:
        return None
    counts_K = torch.bincount(labels_N, minlength=classes).double()
    weights_K = counts_K.clamp(min=1) ** -balance
    weights_K *= counts_K.sum() / (counts_K * weights_K).sum()
    return torch.where(counts_K > 0, weights_K, 1.0).float()


def label_loss(logits_BK: Tensor, y: Tensor, weights_K: Tensor | None, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with labels [B], or [B, classes] where images may be mixed; each counts what its class does."""
    if weights_K is None:
        return F.cross_entropy(logits_BK, y, label_smoothing=label_smoothing)
    loss_B = F.cross_entropy(logits_BK, y, label_smoothing=label_smoothing, reduction="none")
    return (loss_B * (weights_K[y] if y.dim() == 1 else y @ weights_K)).mean()


def soft_cross_entropy(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """Cross-entropy with the teacher's probabilities as labels (OFA, arXiv 1908.09791, code)."""
    return -(teacher_BK.softmax(1) * student_BK.log_softmax(1)).sum(1).mean()


def kl_divergence(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """KL divergence of the student from the teacher (BigNAS, arXiv 2003.11142)."""
    log_p, log_q = teacher_BK.log_softmax(1), student_BK.log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def adaptive_alpha_divergence(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """For each image the larger of the alpha-divergences at alpha -1 and 1 (AlphaNet, arXiv 2102.07954).

    The value is the divergence; the gradient is that of the paper's surrogate, which clips the ratio of
    teacher to student at 5 and reaches the student through its log-probabilities only.
    """
    log_p, log_q = teacher_BK.log_softmax(1), student_BK.log_softmax(1)
    pairs = [_alpha_divergence(log_p, log_q, alpha) for alpha in ALPHAS]
    values = torch.stack([value for value, _ in pairs])
    surrogates = torch.stack([surrogate for _, surrogate in pairs])
    larger_B = values.argmax(0, keepdim=True)
    value, surrogate = (terms.gather(0, larger_B).mean() for terms in (values, surrogates))
    return value.detach() + surrogate - surrogate.detach()


def _alpha_divergence(log_p: Tensor, log_q: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """The divergence of each image, detached, and the surrogate whose gradient is used."""
    p, q = log_p.exp(), log_q.detach().exp()
    if alpha == 1:
        return (p * (log_p - log_q.detach())).sum(1), -(p * log_q).sum(1)
    ratio = (alpha * (log_p - log_q.detach())).exp().clamp(max=RATIO_LIMIT)
    value = (q * (ratio - 1) / (alpha * (alpha - 1))).sum(1)
    rho = ratio / alpha + 1 / (alpha * (alpha - 1))
    return value, -(q * rho * log_q).sum(1)


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "soft": soft_cross_entropy,
    "kl": kl_divergence,
    "alpha": adaptive_alpha_divergence,
}
assert tuple(_LOSSES) == DISTILLATIONS


def distillation(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a name that a phase may give: a function of the logits of student and teacher.

    Raises `UserError` where a person's own, `package.module:name`, cannot be imported.
    """
    return _LOSSES[name] if name in _LOSSES else import_named(name, "loss", _LOSSES)
