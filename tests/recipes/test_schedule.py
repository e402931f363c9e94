"""Lengths, holds and learning rates, laid out in steps."""

import math
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.recipes import RECIPES, Phase, Recipe, largest_alone, phase_at, phases_of_largest, reached, timetable

NAMES = tuple(RECIPES)


class TestValues:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("factor", [0.01, 3.0])
    def test_scaled_keeps_proportions(self, name: str, factor: float) -> None:
        recipe = RECIPES[name]
        scaled = recipe.scaled(factor)
        assert scaled.passes == pytest.approx(recipe.passes * factor)
        for before, after in zip(recipe.phases, scaled.phases, strict=True):
            assert after.epochs == pytest.approx(before.epochs * factor)
            assert after.ramp_epochs == pytest.approx(before.ramp_epochs * factor)
            assert after.lr == before.lr
            assert after.hold_epochs == pytest.approx(before.hold_epochs * factor)
            assert after.warmup_epochs == pytest.approx(before.warmup_epochs * factor)
        assert recipe == RECIPES[name]

    def test_batch_size_scales_the_learning_rate(self) -> None:
        recipe = RECIPES["ps"]
        bigger = recipe.with_batch_size(256)
        assert bigger.batch_size == 256
        assert [p.lr for p in bigger.phases] == pytest.approx([4 * p.lr for p in recipe.phases])
        assert bigger.with_batch_size(64) == recipe

    @pytest.mark.parametrize("optimizer", ["adamw", "muon"])
    def test_batch_size_scales_the_rate_of_others_by_its_root(self, optimizer: str) -> None:
        recipe = RECIPES["ps"].model_copy(update={"optimizer": optimizer})
        assert recipe.finetuned_by == {"adamw": "adamw", "muon": "sgd"}[optimizer]
        bigger = recipe.with_batch_size(256)
        assert bigger.batch_size == 256
        assert [p.lr for p in bigger.phases] == pytest.approx([2 * p.lr for p in recipe.phases])
        assert bigger.with_batch_size(64) == recipe

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(("factor", "steps_per_epoch"), [(1.0, 625), (0.013, 7), (1e-6, 1)])
    def test_timetable_is_contiguous(self, name: str, factor: float, steps_per_epoch: int) -> None:
        recipe = RECIPES[name].scaled(factor)
        table = timetable(recipe, steps_per_epoch)
        assert [entry.phase for entry in table] == list(recipe.phases)
        assert [entry.index for entry in table] == list(range(len(table)))
        assert [entry.start for entry in table] == [0, *(entry.end for entry in table[:-1])]
        for entry in table:
            assert entry.steps == max(1, round(entry.phase.epochs * steps_per_epoch))
            assert phase_at(table, entry.start) == phase_at(table, entry.end - 1) == entry
            assert all(0 < entry.lr(step) <= entry.phase.lr for step in (entry.start, entry.end - 1))

    @pytest.mark.parametrize(
        ("factor", "steps_per_epoch", "turns"), [(1.0, 15, 590), (1.0, 625, 590), (0.3, 15, 590), (0.03, 15, 266)]
    )
    def test_rss_draws_as_many_subnets_however_short(self, factor: float, steps_per_epoch: int, turns: int) -> None:
        """Up to one a step, and one after the other: the last is that of 266 steps."""
        (entry,) = timetable(RECIPES["rss"].scaled(factor), steps_per_epoch)
        drawn = [entry.turn(step) for step in range(entry.end)]
        assert drawn[0] == 0
        assert {after - before for before, after in pairwise(drawn)} <= {0, 1}
        assert entry.turns == drawn[-1] + 1 == pytest.approx(turns, abs=1)

    def test_warm_up(self) -> None:
        phase = Phase(name="a", epochs=10, lr=0.5, warmup_epochs=2)
        (entry,) = timetable(Recipe(name="a", about="A.", phases=(phase,)), 5)
        found = [entry.lr(step) for step in range(50)]
        assert found[:10] == pytest.approx([0.05 * n for n in range(1, 11)])
        assert found[10:] == pytest.approx([0.25 * (1 + math.cos(math.pi * n / 40)) for n in range(40)])

    def test_constant(self) -> None:
        phase = Phase(name="a", epochs=4, lr=0.5, warmup_epochs=1, schedule="constant")
        (entry,) = timetable(Recipe(name="a", about="A.", phases=(phase,)), 5)
        assert [entry.lr(step) for step in range(20)] == pytest.approx([0.1, 0.2, 0.3, 0.4] + [0.5] * 16)

    @pytest.mark.parametrize(("warmup_epochs", "rise"), [(0.0, 0.3), (2.0, 0.2)])
    def test_one_cycle_against_torch(self, warmup_epochs: float, rise: float) -> None:
        phase = Phase(name="a", epochs=10, lr=0.5, warmup_epochs=warmup_epochs, schedule="one-cycle")
        (entry,) = timetable(Recipe(name="a", about="A.", phases=(phase,)), 10)
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.5, total_steps=101, pct_start=rise * 100 / 101 + 1 / 101, final_div_factor=1e9
        )
        for step in range(100):
            assert entry.lr(step) == pytest.approx(cycle.get_last_lr()[0], abs=1e-6), step
            optimizer.step()
            cycle.step()

    def test_at_rate(self) -> None:
        recipe = RECIPES["ps"].at_rate(3)
        assert [p.lr for p in recipe.phases] == pytest.approx([3 * p.lr for p in RECIPES["ps"].phases])
        assert recipe.at_rate(1 / 3).phases[0].epochs == RECIPES["ps"].phases[0].epochs

    def test_one_cosine_over_the_recipe(self) -> None:
        table = timetable(RECIPES["deps"], 10)
        steps = table[-1].end
        for entry in table:
            for step in range(entry.start, entry.end, 97):
                assert entry.lr(step) == pytest.approx(0.05 * (1 + math.cos(math.pi * step / steps)))

    def test_one_cosine_after_a_warm_up(self) -> None:
        """As one phase of the whole length has it."""
        first = Phase(name="a", epochs=4, lr=0.5, warmup_epochs=1, cosine="recipe")
        second = Phase(name="b", epochs=6, lr=0.5, cosine="recipe")
        parts = timetable(Recipe(name="parts", about="A.", phases=(first, second)), 5)
        whole = Phase(name="whole", epochs=10, lr=0.5, warmup_epochs=1)
        (expected,) = timetable(Recipe(name="whole", about="A.", phases=(whole,)), 5)
        found = [entry.lr(step) for entry in parts for step in range(entry.start, entry.end)]
        assert found == [expected.lr(step) for step in range(50)]
        with pytest.raises(ValidationError, match="no later phase has one"):
            Recipe(name="late", about="A.", phases=(second, first))

    def test_frozen(self) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            RECIPES["rss"].batch_size = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("batch", "images", "a_step", "steps"), [(8, 35, 8, 4), (8, 32, 8, 4), (8, 8, 8, 1), (64, 35, 35, 1)]
)
def test_an_epoch_is_its_whole_batches(batch: int, images: int, a_step: int, steps: int) -> None:
    recipe = RECIPES["spos"].with_batch_size(batch)
    assert (recipe.images_per_step(images), recipe.steps_per_epoch(images)) == (a_step, steps)


