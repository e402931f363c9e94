"""Our side of `worth.py`: one supernet, a subnet for each device, finetuned if there is time, within CPU seconds."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from torch import nn

from trainonce.data import DataSet
from trainonce.errors import UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, Score
from trainonce.evaluation.population import DrawnOver, draw_candidates, drawn_over
from trainonce.models import Supernet
from trainonce.pipeline.fitting import better_statistics
from trainonce.recipes import AugmentationChange, Recipe, largest_alone, load_recipe, timetable
from trainonce.run.directory import RunDirectory
from trainonce.sampling import MacsSampler
from trainonce.space import Architecture
from trainonce.subnets.finetune import FinetuneSettings, finetune, finetuning_pace
from trainonce.training.loop import train_supernet
from trainonce.training.settings import TrainSettings
from worth_rivals import Trained
from worth_table import DEVICES

WARM_UP_IMAGES, PILOT_SHARE = 256, 0.02
"""The pace is the difference of a training on so many images and one of about this share of the seconds, without what a
training of any length takes. A pilot of 12 steps, as it was until 1 December 2026, has missed the pace by a third."""


def recipe_name(recipe: str) -> str:
    """What a recipe, a name or a TOML file, is called in a file of results."""
    return Path(recipe).stem


def refuse_one_name(recipes: Sequence[str]) -> None:
    """Raise `UserError` where two different recipes are called the same in such a file."""
    for name, found in Counter(map(recipe_name, dict.fromkeys(recipes))).items():
        if found > 1:
            raise UserError(f"two recipes are called {name}: in the file of results they would be one")


@dataclass(frozen=True, kw_only=True)
class OurSettings:
    """How our side is run."""

    recipe: str
    lr_factor: float
    split: tuple[float, float, float]
    """Shares of the budget: training, choosing, finetuning; finetuning gets what the others leave, all the same, but
    nothing where its share is 0."""
    crop_scale: float | None
    """Smallest area of a random crop; None for the set's own augmentation."""
    finetune_rate: float | None
    """None for what suits the recipe's optimizer, which fine-tunes too."""
    candidates: int
    """Most subnets that are scored for each device."""
    calibration_images: int

    def __str__(self) -> str:
        crops = "own crops" if self.crop_scale is None else f"crops from {self.crop_scale:g}"
        split = " / ".join(f"{share:g}" for share in self.split)
        tuned = "finetuned" if self.finetune_rate is None else f"finetune at {self.finetune_rate:g}"
        tuned = f"{tuned} to the end" if self.split[2] else "not finetuned"
        return f"{recipe_name(self.recipe)}, rate x {self.lr_factor:g}, {crops}, split {split}, {tuned}"


class Network(NamedTuple):
    """What is taken out for a device: its architecture, what it came to, and what else is noted."""

    arch: Architecture
    trained: Trained
    about: dict[str, Any]


def train_once(net: Supernet, data: DataSet, settings: OurSettings, *, seconds: float, seed: int) -> list[Network]:
    """Train `net`, choose a subnet for each device and finetune each, all within so many CPU seconds.

    Each network's seconds are a third of all.
    """
    began = time.process_time()
    recipe = load_recipe(settings.recipe).at_rate(settings.lr_factor)
    data = _augmented(data, settings.crop_scale).varied_by(recipe)
    steps, alone = train_for(net, recipe, data, seconds * settings.split[0], seed)
    at_end = time.process_time()
    evaluating = EvaluateSettings(calibration_images=settings.calibration_images)
    evaluator = Evaluator(data, "validate", evaluating)
    until = at_end + seconds * settings.split[1]
    chosen = choose(
        *(net, alone, evaluator, settings.candidates),
        over=drawn_over(recipe),
        seed=seed,
        until=until,
    )
    parts = {"train": round(at_end - began, 1), "choose": round(time.process_time() - at_end, 1)}
    how = FinetuneSettings.by(
        recipe.finetuned_by,
        lr=settings.finetune_rate,
        epochs=1,
        label_smoothing=0.1,
        class_balance=recipe.class_balance,
        seed=seed,
    )
    weights = {one: chosen.count(one) * net.cost_of(one.arch).macs ** 0.5 for one in chosen if one.net is net}
    finished: dict[Chosen, Finetuned] = {}
    for one in dict.fromkeys(chosen):  # devices that have the same network share it and its time
        network = evaluator.recalibrated(one.net, one.arch) if one.recalibrated else one.net.extract(one.arch)
        if one.net is alone:
            finished[one] = Finetuned(network, one.top1, {"finetuned": "no: as before others shared its weights"})
            continue
        if not settings.split[2]:
            finished[one] = Finetuned(network, one.top1, {"finetuned": "no"})
            continue
        ahead = sum(weight for other, weight in weights.items() if other not in finished)
        left = (began + seconds - time.process_time()) * weights[one] / ahead
        finished[one] = finetuned(network, one.top1, evaluator, left, how)
    took = time.process_time() - began
    tester = Evaluator(data, "test", evaluating)
    networks = []
    for one in chosen:
        network, validate, said = finished[one]
        about = {"architecture": str(one.arch), "seconds": parts | {"all": round(took, 1)}, "validate_before": one.top1}
        test = tester.score(network).top1
        trained = Trained(validate=validate, test=test, seconds=took / len(chosen), steps=steps)
        networks.append(Network(one.arch, trained, about | said))
    return networks


