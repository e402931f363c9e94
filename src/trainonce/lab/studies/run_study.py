"""Running a study: each run is a task, done by whatever worker is free, recorded here alone.

A study directory:

study.json        the study with all its runs, the data and where it comes from; written once
runs/<name>/      ordinary run directories
results.jsonl     a line for each subnet scored in a run
times.jsonl       a line for each run that is finished; written after the run's results, so that a run counts with it
conclusion.json   what follows from the results
"""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainonce.data import DataSet, DataSource
from trainonce.data.dataset import Preparation
from trainonce.data.load import load_source
from trainonce.errors import RunError, UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.evaluation.population import Bucket, draw_population, evaluate_population, make_buckets
from trainonce.files import is_there, write_atomic
from trainonce.lab.measures.forgetting import PROBES, Prober, ProberSettings, default_probes
from trainonce.lab.studies.results import FinishedRun, StudyResult
from trainonce.lab.studies.study import Study, StudyRun, StudyScoring
from trainonce.models import Supernet, build
from trainonce.names import file_name
from trainonce.parallel.fan_out import LOCAL, fan_out
from trainonce.recipes import PhaseSteps, Recipe, timetable
from trainonce.records import append_line, read_json, read_lines, to_json, write_lines
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.run.lines import MetricsLine, SubnetScore
from trainonce.settings import JsonObject
from trainonce.space import Architecture
from trainonce.training.loop import train_supernet
from trainonce.training.settings import TrainSettings

PROBING = 0.02
"""Most of a run's arithmetic that looking at probes may take: twice what it may elsewhere."""
SAVE_EVERY_S = 60.0
"""Seconds between a run's checkpoints: the most that is lost with a worker."""
WORDS = {"design", "about", "question", "arms"}
"""Of a study, what is said of it: it goes on with others."""


class StudyDirectory:
    """A study's files."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.study_file = self.path / "study.json"
        self.results_file = self.path / "results.jsonl"
        self.times_file = self.path / "times.jsonl"
        self.conclusion_file = self.path / "conclusion.json"
        self.runs = self.path / "runs"

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from running the study meanwhile. Raises `UserError` if one does."""
        return RunDirectory(self.path).lock()

    def run(self, name: str) -> RunDirectory:
        """The directory of one run. Raises `UserError` for a name that cannot be one."""
        return RunDirectory(self.runs / file_name(name))

    def recorded(self) -> JsonObject:
        """What `study.json` says; nothing where there is none.

        Raises `UserError` if it is not valid, and where there are results without it.
        """
        if is_there(self.study_file):
            return read_json(self.study_file)
        if is_there(self.results_file) or is_there(self.times_file):
            raise UserError(f"{self.study_file} is missing, though there are results of the study: bring it back")
        return {}

    def claim(self, study: Study, data: DataSet, *, provenance: JsonObject) -> None:
        """Write `study.json`, or make sure that the one there is of the same study.

        Raises `UserError` that says what differs.
        """
        asked = identity(study, data)
        recorded = self.recorded()
        if recorded:
            self.check(recorded, asked)
            return
        if RunDirectory(self.path).config_file.exists():
            raise UserError(f"{self.path} holds a run: name another directory for the study")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(self.study_file, to_json(asked | _words(study) | {"provenance": provenance}))
        except OSError as error:
            raise RunError(f"cannot write {self.study_file}: {error.strerror}") from error

    def check(self, recorded: JsonObject, asked: JsonObject) -> None:
        """Raise `UserError` where what is recorded is of another study than the one asked for.

        Settings that the version which recorded it did not know have their defaults; how images are normalised and
        varied is not compared where it did not record that.
        """
        recorded = {"preparation": asked["preparation"]} | recorded | _filled(recorded)
        for key, value in asked.items():
            if recorded.get(key) != value:
                what = _difference(key, recorded.get(key), value)
                raise UserError(
                    f"{self.study_file} is of another study: {what}. Run it as it was begun, or name another "
                    "directory with --out"
                )

    def finished(self) -> list[FinishedRun]:
        """All lines of `times.jsonl`, one a finished run. Raises `UserError` that names a damaged one."""
        return FinishedRun.read_lines(self.times_file)

    def results(self) -> list[StudyResult]:
        """All results of finished runs. Raises `UserError` that names a damaged line."""
        names = {line.run for line in self.finished()}
        return [line for line in self.all_results() if line.run in names]

    def all_results(self) -> list[StudyResult]:
        """All results, those too of a run whose recording was cut off. Raises `UserError` that names a damaged line."""
        return StudyResult.read_lines(self.results_file)

    def drop_unfinished(self) -> None:
        """Forget results of a run whose recording was cut off; it will be recorded again."""
        if is_there(self.results_file):
            names = {line.run for line in self.finished()}
            lines, results = read_lines(self.results_file), self.all_results()
            kept = [line for line, result in zip(lines, results, strict=True) if result.run in names]
            if len(kept) < len(lines):
                write_lines(self.results_file, kept)

    def record(self, result: "RunResult") -> None:
        """Record a finished run, and keep only its newest checkpoint. Raises `RunError` where the disk refuses."""
        try:
            for line in result.results:
                append_line(self.results_file, line.to_json())
            append_line(self.times_file, result.time.to_json())
        except OSError as error:
            raise RunError(f"cannot write in {self.path}: {error.strerror}; what it holds is safe") from error
        checkpoint.keep_newest(self.run(result.time.run).checkpoints, 1)


