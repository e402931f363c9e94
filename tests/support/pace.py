"""Plans of time that do not hang on how fast the machine is."""

from types import SimpleNamespace
from typing import Any

import pytest

from trainonce.data import DataSet
from trainonce.pipeline import fitting, pace
from trainonce.pipeline.pace import Pace, Planned
from trainonce.recipes import Recipe


def an_epoch_a_second(patch: pytest.MonkeyPatch) -> None:
    """Training is planned as if an epoch took a second, whatever it trains: longer than it takes. `fit` plans as if it
    came to that at once, and test images were scored in no time."""

    def step_seconds(timed: Pace, _net: object, recipe: Recipe, *, passes: int = 0) -> tuple[float, ...]:
        data: DataSet = timed.data
        return (1 / recipe.steps_per_epoch(len(data.train)),) * len(recipe.phases)

    plan = fitting.planned_recipe

    def planned_at_once(*given: Any, spent_s: float = 0.0) -> Planned:
        still = SimpleNamespace(monotonic=lambda: 0.0)
        with pytest.MonkeyPatch.context() as clock:
            clock.setattr(fitting, "time", still)
            clock.setattr(pace, "time", still)
            return plan(*given)

    patch.setattr(Pace, "step_seconds", step_seconds)
    patch.setattr(fitting, "planned_recipe", planned_at_once)
    patch.setattr(fitting, "seconds_to_score", lambda *_: 0.0)
