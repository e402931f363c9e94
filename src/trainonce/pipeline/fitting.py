"""From images to a network for each device, in a time that a person gives.

One supernet is trained for most of the time. Then, for each budget of MACs, random subnets of each size of images are
scored on the validate split and the best is taken out; the recipe says how much of the time the devices share to
fine-tune theirs, if any.
The test split is read once for each network that is handed over. What is done is recorded in the run (`fit.json` beside
the files of the stages), so that the same call goes on where it stopped.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from torch import nn

from trainonce.data import DataSet
from trainonce.data.baseline import SCORED_IMAGES, Baseline, baseline, scored_on
from trainonce.errors import NotFiniteError, UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, Score, finite, refuse_empty
from trainonce.evaluation.per_class import score_by_class
from trainonce.evaluation.population import DrawnOver, draw_candidates, drawn_over, evaluate_population, recorded
from trainonce.files import is_there, write_atomic
from trainonce.models import Supernet
from trainonce.names import plain
from trainonce.nn.kinds import spec_of
from trainonce.pipeline.fitted import FitRecord, FitSettings, Fitted, begun_otherwise, fit_recorded, name_of
from trainonce.pipeline.pace import Planned, for_minutes, planned_seconds, said_left_out, seconds_to_score
from trainonce.recipes import Recipe, largest_alone, phases_of_largest, timetable
from trainonce.records import to_json
from trainonce.run.directory import RunDirectory, Start, provenance
from trainonce.settings import refuse_subclass
from trainonce.space import Architecture
from trainonce.subnets import read_subnet, verify_subnet, write_subnet
from trainonce.subnets.finetune import (
    Finetuned,
    FinetuneProgress,
    FinetuneSettings,
    described_finetuned,
    finetune,
    finetuning_pace,
)
from trainonce.subnets.taken import describe_taken
from trainonce.training.loop import train_supernet
from trainonce.training.settings import Progress, TrainSettings

CHOOSING_SHARE = 0.05
"""How much of the time is for choosing subnets; fine-tuning has the recipe's share, training the rest."""
CANDIDATES = 24
"""The most subnets that are scored for a device."""
CALIBRATION_IMAGES = 400
"""Augmented images that batch norms are recalibrated on: a fifth of what the commands that compare subnets take, since
each candidate and each epoch of fine-tuning pays for them."""


