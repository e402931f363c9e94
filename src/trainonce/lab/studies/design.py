"""What a built-in study is: how it is planned with a `StudySetup`, and how it is concluded; and what plans share.

A study of ours is one module beside this: its `Design`, and under it the arms and the conclusion that read each other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainonce.errors import UserError
from trainonce.lab.studies.conclusion import Conclusion
from trainonce.lab.studies.results import Factors, FinishedRun, RecordedStudy, StudyResult
from trainonce.lab.studies.study import Arm, Study, StudyRun, StudySetup, in_seed_order
from trainonce.recipes import RECIPES, Recipe
from trainonce.settings import Settings

FEWEST_HELD = 50
"""How many different draws a run must make, so that what is compared is the strategy and not a few subnets."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """A built-in study."""

    name: str
    about: str
    question: str
    build: Callable[[StudySetup], "Built"]
    """Its arms and runs."""
    conclude: Callable[[RecordedStudy, Sequence[StudyResult], Sequence[FinishedRun]], Conclusion]
    """From study.json, the lines of results.jsonl and those of times.jsonl to what they force. Lines may be missing, as
    when a study was stopped: then less can be told. Designs and measures: docs/statistics.md.
    """
    own_buckets: bool = False
    """Whether its probes are drawn from buckets of its own, which cannot be others."""
    tunable: tuple[str, ...] = ()
    """The recipes that it takes tuned learning rates of."""

    def study(self, setup: StudySetup) -> Study:
        """The study with this setup. Raises `UserError` where the scale leaves nothing to train."""
        for name in setup.rates:
            if name not in self.tunable:
                takes = f"takes those of {', '.join(self.tunable)}" if self.tunable else "takes none"
                raise UserError(f"{self.name} takes no learning rate of {name}: it {takes}")
        built = self.build(setup)
        return Study(
            name=self.name,
            design=self.name,
            about=self.about,
            question=self.question,
            scale=setup.scale,
            seeds=setup.seeds,
            arms=tuple(built.arms),
            runs=in_seed_order([run.model_copy(update={"family": setup.family}) for run in built.runs]),
            evaluate=setup.plan(**built.evaluate),
        )


@dataclass(frozen=True, kw_only=True)
class Built:
    """What is particular to a design: its arms and runs, and how it departs from the usual evaluation."""

    arms: Sequence[Arm]
    runs: Sequence[StudyRun]
    evaluate: Mapping[str, Any]


def planned_run(
    arm: str,
    seed: int,
    recipe: Recipe,
    model: Settings,
    *,
    part: str = "",
    factors: Factors,
    probes: tuple[str, ...] | None = None,
) -> StudyRun:
    """A run of an arm; `part` tells runs of one arm and seed apart."""
    return StudyRun(
        name=f"{arm}{part}-seed{seed}",
        arm=arm,
        seed=seed,
        factors=factors,
        recipe=recipe,
        model=model.model_dump(mode="json"),
        probes=probes,
    )


def at_epochs(setup: StudySetup, recipe: Recipe) -> Recipe:
    """A recipe at its own length, times the scale.

    Raises `UserError` where it draws so few subnets that it is not the strategy any more.
    """
    scaled = setup.at_batch_size(recipe.scaled(setup.scale))
    turns = sum(entry.turns for entry in setup.timetable(scaled))
    if turns < FEWEST_HELD:
        raise UserError(
            f"at a scale of {setup.scale:g} {recipe.name} would train {turns} draws of subnets in all, and fewer than "
            f"{FEWEST_HELD} are not {recipe.name}: take a larger --scale"
        )
    return scaled


def cycle_recipe(name: str, cycle: tuple[str, ...], steps: int, setup: StudySetup, **fields: Any) -> Recipe:
    """One phase of so many steps that goes round `cycle`, on RSS's settings."""
    base = setup.at_batch_size(RECIPES["spos"])
    phase = base.phases[0].model_copy(
        update={
            "name": name,
            "epochs": steps / base.steps_per_epoch(setup.train_images),
            "subnets": ("cycle",),
            "cycle": cycle,
            **fields,
        }
    )
    return base.model_copy(update={"name": name, "about": f"{name}, in turn.", "phases": (phase,)})
