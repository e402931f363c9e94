"""A recipe laid out in steps: where each phase lies, and the learning rate of each step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

from trainonce.recipes.recipe import Phase, Recipe
from trainonce.space import SearchSpace

ONE_CYCLE_START = 1 / 25
"""Of the highest learning rate, where one cycle begins."""
ONE_CYCLE_RISE = 0.3
"""The share of a phase in which the learning rate of one cycle rises, where no warm-up says otherwise."""


def _along_cosine(start: float, end: float, progress: float) -> float:
    """The way from `start` to `end` along half a cosine, `progress` of it (0 to 1) gone."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class PhaseSteps:
    """Where a phase lies in the run's steps, and its learning rate at each."""

    index: int
    phase: Phase
    start: int
    steps: int
    warmup_steps: int
    hold_steps: float
    cosine_start: int
    cosine_steps: int

    @property
    def end(self) -> int:
        """The first step after the phase."""
        return self.start + self.steps

    @property
    def turns(self) -> int:
        """How often the phase draws subnets."""
        return self.turn(self.end - 1) + 1

    def turn(self, step: int) -> int:
        """Which draw of the phase, from 0, is trained at a step of the run that lies in this phase."""
        return int((step - self.start) // self.hold_steps)

    def lr(self, step: int) -> float:
        """The learning rate of a step of the run that lies in this phase."""
        in_phase = step - self.start
        if in_phase < self.warmup_steps:
            if self.phase.schedule == "one-cycle":
                return self.phase.lr * _along_cosine(ONE_CYCLE_START, 1.0, in_phase / self.warmup_steps)
            return self.phase.lr * (in_phase + 1) / self.warmup_steps
        if self.phase.schedule == "constant":
            return self.phase.lr
        progress = (step - self.cosine_start) / self.cosine_steps
        return self.phase.lr * _along_cosine(1.0, 0.0, progress)


def timetable(recipe: Recipe, steps_per_epoch: int) -> tuple[PhaseSteps, ...]:
    """The phases laid out in steps, at least one each."""
    lengths = [max(1, round(phase.epochs * steps_per_epoch)) for phase in recipe.phases]
    table, recipe_warmup = [], 0
    for index, (phase, steps) in enumerate(zip(recipe.phases, lengths, strict=True)):
        start = sum(lengths[:index])
        rise = phase.warmup_epochs * steps_per_epoch
        if phase.schedule == "one-cycle" and not phase.warmup_epochs:
            rise = ONE_CYCLE_RISE * steps
        warmup = min(round(rise), steps - 1)
        if index == 0 and phase.cosine == "recipe":
            recipe_warmup = warmup
        cosine_start, cosine_end = {
            "phase": (start + warmup, start + steps),
            "recipe": (recipe_warmup, sum(lengths)),
            "cumulative": (0, start + steps),
        }[phase.cosine]
        table.append(
            PhaseSteps(
                index=index,
                phase=phase,
                start=start,
                steps=steps,
                warmup_steps=warmup,
                hold_steps=max(1.0, phase.hold_epochs * steps_per_epoch) if phase.hold == "epoch" else 1.0,
                cosine_start=cosine_start,
                cosine_steps=cosine_end - cosine_start,
            )
        )
    return tuple(table)


class Reached(NamedTuple):
    """How far a training by a recipe had come at a step."""

    epochs: float
    passes: float
    """Over the training images, counted by subnets trained."""
    ended: bool
    """Whether that is all of it."""


def reached(recipe: Recipe, steps_per_epoch: int, step: int) -> Reached:
    """How far a training had come when `step` steps were done; at its end what the recipe says."""
    table = timetable(recipe, steps_per_epoch)
    if step >= table[-1].end:
        return Reached(recipe.epochs, recipe.passes, ended=True)
    steps = [min(max(step - entry.start, 0), entry.steps) for entry in table]
    subnets = [one * len(entry.phase.subnets) for one, entry in zip(steps, table, strict=True)]
    return Reached(sum(steps) / steps_per_epoch, sum(subnets) / steps_per_epoch, ended=False)


def phase_at(table: tuple[PhaseSteps, ...], step: int) -> PhaseSteps:
    """The entry in whose steps `step` lies."""
    return next(entry for entry in table if step < entry.end)


def phases_of_largest(phases: Sequence[Phase], space: SearchSpace) -> int:
    """How many phases, from the first on, train the largest subnet and no other."""
    alone = takewhile(lambda phase: phase.subspace(space).smallest() == space.largest(), phases)
    return len(list(alone))


def largest_alone(table: Sequence[PhaseSteps], space: SearchSpace) -> int:
    """The steps for which a recipe trains the largest subnet and nothing else, before others share its weights.

    0 where others are trained from the beginning, or never.
    """
    first = phases_of_largest([entry.phase for entry in table], space)
    return table[first].start if first < len(table) else 0
