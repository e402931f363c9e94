"""What several tests of searching share: a small space, and an evaluator whose scores are made up."""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainonce.data import DataSet
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, Score
from trainonce.space import Architecture, derived_seed


class MadeUp(Evaluator):
    """Scores by a number that follows from the architecture, and notes what it was asked."""

    def __init__(self, data: DataSet, split: Any = "validate", settings: EvaluateSettings | None = None) -> None:
        super().__init__(data, split, settings or EvaluateSettings(calibration_images=8))
        self.asked: list[Architecture] = []

    def __call__(self, net: Any, arch: Architecture) -> Score:
        self.asked.append(arch)
        return Score(top1=derived_seed(str(arch)) % 1000 / 10, loss=0.5, images=30)


@pytest.fixture(scope="session")
def small() -> Iterator[Any]:
    """The module `small_space`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "support")
        yield importlib.import_module("small_space")


@pytest.fixture(scope="session")
def made_up(make_data: Callable[..., DataSet]) -> Callable[..., MadeUp]:
    """Makes an evaluator of made-up scores: `made_up(split="test", settings=…)`."""

    def make(split: Any = "validate", settings: EvaluateSettings | None = None) -> MadeUp:
        return MadeUp(make_data(), split, settings)

    return make