def better_statistics(net: Supernet, evaluator: Evaluator) -> tuple[bool, Score]:
    """Whether the largest subnet has less loss recalibrated than with its training's own statistics, and that score.

    For a supernet whose largest subnet shared its weights with no other: the statistics are then those of no other.
    """
    largest = net.space.largest()
    ways = {True: evaluator(net, largest), False: evaluator.score(net.extract(largest))}
    return min(ways.items(), key=lambda way: way[1].loss)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who is told of progress, and who is asked whether to stop (after every step of training)."""

    stage: Callable[[str], None] = lambda _sentence: None
    training: Callable[[Progress], None] = lambda _progress: None
    choosing: Callable[[int, int], None] = lambda _done, _all: None
    finetuning: Callable[[FinetuneProgress], None] = lambda _progress: None
    should_stop: Callable[[], bool] = lambda: False


def planned_recipe(
    net: Supernet, recipe: Recipe, data: DataSet, settings: FitSettings, *, spent_s: float = 0.0
) -> Planned:
    """`recipe` at the length that trains here for its share of the time that is left without `spent_s` seconds, which
    are spent, and scoring on the test split. Errors as `for_minutes`."""
    began = time.monotonic()
    testing_s = testing_seconds(net, data, settings)
    beside_s, share = spent_s + testing_s + time.monotonic() - began, 1 - CHOOSING_SHARE - recipe.finetune_share
    by = TrainSettings(device=settings.device)
    return for_minutes(net, recipe, data, by, settings.minutes, share=share, beside_s=beside_s)


def testing_seconds(net: Supernet, data: DataSet, settings: FitSettings) -> float:
    """About how many seconds it takes to score a network for each device on the test split."""
    largest_s = seconds_to_score([net.extract(net.space.largest())], data.validate, data, len(data.test))
    return largest_s * largest_networks(net, settings.max_macs)


def largest_networks(net: Supernet, max_macs: Sequence[float]) -> float:
    """How many of the largest network have the MACs of one network for each device."""
    most = net.cost_of(net.space.largest()).macs
    return sum(min(1.0, limit / most) for limit in max_macs)


def refuse_small_budgets(net: Supernet, max_macs: Sequence[float]) -> None:
    """Raise `UserError` that names the budgets under which there is no subnet."""
    least = net.cost_of(net.space.smallest()).macs
    without = [f"{limit / 1e6:g}" for limit in max_macs if limit < least]
    if without:
        raise UserError(
            f"no subnet fits {' or '.join(without)} million MACs: the smallest has {least / 1e6:.3f}. Ask for more, or "
            f"make all of them smaller {net.ways_to_smaller}"
        )


def fit_supernet(
    net: Supernet,
    recipe: Recipe,
    data: DataSet,
    run: RunDirectory,
    settings: FitSettings,
    watch: Watch | None = None,
    *,
    start: Start | None = None,
) -> list[Fitted] | None:
    """Train `net` by `recipe`, scaled to the time, and hand over a network for each device; None where it was stopped.

    `start` says where the weights that `net` has come from, if they were trained before.

    Where `run` holds a fit that was stopped, it goes on with the time that it had left, by the recipe recorded there.
    Raises `UserError` for a time that is too short, a budget that nothing fits, a rate for fine-tuning that the recipe
    has no time for, and a run of something else, and `RunError` as `train_supernet` and `finetune` do.
    """
    refuse_subclass(settings, FitSettings)
    try:
        return _Fit(net, recipe, data, run, settings, watch or Watch(), start).go()
    except _StoppedEarlyError:
        return None


def _few_to_choose_by(data: DataSet) -> DataSet:
    """The data set with no more validate images than the baseline is scored on, the same ones; in memory, since each
    scoring would decode streamed ones again."""
    few = len(data.validate) <= SCORED_IMAGES and not data.validate.streamed
    return data if few else replace(data, validate=scored_on(data))


class _StoppedEarlyError(Exception):
    """It was asked to stop."""


class _Fit:
    def __init__(
        self,
        net: Supernet,
        recipe: Recipe,
        data: DataSet,
        run: RunDirectory,
        settings: FitSettings,
        watch: Watch,
        start: Start | None,
    ) -> None:
        refuse_small_budgets(net, settings.max_macs)
        refuse_empty(data, "validate", "test")
        self.net, self.asked, self.data = net.to(settings.device), recipe, data.to(settings.device)
        self.run, self.settings, self.watch, self.start = run, settings, watch, start
        self.began, self.spent = time.monotonic(), 0.0
        self.largest_macs = net.cost_of(net.space.largest()).macs
        self.trained = False
        self.optimizer, self.class_balance, self.only_largest, self.finetune_share = "sgd", 0.0, False, 0.0
        self.drawn: DrawnOver = "choices"
        self.done: list[Fitted] = []

    def seconds(self) -> float:
        """Seconds spent so far, in this and earlier sessions."""
        return self.spent + time.monotonic() - self.began

    def left(self) -> float:
        """Seconds of the time given that are left, at least 0."""
        return max(0.0, self.settings.minutes * 60 - self.seconds())

    def go(self) -> list[Fitted]:
        """All stages that are not done yet."""
        compared = None
        if is_there(self.run.config_file):
            planned = self._bring_back()
            if len(self.done) == len(self.settings.max_macs):
                return self.done
            self.watch.stage(
                f"Going on: of {self.settings.minutes:g} minutes {_minutes(self.left())} are left, and "
                f"{len(self.done)} of {len(self.settings.max_macs)} devices are done"
            )
        else:
            compared, planned = self._plan()
        with self.run.lock():
            if compared is not None:
                if is_there(self.run.config_file):
                    raise UserError(f"another process has begun {self.run.path} meanwhile: run the same command again")
                self.run.write_baseline(compared)
                self._record()
            self._carry_out(*planned)
        return self.done

    def _plan(self) -> tuple[Baseline, Planned]:
        """What a plain classifier comes to, and the recipe in the time that is left."""
        if self.settings.finetune_lr is not None and not self.asked.finetune_share:
            raise UserError(
                f"the recipe {self.asked.name} has no time for fine-tuning (finetune_share): leave --finetune-lr out, "
                "or take another with --recipe"
            )
        compared = baseline(self.data)
        self.watch.stage(f"For comparison: {compared}")
        self.watch.stage("Timing some steps of training")
        needed = self._needed(self.asked)
        return compared, planned_recipe(self.net, needed, self.data, self.settings, spent_s=self.seconds())

    def _carry_out(self, recipe: Recipe, step_s: tuple[float, ...]) -> None:
        self.optimizer, self.class_balance, self.drawn = recipe.finetuned_by, recipe.class_balance, drawn_over(recipe)
        self.only_largest = phases_of_largest(recipe.phases, self.net.space) == len(recipe.phases)
        self.finetune_share = recipe.finetune_share
        self._train(recipe, step_s)
        self.data = self.data.varied_by(recipe)
        calibrating = EvaluateSettings(calibration_images=CALIBRATION_IMAGES, seed=self.settings.seed)
        evaluator = Evaluator(_few_to_choose_by(self.data), "validate", calibrating)
        devices = list(zip(self.settings.max_macs, self._choose(evaluator), strict=True))
        while ahead := devices[len(self.done) :]:
            self.done.append(self._hand_over(evaluator, ahead))
            self._record()

    def _needed(self, recipe: Recipe) -> Recipe:
        """The recipe without the phases that train other subnets, where every device takes the largest."""
        alone = recipe.phases[: phases_of_largest(recipe.phases, self.net.space)]
        if min(self.settings.max_macs) < self.largest_macs or all(phase.trains == "head" for phase in alone):
            return recipe
        return recipe.model_copy(update={"phases": alone})

    def _train(self, recipe: Recipe, step_s: tuple[float, ...]) -> None:
        seconds = planned_seconds(recipe, step_s, len(self.data.train))
        self.watch.stage(
            f"Training: {plain(recipe.epochs, 3)} epochs of {recipe.name}, about {_minutes(seconds)} of "
            f"{self.settings.minutes:g} minutes; into {self.run.path}"
        )
        finished = train_supernet(
            self.net,
            recipe,
            self.data,
            self.run,
            seed=self.settings.seed,
            start=self.start,
            resume=is_there(self.run.config_file),
            settings=TrainSettings(
                device=self.settings.device, planned_step_s=step_s, keep_at=self._kept_for_largest(recipe)
            ),
            on_progress=self.watch.training,
            should_stop=self.watch.should_stop,
        )
        if not finished:
            raise _StoppedEarlyError
        self.trained = True
        self._record()
        if left_out := said_left_out(self.run.metrics()[-1]):
            self.watch.stage(left_out)

    def _kept_for_largest(self, recipe: Recipe) -> tuple[float, ...]:
        """After which share of the training the weights are kept: where a device takes the largest subnet."""
        if max(self.settings.max_macs) < self.largest_macs:
            return ()
        table = timetable(recipe, recipe.steps_per_epoch(len(self.data.train)))
        alone = largest_alone(table, self.net.space)
        return (alone / table[-1].end,) if alone else ()

    def _choose(self, evaluator: Evaluator) -> list["_Chosen"]:
        """For each device the subnet of those drawn for it that has the least cross-entropy on validate."""
        space, limits = self.net.space, self.settings.max_macs
        small = [limit for limit in limits if limit < self.largest_macs or not self.only_largest]
        found = iter(draw_candidates(self.net.cost, small, CANDIDATES, seed=self.settings.seed, over=self.drawn))
        drawn = [next(found) if limit in small else [space.largest()] for limit in limits]
        wanted, step = self._in_time(drawn, evaluator), self.run.newest_step()
        self.watch.stage(f"Choosing: {len(wanted)} subnets near the devices' MACs are scored on the validate split")
        try:
            evaluate_population(
                self.net,
                step,
                evaluator,
                self.run,
                wanted,
                workers=1,
                on_progress=lambda done, _line: self.watch.choosing(done, len(wanted)),
                should_stop=self.watch.should_stop,
            )
        except NotFiniteError as error:
            self.watch.stage(f"Not chosen from: {error}")
        if self.watch.should_stop():
            raise _StoppedEarlyError
        scored = recorded(self.run, evaluator, step)  # more than are wanted, where an earlier session had time
        chosen = []
        for limit, archs in zip(limits, drawn, strict=True):
            lines = [scored[str(arch)] for arch in archs if str(arch) in scored]
            if not lines:
                raise NotFiniteError(f"no subnet that was drawn for {name_of(limit)} has a finite loss on validate")
            best = min(lines, key=lambda line: (line.loss, line.macs, line.arch))
            taken = _Chosen(self.net, step, space.parse(best.arch), len(lines), before_subnets=False)
            if limit >= self.largest_macs:
                taken = self._or_alone(taken, best.loss, evaluator)
            chosen.append(taken)
        return chosen

    def _in_time(self, drawn: Sequence[Sequence[Architecture]], evaluator: Evaluator) -> list[Architecture]:
        """As many of those drawn for each device as there is time to score, at least one of each size of images."""
        evaluator(self.net, self.net.space.smallest())  # warms up
        began = time.monotonic()
        evaluator(self.net, self.net.space.largest())
        one_each_s = (time.monotonic() - began) * largest_networks(self.net, self.settings.max_macs)
        left = self.left() - testing_seconds(self.net, self.data, self.settings)
        count = int(left * CHOOSING_SHARE / (CHOOSING_SHARE + self.finetune_share) / one_each_s)
        wanted: dict[Architecture, None] = {}
        for archs in drawn:
            sizes = sum(any(arch in part for arch in archs) for part in self.net.space.by_image_size())
            wanted |= dict.fromkeys(archs[: max(sizes, count)])
        return list(wanted)

    def _or_alone(self, found: "_Chosen", loss: float, evaluator: Evaluator) -> "_Chosen":
        """The largest subnet with weights that it shared with no other, where such were kept and have less loss.

        Where it was trained to the end so, that is what was found.
        """
        if self.only_largest and found.arch == self.net.space.largest():
            recalibrated, _ = better_statistics(self.net, evaluator)
            return found._replace(recalibrated=recalibrated)
        for step in self.run.kept_steps():
            net = self.run.load_kept(step).to(self.settings.device).eval()
            recalibrated, before = better_statistics(net, evaluator)
            if before.loss < loss:
                self.watch.stage(
                    f"The largest subnet is taken as it was before others shared its weights: {before.top1:.1f}% on "
                    "validate"
                )
                return _Chosen(net, step, net.space.largest(), found.candidates + 1, True, recalibrated)
        return found

    def _hand_over(self, evaluator: Evaluator, ahead: list[tuple[float, "_Chosen"]]) -> Fitted:
        """Take the next device's subnet out, fine-tune it in its share of the time left, score it, write it.

        Or write it again, where an earlier device has the same.
        """
        limit, chosen = ahead[0]
        for other in self.done:
            if (other.arch, other.before_subnets) == (str(chosen.arch), chosen.before_subnets):
                return self._hand_over_again(other, limit, chosen.candidates)
        own = not chosen.recalibrated
        network = chosen.net.extract(chosen.arch) if own else evaluator.recalibrated(chosen.net, chosen.arch)
        before = finite(evaluator.score(network), "validate")
        tuned, how = self._finetuned(network, evaluator, ahead)
        final, after = (network, before) if tuned is None else (tuned.network, tuned.after)
        test, classes = score_by_class(final, self.data.test, self.data, "test")
        described = describe_taken(
            chosen.net,
            chosen.arch,
            self.data,
            self.run,
            chosen.step,
            calibration=None if own else evaluator.settings,
            scores={"validate": before},
        )
        if tuned is not None:
            as_trained = self.run.subnets / chosen.arch.id
            write_subnet(as_trained, network, described)
            where, made = str(self.run.path.resolve()), provenance(self.settings.device)
            described = described_finetuned(
                read_subnet(as_trained)[1], tuned, evaluator, how, run=where, provenance=made
            )
        described |= {
            "scores": described.to_json()["scores"] | {"test": asdict(test)},
            "per_class": classes.recorded("test"),
        }
        place = self.run.subnets / name_of(limit)
        write_subnet(place, final, described)
        verify_subnet(place, final)
        cost = self.net.cost_of(chosen.arch)
        return Fitted(
            max_macs=limit,
            arch=str(chosen.arch),
            macs=cost.macs,
            params=cost.params,
            resolution=spec_of(final).resolution,
            name=place.name,
            candidates=chosen.candidates,
            before_subnets=chosen.before_subnets,
            finetuned_epochs=0 if tuned is None else tuned.epoch,
            before=before,
            after=after,
            test=test,
            per_class=classes,
        )

    def _hand_over_again(self, other: Fitted, limit: float, candidates: int) -> Fitted:
        """Write another device's network for this one, too."""
        network, described = read_subnet(self.run.subnets / other.name)
        place = self.run.subnets / name_of(limit)
        write_subnet(place, network, described)
        return other.model_copy(update={"max_macs": limit, "name": place.name, "candidates": candidates})

    def _finetuned(
        self, network: nn.Module, evaluator: Evaluator, ahead: list[tuple[float, "_Chosen"]]
    ) -> tuple[Finetuned | None, FinetuneSettings]:
        """The next device's subnet fine-tuned in its share of the time left, and how.

        None where the recipe leaves no time for it or that is too short for a few steps, where it is not better than
        before, and for a largest subnet of before its weights were shared, which was trained to its end: others have
        its time. A network for several devices has the shares of all.
        """
        how = FinetuneSettings.by(
            self.optimizer,
            lr=self.settings.finetune_lr,
            epochs=1,
            label_smoothing=0.1,
            class_balance=self.class_balance,
            seed=self.settings.seed,
        )
        (limit, first), *_ = ahead
        if first.before_subnets or not self.finetune_share:
            return None, how
        done = {(one.arch, one.before_subnets) for one in self.done}
        missing = [one for _, one in ahead if (str(one.arch), one.before_subnets) not in done]
        weights = [
            (one.arch == first.arch, self.net.cost_of(one.arch).macs ** 0.5)
            for one in missing
            if not one.before_subnets
        ]
        share = sum(one for own, one in weights if own) / sum(one for _, one in weights)
        pace = finetuning_pace(network, evaluator, how)
        to_test = [self.net.extract(arch) for arch, _ in {(one.arch, one.before_subnets): None for one in missing}]
        testing_s = seconds_to_score(to_test, evaluator.split, self.data, len(self.data.test))
        epochs = pace.epochs_within(max(0.0, self.left() - testing_s) * share)
        if not epochs:
            self.watch.stage(f"No time is left to fine-tune the subnet for {name_of(limit)}")
            return None, how
        how = how.model_copy(update={"epochs": epochs})
        long = f"{round(epochs, 2):g} epoch{'' if round(epochs, 2) == 1 else 's'}"
        self.watch.stage(f"Fine-tuning the subnet for {name_of(limit)}: {long}")
        watch = self.watch
        try:
            tuned = finetune(network, evaluator, how, on_progress=watch.finetuning, should_stop=watch.should_stop)
        except NotFiniteError:
            self.watch.stage("Its loss grew beyond all numbers: it is handed over as it was")
            return None, how
        if tuned is None:
            raise _StoppedEarlyError
        if not tuned.better:
            self.watch.stage("It has no less loss on validate than before: it is handed over as it was")
            return None, how
        return tuned, how

    # What is recorded

    def _record(self) -> None:
        record = FitRecord(
            settings=self.settings,
            recipe=self.asked,
            trained=self.trained,
            seconds=self.seconds(),
            devices=tuple(self.done),
        )
        write_atomic(self.run.fit_file, to_json(record.model_dump(mode="json")))

    def _bring_back(self) -> Planned:
        """What an earlier session did; gives its plan. Raises `UserError` where it was asked for something else."""
        path = self.run.path
        if not is_there(self.run.fit_file):
            raise UserError(f"{path} holds a run that `trainonce fit` did not make: name another directory with --out")
        record = fit_recorded(self.run)
        config = self.run.checked_config()
        otherwise = begun_otherwise(record, config, self.settings, self.asked, self.net, self.data, self.start)
        if otherwise:
            raise UserError(f"{path} was begun {otherwise}: ask for the same, or name another directory with --out")
        self.trained, self.spent, self.done = record.trained, record.seconds, list(record.devices)
        if not self.trained and (lines := self.run.metrics()):
            self.spent += lines[-1].seconds or 0.0
        return Planned(config.recipe, config.planned_step_s)


def _minutes(seconds: float) -> str:
    """A time in minutes, as people say it: 0.25, 7.5, 150."""
    return f"{seconds / 60:.2g}" if seconds < 600 else f"{seconds / 60:.0f}"


class _Chosen(NamedTuple):
    """A device's subnet, of the weights of which step, and of how many drawn for the device it had the least loss."""

    net: Supernet
    step: int
    arch: Architecture
    candidates: int
    before_subnets: bool
    recalibrated: bool = True
