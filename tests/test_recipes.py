"""The recipes against the tables of the papers, and what a person may write."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trainonce.errors import UserError
from trainonce.recipes import RECIPES, AugmentationChange, Phase, Recipe, load_recipe, phase_at, timetable
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


def space() -> SearchSpace:
    """One stage of the paper's space."""
    choices = [Choice(name="stage1.depth", values=(2, 3, 4))]
    for block in range(1, 5):
        for name, values in (("kernel_size", (3, 5, 7)), ("expand_ratio", (3, 4, 6))):
            allowed = {depth: values for depth in (2, 3, 4) if depth >= block}
            full_name = f"stage1.block{block}.{name}"
            choices.append(Choice(name=full_name, values=values, parent="stage1.depth", allowed=allowed))
    return SearchSpace(tuple(choices))


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
        ],
    )
    def test_what_a_step_trains(self, name: str, subnets: tuple[str, ...], target: str) -> None:
        phase = RECIPES[name].phases[-1]
        assert (phase.subnets, phase.target) == (subnets, target)

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
        quick, (phase,) = RECIPES["quick"], RECIPES["quick"].phases
        assert quick.zero_init_residual
        assert (quick.optimizer, quick.batch_size, quick.passes) == ("sgd", 32, 120)
        assert (phase.subnets, phase.target) == (("uniform",), "labels")
        assert 0 < phase.warmup_epochs < phase.epochs
        first, second = RECIPES["deps"].phases
        assert first.epochs == second.epochs
        assert first.keep_largest == {"kernel": 1, "depth": 1, "width": 1}
        assert (second.ramp_epochs, second.sort_channels, second.distillation) == (5, True, "soft")
        assert (first.cosine, second.cosine) == ("recipe", "recipe")

    def test_the_optimizer_of_the_paper(self) -> None:
        for recipe in (recipe for recipe in RECIPES.values() if recipe.name != "quick"):
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

    def test_batch_size_scales_the_rate_of_adamw_by_its_root(self) -> None:
        recipe = RECIPES["ps"].model_copy(update={"optimizer": "adamw"})
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

    def test_frozen(self) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            RECIPES["rss"].batch_size = 1  # type: ignore[misc]


OWN = """
name = "mine"
about = "Mine."
batch_size = 128

[[phases]]
name = "first"
epochs = 2
lr = 0.05
subnets = ["largest"]

[[phases]]
name = "second"
epochs = 3.5
keep_largest = { depth = 2 }
restrict = { "stage1.block1.kernel_size" = [3, 5] }
subnets = ["uniform", "smallest"]
target = "labels+teacher"
"""


LEVERS = """
optimizer = "adamw"
betas = [0.8, 0.99]
weight_decay = 0.05
ema = 0.999
augmentation = { crop_from = 0.5, flip = "auto", erase = 0.25 }
phases = [{ name = "all", epochs = 4, lr = 0.002, warmup_epochs = 1 }]
"""


