"""How fast this machine trains a recipe and scores a subnet, measured by doing a little of it."""

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from trainonce.data import DataSet
from trainonce.evaluate import EvaluateSettings, Evaluator
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.recipes import ONLY_LARGEST, Phase, Recipe, timetable
from trainonce.run import RunDirectory
from trainonce.train import Progress, TrainSettings, train_supernet

WARM_STEPS = 4
"""Steps before the clock starts. Also the steps between two looks at it."""


@dataclass
class Pace:
    """Times steps of phases by training them, everything included, and remembers what it has timed.

    `passes` is how many subnets are trained to time a phase; the sizes that a draw gives vary, so more is surer.
    """

    data: DataSet
    device: str = "cpu"
    _steps: dict[str, float] = field(default_factory=dict)

    def seconds(self, model: MobileNetV3Settings, recipe: Recipe, *, passes: int = 8) -> float:
        """About how many seconds a recipe takes."""
        per_epoch = len(self.data.train) // min(recipe.batch_size, len(self.data.train))
        return sum(entry.steps * self._step(model, recipe, entry.phase, passes) for entry in timetable(recipe, per_epoch))

    def _step(self, model: MobileNetV3Settings, recipe: Recipe, phase: Phase, passes: int) -> float:
        alike = phase.model_dump(include={"subnets", "cycle", "keep_largest", "restrict", "couple", "target", "teacher"})
        key = repr((model, recipe.batch_size, passes, alike))
        if key not in self._steps:
            self._steps[key] = self._timed(model, recipe, phase, passes)
        return self._steps[key]

    def _timed(self, model: MobileNetV3Settings, recipe: Recipe, phase: Phase, passes: int) -> float:
        """Seconds of one step: the largest for a step, so that there is a teacher, then the phase."""
        epoch = len(self.data.train) // min(recipe.batch_size, len(self.data.train))
        rounds = 1 + -(-passes // (WARM_STEPS * len(phase.subnets)))
        changed = {"epochs": rounds * WARM_STEPS / epoch, "hold": "step", "cosine": "phase", "lr": 1e-4}
        first = Phase(name="largest", epochs=1 / epoch, lr=1e-4, keep_largest=ONLY_LARGEST)
        short = recipe.model_copy(update={"phases": (first, phase.model_copy(update=changed))})
        times: list[float] = []

        def look(_at: Progress) -> None:
            times.append(time.monotonic())

        with tempfile.TemporaryDirectory(prefix="trainonce-pace-") as folder:
            settings = TrainSettings(
                device=self.device, log_every=WARM_STEPS, checkpoint_every_s=1e9, cuda_graphs=False
            )
            net = MobileNetV3(model)
            train_supernet(net, short, self.data, RunDirectory(Path(folder)), settings=settings, on_progress=look)
        return (times[-1] - times[1]) / (WARM_STEPS * (rounds - 1))


def scoring_seconds(model: MobileNetV3Settings, data: DataSet, split: str, calibration_images: int) -> float:
    """About how many seconds it takes to score one subnet of middling size: what evaluating does, once."""
    net = MobileNetV3(model).eval()
    settings = EvaluateSettings(calibration_images=calibration_images)
    evaluator = Evaluator(data, "test" if split == "test" else "validate", settings)
    middle = net.space.build(lambda _, values: values[len(values) // 2])
    began = time.monotonic()
    evaluator(net.to(data.test.device), middle)
    return time.monotonic() - began
