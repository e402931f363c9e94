"""What a person may write."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.paper_space import space

from trainonce.errors import UserError
from trainonce.recipes import (
    RECIPES,
    AugmentationChange,
    Colour,
    Crop,
    CutMix,
    Erase,
    Flip,
    Phase,
    Recipe,
    load_recipe,
    timetable,
)

NAMES = tuple(RECIPES)


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
keep_smallest = { depth = 1 }
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
                    keep_smallest={"depth": 1},
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
                r"phases\.0\.subnets\.0: must be one of uniform, even, .*, or your own slot as package\.module:name",
            ),
            (
                'phases = [{ name = "a", epochs = 1, target = "largest" }]',
                "needs 'largest' as the first of at least two",
            ),
            ('phases = [{ name = "a", epochs = 1, ramp_epochs = 1 }]', "ramp_epochs goes with target 'largest'"),
            ('phases = [{ name = "a", epochs = 1, target = "labels+teacher" }]', "the first phase cannot learn"),
            ('phases = [{ name = "a", epochs = 1, warmup_epochs = 1 }]', "warmup_epochs must be fewer than"),
            (
                'phases = [{ name = "a", epochs = 2, warmup_epochs = 1, cosine = "cumulative" }]',
                "warmup_epochs goes with a cosine over the phase or the recipe",
            ),
            (
                'phases = [{ name = "a", epochs = 2, schedule = "constant", cosine = "recipe" }]',
                "says where the schedule 'cosine' starts and ends",
            ),
            (
                'phases = [{ name = "a", epochs = 1, distillation = "hard" }]',
                "must be one of soft, kl, alpha, or your own loss as package.module:name",
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
        for asked in ({"restrict": {"resolution": (8,)}}, {"keep_smallest": {"resolution": 1}}):
            phase = Phase(name="a", epochs=1, keep_largest={"depth": 1}, **asked)
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


VARIATIONS = (
    Crop(scale=(0.5, 1.0)),
    Crop(scale=(0.8, 1.0)),
    Flip(),
    Colour(brightness=0.1),
    Erase(share=0.3),
    CutMix(),
)
SOME = st.lists(st.sampled_from(VARIATIONS), unique_by=repr, max_size=4).map(tuple)


@settings(max_examples=500, deadline=None)
@given(
    change=st.builds(
        AugmentationChange,
        crop_from=st.sampled_from([None, 1, 0.9, "auto"]),
        flip=st.sampled_from([None, True, False, "auto"]),
        erase=st.sampled_from([None, 0, 0.5]),
        alone=st.booleans(),
        also=SOME,
    ),
    own=SOME,
    names=st.sampled_from([("a", "b"), ("cat", "dog")]),
)
def test_images_that_are_varied_already_stay_so(
    change: AugmentationChange, own: tuple[Any, ...], names: tuple[str, ...]
) -> None:
    """A run that goes on is given them so: what `also` adds keeps its place, though the rest would take it out."""
    once = change.of(own, names, 8)
    assert all(one in once for one in change.also)
    assert change.of(once, names, 8) == once