def identity(study: Study, data: DataSet) -> JsonObject:
    """What must be the same for a study to go on."""
    plan = study.model_dump(mode="json", exclude=WORDS)
    images = {"data": data.source.identity(), "data_fingerprint": data.fingerprint()}
    return images | {"preparation": data.preparation.model_dump(mode="json")} | plan


def _words(study: Study) -> JsonObject:
    return study.model_dump(mode="json", include=WORDS)


def _filled(recorded: JsonObject) -> JsonObject:
    """A recorded plan with all the settings that there are now; nothing where it is none of this version."""
    try:
        study = Study.parse({key: recorded[key] for key in Study.model_fields if key in recorded}, where="it")
    except UserError:
        return {}
    return study.model_dump(mode="json", exclude=WORDS)


def _difference(key: str, recorded: Any, asked: Any) -> str:
    """What differs, in words."""
    if key == "preparation":
        then, now = (Preparation.parse(one, where="how its images are prepared") for one in (recorded, asked))
        return f"its images were normalised or varied otherwise: {then.difference(now)}"
    if key != "runs":
        return f"its {key.replace('_', ' ')} was {_short(recorded)} and is {_short(asked)}"
    before = {run.get("name"): run for run in recorded} if isinstance(recorded, list) else {}
    for run in asked:
        other = before.get(run["name"])
        if other is None:
            return f"it has no run {run['name']!r}"
        for field, value in run.items():
            if other.get(field) != value:
                return f"the {field} of run {run['name']!r} differs"
    return f"it has {len(before)} runs, not {len(asked)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished run gives: lines of `results.jsonl`, and its line of `times.jsonl`."""

    results: list[StudyResult]
    time: FinishedRun


def _never() -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class StudyRunner:
    """Makes the function that does one run, from training to results: what `fan_out` takes.

    It travels to workers as it is; a worker loads the images for itself. Where it works in this process, it has them,
    and `should_stop` is asked at every step.
    """

    root: Path
    plan: StudyScoring
    source: DataSource
    fingerprint: str
    preparation: Preparation
    data: DataSet | None
    """The images, where it works in this process."""
    data_dir: str | Path | None
    device: str
    beside: int | None
    """How many runs are trained at the same time; None on a cluster that has as many as there is room for."""
    save_every_s: float = SAVE_EVERY_S
    should_stop: Callable[[], bool] = _never

    def __call__(self) -> Callable[[StudyRun], RunResult | None]:
        """The function from a run to its result; None where it was stopped."""
        data = self._loaded() if self.data is None else self.data
        return _RunTrainer(self, data.to(self.device)).train_and_score

    def _loaded(self) -> DataSet:
        """The images, loaded again. Raises `UserError` where they are not those that the study was begun with."""
        data = load_source(self.source, data_dir=self.data_dir, workers=0)
        if data.fingerprint() != self.fingerprint:
            raise UserError(f"{self.source.name_or_path} holds other images here than where the study was begun")
        if otherwise := self.preparation.difference(data.preparation):
            raise UserError(
                f"{self.source.name_or_path} gives images normalised or varied otherwise here than where the study was "
                f"begun: {otherwise}; study them with one worker, or put what makes them into a function and name that"
            )
        return data


