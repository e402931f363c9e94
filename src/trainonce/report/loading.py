"""Reading what a report shows from the small files of runs and studies; never a checkpoint, never an image.

Everything but run.json and study.json may be absent: what was not recorded is None or empty, and its figures are left
out. What is there but damaged is refused with its file and line.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np

from trainonce.data import DataSource
from trainonce.data.baseline import Baseline
from trainonce.errors import UserError
from trainonce.evaluation.evaluator import SplitName
from trainonce.evaluation.population import newest_lines
from trainonce.files import is_there
from trainonce.lab.measures.recorded import Interference
from trainonce.lab.studies.built_in import conclude
from trainonce.lab.studies.results import (
    Factors,
    FinishedRun,
    RecordedConclusion,
    RecordedRun,
    RecordedStudy,
    StudyResult,
)
from trainonce.lab.studies.run_study import StudyDirectory
from trainonce.models import MobileNetV3
from trainonce.names import printable
from trainonce.records import read_json
from trainonce.report.taken import TakenOut, read_taken
from trainonce.run.directory import RunConfig, RunDirectory
from trainonce.run.exposure import ExposureTable
from trainonce.run.lines import ForgettingLine, MetricsLine, SubnetScore
from trainonce.search.recorded import RecordedFront
from trainonce.settings import JsonObject


@dataclass(frozen=True, kw_only=True, slots=True)
class PlottedScore:
    """A subnet's score as figures draw it, of a run's population or of a study's results."""

    run: str
    """The run's directory."""
    seed: int
    arch: str
    macs: float
    params: float
    top1: float
    images: int = 0
    bucket: float | None = None
    """Of a study: the centre of its bucket in million MACs; None outside of all."""
    probe: bool = False
    """Of a study: whether it is a probe."""


