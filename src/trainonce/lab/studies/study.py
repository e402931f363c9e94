"""A study as a value: many runs planned at once, how they are scored, and a person's own from a TOML file.

Nothing here trains: the built-in studies have a module each beside this one (`trainonce.lab.studies.built_in` is their
table), and `trainonce.lab.studies.run_study` runs any.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from trainonce.errors import UserError
from trainonce.evaluation.evaluator import SplitName
from trainonce.evaluation.population import MOST_PER_BUCKET, PAPER_BUCKETS_M, draw_population, make_buckets
from trainonce.lab.studies.results import Factors
from trainonce.models import FamilySettings, MobileNetV3, Supernet, build, family_named
from trainonce.names import FileName
from trainonce.recipes import PhaseSteps, Recipe, load_recipe, timetable
from trainonce.sampling import MacsSampler, SubnetDraws
from trainonce.settings import JsonObject, Settings, read_toml

Seed = Annotated[int, Field(ge=0, lt=2**63)]
LONGEST_SCALE, MOST_SEEDS = 1000.0, 1000
"""The most that a study may be lengthened and repeated."""

GIVEN = {
    "geometry": "`geometry` is a key of the arm itself",
    "image_size": "it is the images'; --image-size changes that for all arms",
    "in_channels": "it is the images'",
    "num_classes": "it is the images'",
}
"""Keys that an arm's `model` does not take, and why."""


class StudyScoring(Settings):
    """Which subnets of each trained run are scored, and on what."""

    split: SplitName = "test"
    """The split: test to report, read once; validate to choose by."""
    buckets_m: tuple[float, ...] = ()
    """Centres of the population's buckets in million MACs; none spreads six over each run's own range."""
    half_m: float | None = Field(None, gt=0)
    """How far a bucket reaches to either side, in million MACs; by default as `make_buckets` has it."""
    per_bucket: int = Field(20, ge=0, le=MOST_PER_BUCKET)
    """Distinct random subnets in each bucket, the same in every run; 0 scores the probes alone."""
    probes: tuple[str, ...] = ()
    """Architectures scored in every run that does not name its own."""
    calibration_images: int = Field(2000, ge=2)
    """Augmented images that batch norms are recalibrated on."""
    seed: int = Field(0, ge=0)
    """Seed of the population and of the calibration."""


class Arm(Settings):
    """One side of a comparison: what differs from the other arms, and is repeated over seeds."""

    name: FileName
    """In tables and figures."""
    about: str = ""
    """What is trained, in a sentence."""


class StudyRun(Settings):
    """One training run of a study, complete."""

    name: FileName
    """Its directory under runs/."""
    arm: str
    """The arm it belongs to."""
    seed: Seed
    """Seed of everything random in it. Runs of one seed are compared as a pair."""
    factors: Factors = Field(default_factory=dict)
    """What sets it apart, by name; goes into every result."""
    recipe: Recipe
    """The strategy at its final length and batch size."""
    family: str = MobileNetV3.family
    """The supernet's family."""
    model: JsonObject
    """The supernet's settings."""
    probes: tuple[str, ...] | None = None
    """Architectures scored beside the population; None for the study's."""


