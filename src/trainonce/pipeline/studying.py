"""Many runs planned, trained, scored and concluded together."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from trainonce.data import DataSet, load_dataset
from trainonce.data.formats import FILES
from trainonce.errors import UserError
from trainonce.evaluation.evaluator import SplitName
from trainonce.lab.studies.built_in import STUDIES
from trainonce.lab.studies.results import FinishedRun, RecordedConclusion
from trainonce.lab.studies.run_study import StudyDirectory, identity, progress_of, run_study, subnets_to_score
from trainonce.lab.studies.study import Study, StudyFile, StudyRun, StudySetup, check_architectures, load_study
from trainonce.lab.studies.summary import ArmSummary, arm_summaries, write_conclusion
from trainonce.models import MobileNetV3, build
from trainonce.parallel.distributed import ranks_in
from trainonce.parallel.fan_out import LOCAL
from trainonce.pipeline.evaluating import Buckets, centres_of
from trainonce.pipeline.machine import device_named, use_threads
from trainonce.pipeline.pace import Pace, scoring_seconds
from trainonce.recipes import RECIPES, timetable
from trainonce.run.directory import provenance
from trainonce.training.settings import TrainSettings

LOOK_EVERY_S = 2.0
"""How often running runs are looked at for progress."""


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What is about to be studied."""

    study: Study
    data: DataSet
    directory: StudyDirectory
    missing: tuple[StudyRun, ...]
    """The runs that are not recorded yet."""
    workers: int | None
    """How many runs at a time; None where only the cluster knows."""


class StudyProgress(NamedTuple):
    """Where a study stands."""

    done: int
    total: int
    under_way: dict[str, float]
    """The share done, 0 to 1, of each run that has begun."""
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class Studied:
    """What a study came to."""

    plan: StudyPlan
    seconds: float
    """About what the missing runs take on this machine, as estimated before."""
    arms: tuple[ArmSummary, ...]
    """What each arm came to; none unless finished."""
    conclusion: RecordedConclusion | None
    """What STUDY/conclusion.json holds; None unless finished."""
    finished: bool
    """Whether all runs are recorded: not where `should_stop` said so, nor after a dry run."""


