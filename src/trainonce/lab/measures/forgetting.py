"""Forgetting: fixed probe subnets, scored again and again while the supernet trains.

A probe's forgetting is its best accuracy so far less its accuracy now. Natural where each epoch trains another subnet.
"""

import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from pydantic import Field

from trainonce.data import DataSet
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.files import fits_record
from trainonce.models import Supernet
from trainonce.nn.lending import modes_kept
from trainonce.recipes import Recipe, timetable
from trainonce.run.directory import RunDirectory
from trainonce.run.lines import ForgettingLine
from trainonce.sampling import MacsSampler, SubnetDraws
from trainonce.settings import Settings
from trainonce.space import Architecture, derived_rng, derived_seed
from trainonce.training.settings import EpochEnd

PROBES = 4
"""Probes that are looked at where none are named and no number is."""
MOST_PROBES = 1000
"""The most probes that may be asked for."""
DRAWS = 32
"""Steps drawn of each phase to estimate the MACs that it trains."""
TRAINING = 3
"""A training pass counts as three forward passes: backward computes two gradients."""


class ProberSettings(Settings):
    """How probes are looked at while training."""

    images: int = Field(1000, ge=1)
    """Images of the validation split that a look scores, drawn from the seed; all where there are fewer."""
    calibration_images: int = Field(400, ge=2)
    """Images that a look recalibrates batch norms on."""
    share: float = Field(0.01, gt=0)
    """Most of the arithmetic of training, counted in MACs, that looking may take; but the end is always looked at."""


def default_probes(net: Supernet, count: int, *, seed: int) -> tuple[Architecture, ...]:
    """The smallest and the largest subnet and others drawn at MACs evenly in between, from the smallest up.

    Fewer where the space has no more; for a count of 1 the largest.
    """
    if count < 2:
        return (net.space.largest(),)[:count]
    by_macs = MacsSampler(net.cost)
    low, high = by_macs.min_macs, by_macs.max_macs
    between = [
        by_macs.near(derived_rng(seed, "probe", i), low + i / (count - 1) * (high - low))[0]
        for i in range(1, count - 1)
    ]
    return tuple(dict.fromkeys([net.space.smallest(), *between, net.space.largest()]))


def epochs_between_looks(
    net: Supernet, recipe: Recipe, *, images: int, look_macs: float, share: float, seed: int
) -> int:
    """Every how many epochs to look so that looks, of `look_macs` each, take under `share` of training's arithmetic.

    `images` is how many there are to train on. The MACs of what the recipe draws are estimated from some draws.
    """
    batch, per_epoch = recipe.images_per_step(images), recipe.steps_per_epoch(images)
    table = timetable(recipe, per_epoch)
    total = sum(entry.steps * batch * _step_macs(net, recipe, entry.index, seed) for entry in table)
    epochs = table[-1].end / per_epoch
    looks = max(1, math.floor(share * total / look_macs))
    return math.ceil(epochs / looks)


def _step_macs(net: Supernet, recipe: Recipe, index: int, seed: int) -> float:
    """About the MACs that a step of a phase takes for each image."""
    phase = recipe.phases[index]
    draws = SubnetDraws(phase.subnets, net.cost.within(phase.subspace(net.space)), phase.cycle)
    rng = derived_rng(seed, "macs trained", index)
    trained = [draws.draw(rng, turn) for turn in range(DRAWS)]
    macs = [
        sum(net.cost(candidates[0]).macs * (TRAINING + len(candidates) * (len(candidates) > 1)) for candidates in step)
        for step in trained
    ]
    teacher = net.cost(net.space.largest()).macs if phase.target == "labels+teacher" else 0
    return statistics.fmean(macs) + teacher


class Prober:
    """Looks at probes after an epoch and records their scores: `train_supernet(…, on_epoch=Prober(…))`.

    `on_look` is told the probes' top-1, in percent, in their order. It keeps the images that it looks at in memory, on
    the network's device as it is now. The network stays as it is.
    """

    def __init__(
        self,
        net: Supernet,
        recipe: Recipe,
        data: DataSet,
        run: RunDirectory,
        *,
        probes: Sequence[Architecture],
        seed: int = 0,
        settings: ProberSettings | None = None,
        on_look: Callable[[Sequence[float]], None] = lambda _: None,
    ) -> None:
        self.net, self.run, self.probes, self.on_look = net, run, tuple(probes), on_look
        chosen = settings or ProberSettings()
        data = data.varied_by(recipe)
        part = data.validate.drawn(chosen.images, seed=derived_seed(seed, "probe images"))
        none = part.take(np.zeros(0, np.int64))
        seen = replace(data, train=none, validate=part, test=none).to(next(net.parameters()).device)
        calibration = EvaluateSettings(calibration_images=chosen.calibration_images, seed=seed)
        self.evaluator = Evaluator(seen, "validate", calibration)
        passes = len(part) + chosen.calibration_images
        self.every = epochs_between_looks(
            net,
            recipe,
            images=len(data.train),
            look_macs=passes * sum(net.cost_of(probe).macs for probe in self.probes),
            share=chosen.share,
            seed=seed,
        )
        """Epochs from one look to the next."""

    def __call__(self, at: EpochEnd) -> None:
        """Look, where it is time to."""
        if not at.last and at.epoch % self.every:
            return
        with modes_kept(self.net):
            found = self._look(at)
        if found:
            self.on_look(found)

    def _look(self, at: EpochEnd) -> list[float]:
        """Record a look; gives the top-1 of the probes that have a score."""
        self.net.eval()
        found = []
        for probe in self.probes:
            score = self.evaluator(self.net, probe)
            if not fits_record(score.loss):
                said = f"the loss of the probe {probe} after step {at.step} is {score.loss:g}: that look is left out"
                warnings.warn(said, RuntimeWarning, stacklevel=2)
                continue
            found.append(score.top1)
            self.run.append_forgetting(
                ForgettingLine(
                    step=at.step,
                    epoch=at.epoch,
                    probe=str(probe),
                    macs=self.net.cost_of(probe).macs,
                    top1=score.top1,
                    loss=score.loss,
                    images=score.images,
                )
            )
        self.evaluator.forget()  # other weights have nothing in common with these
        return found


def forgetting(lines: Iterable[ForgettingLine]) -> dict[str, list[float]]:
    """For each probe, look by look, its best top-1 so far less its top-1 now, in points; 0 where it is at its best."""
    best: dict[str, float] = {}
    found: dict[str, list[float]] = {}
    for line in lines:
        best[line.probe] = max(line.top1, best.get(line.probe, line.top1))
        found.setdefault(line.probe, []).append(best[line.probe] - line.top1)
    return found