@dataclass(frozen=True)
class _RunTrainer:
    given: StudyRunner
    data: DataSet

    def train_and_score(self, run: StudyRun) -> RunResult | None:
        """Train, or go on training, one run, and score its subnets."""
        directory = StudyDirectory(self.given.root).run(run.name)
        net = build(run.family, run.model, seed=run.seed, where=f"run {run.name}").to(self.given.device)
        prober = self._prober(net, run, directory)
        began = time.monotonic()
        finished = train_supernet(
            net,
            run.recipe,
            self.data,
            directory,
            seed=run.seed,
            resume=True,
            settings=TrainSettings(device=self.given.device, checkpoint_every_s=self.given.save_every_s),
            should_stop=self.given.should_stop,
            on_epoch=prober,
        )
        seconds = time.monotonic() - began
        results = self._score(net, run, directory) if finished else None
        if results is None:
            return None
        return RunResult(results=results, time=self._time(run, directory.metrics()[-1], seconds))

    def _prober(self, net: Supernet, run: StudyRun, directory: RunDirectory) -> Prober:
        """What records the run's forgetting: of its own probes, or of the same few in every run."""
        texts = self.given.plan.probes if run.probes is None else run.probes
        probes = [net.space.parse(text) for text in texts] or default_probes(net, PROBES, seed=self.given.plan.seed)
        settings = ProberSettings(share=PROBING)
        return Prober(
            net, run.recipe, self.data, directory, probes=probes, seed=self.given.plan.seed, settings=settings
        )

    def _time(self, run: StudyRun, last: MetricsLine, seconds: float) -> FinishedRun:
        table = self._timetable(run.recipe)
        return FinishedRun(
            run=run.name,
            arm=run.arm,
            seed=run.seed,
            factors=run.factors,
            train_seconds=float(seconds if last.seconds is None else last.seconds),
            passes=float(last.passes),
            epochs=float(last.epoch),
            steps=last.step,
            lr_sum=sum(entry.lr(step) for entry in table for step in range(entry.start, entry.end)),
            threads=torch.get_num_threads(),
            beside=self.given.beside,
            device=self.given.device,
        )

    def _timetable(self, recipe: Recipe) -> tuple[PhaseSteps, ...]:
        return timetable(recipe, recipe.steps_per_epoch(len(self.data.train)))

    def _score(self, net: Supernet, run: StudyRun, directory: RunDirectory) -> list[StudyResult] | None:
        """The results of the population and the probes; None where it was stopped."""
        wanted = subnets_to_score(net, self.given.plan, run)
        settings = EvaluateSettings(calibration_images=self.given.plan.calibration_images, seed=self.given.plan.seed)
        step = self._timetable(run.recipe)[-1].end
        evaluator = Evaluator(self.data.varied_by(run.recipe), self.given.plan.split, settings)
        unique = list(dict.fromkeys(arch for _, arch, _ in wanted))
        with directory.lock():
            lines = evaluate_population(
                net.eval(),
                step,
                evaluator,
                directory,
                unique,
                should_stop=self.given.should_stop,
            )
        if len(lines) < len(unique):
            return None
        of = {line.arch: line for line in lines}
        return [_result(run, of[str(arch)], bucket, probe) for bucket, arch, probe in wanted]


