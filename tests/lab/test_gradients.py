"""Gradient agreement against cases with a known answer."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.errors import UserError
from trainonce.lab.measures.gradients import gradient_agreement, gradient_of
from trainonce.models import MobileNetV3

nan = float("nan")


def linear(directions: list[Tensor], weight: Tensor) -> list[Callable[[Tensor], Tensor]]:
    """Tasks whose gradient by `weight` is a direction plus the batch: <direction + noise, weight>."""
    return [lambda noise, d=d: ((d + noise) * weight).sum() for d in directions]  # type: ignore[misc]


class TestKnownAngles:
    def test_equal_orthogonal_opposed(self) -> None:
        w = torch.zeros(4, requires_grad=True)
        one, other = torch.tensor([1.0, 1, 0, 0]), torch.tensor([1.0, -1, 0, 0])
        losses = linear([one, 2 * one, other, -one], w)
        # no noise, and every task uses all four weights: two of their gradients are the same small number
        batches = [torch.zeros(4)] * 3
        found = gradient_agreement(losses, {"w": w}, lambda: batches)
        assert found.agreement == pytest.approx(
            np.array([[1, 1, 0, -1], [1, 1, 0, -1], [0, 0, 1, 0], [-1, -1, 0, 1]], float)
        )
        assert found.control == pytest.approx(np.ones(4))
        assert found.conflict.tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]]
        assert w.grad is None

    def test_an_angle(self) -> None:
        w = torch.zeros(2, requires_grad=True)
        angle = 0.7
        losses = linear([torch.tensor([1.0, 1e-9]), 3 * torch.tensor([np.cos(angle), np.sin(angle)]).float()], w)
        found = gradient_agreement(losses, {"w": w}, lambda: [torch.zeros(2)] * 2)
        assert found.agreement[0, 1] == pytest.approx(np.cos(angle), abs=1e-6)

    def test_by_brute_force(self) -> None:
        """Three batches of noise: all six ordered pairs, summed one by one."""
        torch.manual_seed(0)
        w = torch.zeros(5, requires_grad=True)
        directions, batches = [torch.randn(5) for _ in range(3)], [torch.randn(5) for _ in range(3)]
        found = gradient_agreement(linear(directions, w), {"w": w}, lambda: batches)
        g = [[(d + noise).double() for noise in batches] for d in directions]
        pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
        for a in range(3):
            own_a = sum(float(g[a][i] @ g[a][j]) for i, j in pairs)
            assert found.control[a] == pytest.approx(own_a / 2 / sum(float(x @ x) for x in g[a]), rel=1e-4)
            for b in range(3):
                across = sum(float(g[a][i] @ g[b][j]) for i, j in pairs)
                own_b = sum(float(g[b][i] @ g[b][j]) for i, j in pairs)
                expected = across / (own_a * own_b) ** 0.5 if min(own_a, own_b) > 0 else nan
                assert found.agreement[a, b] == pytest.approx(expected, rel=1e-3, nan_ok=True)
                consecutive = [g[a][i] @ g[b][i + 1] < 0 for i in (0, 1)] + [g[a][i + 1] @ g[b][i] < 0 for i in (0, 1)]
                assert found.conflict[a, b] == sum(map(bool, consecutive)) / 4

    def test_noise_is_corrected_for(self) -> None:
        """True cosine 0.6; noise of each batch as large as the signal, shared by both tasks."""
        torch.manual_seed(1)
        size = 2000
        base, third = torch.randn(size), torch.randn(size)
        w = torch.zeros(size, requires_grad=True)
        losses = linear([base, 0.6 * base + 0.8 * third], w)
        batches = [torch.randn(size) for _ in range(16)]
        found = gradient_agreement(losses, {"w": w}, lambda: batches)
        truth = float(F.cosine_similarity(base, 0.6 * base + 0.8 * third, dim=0))
        assert found.agreement[0, 1] == pytest.approx(truth, abs=0.03)
        assert found.control == pytest.approx([0.5, 0.5], abs=0.05)  # signal over signal and noise
        same_batch = float(F.cosine_similarity(base + batches[0], 0.6 * base + 0.8 * third + batches[0], dim=0))
        assert same_batch > truth + 0.1, "the naive cosine is inflated"


class TestErrors:
    def test_they_are_the_jackknifes(self) -> None:
        """All figures anew without each batch, by numpy, on two layers; sqrt((N - 1) / N Σ (θ_i - mean)²)."""
        torch.manual_seed(2)
        one, two = torch.zeros(5, requires_grad=True), torch.zeros(3, requires_grad=True)
        directions, batches = torch.randn(3, 8) + 1, [torch.randn(8) for _ in range(6)]
        losses: list[Callable[[Tensor], Tensor]] = [
            lambda noise, d=d: ((d + noise) * torch.cat([one, two])).sum()  # type: ignore[misc]
            for d in directions
        ]
        found = gradient_agreement(losses, {"one.w": one, "two.w": two}, lambda: batches)
        g_NPD = np.array([[(d + noise).numpy() for d in directions] for noise in batches], float)

        def figures(kept: list[int], columns: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
            g = g_NPD[kept][:, :, columns]
            pairs = [(i, j) for i in range(len(g)) for j in range(len(g)) if i != j]
            products = np.mean([g[i] @ g[j].T for i, j in pairs], axis=0)
            own = np.diagonal(products)
            return products / np.sqrt(np.outer(own, own)), own / np.mean((g * g).sum(axis=2), axis=0)

        def error(values: list[np.ndarray]) -> np.ndarray:
            spread = np.array(values) - np.mean(values, axis=0)
            return np.sqrt(5 / 6 * (spread**2).sum(axis=0))  # type: ignore[no-any-return]

        without = [[i for i in range(6) if i != k] for k in range(6)]
        assert found.agreement == pytest.approx(figures(list(range(6)))[0], rel=1e-4)
        assert found.agreement_error == pytest.approx(error([figures(kept)[0] for kept in without]), rel=1e-3, abs=1e-6)
        assert found.control_error == pytest.approx(error([figures(kept)[1] for kept in without]), rel=1e-3)
        second = error([figures(kept, slice(5, 8))[0] for kept in without])
        assert found.layers_error["two"] == pytest.approx(second, rel=1e-3, abs=1e-6)
        different = ~np.eye(3, dtype=bool)
        assert found.mean == pytest.approx(found.agreement[different].mean())
        means = [figures(kept)[0][different].mean() for kept in without]
        assert found.mean_error == pytest.approx(error(means), rel=1e-3)
        assert np.diagonal(found.agreement_error) == pytest.approx(np.zeros(3), abs=1e-6)
        assert found.batches == 6

    def test_they_are_as_large_as_the_figures_spread_over_other_batches(self) -> None:
        """Two hundred measurements of the same two tasks, each on twelve batches of its own."""
        torch.manual_seed(3)
        size = 30
        w = torch.zeros(size, requires_grad=True)
        base, other = torch.randn(size), torch.randn(size)
        losses = linear([base, 0.6 * base + 0.8 * other], w)
        found = [
            gradient_agreement(losses, {"w": w}, partial(list, noise_BD)) for noise_BD in torch.randn(200, 12, size)
        ]
        spread = np.std([one.agreement[0, 1] for one in found], ddof=1)
        assert np.sqrt(np.mean([one.agreement_error[0, 1] ** 2 for one in found])) == pytest.approx(spread, rel=0.2)

    def test_conflicts_without_one_batch_leave_its_pairs_out(self) -> None:
        """Signs + + - + of one weight, both tasks alike: pairs agree, conflict, conflict. Without the first batch two
        of two conflict, without the second one of one, without the third none of one, without the last one of two."""
        w = torch.zeros(1, requires_grad=True)
        losses: list[Callable[[float], Tensor]] = [lambda sign: (sign * w).sum()] * 2
        found = gradient_agreement(losses, {"w": w}, lambda: [1.0, 1.0, -1.0, 1.0])
        assert found.conflict[0, 1] == pytest.approx(2 / 3)
        spread = np.array([1, 1, 0, 0.5]) - 0.625
        assert found.conflict_error[0, 1] == pytest.approx(np.sqrt(3 / 4 * (spread**2).sum()))

    def test_two_batches_have_none(self) -> None:
        w = torch.zeros(2, requires_grad=True)
        found = gradient_agreement(linear([torch.ones(2)] * 2, w), {"w": w}, lambda: [torch.zeros(2)] * 2)
        for error in (found.agreement_error, found.control_error, found.conflict_error, found.mean_error):
            assert np.isnan(error).all()


class TestSharedWeights:
    def test_only_weights_that_both_use(self) -> None:
        """The tasks agree on the one weight that they share and have large gradients elsewhere."""
        shared, mine, theirs = (torch.ones(1, requires_grad=True) for _ in range(3))
        losses: list[Callable[[float], Tensor]] = [
            lambda scale: scale * (shared + 100 * mine).sum(),
            lambda scale: scale * (shared + 100 * theirs).sum(),
        ]
        parameters = {"shared.w": shared, "mine.w": mine, "theirs.w": theirs}
        found = gradient_agreement(losses, parameters, lambda: [1.0, 2.0])
        assert found.agreement == pytest.approx(np.ones((2, 2)))
        assert found.layers["shared"] == pytest.approx(np.ones((2, 2)))
        assert np.isnan(found.layers["mine"][0, 1])
        assert found.layers["mine"][0, 0] == pytest.approx(1)
        assert np.isnan(found.layers["mine"][1, 1])

    def test_slices_of_one_weight(self) -> None:
        weight = torch.ones(3, requires_grad=True)
        losses: list[Callable[[float], Tensor]] = [
            lambda scale: scale * (weight * torch.tensor([1.0, 1.0, 50.0])).sum(),
            lambda scale: scale * (weight[:2] * torch.tensor([1.0, -1.0])).sum(),
        ]
        found = gradient_agreement(losses, {"w": weight}, lambda: [1.0, 1.0])
        assert found.agreement[0, 1] == pytest.approx(0)
        opposed = [losses[0], lambda scale: -losses[0](scale)]
        assert gradient_agreement(opposed, {"w": weight}, lambda: [1.0, 1.0]).agreement[0, 1] == pytest.approx(-1)

    def test_nothing_in_common_is_not_a_number(self) -> None:
        one, other = (torch.ones(2, requires_grad=True) for _ in range(2))
        losses: list[Callable[[int], Tensor]] = [lambda _: one.sum(), lambda _: other.sum()]
        found = gradient_agreement(losses, {"one": one, "other": other}, lambda: [0, 1])
        assert np.isnan(found.agreement).tolist() == [[False, True], [True, False]]
        assert found.conflict.tolist() == [[0, 0], [0, 0]]

    @pytest.mark.parametrize("count", [0, 1])
    def test_too_few_batches(self, count: int) -> None:
        w = torch.ones(1, requires_grad=True)
        losses: list[Callable[[int], Tensor]] = [lambda _: w.sum()]
        with pytest.raises(UserError, match="two batches or more"):
            gradient_agreement(losses, {"w": w}, lambda: range(count))


class TestOnNetworks:
    def test_a_module(self) -> None:
        """Two heads on a body, one learning the opposite of the other: opposed on the body."""
        torch.manual_seed(0)
        body = nn.Linear(4, 1, bias=False)

        def loss(sign: float) -> Callable[[Tensor], Tensor]:
            return lambda x: (sign * body(x)).mean()

        batches = [torch.rand(8, 4) for _ in range(4)]
        found = gradient_agreement([loss(1), loss(-3)], dict(body.named_parameters()), lambda: batches)
        assert found.agreement[0, 1] == pytest.approx(-1, abs=1e-5)
        assert found.conflict[0, 1] == 1

    def test_a_supernets_unused_weights_have_no_gradient(self, make_net: Callable[..., MobileNetV3]) -> None:
        net = make_net(dropout=0.0).train()
        x, y = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
        x = x.contiguous(memory_format=torch.channels_last)
        small = net.space.smallest()
        gradient = gradient_of(lambda b: F.cross_entropy(net(b[0], small), b[1]), dict(net.named_parameters()), (x, y))
        for name, tensor in gradient.items():
            used = "block2" not in name and "transforms" not in name
            assert bool(tensor.abs().sum() > 0) or not used or "kernel" in name or tensor.ndim == 1, name
            assert bool(tensor.abs().sum() == 0) or "block2" not in name
        width = net.describe(small).blocks[1].mid_channels
        expand = gradient["blocks.stage1_block1.expand.weight"]
        assert float(expand[:width].abs().sum()) > 0
        assert float(expand[width:].abs().sum()) == 0