class Study(Settings):
    """Many runs that answer one question together."""

    name: FileName
    """What the study is called."""
    design: str | None = None
    """The built-in study that it is, whose conclusion it gets; None for a person's own, whatever its name."""
    about: str
    """What is compared and what is held constant."""
    question: str
    """What its runs are to answer."""
    scale: float = Field(1.0, gt=0, le=LONGEST_SCALE)
    """How many times as long as designed the runs are. Recorded; the recipes have it in them."""
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1, max_length=MOST_SEEDS)
    """Every arm is trained once for each."""
    arms: tuple[Arm, ...] = Field(min_length=1)
    """The arms, in the order of drawing."""
    runs: tuple[StudyRun, ...] = Field(min_length=1)
    """All runs, in the order of running."""
    evaluate: StudyScoring = StudyScoring()
    """How every run is scored."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed stands twice in `seeds`")
        for what, names in (("arm", [arm.name for arm in self.arms]), ("run", [run.name for run in self.runs])):
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"two {what}s are called {twice!r}")
        for run in self.runs:
            if run.arm not in {arm.name for arm in self.arms}:
                raise ValueError(f"run {run.name!r} belongs to {run.arm!r}, which is not an arm")
        return self


@dataclass(frozen=True, kw_only=True)
class StudySetup:
    """What a study is planned for: the images' shape and number, the network, how long, how often.

    `rates` are tuned learning rates by recipe, as multiples of its own.
    """

    image_size: int
    channels: int
    classes: int
    train_images: int
    geometry: str | None = None
    scale: float = 1.0
    seeds: tuple[int, ...] = (0, 1, 2)
    batch_size: int | None = None
    family: str = MobileNetV3.family
    rates: Mapping[str, float] = field(default_factory=dict)

    def model(self, geometry: str | None = None, **fields: Any) -> FamilySettings:
        """The supernet's settings; by default in the geometry of the study."""
        return family_named(self.family).settings_type.for_images(
            image_size=self.image_size,
            in_channels=self.channels,
            num_classes=self.classes,
            geometry=geometry or self.geometry,
            **fields,
        )

    @cached_property
    def net(self) -> Supernet:
        """A supernet of the study's geometry, for its space and costs."""
        return family_named(self.family)(self.model())

    @cached_property
    def sampler(self) -> MacsSampler:
        """Draws subnets by their MACs."""
        return MacsSampler(self.net.cost)

    def at_batch_size(self, recipe: Recipe) -> Recipe:
        """The recipe at the batch size asked for."""
        return recipe if self.batch_size is None else recipe.with_batch_size(self.batch_size)

    def timetable(self, recipe: Recipe) -> tuple[PhaseSteps, ...]:
        """The recipe laid out in steps, as the training loop does it."""
        return timetable(recipe, recipe.steps_per_epoch(self.train_images))

    def steps(self, recipe: Recipe) -> int:
        """Of the whole recipe."""
        return self.timetable(recipe)[-1].end

    def passes(self, recipe: Recipe) -> int:
        """Subnet passes (subnets trained on a batch) of the whole recipe, exactly as the loop will do them."""
        return sum(entry.steps * len(entry.phase.subnets) for entry in self.timetable(recipe))

    def probes(self, parts: int, each: int, *, seed: int = 0) -> tuple[tuple[str, ...], Mapping[str, object]]:
        """`each` distinct architectures from the middle of each of so many equal parts of the MACs range.

        Also the buckets that they were drawn from, as fields of `StudyScoring`.
        """
        low, high = self.sampler.min_macs / 1e6, self.sampler.max_macs / 1e6
        half_m = round((high - low) / 40, 6)
        centres_m = tuple(round(low + (part + 0.5) / parts * (high - low), 6) for part in range(parts))
        buckets = make_buckets(self.net.cost, centres_m, half_m)
        drawn = draw_population(self.net.cost, buckets, each, seed=seed)
        return tuple(str(arch) for _, arch in drawn), {"buckets_m": centres_m, "half_m": half_m}

    def plan(self, models: Sequence[JsonObject] = (), **fields: Any) -> StudyScoring:
        """How populations are scored, buckets resolved: the paper's where the space reaches them, else six spread.

        `models` are the runs' supernets, by default the study's own. Where they differ, or where `fields` says that
        there are no buckets, each run spreads its own.
        """
        if any(model != models[0] for model in models):
            fields = {"buckets_m": (), **fields}
        if "buckets_m" not in fields and "half_m" not in fields:
            net = build(self.family, models[0], where="the arms") if models else self.net
            sampler = MacsSampler(net.cost)
            low, high = sampler.min_macs / 1e6, sampler.max_macs / 1e6
            first, last = PAPER_BUCKETS_M[0], PAPER_BUCKETS_M[-1]
            papers = first - 1 < low <= first + 0.5 and last - 0.5 <= high < last + 2
            buckets = make_buckets(net.cost, PAPER_BUCKETS_M if papers else ())
            centres = tuple(round(bucket.centre / 1e6, 6) for bucket in buckets)
            fields = {"buckets_m": centres, "half_m": round(buckets[0].half / 1e6, 6), **fields}
        return StudyScoring(**fields)


class ArmFile(Arm):
    """An arm as a person writes it."""

    recipe: str | JsonObject
    """A recipe's name, a .toml file, or the recipe itself as a table with its phases."""
    epochs: float | None = Field(None, gt=0)
    """Scales the recipe to this many epochs."""
    passes: float | None = Field(None, gt=0)
    """Scales it to this many subnet passes over the images."""
    geometry: str | None = None
    """The supernet's geometry, where it is not the study's."""
    model: JsonObject = Field(default_factory=dict)
    """Further settings of the supernet, such as width_mult."""
    factors: Factors = Field(default_factory=dict)
    """What sets the arm apart, by name."""
    probes: tuple[str, ...] | None = None
    """Architectures scored in this arm, where they are not the study's."""