def _result(run: StudyRun, score: SubnetScore, bucket: Bucket | None, probe: bool) -> StudyResult:
    return StudyResult(
        run=run.name,
        arm=run.arm,
        seed=run.seed,
        factors=run.factors,
        arch=score.arch,
        macs=score.macs,
        params=score.params,
        top1=score.top1,
        loss=score.loss,
        images=score.images,
        split=score.split,
        bucket=None if bucket is None else round(bucket.centre / 1e6, 6),
        probe=probe,
    )


def subnets_to_score(
    net: Supernet, plan: StudyScoring, run: StudyRun
) -> list[tuple[Bucket | None, Architecture, bool]]:
    """The population, then the probes: the same in every run of one geometry.

    Each with the bucket it lies in, if any, and whether it is a probe.
    """
    buckets = make_buckets(net.cost, plan.buckets_m, plan.half_m)
    wanted: list[tuple[Bucket | None, Architecture, bool]] = []
    if plan.per_bucket:
        population = draw_population(net.cost, buckets, plan.per_bucket, seed=plan.seed)
        wanted = [(bucket, arch, False) for bucket, arch in population]
    for text in plan.probes if run.probes is None else run.probes:
        arch = net.space.parse(text)
        inside = (bucket for bucket in buckets if net.cost(arch).macs in bucket)
        wanted.append((next(inside, None), arch, True))
    return wanted


def run_study(
    study: Study,
    directory: StudyDirectory,
    data: DataSet,
    *,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    workers: int | None = None,
    cluster: str = LOCAL,
    save_every_s: float = SAVE_EVERY_S,
    on_run: Callable[[FinishedRun], None] = lambda _: None,
    should_stop: Callable[[], bool] = _never,
) -> bool:
    """Do every run of a study that is not recorded; gives whether all are.

    The study must have been claimed. Runs write a checkpoint every `save_every_s` seconds. `workers` and `cluster` are
    `fan_out`'s; on a cluster, workers write into the study's directory, so it must be the same there. A worker that
    dies leaves its run's checkpoint, from which the next one goes on. `on_run` gets the line of `times.jsonl` of each
    run recorded.
    """
    directory.drop_unfinished()
    known = {line.run for line in directory.finished()}
    missing = [run for run in study.runs if run.name not in known]
    here = cluster == LOCAL and min(workers or 1, len(missing)) <= 1
    runner = StudyRunner(
        root=directory.path.resolve(),
        plan=study.evaluate,
        source=data.source,
        fingerprint=data.fingerprint(),
        preparation=data.preparation,
        data=data if here else None,
        data_dir=Path(data_dir).resolve() if data_dir else None,
        device=device if cluster == LOCAL else torch.device(device).type,  # a worker there sees its own GPUs alone
        beside=runs_at_once(workers, cluster, len(missing)),
        save_every_s=save_every_s,
        should_stop=should_stop if here else _never,
    )

    def record(_run: StudyRun, result: RunResult | None) -> None:
        if result is not None:
            directory.record(result)
            on_run(result.time)

    fan_out(
        runner,
        missing,
        on_result=record,
        workers=workers,
        cluster=cluster,
        gpus=int(device != "cpu"),
        should_stop=should_stop,
    )
    return len(directory.finished()) == len(study.runs)


def runs_at_once(workers: int | None, cluster: str, missing: int) -> int | None:
    """How many runs train at the same time; None where only the cluster knows."""
    if workers is None and cluster != LOCAL:
        return None
    return min(workers or 1, max(1, missing))


def progress_of(directory: StudyDirectory, run: StudyRun, steps: int) -> float:
    """The share of a run's steps that its metrics say are done."""
    file = directory.run(run.name).metrics_file
    if not file.exists():
        return 0.0
    with file.open("rb") as lines:
        lines.seek(max(0, os.fstat(lines.fileno()).st_size - 4096))
        last = lines.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
    step = last.partition(b'"step": ')[2].partition(b",")[0]
    return min(1.0, int(step) / steps) if step.isdigit() else 0.0