def _augmented(data: DataSet, crop_scale: float | None) -> DataSet:
    change = AugmentationChange(crop_from=crop_scale)
    return replace(data, augmentation=change.of(data.augmentation, data.class_names, data.image_size))


def train_for(net: Supernet, recipe: Recipe, data: DataSet, seconds: float, seed: int) -> tuple[int, Supernet | None]:
    """Train by a recipe of the length that so many CPU seconds allow at the pace of a short training.

    Gives the steps, and the supernet as it was before others shared the largest subnet's weights, where that was
    trained first. The short training is of another supernet of the same settings, and counts.
    """
    began = time.process_time()
    whole = recipe.epochs * recipe.steps_per_epoch(len(data.train))
    with TemporaryDirectory() as folder:

        def run(network: Supernet, steps: float, name: str) -> tuple[float, int]:
            start = time.process_time()
            scaled = recipe.scaled(steps / whole)
            table = timetable(scaled, scaled.steps_per_epoch(len(data.train)))
            alone = largest_alone(table, network.space) / table[-1].end
            saved = TrainSettings(checkpoint_every_s=3600, keep_at=(alone,) if alone else ())
            train_supernet(network, scaled, data, RunDirectory(Path(folder) / name), seed=seed, settings=saved)
            return time.process_time() - start, table[-1].end

        least = len(recipe.phases)
        few = max(WARM_UP_IMAGES // recipe.batch_size, least)
        pilot = type(net)(net.settings, seed=seed)
        run(pilot, few, "cold")
        short_s, short = run(pilot, few, "short")
        longer_s, longer = run(pilot, max(PILOT_SHARE * seconds * short / short_s, 4 * few), "longer")
        pace = (longer_s - short_s) / (longer - short)
        steps = max(least, round((seconds - (time.process_time() - began)) / pace))
        run(net, steps, "run")
        kept = RunDirectory(Path(folder) / "run")
        return steps, next(map(kept.load_kept, kept.kept_steps()), None)


class Chosen(NamedTuple):
    """A device's subnet, of which supernet, and its top-1 on validate."""

    net: Supernet
    arch: Architecture
    top1: float
    recalibrated: bool = True
    """Whether its batch norms are; else they keep the statistics of its training."""


def choose(
    net: Supernet, alone: Supernet | None, evaluator: Evaluator, most: int, *, over: DrawnOver, seed: int, until: float
) -> list[Chosen]:
    """For each device the subnet of least loss on validate of up to `most` drawn for it; where it takes the largest,
    that is also looked at as it was when it was trained `alone`.

    Rounds of one subnet for each device, those with the first of each size of images in any case, until the process
    time is `until`.
    """
    sampler = MacsSampler(net.cost)
    limits = [max(device * sampler.max_macs, 1.02 * sampler.min_macs) for device in DEVICES]
    drawn = draw_candidates(net.cost, limits, most, seed=seed, over=over)
    sizes = [len({arch.get("resolution") for arch in archs}) for archs in drawn]
    scored: dict[Architecture, Score] = {}
    for turn in range(most):
        for archs, least in zip(drawn, sizes, strict=True):
            if turn < len(archs) and archs[turn] not in scored and (turn < least or time.process_time() < until):
                scored[archs[turn]] = evaluator(net, archs[turn])
    chosen = []
    for device, archs in zip(DEVICES, drawn, strict=True):
        score, arch = min(((scored[arch], arch) for arch in archs if arch in scored), key=lambda one: one[0].loss)
        taken = Chosen(net, arch, score.top1)
        if alone is not None and device == 1:
            recalibrated, before = better_statistics(alone, evaluator)
            if before.loss < score.loss:
                taken = Chosen(alone, net.space.largest(), before.top1, recalibrated)
        chosen.append(taken)
    return chosen


class Finetuned(NamedTuple):
    """A network, its top-1 on validate, and what was done."""

    network: nn.Module
    validate: float
    about: dict[str, Any]


def finetuned(
    network: nn.Module,
    before: float,
    evaluator: Evaluator,
    seconds: float,
    settings: FinetuneSettings,
    *,
    always: bool = False,
) -> Finetuned:
    """Finetune for as many epochs as fit into so many CPU seconds; or not where none does.

    The network is kept as it was, with `before` percent on validate, where it did not get better, unless `always`.
    """
    began, wall = time.process_time(), time.monotonic()
    pace = finetuning_pace(network, evaluator, settings)  # in seconds of the clock on the wall
    spent = time.process_time() - began
    epochs = pace.epochs_within((seconds - spent) * max(time.monotonic() - wall, 1e-9) / spent)
    if not epochs:
        return Finetuned(network, before, {"finetuned": "no time"})
    result = finetune(network, evaluator, settings.model_copy(update={"epochs": epochs}))
    assert result is not None, "nothing stops it"
    said: dict[str, Any] = {"finetuned": f"{epochs:.2f} epochs", "validate_after": result.after.top1}
    said |= {"loss_before": result.before.loss, "loss_after": result.after.loss}
    if not (result.better or always):
        return Finetuned(network, before, said)
    return Finetuned(result.network, result.after.top1, said)
