"""The recipes against the tables of the papers."""

import pytest
from tests.support.paper_space import space

from trainonce.recipes import RECIPES, CutMix, Recipe, timetable
from trainonce.space import Choice, SearchSpace

NAMES = [
    "largest",
    "rss",
    "rss-short",
    "spos",
    "ps",
    "ps-ofa",
    "ps-released",
    "anchor",
    "sandwich",
    "attentive",
    "alphanet",
    "compofa",
    "deps",
    "quick",
    "transfer",
    "fair",
    "stratified",
]
"""RECIPES.md's table."""

PS_TABLE = (
    # name, kernels, depths, expand ratios, epochs, subnets, divisor of 0.01, sorted
    ("largest", (7,), (4,), (6,), 180, 1, 1.0, False),
    ("kernel", (3, 5, 7), (4,), (6,), 120, 1, 2.7, False),
    ("depth 1", (3, 5, 7), (3, 4), (6,), 25, 2, 32.5, False),
    ("depth 2", (3, 5, 7), (2, 3, 4), (6,), 120, 2, 10.8, False),
    ("expand 1", (3, 5, 7), (2, 3, 4), (4, 6), 25, 4, 32.5, True),
    ("expand 2", (3, 5, 7), (2, 3, 4), (3, 4, 6), 120, 4, 10.8, True),
)
"""PAPER.md's table of Progressive Shrinking."""


def lr_sum(recipe: Recipe, phases: tuple[str, ...], *, steps_per_epoch: int = 100) -> float:
    """The learning rates of some phases summed over steps, in units of epochs."""
    return sum(
        entry.lr(step) / steps_per_epoch
        for entry in timetable(recipe, steps_per_epoch)
        if entry.phase.name in phases
        for step in range(entry.start, entry.end)
    )


class TestPublished:
    def test_all_are_there(self) -> None:
        assert list(RECIPES) == NAMES
        assert all(recipe.name == name and recipe.about for name, recipe in RECIPES.items())

    @pytest.mark.parametrize(
        ("name", "epochs", "passes"),
        [
            *(("rss", 590, 590), ("rss-short", 180, 180)),
            *((name, 590, 1170) for name in ("ps", "ps-ofa", "ps-released")),
        ],
    )
    def test_lengths_of_the_paper(self, name: str, epochs: float, passes: float) -> None:
        assert RECIPES[name].epochs == pytest.approx(epochs)
        assert RECIPES[name].passes == pytest.approx(passes)

    @pytest.mark.parametrize("name", ["largest", "spos", "anchor", "sandwich", "attentive", "alphanet", "deps", "fair"])
    def test_the_rest_cost_what_rss_costs(self, name: str) -> None:
        assert RECIPES[name].passes == pytest.approx(590)

    def test_compofa_costs_less_than_ps(self) -> None:
        assert RECIPES["compofa"].passes == 180 + 4 * (25 + 120)

    @pytest.mark.parametrize(
        ("name", "subnets", "target"),
        [
            ("largest", ("largest",), "labels"),
            ("rss", ("uniform",), "labels"),
            ("rss-short", ("uniform",), "labels"),
            ("spos", ("uniform",), "labels"),
            ("anchor", ("alternate",), "labels"),
            ("sandwich", ("largest", "smallest", "uniform", "uniform"), "largest"),
            ("attentive", ("largest", "smallest", "best_up", "best_up"), "largest"),
            ("alphanet", ("largest", "smallest", "uniform", "uniform"), "largest"),
            ("deps", ("largest", "smallest", "uniform", "uniform"), "largest"),
            ("fair", ("fair", "fair", "fair"), "labels"),
            ("stratified", ("stratified",), "labels"),
            ("transfer", ("even",), "labels+teacher"),
        ],
    )
    def test_what_a_step_trains(self, name: str, subnets: tuple[str, ...], target: str) -> None:
        phase = RECIPES[name].phases[-1]
        assert (phase.subnets, phase.target) == (subnets, target)

    @pytest.mark.parametrize(
        ("sides", "trained"),
        [
            ((64,), [(64,), (64,), (64,)]),
            ((64, 96), [(64,), (64,), (64, 96)]),
            ((32, 48, 64), [(32,), (48,), (32, 48, 64)]),
            ((128, 160, 192, 224), [(128,), (192,), (128, 160, 192, 224)]),
        ],
    )
    def test_quick_takes_smaller_images_first(self, sides: tuple[int, ...], trained: list[tuple[int, ...]]) -> None:
        space = SearchSpace((Choice(name="resolution", values=sides), Choice(name="depth", values=(1, 2))))
        parts = [phase.subspace(space) for phase in RECIPES["quick"].phases]
        assert [part["resolution"].values for part in parts] == trained
        assert all(part["depth"].values == (1, 2) for part in parts)

    def test_details(self) -> None:
        assert {name for name, recipe in RECIPES.items() if any(p.hold == "epoch" for p in recipe.phases)} == {
            "rss",
            "rss-short",
            "anchor",
        }
        for name in ("sandwich", "attentive", "alphanet"):
            phase = RECIPES[name].phases[0]
            assert RECIPES[name].zero_init_residual
            assert phase.dropout_largest_only
            assert (phase.label_smoothing, phase.clip_value) == (0.1, 1.0)
            assert phase.distillation == ("alpha" if name == "alphanet" else "kl")
        quick = RECIPES["quick"]
        assert quick.zero_init_residual
        assert (quick.optimizer, quick.batch_size, quick.passes) == ("muon", 64, 120)
        assert quick.augmentation is not None
        assert quick.augmentation.also == (CutMix(share=0.8, once_known=0.7),)
        assert {(phase.subnets, phase.target) for phase in quick.phases} == {(("uniform",), "labels")}
        assert [phase.warmup_epochs > 0 for phase in quick.phases] == [True, False, False]
        head, largest, subnets = RECIPES["transfer"].phases
        assert head.trains == "head"
        assert largest.trains == subnets.trains == "all"
        assert largest.backbone_lr == subnets.backbone_lr == 1
        alone = {"kernel": 1, "depth": 1, "width": 1, "resolution": 1}  # else smaller images would be its first lesson
        assert head.keep_largest == largest.keep_largest == alone
        assert (subnets.target, subnets.teacher, subnets.keep_largest) == ("labels+teacher", "largest", {})
        assert subnets.sort_channels
        first, second = RECIPES["deps"].phases
        assert first.epochs == second.epochs
        assert first.keep_largest == {"kernel": 1, "depth": 1, "width": 1}
        assert (second.ramp_epochs, second.sort_channels, second.distillation) == (5, True, "soft")
        assert (first.cosine, second.cosine) == ("recipe", "recipe")

    def test_the_optimizer_of_the_paper(self) -> None:
        for recipe in (recipe for recipe in RECIPES.values() if recipe.name not in ("quick", "transfer")):
            assert (recipe.optimizer, recipe.ema, recipe.augmentation) == ("sgd", 0.0, None)
            assert (recipe.momentum, recipe.weight_decay, recipe.batch_size) == (0.9, 3e-5, 64)
            assert recipe.phases[0].lr == {"ps-ofa": 2.6 / 32, "deps": 0.1}.get(recipe.name, 0.01)


