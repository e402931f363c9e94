"""How fast this machine trains a recipe and scores a subnet, measured by doing a little of it."""

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from trainonce.data import DataSet
from trainonce.data.splits import Split
from trainonce.errors import UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, score, score_batch
from trainonce.models import Supernet
from trainonce.recipes import ONLY_LARGEST, Phase, PhaseSteps, Recipe, timetable
from trainonce.run.directory import RunDirectory
from trainonce.run.lines import MetricsLine
from trainonce.space import Architecture, SearchSpace
from trainonce.training.loop import train_supernet
from trainonce.training.settings import Progress, TrainSettings

FEWEST_EPOCHS = 2.0
"""A time that gives fewer passes over the images is refused: nothing would be learned."""
PLANNING_PASSES = 12
"""How many subnets are trained to learn the pace by which a training of some minutes is planned."""
EVEN_VARY = 2
"""So many times as many of even ones, whose sizes vary more."""
GPU_WARM_STEPS = 16
"""Steps before those that are timed on a GPU, for each size of images: most blocks have their graphs captured then."""


@dataclass
class Pace:
    """Times steps of phases by training them, everything included, and remembers what it has timed.

    `passes` is how many subnets are trained to time a phase; the sizes that a draw gives vary, so more is surer.
    """

    data: DataSet
    settings: TrainSettings = field(default_factory=TrainSettings)
    """How it is trained: where, in which numbers, with CUDA graphs or without."""
    _steps: dict[str, float] = field(default_factory=dict)

    def seconds(self, net: Supernet, recipe: Recipe, *, passes: int = 4, processes: int = 1) -> float:
        """About how many seconds it takes to train a supernet like `net` by a recipe.

        Of several processes each times its share of a batch. What they say to each other is left out, and that each
        loads and varies whole batches of images that are mixed.
        """
        images = recipe.images_per_step(len(self.data.train))
        own = recipe.model_copy(update={"batch_size": max(2, -(-images // processes))})
        return planned_seconds(recipe, self.step_seconds(net, own, passes=passes), len(self.data.train))

    def step_seconds(self, net: Supernet, recipe: Recipe, *, passes: int = 4) -> tuple[float, ...]:
        """About how many seconds a step takes, phase by phase."""
        table = timetable(recipe, recipe.steps_per_epoch(len(self.data.train)))
        return tuple(self._step(net, recipe, entry, passes) for entry in table)

    def _step(self, net: Supernet, recipe: Recipe, entry: PhaseSteps, passes: int) -> float:
        phase = entry.phase
        passes *= EVEN_VARY if "even" in phase.subnets else 1
        steps = max(1, min(entry.steps, -(-passes // len(phase.subnets))))
        alike = phase.model_dump(include={"subnets", "cycle", "target", "teacher", "trains"})
        shared = recipe.model_dump(include={"batch_size", "optimizer", "augmentation"}), recipe.ema > 0
        key = repr((net.family, net.settings, shared, steps, phase.subspace(net.space), alike))
        if key not in self._steps:
            self._steps[key] = self._timed(net, recipe, phase, steps)
        return self._steps[key]

    def _timed(self, net: Supernet, recipe: Recipe, phase: Phase, steps: int) -> float:
        """Seconds of one step: after the largest for a step, so that there is a teacher, and steps to warm up.

        Subnets change at every step even where the recipe holds one for an epoch: epochs whose subnets are held would
        have to be timed by the dozen before their sizes average out, and a held subnet's step costs the same on the
        CPU. On a GPU it replays a graph of the whole step there and graphs of its blocks here, which is nearly as fast.
        """
        warm = 1 if self.settings.device == "cpu" else GPU_WARM_STEPS * len(phase.subspace(net.space).by_image_size())
        epoch = recipe.steps_per_epoch(len(self.data.train))
        changed = {"epochs": (warm + steps) / epoch, "hold": "step", "cosine": "phase", "lr": 1e-4, "ramp_epochs": 0.0}
        first = Phase(name="largest", epochs=1 / epoch, lr=1e-4, keep_largest=ONLY_LARGEST)
        short = recipe.model_copy(update={"phases": (first, phase.model_copy(update=changed))})
        times: list[float] = []

        def look(_at: Progress) -> None:
            times.append(time.monotonic())

        with tempfile.TemporaryDirectory(prefix="trainonce-pace-") as folder:
            timed = {"log_every": 1, "checkpoint_every_s": 1e9, "keep_at": ()}
            settings = self.settings.model_copy(update=timed)
            another = type(net)(net.settings)
            train_supernet(another, short, self.data, RunDirectory(Path(folder)), settings=settings, on_progress=look)
        return (times[-1] - times[warm]) / steps


class Planned(NamedTuple):
    """A training that is to take a given time."""

    recipe: Recipe
    step_s: tuple[float, ...]
    """Seconds that a step of each phase took when it was planned (`TrainSettings.planned_step_s`)."""


def planned_seconds(recipe: Recipe, step_s: Sequence[float], train_images: int) -> float:
    """How long a recipe takes where a step of each phase takes so many seconds."""
    table = timetable(recipe, recipe.steps_per_epoch(train_images))
    return sum(entry.steps * one for entry, one in zip(table, step_s, strict=True))


def for_minutes(
    net: Supernet,
    recipe: Recipe,
    data: DataSet,
    settings: TrainSettings,
    minutes: float,
    *,
    share: float = 1.0,
    beside_s: float = 0.0,
) -> Planned:
    """`recipe` at the length that trains by `settings` for a share of so many minutes; a few steps are timed in them.

    The share is of what is left of them beside `beside_s` seconds, for what is done before and after. Raises
    `UserError` where the time is too short to learn anything, with the least that would do.
    """
    began = time.monotonic()
    pace = Pace(data, settings)
    whole = pace.seconds(net, recipe, passes=PLANNING_PASSES)
    timing = time.monotonic() - began
    epochs = recipe.epochs * share * (60 * minutes - beside_s - timing) / whole
    if epochs < FEWEST_EPOCHS:
        needed = math.ceil(100 * (FEWEST_EPOCHS / recipe.epochs * whole / share + beside_s + timing) / 60) / 100
        raise UserError(
            f"{minutes:g} minutes are {max(0.0, epochs):.2g} passes over the {len(data.train)} training images here: "
            f"give at least {needed:g}, or smaller images with --image-size, or fewer with --train-images"
        )
    return Planned(recipe.scaled(epochs / recipe.epochs), pace.step_seconds(net, recipe, passes=PLANNING_PASSES))


def said_left_out(last: MetricsLine) -> str:
    """That steps were left out for want of time, in a sentence, after a run's last line; empty where none were."""
    if not last.left_out:
        return ""
    return (
        f"The machine was slower than planned: {last.left_out / last.step:.0%} of the {last.step} steps were left out"
    )


def middling(space: SearchSpace) -> Architecture:
    """The subnet of the middle value of each choice, on the largest images: about as long to score as most."""
    part = space.keep_largest({"resolution": 1})
    return part.build(lambda _, values: values[len(values) // 2])


def seconds_to_score(networks: Sequence[nn.Module], split: Split, data: DataSet, images: int) -> float:
    """About how many seconds it takes to score all of some networks on so many images like those of a split of `data`.

    They are plain networks, as they are; one batch is timed, after one that warms up. Where images are streamed,
    decoding them by one process is added.
    """
    count, began = score_batch(split), time.monotonic()
    _, images_BCHW, labels_B = split.batch(torch.arange(count, device=split.labels.device) % len(split))
    decoding = time.monotonic() - began if split.streamed else 0.0
    few, seconds = Split(images_BCHW, labels_B), 0.0
    for network in networks:
        for _ in range(2):
            began = time.monotonic()
            score(network, few, data)
        seconds += time.monotonic() - began + decoding
    return seconds * images / count


def scoring_seconds(net: Supernet, data: DataSet, split: str, calibration_images: int) -> float:
    """About how many seconds it takes to score one middling subnet of one like `net`: what evaluating does, once."""
    net = type(net)(net.settings).eval()
    settings = EvaluateSettings(calibration_images=calibration_images)
    evaluator = Evaluator(data, "test" if split == "test" else "validate", settings)
    middle = middling(net.space)
    began = time.monotonic()
    evaluator(net.to(data.test.device), middle)
    return time.monotonic() - began