class StudyFile(Settings):
    """A study as a person writes it in TOML: every arm is trained with every seed."""

    name: FileName
    """What the study is called. Default: the file's name."""
    about: str = ""
    """What is compared and what is held constant."""
    question: str = ""
    """What it is to answer."""
    data: str | None = None
    """The images, where the command line names none."""
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1, max_length=MOST_SEEDS)
    """Seeds of the runs."""
    passes: float | None = Field(None, gt=0)
    """Scales every arm that names no length to this many subnet passes over the images: what it costs."""
    arms: tuple[ArmFile, ...] = Field(min_length=1)
    """What is compared."""
    evaluate: JsonObject = Field(default_factory=dict)
    """The fields of `StudyScoring`."""

    def build(self, setup: StudySetup, *, folder: str | Path, where: str) -> Study:
        """The study with this setup. Recipes in files are looked for beside `folder`. Raises `UserError`."""
        folder = Path(folder)
        StudyScoring.parse(self.evaluate, where=f"{where}: evaluate")
        runs = [self._run(arm, seed, setup, folder, where) for seed in setup.seeds for arm in self.arms]
        values = {
            "name": self.name,
            "about": self.about,
            "question": self.question,
            "scale": setup.scale,
            "seeds": setup.seeds,
            "arms": tuple(Arm(name=arm.name, about=arm.about) for arm in self.arms),
            "runs": tuple(runs),
            "evaluate": setup.plan([run.model for run in runs], **self.evaluate),
        }
        return Study.parse(values, where=where)

    def _run(self, arm: ArmFile, seed: int, setup: StudySetup, folder: Path, where: str) -> StudyRun:
        recipe = _recipe(arm, folder, where=f"{where}: arm {arm.name!r}")
        passes = arm.passes or (None if arm.epochs else self.passes)
        if arm.epochs and arm.passes:
            raise UserError(f"{where}: arm {arm.name!r} has both epochs and passes; give one")
        if arm.epochs:
            recipe = recipe.scaled(arm.epochs / recipe.epochs)
        if passes:
            recipe = recipe.scaled(passes / recipe.passes)
        for key in GIVEN:
            if key in arm.model:
                raise UserError(f"{where}: arm {arm.name!r}: model.{key} cannot be set: {GIVEN[key]}")
        model = setup.model(arm.geometry, **arm.model)
        return StudyRun(
            name=f"{arm.name}-seed{seed}",
            arm=arm.name,
            seed=seed,
            factors=arm.factors,
            recipe=setup.at_batch_size(recipe).scaled(setup.scale),
            family=setup.family,
            model=model.model_dump(mode="json"),
            probes=arm.probes,
        )


def _recipe(arm: ArmFile, folder: Path, *, where: str) -> Recipe:
    if isinstance(arm.recipe, dict):
        named = {"name": arm.name, "about": arm.about or f"Arm {arm.name}."}
        return Recipe.parse({**named, **arm.recipe}, where=f"{where}: recipe")
    beside = folder / arm.recipe
    return load_recipe(str(beside) if arm.recipe.endswith(".toml") and beside.exists() else arm.recipe)


def load_study(path: str | Path) -> StudyFile:
    """The study in a TOML file. Raises `UserError` that names the file and the key that is wrong."""
    path = Path(path)
    return StudyFile.parse({"name": path.stem, **read_toml(path, "study")}, where=str(path))


def check_architectures(study: Study) -> None:
    """Raise `UserError` where a probe or a phase does not fit its run's network, before anything is trained."""
    seen: set[str] = set()
    for run in study.runs:
        probes = study.evaluate.probes if run.probes is None else run.probes
        key = repr((run.model, probes, run.recipe))
        if key in seen:
            continue
        seen.add(key)
        net = build(run.family, run.model, where=f"run {run.name}")
        for probe in probes:
            net.space.parse(probe)
        for phase in run.recipe.phases:
            SubnetDraws(phase.subnets, net.cost.within(phase.subspace(net.space)), phase.cycle)


def in_seed_order(runs: Sequence[StudyRun]) -> tuple[StudyRun, ...]:
    """Runs ordered by seed, so that a study that is cut short holds whole pairs."""
    return tuple(sorted(runs, key=lambda run: run.seed))