@pytest.mark.parametrize("name", ["ps", "quick", "sandwich", "rss-short"])
def test_how_far_a_training_has_come(name: str) -> None:
    """Counted step by step."""
    recipe = RECIPES[name].scaled(0.05)
    table = timetable(recipe, 7)
    subnets = 0
    for step in range(table[-1].end):
        assert reached(recipe, 7, step) == pytest.approx((step / 7, subnets / 7, False))
        subnets += len(phase_at(table, step).phase.subnets)
    assert reached(recipe, 7, table[-1].end) == (recipe.epochs, recipe.passes, True)


def test_how_long_the_largest_subnet_is_trained_alone() -> None:
    space = MobileNetV3(MobileNetV3Settings.for_images(image_size=8, in_channels=1, num_classes=10)).space

    def of(recipe: Recipe) -> int:
        return largest_alone(timetable(recipe, 7), space)

    transfer = RECIPES["transfer"]
    assert [phases_of_largest(recipe.phases, space) for recipe in (transfer, RECIPES["quick"])] == [2, 0]
    assert of(transfer) == (2 + 18) * 7
    assert of(transfer.model_copy(update={"phases": transfer.phases[:2]})) == 0, "nothing shares its weights"
    assert of(transfer.model_copy(update={"phases": transfer.phases[::-1]})) == 0
    assert of(RECIPES["quick"]) == 0