def scored(line: SubnetScore, run: str | Path, seed: int) -> PlottedScore:
    """A line of a run's population as figures draw it."""
    return PlottedScore(
        run=str(run),
        seed=seed,
        arch=line.arch,
        macs=line.macs,
        params=line.params,
        top1=line.top1,
        images=line.images,
    )


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run, as far as it was recorded. `arm` is what it is drawn as, beside other seeds of the same."""

    path: Path
    name: str
    arm: str
    seed: int
    recipe: str
    passes: float | None
    """Subnet passes over the images made, not those planned; None where nothing says. Of weights that were imported:
    what their publisher says."""
    data: str
    model: JsonObject
    provenance: JsonObject
    family: str = MobileNetV3.family
    factors: Factors = field(default_factory=dict)
    scores: dict[SplitName, list[PlottedScore]] = field(default_factory=dict)
    metrics: list[MetricsLine] = field(default_factory=list)
    forgetting: list[ForgettingLine] = field(default_factory=list)
    exposure: ExposureTable | None = None
    interference: Interference | None = None
    front: RecordedFront | None = None
    """What the last search found."""
    train_seconds: float | None = None
    beside: int | None = None
    has_weights: bool = False
    taken: list[TakenOut] = field(default_factory=list)
    """The subnets that were taken out of it, by rising MACs."""
    baseline: Baseline | None = None
    """What a plain classifier makes of the same images."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """What belongs in one part of a report: a study, or loose runs on the same data."""

    title: str
    about: str
    question: str
    path: Path | None
    arms: dict[str, str]
    """What is said of each arm, in the order of drawing."""
    runs: list[RunRecord]
    missing: list[str]
    """The runs planned that left no results."""
    split: SplitName
    buckets_m: list[float]
    half_m: float | None
    probes: list[str]
    conclusion: RecordedConclusion | None

    @property
    def of_one_run(self) -> bool:
        """Whether it is one run, beside which there is nothing to compare."""
        return self.path is None and len(self.runs) == 1


def read_groups(
    paths: Sequence[str | Path],
    split: SplitName | None = None,
    *,
    centres_m: Sequence[float] = (),
    half_m: float | None = None,
) -> list[Group]:
    """A group for each study among the paths, and one for all loose runs on the same data.

    `centres_m` and `half_m` are the buckets of loose runs, as `make_buckets` reads them; a study has its own.
    Scores are those on `split`; by default of a study the split it evaluates, of runs test where all have such scores.
    Raises `UserError` for a path that holds neither, and for a damaged file.
    """
    groups: list[Group] = []
    loose: dict[str, list[RunDirectory]] = {}
    for path in map(Path, paths):
        if StudyDirectory(path).study_file.exists():
            groups.append(read_study(path, split))
        elif (path / "run.json").exists():
            run = RunDirectory(path)
            loose.setdefault(run.config().data_fingerprint, []).append(run)
        else:
            why = "there is no run.json or study.json in it" if path.is_dir() else "it is no directory"
            raise UserError(f"{path} holds no run and no study ({why})")
    for runs in loose.values():
        groups.append(replace(_loose_group(runs, split), buckets_m=list(centres_m), half_m=half_m))
    return groups


def read_run(run: RunDirectory) -> RunRecord:
    """What one run directory holds."""
    config: RunConfig = run.config()
    population = run.population()
    metrics = run.metrics()
    published = config.recipe.passes if config.imported else None
    seconds = metrics[-1].seconds if metrics else None
    scores = {name: newest_lines(population, name) for name in get_args(SplitName)}
    return RunRecord(
        path=run.path,
        name=printable(run.path.name),
        arm=config.recipe.name,
        seed=config.seed,
        recipe=config.recipe.name,
        passes=float(metrics[-1].passes) if metrics else published,
        data=config.data.name,
        family=config.family,
        model=config.model,
        provenance=config.provenance,
        scores={
            name: [scored(line, run.path, config.seed) for line in found] for name, found in scores.items() if found
        },
        metrics=metrics,
        has_weights=any(run.checkpoints.glob("step-*")),
        forgetting=run.forgetting(),
        exposure=_read_exposure(run),
        interference=Interference.read_file(run.interference_file) if is_there(run.interference_file) else None,
        front=RecordedFront.read_file(run.front_file) if is_there(run.front_file) else None,
        train_seconds=None if seconds is None else float(seconds),
        taken=read_taken(run),
        baseline=run.baseline(),
    )


def _loose_group(runs: Sequence[RunDirectory], split: SplitName | None) -> Group:
    named = [replace(read_run(run), arm=arm) for run, arm in zip(runs, arms_of(runs), strict=True)]
    if split is None:
        split = "test" if all("test" in run.scores for run in named) else "validate"
    arms = ", ".join(dict.fromkeys(run.arm for run in named))
    return Group(
        title=f"{arms} on {named[0].data}" if len(named) > 1 else f"{named[0].data}, trained by {arms}",
        about="",
        question="",
        path=None,
        arms=dict.fromkeys((run.arm for run in named), ""),
        runs=named,
        missing=[],
        split=split,
        buckets_m=[],
        half_m=None,
        probes=[],
        conclusion=None,
    )


def arms_of(runs: Sequence[RunDirectory]) -> list[str]:
    """The arm of each run: runs on the same images that differ by their seed alone are of one, and no others.

    Arms are named by recipe; those of one recipe by its passes too where they differ, and by the directory, of several
    runs the first, where that is not enough. Runs that have the seed in common as well are arms of their own.
    """
    configs = [run.config() for run in runs]
    names = [printable(run.path.name) for run in runs]
    places = [
        name if names.count(name) == 1 else printable(str(run.path)) for name, run in zip(names, runs, strict=True)
    ]
    unknown = any(config.preparation is None for config in configs)  # as runs of earlier versions have it
    alike = [(_but_for_seed(config, unknown), config.seed) for config in configs]
    kinds = [one[0] if alike.count(one) == 1 else place for one, place in zip(alike, places, strict=True)]
    firsts = [places[kinds.index(kind)] + (" …" if kinds.count(kind) > 1 else "") for kind in kinds]
    passes = [f", {config.recipe.passes:.4g} passes" for config in configs]
    arms = _told_apart([config.recipe.name for config in configs], passes, passes)
    return _told_apart(arms, kinds, [f" ({first})" for first in firsts])


def _told_apart(arms: Sequence[str], kinds: Sequence[str], words: Sequence[str]) -> list[str]:
    """The names, and where runs of several kinds have one name, a word behind it for each."""
    of = Counter(arm for arm, _ in set(zip(arms, kinds, strict=True)))
    return [arm + word if of[arm] > 1 else arm for arm, word in zip(arms, words, strict=True)]


def _but_for_seed(config: RunConfig, unknown: bool) -> str:
    """What runs that differ by their seed alone have in common, wherever their images and first weights lay.

    `unknown` leaves out how images were prepared.
    """
    same: dict[str, object] = {
        "seed": 0,
        "data": DataSource(mean=config.data.mean, std=config.data.std),  # the fingerprint has the images
        "recipe": config.recipe.model_copy(update={"about": ""}),
        "imported": config.imported and config.imported.model_copy(update={"file": ""}),
    }
    if unknown:
        same["preparation"] = None
    how = config.precision, config.sync_batch_norm
    return json.dumps([how, config.model_copy(update=same).identity()], sort_keys=True)


def read_study(path: str | Path, split: SplitName | None = None) -> Group:
    """What a study's directory holds: the plan, the results, and what its runs left.

    Runs that still train are left out, where any has finished; of one whose directory is gone there are its results.
    What conclusion.json does not say, since the study is not finished, is concluded from the results so far.
    """
    directory = StudyDirectory(path)
    study = RecordedStudy.read(read_json(directory.study_file), where=str(directory.study_file))
    arms = {arm.name: arm.about for arm in study.arms}
    chosen: SplitName = split or ("validate" if study.evaluate.split == "validate" else "test")
    results, times = directory.all_results(), {line.run: line for line in directory.finished()}
    finished = times.keys() | {line.run for line in results}
    there = [one for one in study.runs if one.name in finished or directory.run(one.name).config_file.exists()]
    runs = []
    for planned in [one for one in there if one.name in finished] or there:
        place = directory.run(planned.name)
        run = read_run(place) if place.config_file.exists() else _planned(study, planned, place)
        lines = [_scored(line, run.path) for line in results if (line.run, line.split) == (planned.name, chosen)]
        time = times.get(planned.name)
        runs.append(
            replace(
                run,
                arm=planned.arm,
                name=planned.name,
                seed=planned.seed,
                factors=planned.factors,
                scores={chosen: lines} if lines else run.scores,
                passes=run.passes if time is None else time.passes,
                train_seconds=run.train_seconds if time is None else time.train_seconds,
                beside=None if time is None else time.beside,
            )
        )
    if not runs:
        raise UserError(f"{directory.path} has no results yet: run `trainonce study` on it first")
    read = {run.name for run in runs}
    missing = [planned.name for planned in study.runs if planned.name not in read]
    whole = None if missing else _read_conclusion(directory.conclusion_file)
    return Group(
        title=_study_title(study),
        about=study.about,
        question=study.question,
        path=directory.path,
        arms=arms | {run.arm: "" for run in runs if run.arm not in arms},
        runs=runs,
        missing=missing,
        split=chosen,
        buckets_m=[float(centre) for centre in study.evaluate.buckets_m],
        half_m=study.evaluate.half_m,
        probes=study.evaluate.probes,
        conclusion=whole or _conclude(study, results, list(times.values())),
    )


def _planned(study: RecordedStudy, run: RecordedRun, place: RunDirectory) -> RunRecord:
    """A run whose directory is gone, as study.json has it."""
    return RunRecord(
        path=place.path,
        name=run.name,
        arm=run.arm,
        seed=run.seed,
        recipe=run.recipe.name,
        passes=None,
        data=Path(study.data.name_or_path).name if study.data else "",
        family=run.family,
        model=run.model,
        provenance=study.provenance,
    )


def _scored(line: StudyResult, run: Path) -> PlottedScore:
    return PlottedScore(
        run=str(run),
        seed=line.seed,
        arch=line.arch,
        macs=line.macs,
        params=line.params,
        top1=line.top1,
        images=line.images,
        bucket=line.bucket,
        probe=line.probe,
    )


def _study_title(study: RecordedStudy) -> str:
    """Such as `solo on mnist`: studies of one name on other images must be told apart."""
    return f"{study.name} on {Path(study.data.name_or_path).name}" if study.data else study.name


def _read_conclusion(path: Path) -> RecordedConclusion | None:
    """What conclusion.json says; nothing where it is absent, not whole, or from before intervals were Student's."""
    if not is_there(path):
        return None
    values = read_json(path)
    if not values.keys() >= {"sentence", "verdict", "comparisons"}:
        return None
    conclusion = RecordedConclusion.read(values, where=str(path))
    bootstrapped = any("sd" not in comparison.model_fields_set for comparison in conclusion.comparisons)
    return None if bootstrapped else conclusion


def _conclude(
    study: RecordedStudy, results: Sequence[StudyResult], times: Sequence[FinishedRun]
) -> RecordedConclusion | None:
    """What the study's results force so far, as conclusion.json would have it; nothing where there are none."""
    if not results:
        return None
    return conclude(study, results, times).recorded()


def _read_exposure(run: RunDirectory) -> ExposureTable | None:
    if not is_there(run.exposure_file):
        return None
    table = run.exposure()
    if not all(np.isfinite(values).all() for values in (table.exposure, table.macs_edges, table.lr_sum)):
        raise UserError(f"{run.exposure_file} holds something that is not a finite number")
    return table