class TestProgressiveShrinking:
    @pytest.mark.parametrize("name", ["ps", "ps-released"])
    def test_is_the_table(self, name: str) -> None:
        phases = RECIPES[name].phases
        assert len(phases) == len(PS_TABLE)
        for phase, (label, kernels, depths, ratios, epochs, subnets, divisor, is_sorted) in zip(
            phases, PS_TABLE, strict=True
        ):
            part = phase.subspace(space())
            assert (phase.name, phase.epochs, len(phase.subnets)) == (label, epochs, subnets)
            assert part == space().restrict({"kernel_size": kernels, "depth": depths, "expand_ratio": ratios})
            assert phase.lr == pytest.approx(0.01 / divisor)
            assert phase.target == ("labels" if label == "largest" else "labels+teacher")
            assert phase.sort_channels == (is_sorted and name == "ps")
            assert label == "largest" or phase.teacher == ("largest" if name == "ps" else "untrained")
            assert phase.cosine == ("phase" if name == "ps" else "cumulative")

    def test_ofas_own_is_the_same_but_for_what_ofa_has(self) -> None:
        """PAPER.md: OFA's rates for 64 images, label smoothing 0.1, five warm-up epochs in three phases."""
        rates = {"kernel": 3e-2, "depth 1": 2.5e-3, "depth 2": 7.5e-3, "expand 1": 2.5e-3, "expand 2": 7.5e-3}
        for ours, theirs in zip(RECIPES["ps"].phases, RECIPES["ps-ofa"].phases, strict=True):
            changed: dict[str, object] = {"lr": rates.get(ours.name, 0.08125), "label_smoothing": 0.1}
            if ours.name != "largest":
                changed |= {"teacher_statistics": "batch", "warmup_epochs": 5.0 if ours.epochs == 120 else 0.0}
            assert theirs == ours.model_copy(update=changed)

    def test_the_released_code_begins_phases_far_down_the_curve(self) -> None:
        entries = timetable(RECIPES["ps-released"], 625)[1:]
        starts = [entry.lr(entry.start) for entry in entries]
        assert starts == pytest.approx([1.3e-3, 4.5e-6, 1.6e-4, 2.1e-6, 9e-5], rel=0.05)

    def test_the_faithful_one_restarts(self) -> None:
        for entry in timetable(RECIPES["ps"], 625):
            assert entry.lr(entry.start) == entry.phase.lr
            assert entry.lr(entry.end - 1) < entry.phase.lr / 1e4

    def test_learning_rates_summed(self) -> None:
        shrinking = ("depth 1", "depth 2", "expand 1", "expand 2")
        assert lr_sum(RECIPES["rss"], ("random",)) == pytest.approx(2.95, abs=0.005)
        assert lr_sum(RECIPES["ps-released"], shrinking) == pytest.approx(0.010, abs=0.0005)
        # Half of epochs times base rate, in each phase.
        assert lr_sum(RECIPES["ps"], shrinking) == pytest.approx(25 / 3250 + 120 / 1080, rel=0.01)


class TestCompofa:
    def test_the_coupled_space(self) -> None:
        largest, *coupled = RECIPES["compofa"].phases
        assert largest.subspace(space()).count() == 1
        for phase in coupled:
            part = phase.subspace(space())
            assert len(phase.subnets) == 4
            assert part.count() == 3**2 + 3**3 + 3**4
            for depth, ratio in ((2, 3), (3, 4), (4, 6)):
                at = part.restrict({"depth": (depth,)})
                assert {v for n, v in at.largest().items() if "expand" in n} == {ratio}
                assert {v for n, v in at.smallest().items() if "expand" in n} == {ratio}
        assert [phase.sort_channels for phase in coupled] == [True, False]