class TestOwn:
    def test_python_and_toml_agree(self, tmp_path: Path) -> None:
        path = tmp_path / "own.toml"
        path.write_text(OWN, encoding="utf-8")
        assert load_recipe(str(path)) == Recipe(
            name="mine",
            about="Mine.",
            batch_size=128,
            phases=(
                Phase(name="first", epochs=2, lr=0.05, subnets=("largest",)),
                Phase(
                    name="second",
                    epochs=3.5,
                    keep_largest={"depth": 2},
                    restrict={"stage1.block1.kernel_size": (3, 5)},
                    subnets=("uniform", "smallest"),
                    target="labels+teacher",
                ),
            ),
        )

    def test_optimizer_average_and_augmentation(self, tmp_path: Path) -> None:
        path = tmp_path / "own.toml"
        path.write_text(LEVERS, encoding="utf-8")
        recipe = load_recipe(path)
        assert (recipe.optimizer, recipe.betas, recipe.weight_decay, recipe.ema) == ("adamw", (0.8, 0.99), 0.05, 0.999)
        assert recipe.augmentation == AugmentationChange(crop_from=0.5, flip="auto", erase=0.25)
        assert Recipe.parse(recipe.model_dump(mode="json"), where="here") == recipe
        scaled = recipe.scaled(0.5).at_rate(2.0)
        assert (scaled.phases[0].epochs, scaled.phases[0].warmup_epochs, scaled.phases[0].lr) == (2.0, 0.5, 0.004)
        assert scaled.model_copy(update={"phases": recipe.phases}) == recipe

    def test_the_name_is_by_default_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text('phases = [{ name = "all", epochs = 1 }]', encoding="utf-8")
        recipe = load_recipe(str(path))
        assert (recipe.name, recipe.about) == ("mine", "From mine.toml.")

    @pytest.mark.parametrize("name", NAMES)
    def test_published_ones_by_name_and_through_json(self, name: str) -> None:
        assert load_recipe(name) is RECIPES[name]
        assert Recipe.parse(RECIPES[name].model_dump(mode="json"), where="here") == RECIPES[name]

    def test_unknown_name(self) -> None:
        with pytest.raises(
            UserError, match=r"unknown recipe 'sandwitch' \(did you mean 'sandwich'\?\); the recipes are largest, rss"
        ):
            load_recipe("sandwitch")

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (
                'phases = [{ name = "a", epochs = 1 }]\nepoch = 3',
                "unknown key 'epoch'; the valid keys are name, about, phases",
            ),
            (
                'phases = [{ name = "a", epoch = 1 }]',
                r"phases\.0: unknown key 'epoch'; the valid keys are name, epochs, lr",
            ),
            ('phases = [{ name = "a", epochs = "many" }]', r"phases\.0\.epochs: .*number"),
            ('phases = [{ name = "a", epochs = true, lr = [] }]', r"phases\.0\.lr: .*number"),
            ('phases = [{ name = "a", epochs = 0 }]', r"phases\.0\.epochs: .*greater than 0"),
            ('phases = [{ name = "a", epochs = nan }]', r"phases\.0\.epochs: .*(greater than 0|finite)"),
            ('phases = [{ name = "a", epochs = inf }]', r"phases\.0\.epochs: .*finite"),
            ('phases = [{ name = "a", epochs = 1, subnets = [] }]', "a step must train at least one subnet"),
            (
                'phases = [{ name = "a", epochs = 1, subnets = ["most"] }]',
                r"phases\.0\.subnets\.0: .*'uniform', 'largest'",
            ),
            (
                'phases = [{ name = "a", epochs = 1, target = "largest" }]',
                "needs 'largest' as the first of at least two",
            ),
            ('phases = [{ name = "a", epochs = 1, ramp_epochs = 1 }]', "ramp_epochs goes with target 'largest'"),
            ('phases = [{ name = "a", epochs = 1, target = "labels+teacher" }]', "the first phase cannot learn"),
            ('phases = [{ name = "a", epochs = 1, warmup_epochs = 1 }]', "warmup_epochs must be fewer than"),
            (
                'phases = [{ name = "a", epochs = 2, warmup_epochs = 1, cosine = "recipe" }]',
                "warmup_epochs goes with a cosine over the phase",
            ),
            (
                'phases = [{ name = "a", epochs = 1, label_weight = 0, teacher_weight = 0 }]',
                "label_weight and teacher_weight cannot both be 0",
            ),
            (
                'phases = [{ name = "a", epochs = 1, keep_largest = { depth = "one" } }]',
                r"keep_largest\.depth: .*integer",
            ),
            (
                'phases = [{ name = "a", epochs = 1, keep_largest = { depth = 0 } }]',
                r"keep_largest\.depth: .*greater than or equal to 1",
            ),
            ("phases = []", "phases: .*at least 1"),
            ("phases = 3", "phases: "),
            ("phases = [3]", r"phases\.0: "),
            ("", "the key 'phases' is missing"),
            ("phases = [{ epochs = 1 }]", r"the key 'phases\.0\.name' is missing"),
            ("name = 3\nphases = [{ name = 'a', epochs = 1 }]", "name: .*string"),
            ("phases = [", "is not a TOML file"),
        ],
    )
    def test_bad_toml_names_file_and_key(self, tmp_path: Path, text: str, says: str) -> None:
        path = tmp_path / "bad.toml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=says) as caught:
            load_recipe(str(path))
        assert "bad.toml" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_unreadable_files(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"cannot read the recipe .*none\.toml: No such file"):
            load_recipe(str(tmp_path / "none.toml"))
        (tmp_path / "folder.toml").mkdir()
        with pytest.raises(UserError, match=r"cannot read the recipe .*folder\.toml"):
            load_recipe(str(tmp_path / "folder.toml"))
        (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
        with pytest.raises(UserError, match="is not a TOML file"):
            load_recipe(str(tmp_path / "latin.toml"))
        (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000, encoding="utf-8")
        with pytest.raises(UserError, match="is not a TOML file"):
            load_recipe(str(tmp_path / "deep.toml"))

    def test_a_phase_of_choices_that_are_not_there(self) -> None:
        with pytest.raises(UserError, match=r"no choice matches 'widths'; the choices are stage1\.depth"):
            Phase(name="a", epochs=1, restrict={"widths": (1,)}).subspace(space())

    def test_roles_that_a_space_lacks_are_passed_over_and_said(self) -> None:
        phase = Phase(name="a", epochs=1, keep_largest={"depth": 1}, restrict={"resolution": (8,)})
        assert phase.subspace(space()) == space().keep_largest({"depth": 1})
        assert phase.passed_over(space()) == ("resolution",)

    def test_other_names_of_roles_are_roles(self) -> None:
        """Recipes of earlier versions, in run.json and in files of people's own, are the same values."""
        earlier = Phase(name="a", epochs=1, keep_largest={"kernel_size": 1}, couple={"expand_ratio": "depth"})
        assert earlier == Phase(name="a", epochs=1, keep_largest={"kernel": 1}, couple={"width": "depth"})


TOML_VALUES = st.sampled_from(
    [
        "1",
        "-1",
        "0",
        "nan",
        "inf",
        "1e400",
        "true",
        '"x"',
        '"largest"',
        "[]",
        "[1]",
        "{}",
        "{ depth = 2 }",
        "1979-05-27",
        "9" * 5000,
    ]
)
TOML_KEYS = st.sampled_from([*Phase.model_fields, *Recipe.model_fields, "surprise"])


@st.composite
def recipe_texts(draw: st.DrawFn) -> str:
    """Text near a recipe's: keys, values and tables put together at random."""
    lines = [f"{draw(TOML_KEYS)} = {draw(TOML_VALUES)}" for _ in range(draw(st.integers(0, 2)))]
    for _ in range(draw(st.integers(0, 2))):
        lines += ["[[phases]]", 'name = "a"', "epochs = 1"]
        lines += [f"{draw(TOML_KEYS)} = {draw(TOML_VALUES)}" for _ in range(draw(st.integers(0, 2)))]
    return "\n".join(lines)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(recipe_texts(), st.text(max_size=40), st.binary(max_size=40)))
def test_any_file_is_a_recipe_or_a_user_error(tmp_path: Path, text: Any) -> None:
    path = tmp_path / "any.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    try:
        recipe = load_recipe(str(path))
    except UserError as error:
        refusal = str(error)
        assert "any.toml" in refusal
    else:
        assert timetable(recipe, 3)[-1].end >= len(recipe.phases)


@pytest.mark.parametrize(
    ("batch", "images", "a_step", "steps"), [(8, 35, 8, 4), (8, 32, 8, 4), (8, 8, 8, 1), (64, 35, 35, 1)]
)
def test_an_epoch_is_its_whole_batches(batch: int, images: int, a_step: int, steps: int) -> None:
    recipe = RECIPES["spos"].with_batch_size(batch)
    assert (recipe.images_per_step(images), recipe.steps_per_epoch(images)) == (a_step, steps)
