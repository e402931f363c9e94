"""A network that concatenates its maps again and again: each cost joins all the widths before it."""

import math
from functools import cache
from pathlib import Path

import pytest
import torch
from tests.support.own_networks import Dense

from trainonce.cost.macs import counted_cost
from trainonce.cost.partial import MOST_STATES, PartialCosts
from trainonce.data import load_dataset
from trainonce.models.traced import Traced, elastic
from trainonce.recipes import RECIPES
from trainonce.run.directory import RunDirectory
from trainonce.sampling import MacsSampler
from trainonce.space import derived_rng
from trainonce.training.loop import train_supernet


@cache
def net() -> Traced:
    torch.manual_seed(0)
    return elastic(Dense(), torch.zeros(2, 1, 8, 8), resolutions=(4,))


def test_ten_widths_make_as_many_states_as_sums() -> None:
    """Each width is 1 to 4 times 8 channels, at one of two sizes of images: after k of them 3 k + 1 sums."""
    widths = net().space.choices[1:]
    assert math.prod(len(choice.values) for choice in widths) > MOST_STATES
    assert [len(states) for states in PartialCosts(net().cost).steps[1:]] == [2 * (3 * k + 1) for k in range(10)]


@pytest.mark.parametrize("seed", range(8))
def test_the_macs_of_any_subnet_can_be_asked_for(seed: int) -> None:
    rng = derived_rng(seed)
    macs = net().cost_of(net().space.sample(rng)).macs
    arch = MacsSampler(net().cost).sample(rng, macs, macs)
    assert counted_cost(net().describe(arch)).macs == macs


def test_it_is_trained(tmp_path: Path) -> None:
    data = load_dataset("digits", train_images=64)
    run = RunDirectory(tmp_path / "run")
    recipe = RECIPES["transfer"]
    assert train_supernet(net(), recipe.scaled(4 / recipe.epochs), data, run, seed=0)
    lines = run.metrics()
    assert lines
    assert all(math.isfinite(line.loss) for line in lines)
