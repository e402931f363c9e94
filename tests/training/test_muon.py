"""Muon against singular value decompositions in float64."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trainonce.models import MobileNetV3
from trainonce.recipes import Phase, Recipe
from trainonce.training.muon import (
    LONGEST_SHORT_SIDE,
    POLYNOMIALS,
    Matrix,
    as_matrix,
    inverse_roots,
    orthogonal_step,
    scale_of,
    takes_orthogonal_steps,
)
from trainonce.training.optimizers import optimizer_for, set_lr, stepper_for

SHAPES = ((6, 4, 3, 3), (4, 40, 1, 1), (40, 4, 1, 1), (4, 8, 5, 5), (1, 9, 1, 1))


def raised(values: Tensor) -> Tensor:
    """What the polynomials make of singular values."""
    for a, b, c in POLYNOMIALS:
        values = a * values + b * values**3 + c * values**5
    return values


def factor(of_MN: Tensor) -> Tensor:
    """A matrix with its singular values raised, from its decomposition."""
    left, values, right = torch.linalg.svd(of_MN.double(), full_matrices=False)
    found: Tensor = left @ torch.diag(raised(values / values.norm())) @ right
    return found


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrices(shapes: Sequence[Sequence[int]]) -> list[Matrix]:
    weights = [nn.Parameter(drawn(*shape, seed=at)) for at, shape in enumerate(shapes)]
    return [Matrix(weight, torch.zeros_like(weight), scale_of(weight)) for weight in weights]


def test_polynomials_are_the_nearest_to_one() -> None:
    """Each errs by as much to both sides, four times by turns (Chebyshev), on what the one before leaves."""
    low, high = 0.01, 1.0
    for a, b, c in POLYNOMIALS:
        x = torch.linspace(low, high, 200_001, dtype=torch.float64)
        error = a * x + b * x**3 + c * x**5 - 1
        inside = (error[1:-1] - error[:-2]) * (error[2:] - error[1:-1]) < 0
        extremes = torch.cat([error[:1], error[1:-1][inside], error[-1:]])
        assert len(extremes) == 4
        torch.testing.assert_close(
            extremes * torch.tensor([-1, 1, -1, 1]), extremes.abs().max().expand(4), rtol=2e-2, atol=0
        )
        low, high = 1 + float(error.min()), 1 + float(error.max())
    assert low == pytest.approx(0.73, abs=0.005)
    assert high == pytest.approx(1.27, abs=0.005)
    small = torch.logspace(-9, -2, 500, dtype=torch.float64)
    assert raised(small).max() < 1.28
    assert raised(small).diff().min() > 0


@given(rows=st.integers(1, 24), more=st.integers(0, 40), count=st.integers(1, 3), scale=st.floats(1e-6, 1e6))
def test_roots_of_grams_are_those_of_the_decompositions(rows: int, more: int, count: int, scale: float) -> None:
    U_KMN = drawn(count, rows, rows + more, seed=rows) * scale
    found = inverse_roots(U_KMN @ U_KMN.mT) @ U_KMN
    for one, U_MN in zip(found, U_KMN, strict=True):
        torch.testing.assert_close(one.double(), factor(U_MN), atol=2e-3, rtol=0)


def test_a_gradient_of_zeros_and_none_at_all_move_nothing() -> None:
    [one, idle] = matrices([(4, 6, 1, 1), (4, 6, 1, 1)])
    before = one.weight.detach().clone(), idle.weight.detach().clone()
    one.weight.grad = torch.zeros_like(one.weight)
    idle.momentum_MN.fill_(1.0)
    orthogonal_step([idle], lr=0.1, momentum=0.9, weight_decay=0.1)
    orthogonal_step([one, idle], lr=0.1, momentum=0.9, weight_decay=0.0)
    assert torch.equal(one.weight, before[0])
    assert torch.equal(idle.weight, before[1]), "a momentum that fades would move it as far as one that does not"
    assert idle.momentum_MN.eq(1).all()


def test_a_step_is_that_of_the_formula() -> None:
    """Of matrices of all shapes together, and of each by itself; twice, for the momentum."""
    those, lr, momentum, decay = matrices(SHAPES), 0.1, 0.8, 0.3
    expected = [one.weight.detach().double() for one in those]
    momenta = [torch.zeros_like(weight) for weight in expected]
    norms = [weight.norm() for weight in expected]
    for step in range(2):
        for at, one in enumerate(those):
            gradient = drawn(*one.weight.shape, seed=100 * step + at)
            one.weight.grad = gradient
            momenta[at] = momentum * momenta[at] + gradient.double()
            ahead = as_matrix(gradient.double() + momentum * momenta[at])
            by = factor(ahead) * norms[at] / len(ahead) ** 0.5
            weight_MN = as_matrix(expected[at])
            weight_MN.mul_(1 - lr * decay).sub_(lr * by)
        orthogonal_step(those, lr=lr, momentum=momentum, weight_decay=decay)
        for one, weight, mean in zip(those, expected, momenta, strict=True):
            torch.testing.assert_close(one.weight.detach().double(), weight, atol=3e-3, rtol=0)
            torch.testing.assert_close(one.momentum_MN.double(), as_matrix(mean))


def test_a_weight_that_lies_with_its_channels_innermost_takes_the_same_step() -> None:
    shape, gradient = (6, 4, 3, 3), drawn(6, 4, 3, 3, seed=5)
    [one] = matrices([shape])
    weight = nn.Parameter(one.weight.detach().clone().contiguous(memory_format=torch.channels_last))
    other = Matrix(weight, torch.zeros_like(weight), scale_of(weight))
    one.weight.grad, weight.grad = gradient, gradient.clone()
    orthogonal_step([one, other], lr=0.1, momentum=0.9, weight_decay=0.1)
    torch.testing.assert_close(weight, one.weight)


def test_a_rate_of_one_moves_a_matrix_by_about_its_norm() -> None:
    for one in matrices(SHAPES):
        before = one.weight.detach().clone()
        one.weight.grad = drawn(*before.shape, seed=9)
        orthogonal_step([one], lr=1.0, momentum=0.0, weight_decay=0.0)
        assert (one.weight.detach() - before).norm() == pytest.approx(float(before.norm()), rel=0.28)
    zeros = nn.Parameter(torch.zeros(4, 6, 1, 1))
    assert scale_of(zeros) == 1


def test_columns_that_no_subnet_had_yet_stay_and_those_that_one_had_go_on() -> None:
    [one] = matrices([(4, 12, 1, 1)])
    before, gradient = one.weight.detach().clone(), drawn(4, 12, 1, 1, seed=7)
    gradient[:, 8:] = 0
    one.weight.grad = gradient
    orthogonal_step([one], lr=0.1, momentum=0.9, weight_decay=0.0)
    assert torch.equal(one.weight[:, 8:], before[:, 8:])
    by = factor(as_matrix(1.9 * gradient[:, :8])) * float(one.scale)
    after = one.weight.detach().clone()
    torch.testing.assert_close(
        as_matrix(before[:, :8] - one.weight.detach()[:, :8]).double(), 0.1 * by, atol=1e-3, rtol=0
    )
    one.weight.grad = gradient.roll(8, dims=1)  # the first four columns of eight are left out
    orthogonal_step([one], lr=0.1, momentum=0.9, weight_decay=0.0)
    left_out, used = ((one.weight - after).detach()[:, part].norm() for part in (slice(4, 8), slice(8, 12)))
    assert 0.3 * used < left_out < used, "by their momentum"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 3, 3, 3), True),
        ((8, 8, 1, 1), True),
        ((8, 1, 3, 3), False),
        ((1, 8, 1, 1), False),
        ((10, 64), False),
        ((64,), False),
        ((LONGEST_SHORT_SIDE, 480, 1, 1), True),
        ((LONGEST_SHORT_SIDE + 1, 480, 1, 1), False),
    ],
)
def test_which_weights_are_such_matrices(shape: tuple[int, ...], expected: bool) -> None:
    assert takes_orthogonal_steps(torch.zeros(shape)) == expected


class TestOptimizer:
    @pytest.fixture
    def recipe(self) -> Recipe:
        phase = Phase(name="all", epochs=1, lr=0.01, backbone_lr=0.5)
        return Recipe(name="own", about="x", phases=(phase,), optimizer="muon", matrix_decay=0.2, weight_decay=0.01)

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_matrices_and_all_else(self, make_net: Callable[..., MobileNetV3], recipe: Recipe, momentum: float) -> None:
        """What are no matrices take the steps of SGD, the head's too; decay and rates are those of each."""
        recipe = recipe.model_copy(update={"momentum": momentum})
        nets = make_net(), make_net()
        ours = optimizer_for(nets[0], recipe, recipe.phases[0], nets[0].head())
        plain = optimizer_for(
            *(nets[1], recipe.model_copy(update={"optimizer": "sgd"}), recipe.phases[0], nets[1].head())
        )
        step = stepper_for(ours)
        set_lr(ours, 0.02)
        set_lr(plain, 0.02)
        named = dict(nets[0].named_parameters())
        ms = {
            name: Matrix(nn.Parameter(p.detach().clone()), torch.zeros_like(p), scale_of(p))
            for name, p in named.items()
            if takes_orthogonal_steps(p) and name not in nets[0].head()
        }
        assert 0 < len(ms) < len(named)
        for turn in range(2):
            for at, pair in enumerate(zip(*(net.parameters() for net in nets), strict=True)):
                for parameter in pair:
                    parameter.grad = drawn(*parameter.shape, seed=1000 * turn + at)
            for name, one in ms.items():
                one.weight.grad = named[name].grad
            step() if turn else ours.step()
            plain.step()
            orthogonal_step(list(ms.values()), lr=0.01, momentum=momentum, weight_decay=0.2)
        for (name, found), other in zip(named.items(), nets[1].parameters(), strict=True):
            assert torch.equal(found, ms[name].weight if name in ms else other), name