def study(
    name: str | Path,
    data: DataSet | str | Path | None = None,
    *,
    out: str | Path | None = None,
    scale: float = 1.0,
    seeds: int | None = None,
    rate: Mapping[str, float] | None = None,
    batch_size: int | None = None,
    family: str | None = None,
    geometry: str | None = None,
    split: SplitName | None = None,
    buckets: Buckets = (),
    per_bucket: int | None = None,
    calibration_images: int | None = None,
    image_size: int | None = None,
    grey: bool = False,
    train_images: int | None = None,
    skip_broken: bool = False,
    data_dir: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    cluster: str = LOCAL,
    dry_run: bool = False,
    on_plan: Callable[[StudyPlan], None] = lambda _: None,
    on_estimate: Callable[[StudyPlan, float], None] = lambda _plan, _seconds: None,
    on_start: Callable[[], None] = lambda: None,
    on_progress: Callable[[StudyProgress], None] = lambda _: None,
    on_run: Callable[[FinishedRun], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Studied:
    """Run a study, built in or of a .toml file: `trainonce study`, whose options these are.

    `rate` is a factor on the learning rates of each recipe that it names. What is recorded in the study's directory is
    not done again. Images that Python code made, which workers cannot load, are studied in this process, by one worker.
    `on_plan` and `on_estimate`, which takes the seconds, are called before the work; `on_start` where it begins: from
    there on `should_stop` is asked; `on_run` after each run, with its line of the records.
    Raises `UserError` for what cannot be, before anything is written.
    """
    if ranks_in(os.environ, "cpu").size > 1:
        raise UserError("a study's runs are divided by --workers or --cluster, not by torchrun")
    use_threads(threads)
    name = str(name)
    file = load_study(Path(name)) if name.endswith(".toml") else None
    source = data or (file.data if file else None)
    _refuse(name, file, buckets=buckets, split=split, source=source, scale=scale)
    images = load_dataset(
        source or "",
        data_dir=data_dir,
        image_size=image_size,
        grey=grey,
        train_images=train_images,
        skip_broken=skip_broken,
    )
    settled = device_named(device)
    if workers is None and cluster == LOCAL and _made_here(images):
        workers = 1
    directory = StudyDirectory(Path(out or Path("studies") / f"{file.name if file else name}-{images.name}"))
    setup = StudySetup(
        image_size=images.image_size,
        channels=images.channels,
        classes=images.num_classes,
        train_images=len(images.train),
        family=family or MobileNetV3.family,
        geometry=geometry,
        scale=scale,
        seeds=tuple(range(seeds)) if seeds else (file.seeds if file else (0, 1, 2)),
        batch_size=batch_size,
        rates=_rates(rate or {}),
    )
    scoring = {
        "split": split,
        "buckets_m": centres_of(buckets) or None,
        "half_m": 0.5 if buckets else None,
        "per_bucket": per_bucket,
        "calibration_images": calibration_images,
    }
    planned = _scored_as(_planned(name, file, setup), scoring)
    check_architectures(planned)
    plan = _plan(planned, images, directory, device=settled, workers=workers, cluster=cluster)
    on_plan(plan)
    with _threads_of_a_worker(settled, workers, cluster):
        estimates = _estimates(planned, plan.missing, Pace(images, TrainSettings(device=settled)), images)
    seconds = max([sum(estimates.values()) / (plan.workers or 1), *estimates.values()], default=0.0)
    on_estimate(plan, seconds)
    complete = not dry_run and _run(
        *(plan, estimates, seconds),
        data_dir=None if data_dir is None else Path(data_dir),
        device=settled,
        cluster=cluster,
        on_start=on_start,
        on_progress=on_progress,
        on_run=on_run,
        should_stop=should_stop,
    )
    if not complete:
        return Studied(plan=plan, seconds=seconds, arms=(), conclusion=None, finished=False)
    arms = tuple(arm_summaries(planned.arms, directory.results(), directory.finished()))
    return Studied(plan=plan, seconds=seconds, arms=arms, conclusion=write_conclusion(directory), finished=True)


def _scored_as(study: Study, fields: Mapping[str, object]) -> Study:
    """The study with these fields of its `StudyScoring`, but for those that are None."""
    given = {key: value for key, value in fields.items() if value is not None}
    return study.model_copy(update={"evaluate": study.evaluate.model_copy(update=given)})


def _plan(
    study: Study, images: DataSet, directory: StudyDirectory, *, device: str, workers: int | None, cluster: str
) -> StudyPlan:
    """What of a study is left to do.

    Raises `UserError` where the directory is another study's, and where workers cannot load the images.
    """
    if recorded := directory.recorded():
        directory.check(recorded, identity(study, images))
    finished = {line.run for line in directory.finished()}
    missing = tuple(run for run in study.runs if run.name not in finished)
    at_once = _workers(device, workers, cluster, len(missing))
    if _made_here(images) and missing and (cluster != LOCAL or at_once != 1):
        raise UserError(
            "these images were made in Python, where workers cannot load them: study them with one worker, or put "
            "what makes them into a function and name it, as package.module:function"
        )
    return StudyPlan(study=study, data=images, directory=directory, missing=missing, workers=at_once)


def _made_here(images: DataSet) -> bool:
    """Whether Python code made the images, so that no other process can load them."""
    return not images.source.name_or_path


def _run(
    plan: StudyPlan,
    estimates: dict[str, float],
    seconds: float,
    *,
    data_dir: Path | None,
    device: str,
    cluster: str,
    on_start: Callable[[], None],
    on_progress: Callable[[StudyProgress], None],
    on_run: Callable[[FinishedRun], None],
    should_stop: Callable[[], bool],
) -> bool:
    """Do what is left, and say how far it is; gives whether all runs are recorded."""
    with plan.directory.lock():
        on_start()
        plan.directory.claim(plan.study, plan.data, provenance=provenance(device))
        looks = _Looks(plan, estimates, seconds, on_progress)

        def look_and_stop() -> bool:
            looks.look()
            return should_stop()

        def note(line: FinishedRun) -> None:
            looks.finished.add(line.run)
            on_run(line)

        return run_study(
            *(plan.study, plan.directory, plan.data),
            data_dir=data_dir,
            device=device,
            workers=plan.workers,
            cluster=cluster,
            on_run=note,
            should_stop=look_and_stop,
        )


def _refuse(
    name: str,
    file: StudyFile | None,
    *,
    buckets: Buckets,
    split: SplitName | None,
    source: DataSet | str | Path | None,
    scale: float,
) -> None:
    """Raise `UserError` for a study that cannot be."""
    if file is None and name not in STUDIES:
        raise UserError(f"unknown study {name!r}; the studies are {', '.join(STUDIES)}, or name a .toml file")
    if buckets and file is None and STUDIES[name].own_buckets:
        raise UserError(f"{name} draws its probes from buckets of its own: leave out --buckets")
    if name == "tuning" and split == "test":
        raise UserError("tuning chooses rates, and nothing is chosen on the test split: leave out --split test")
    if source is None:
        raise UserError(f"name a data set, a folder of images or an {FILES} file to study on")
    if scale <= 0:
        raise UserError(f"--scale must be over 0, not {scale:g}")


def _rates(given: Mapping[str, float]) -> dict[str, float]:
    """Factors by recipe. Raises `UserError` for what is no known recipe and positive number."""
    for name, factor in given.items():
        if name not in RECIPES or not 0 < factor < math.inf:
            raise UserError(
                f"--rate takes RECIPE=FACTOR, such as rss=3, not {f'{name}={factor:g}'!r}; "
                f"recipes are {', '.join(RECIPES)}"
            )
    return dict(given)


def _planned(name: str, file: StudyFile | None, setup: StudySetup) -> Study:
    if file is None:
        return STUDIES[name].study(setup)
    if setup.rates:
        raise UserError(f"--rate is for the built-in studies: write the learning rates of {name} into its recipes")
    return file.build(setup, folder=Path(name).parent, where=name)


def _workers(device: str, workers: int | None, cluster: str, runs: int) -> int | None:
    """How many runs at a time; None where only the cluster knows."""
    if workers is None and cluster == LOCAL:
        workers = torch.get_num_threads() if device == "cpu" else 1
    return None if workers is None else max(1, min(workers, runs))


@contextmanager
def _threads_of_a_worker(device: str, workers: int | None, cluster: str) -> Iterator[None]:
    """Inside, torch has as many threads as a worker will have."""
    before = torch.get_num_threads()
    at_once = _workers(device, workers, cluster, before) or before
    torch.set_num_threads(max(1, before // at_once) if cluster == LOCAL else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _estimates(study: Study, missing: Sequence[StudyRun], meter: Pace, images: DataSet) -> dict[str, float]:
    """About how many seconds each missing run takes by itself. Timed for one seed; the others are taken to be alike."""
    known: dict[str, float] = {}
    scoring: dict[str, float] = {}
    estimates = {}
    for run in missing:
        alike = run.name.removesuffix(f"-seed{run.seed}")
        if alike not in known:
            net = build(run.family, run.model, where=f"run {run.name}")
            subnets = len(subnets_to_score(net, study.evaluate, run))
            model = repr((run.family, run.model))
            if model not in scoring:
                scoring[model] = scoring_seconds(net, images, study.evaluate.split, study.evaluate.calibration_images)
            known[alike] = meter.seconds(net, run.recipe) + subnets * scoring[model]
        estimates[run.name] = known[alike]
    return estimates


class _Looks:
    """Says how far the runs are, by looking at their metrics now and then."""

    def __init__(
        self,
        plan: StudyPlan,
        estimates: dict[str, float],
        seconds: float,
        on_progress: Callable[[StudyProgress], None],
    ) -> None:
        self.study, self.directory = plan.study, plan.directory
        self.estimates, self.seconds, self.on_progress = estimates, seconds, on_progress
        self.finished = {line.run for line in self.directory.finished()}
        self.steps = {run.name: _steps(run, plan.data) for run in self.study.runs}
        self.began = self.looked = time.monotonic()
        self.before = self.work()[0]

    def work(self) -> tuple[float, dict[str, float]]:
        """The estimated seconds of work that are done, and the share done of each run that is under way."""
        shares = {
            run.name: progress_of(self.directory, run, self.steps[run.name])
            for run in self.study.runs
            if run.name in self.estimates and run.name not in self.finished
        }
        done = sum(self.estimates[name] for name in self.finished if name in self.estimates)
        done += sum(self.estimates[name] * share for name, share in shares.items())
        return done, {name: share for name, share in shares.items() if share > 0}

    def look(self) -> None:
        """Say it, if it is time to."""
        if time.monotonic() - self.looked < LOOK_EVERY_S:
            return
        self.looked = time.monotonic()
        done, shares = self.work()
        pace = (done - self.before) / (self.looked - self.began)
        total = sum(self.estimates.values())
        left = (total - done) / pace if pace > 0 else self.seconds
        self.on_progress(StudyProgress(len(self.finished), len(self.study.runs), shares, left))


def _steps(run: StudyRun, images: DataSet) -> int:
    per_epoch = run.recipe.steps_per_epoch(len(images.train))
    return timetable(run.recipe, per_epoch)[-1].end
