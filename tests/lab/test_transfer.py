"""Loss transfer against what can be computed by hand."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.errors import UserError
from trainonce.lab.measures.transfer import Transfer, loss_transfer


def quadratic(w: Tensor, target: Tensor) -> Callable[[float], Tensor]:
    """The loss scale * |w - target|² / 2 of a batch that is a scale; its gradient is scale * (w - target)."""
    return lambda scale: scale * (w - target).square().sum() / 2


class TestByHand:
    def test_quadratic_losses(self) -> None:
        """From w = 0: Z(b -> a) = 1 - |lr s t_b - t_a|² / |t_a|², whatever the held-out scale."""
        w = torch.zeros(2, requires_grad=True)
        targets = [torch.tensor(t) for t in ([2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [2.0, 2.0])]
        lr, scale = 0.1, 3.0
        found = loss_transfer([quadratic(w, t) for t in targets], {"w": w}, [(scale, 5.0)], lr=lr)
        for a, mine in enumerate(targets):
            for b, theirs in enumerate(targets):
                by_hand = 1 - float((lr * scale * theirs - mine).square().sum() / mine.square().sum())
                assert found.z[a, b] == pytest.approx(by_hand, abs=1e-6)
                own = 1 - (1 - lr * scale) ** 2
                assert found.r[a, b] == pytest.approx(by_hand / own, abs=1e-6)
        assert found.r[0, 0] == pytest.approx(1)
        assert found.z[0, 2] < 0 < found.z[0, 3], "an opposed task harms, one that is half alike helps"
        assert found.z[0, 1] == pytest.approx(-((lr * scale) ** 2), abs=1e-6), "an orthogonal one harms a little"
        assert w.tolist() == [0, 0]
        assert w.grad is None

    def test_a_linear_model(self) -> None:
        """One output, one image: the loss (w x - y)² with x = 2, y = 1, and a held-out image x = 1, y = 1."""
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 0.0)

        def loss(batch: tuple[float, float]) -> Tensor:
            x, y = batch
            return F.mse_loss(model(torch.tensor([[x]])), torch.tensor([[y]]))

        found = loss_transfer([loss], dict(model.named_parameters()), [((2.0, 1.0), (1.0, 1.0))], lr=0.05)
        # the gradient is 2 * 2 * (0 - 1) = -4, so w becomes 0.2 and the held-out loss 0.8² of 1
        assert found.z[0, 0] == pytest.approx(1 - 0.64)
        assert found.r[0, 0] == 1

    def test_the_mean_over_batches_and_its_error(self) -> None:
        w = torch.zeros(1, requires_grad=True)
        losses = [quadratic(w, torch.tensor([1.0])), quadratic(w, torch.tensor([-1.0]))]
        found = loss_transfer(losses, {"w": w}, [(1.0, 1.0), (2.0, 1.0)], lr=0.1)
        own = [1 - 0.9**2, 1 - 0.8**2]
        assert found.z[0, 0] == pytest.approx(np.mean(own))
        assert found.z_error[0, 0] == pytest.approx(np.std(own, ddof=1) / 2**0.5)
        other = [1 - 1.1**2, 1 - 1.2**2]
        assert found.z[0, 1] == pytest.approx(np.mean(other))
        assert found.errors_beyond_noise() == pytest.approx(1 / np.tan(0.025 * np.pi)), "a Cauchy quantile; two pairs"
        assert not found.harmful().any(), "two batches show next to nothing"

    def test_r_has_the_jackknifes_error(self) -> None:
        """Four pairs of batches: R anew without each, by numpy."""
        w = torch.zeros(1, requires_grad=True)
        losses = [quadratic(w, torch.tensor([1.0])), quadratic(w, torch.tensor([-2.0]))]
        scales = np.array([1.0, 2.0, 1.5, 0.7])
        found = loss_transfer(losses, {"w": w}, [(float(s), 1.0) for s in scales], lr=0.1)
        own, other = 1 - (1 - 0.1 * scales) ** 2, 1 - (1 + 0.2 * scales) ** 2
        without = np.array([np.delete(other, i).mean() / np.delete(own, i).mean() for i in range(4)])
        error = np.sqrt(3 / 4 * ((without - without.mean()) ** 2).sum())
        assert found.r[0, 1] == pytest.approx(other.mean() / own.mean(), rel=1e-5)
        assert found.r_error[0, 1] == pytest.approx(error, rel=1e-4)
        assert found.r_error[0, 0] == pytest.approx(0, abs=1e-9)
        assert found.mean_r == pytest.approx((found.r[0, 1] + found.r[1, 0]) / 2)
        assert found.mean_r_error > 0

    def test_what_is_beyond_noise(self) -> None:
        """Eight batches, nearly alike: what harms and what helps is seen."""
        w = torch.zeros(1, requires_grad=True)
        losses = [quadratic(w, torch.tensor([1.0])), quadratic(w, torch.tensor([-1.0]))]
        found = loss_transfer(losses, {"w": w}, [(1 + i / 50, 1.0) for i in range(8)], lr=0.1)
        assert found.harmful().tolist() == [[False, True], [True, False]]
        assert found.helpful().tolist() == [[True, False], [False, True]]

    def test_many_pairs_of_nothing_are_not_harm(self) -> None:
        """Where no pair has any effect, harm is found in at most one measurement of twenty, over all pairs together."""
        rng = np.random.default_rng(0)
        some = 0
        for _ in range(400):
            found = rng.normal(size=(8, 6, 6))
            z, error = found.mean(axis=0), found.std(axis=0, ddof=1) / 8**0.5
            measured = Transfer(z=z, z_error=error, batches=8, r=z, r_error=error, mean_r=0.0, mean_r_error=0.0)
            some += bool((measured.harmful() & ~np.eye(6, dtype=bool)).any())
        assert 2 <= some <= 34, "20 expected of 400; two standard errors would find it in about 300"

    def test_one_batch_has_no_error(self) -> None:
        w = torch.zeros(1, requires_grad=True)
        found = loss_transfer([quadratic(w, torch.ones(1))], {"w": w}, [(1.0, 1.0)], lr=0.1)
        assert np.isnan(found.z_error).all()
        assert not found.harmful().any()
        assert not found.helpful().any()

    def test_steps_that_do_not_help_themselves(self) -> None:
        w = torch.zeros(1, requires_grad=True)
        found = loss_transfer([quadratic(w, torch.ones(1))], {"w": w}, [(1.0, 1.0)], lr=3.0)
        assert found.z[0, 0] == pytest.approx(1 - 4)
        assert np.isnan(found.r[0, 0])


def test_weights_come_back_to_the_last_bit() -> None:
    torch.manual_seed(0)
    w = torch.randn(50, requires_grad=True)
    before = w.detach().clone()
    loss_transfer([quadratic(w, torch.randn(50)) for _ in range(3)], {"w": w}, [(1.0, 1.0)] * 3, lr=0.37)
    assert torch.equal(w, before)


def test_refusals() -> None:
    w = torch.zeros(1, requires_grad=True)
    with pytest.raises(UserError, match="at least one batch"):
        loss_transfer([quadratic(w, torch.ones(1))], {"w": w}, [], lr=0.1)
    with pytest.raises(UserError, match="losses above zero"):
        loss_transfer([quadratic(w, torch.zeros(1))], {"w": w}, [(1.0, 1.0)], lr=0.1)
