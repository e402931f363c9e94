"""A person's own study in a TOML file: what it becomes, and what is refused with which sentence."""

from pathlib import Path

import pytest

from trainonce.errors import UserError
from trainonce.lab.studies.run_study import subnets_to_score
from trainonce.lab.studies.study import Study, StudySetup, check_architectures, load_study
from trainonce.models import build as build_net

HEAD = """
about = "Two ways."
question = "Which?"
seeds = [3, 5]
passes = 12
"""
ARMS = """
[[arms]]
name = "plain"
recipe = "rss"

[[arms]]
name = "wide"
about = "A wider network."
recipe = "sandwich"
epochs = 2
model = { width_mult = 0.75 }
factors = { width = 0.75 }
probes = ["largest"]

[[arms]]
name = "own"
[arms.recipe]
phases = [{ name = "all", epochs = 4, lr = 0.02, subnets = ["cycle"], cycle = ["smallest", "uniform"] }]
"""
EVALUATE = """
[evaluate]
split = "validate"
per_bucket = 3
probes = ["smallest", "largest"]
"""


def setup_for(scale: float = 1.0, **fields: int) -> StudySetup:
    return StudySetup(
        image_size=8,
        channels=1,
        classes=10,
        train_images=1280,
        scale=scale,
        seeds=(3, 5),
        batch_size=fields.get("batch_size"),
    )


def build(tmp_path: Path, text: str, *, scale: float = 1.0, **fields: int) -> Study:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    study = load_study(path).build(setup_for(scale, **fields), folder=tmp_path, where=str(path))
    check_architectures(study)
    return study


def test_what_it_becomes(tmp_path: Path) -> None:
    study = build(tmp_path, HEAD + ARMS + EVALUATE)
    assert (study.name, study.about, study.question, study.seeds) == ("mine", "Two ways.", "Which?", (3, 5))
    assert study.design is None, "whatever the file is called"
    assert [run.name for run in study.runs] == [f"{arm}-seed{s}" for s in (3, 5) for arm in ("plain", "wide", "own")]
    plain, wide, own = study.runs[:3]
    assert plain.recipe.passes == pytest.approx(12)
    assert wide.recipe.epochs == pytest.approx(2), "its own length"
    assert wide.model["width_mult"] == 0.75
    assert wide.factors == {"width": 0.75}
    assert (plain.probes, wide.probes) == (None, ("largest",))
    assert own.recipe.phases[0].lr == 0.02
    assert own.recipe.passes == pytest.approx(12)
    assert (study.evaluate.split, study.evaluate.per_bucket) == ("validate", 3)
    assert study.evaluate.buckets_m == (), "networks differ: each run spreads its own"


def in_reach(study: Study) -> bool:
    """Whether a population can be drawn in every run."""
    nets = {repr(run.model): run for run in study.runs}
    plan = study.evaluate.model_copy(update={"per_bucket": 1})
    return all(subnets_to_score(build_net(run.family, run.model, where=""), plan, run) for run in nets.values())


@pytest.mark.parametrize("widths", [(0.75, 0.75), (0.5, 0.75), (0.5, 0.5)])
def test_buckets_are_in_reach_of_every_arm(tmp_path: Path, widths: tuple[float, float]) -> None:
    text = "".join(
        f'[[arms]]\nname = "{i}"\nrecipe = "rss"\nmodel = {{width_mult = {width}}}\n' for i, width in enumerate(widths)
    )
    study = build(tmp_path, text)
    assert len(study.evaluate.buckets_m) == (6 if widths[0] == widths[1] else 0)
    assert in_reach(study)


def test_the_documented_example(tmp_path: Path) -> None:
    documented = (Path(__file__).parents[2] / "docs" / "studies.md").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(documented.partition("```toml\n")[2].partition("```")[0])
    file = load_study(path)
    colour = StudySetup(image_size=32, channels=3, classes=10, train_images=45000, seeds=file.seeds)
    study = file.build(colour, folder=tmp_path, where=str(path))
    check_architectures(study)
    assert [run.name for run in study.runs[:3]] == ["random-seed0", "sandwich-seed0", "pair-seed0"]
    assert {run.model["width_mult"] for run in study.runs} == {1.5}, "as its `about` has it"
    assert in_reach(study)


