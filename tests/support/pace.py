"""Plans of time that do not hang on how fast the machine is."""

import pytest

from trainonce.data import DataSet
from trainonce.pipeline.pace import Pace
from trainonce.recipes import Recipe


def an_epoch_a_second(patch: pytest.MonkeyPatch) -> None:
    """Training is planned as if an epoch took a second, whatever it trains: longer than it takes."""

    def step_seconds(pace: Pace, _net: object, recipe: Recipe, *, passes: int = 0) -> tuple[float, ...]:
        data: DataSet = pace.data
        return (1 / recipe.steps_per_epoch(len(data.train)),) * len(recipe.phases)

    patch.setattr(Pace, "step_seconds", step_seconds)