def test_scale_and_batch_size_act_on_every_run(tmp_path: Path) -> None:
    once = build(tmp_path, HEAD + ARMS)
    half = build(tmp_path, HEAD + ARMS, scale=0.5, batch_size=128)
    for run, other in zip(once.runs, half.runs, strict=True):
        assert other.recipe.epochs == pytest.approx(run.recipe.epochs / 2)
        assert other.recipe.phases[0].lr == pytest.approx(2 * run.recipe.phases[0].lr)


def test_a_recipe_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "slow.toml").write_text('[[phases]]\nname = "all"\nepochs = 3\n')
    study = build(tmp_path, '[[arms]]\nname = "slow"\nrecipe = "slow.toml"\n')
    assert study.runs[0].recipe.epochs == 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("colour = 1" + ARMS, "unknown key 'colour'; the valid keys are name, about, question"),
        (
            ARMS + '[[arms]]\nname = "b"\nrecipe = "rss"\nspeed = 3',
            r"arms\.3.*unknown key 'speed'; the valid keys are name, about, recipe",
        ),
        (ARMS + "[evaluate]\nsplits = 3", "evaluate: unknown key 'splits'; the valid keys are split, buckets_m"),
        ("", "the key 'arms' is missing"),
        ("arms = []", "arms: "),
        ('[[arms]]\nname = "a"', r"arms\.0\.recipe' is missing"),
        ('[[arms]]\nname = "a"\nrecipe = "rsss"', "unknown recipe 'rsss' .did you mean 'rss'"),
        ('[[arms]]\nname = "a"\nrecipe = "rss"\nepochs = 1\npasses = 2', "arm 'a' has both epochs and passes"),
        ('[[arms]]\nname = "a"\nrecipe = "rss"\n[[arms]]\nname = "a"\nrecipe = "ps"', "two arms are called 'a'"),
        ('[[arms]]\nname = "../a"\nrecipe = "rss"', "arms.0.name: a name becomes part of a path"),
        ('[[arms]]\nname = "a"\nrecipe = "rss"\ngeometry = "round"', "unknown geometry 'round'; the geometries are"),
        ('[[arms]]\nname = "a"\nrecipe = "rss"\nmodel = { widht = 2 }', "unknown key 'widht'"),
        ('[[arms]]\nname = "a"\nrecipe = "rss"\nprobes = ["k3"]', "architecture 'k3': part 1 is k3 where"),
        (
            '[[arms]]\nname = "a"\n[arms.recipe]\nphases = [{name = "p", epochs = 1, subnets = ["cycle"]}]',
            "'cycle' in `subnets` and the key `cycle`",
        ),
        (
            '[[arms]]\nname = "a"\n[arms.recipe]\n'
            'phases = [{name = "p", epochs = 1, subnets = ["cycle"], cycle = ["fair"]}]',
            "a cycle goes round architectures or uniform or stratified",
        ),
        *(
            (f'[[arms]]\nname = "a"\nrecipe = "rss"\nmodel = {{ {key} = {value} }}', rf"arm 'a': model\.{key} cannot")
            for key, value in (("image_size", 16), ("geometry", '"cifar"'), ("num_classes", 3), ("in_channels", 1))
        ),
        ("seeds = [1", "is not a TOML file"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build(tmp_path, text)


def test_a_seed_twice(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(ARMS)
    with pytest.raises(UserError, match="a seed stands twice"):
        load_study(path).build(
            StudySetup(image_size=8, channels=1, classes=10, train_images=99, seeds=(1, 1)),
            folder=tmp_path,
            where="mine",
        )


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the study"):
        load_study(tmp_path / "none.toml")
