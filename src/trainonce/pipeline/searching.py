"""The best subnets of a run under a budget, searched for beside random search."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from trainonce.data import DataSet
from trainonce.errors import UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, refuse_empty
from trainonce.evaluation.population import best_within, drawn_over, newest_lines
from trainonce.latency import LatencyTable
from trainonce.models import Supernet
from trainonce.parallel.fan_out import LOCAL
from trainonce.pipeline.machine import cluster_chosen, device_named, planned_workers, use_threads
from trainonce.run.directory import RunDirectory, provenance
from trainonce.run.lines import SubnetScore
from trainonce.search import (
    Limit,
    Problem,
    ScoreCache,
    SearchResult,
    SearchSettings,
    SearchStart,
    SearchStopped,
    feasible_subnet,
    quantity,
    resource_named,
    search_result,
    start_of,
)
from trainonce.search.algorithm import search as search_problem
from trainonce.search.evolution import require_optuna
from trainonce.search.recorded import FORMAT, ChosenSubnet, RecordedFront
from trainonce.search.resources import NAMES, table_at, unsuited
from trainonce.search.score_cache import first_line, name_of
from trainonce.settings import JsonObject
from trainonce.space import Architecture

Amount = str | float
"""A number with its unit, such as 10M or 5ms; without one millions, or milliseconds."""


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What is about to be searched for."""

    run: RunDirectory
    step: int
    """The weights are of so many steps of training."""
    net: Supernet
    data: DataSet
    problem: Problem
    known: int
    """True scores that are recorded already."""
    total: int
    """True scores that the search, and random search beside it, ask for."""
    device: str
    unsuited: str | None = None
    """What is to be said where the latency table is not of the target's runtime."""


class SearchProgress(NamedTuple):
    """Where a search stands after a true score."""

    done: int
    total: int
    line: SubnetScore
    """What is recorded of the subnet."""
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class Searched:
    """What a search came to."""

    plan: SearchPlan
    result: SearchResult | None
    """The front and the subnet of highest top-1, and random search's; None unless finished."""
    best: ChosenSubnet | None
    """The subnet to take: that of least loss of all that are scored within the limits, whichever side found it; None
    unless finished."""
    front: RecordedFront | None
    """What RUN/front.json holds; None unless finished."""
    test: ChosenSubnet | None
    """It on the test split, where that was asked for."""
    asked: int
    """True scores that were asked for so far."""
    made: int
    """Those of them that were not recorded before."""
    seconds: float
    """What it took; after a dry run, about what it would take."""
    finished: bool


def search(
    run: str | Path,
    *,
    max_macs: Amount | None = None,
    max_params: Amount | None = None,
    max_latency: Amount | None = None,
    max_memory: Amount | None = None,
    max_size: Amount | None = None,
    target: str | None = None,
    latency: str | None = None,
    minimise: Sequence[str] = (),
    scores: int = 100,
    predictor: bool = True,
    control: bool = True,
    test: bool = False,
    calibration_images: int | None = None,
    data: DataSet | str | Path | None = None,
    data_dir: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    decode_workers: int | None = None,
    cluster: str = LOCAL,
    dry_run: bool = False,
    on_plan: Callable[[SearchPlan], None] = lambda _: None,
    on_start: Callable[[], None] = lambda: None,
    on_progress: Callable[[SearchProgress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Searched:
    """Search a run for its best subnets under a budget: `trainonce search`, whose options these are.

    `max_memory` is a device's RAM and `max_size` its flash, both counted in the numbers of the export target `target`
    (`numbers_of`), in float32 without one. It writes RUN/front.json; every score is recorded in RUN/search.jsonl and
    never made again. `on_start` is called where the search begins: from there on `should_stop` is asked. Under
    torchrun, call it inside `trainonce.parallel.fan_out.ranks_at_work`, on the rank that leads.
    Raises `UserError` for what cannot be, for a budget that no subnet meets, and without the extra `search`.
    """
    require_optuna()
    use_threads(threads)
    cluster, workers = cluster_chosen(cluster, workers)
    place = RunDirectory(run)
    net, step = place.load_supernet()
    most = budget(max_macs, max_params, max_latency, max_memory, max_size)
    table = table_at(place, latency, needed="latency" in (*most, *minimise))
    problem = problem_of(net, most, table, minimise, target=target)
    feasible = feasible_subnet(problem)
    even = drawn_over(place.config().recipe) == "even"
    settings = SearchSettings(scores=scores, predictor=predictor, control=control, even=even, seed=seed)
    images = place.load_data(data_dir, moved_to=data, workers=decode_workers)
    prepared = _prepared(
        *(place, step, net, images, problem, settings, table),
        calibration_images=calibration_images,
        device=device,
        target=target,
    )
    plan = prepared.plan
    on_plan(plan)
    if dry_run or (workers is None and cluster == LOCAL):
        batch = max(1, scores // (settings.rounds + 1))
        workers, seconds = planned_workers(
            *(lambda: prepared.evaluator(plan.net, feasible), batch, workers),
            cluster=cluster,
            device=plan.device,
        )
        if dry_run:
            return _unfinished(plan, seconds * plan.total / batch)
    with place.lock():
        on_start()
        return _searched(
            prepared, test=test, workers=workers, cluster=cluster, on_progress=on_progress, should_stop=should_stop
        )


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A plan, and what carrying it out takes."""

    plan: SearchPlan
    settings: SearchSettings
    evaluator: Evaluator
    start: SearchStart
    follows: JsonObject
    """Everything that the search follows from, beside what is recorded."""
    table: Path | None


def _prepared(
    place: RunDirectory,
    step: int,
    net: Supernet,
    data: DataSet,
    problem: Problem,
    settings: SearchSettings,
    table: Path | None,
    *,
    calibration_images: int | None,
    device: str,
    target: str | None = None,
) -> _Prepared:
    """What the search starts from, by what is recorded; nothing is scored."""
    refuse_empty(data, "validate")
    settled = device_named(device)
    net, data = net.to(settled), data.to(settled)
    follows = _follows_from(problem, settings, table, calibration_images)
    evaluator = Evaluator(data, "validate", _calibration(place, step, follows, calibration_images))
    start = start_of(place, evaluator, step, net.space, follows)
    plan = SearchPlan(
        run=place,
        step=step,
        net=net,
        data=data,
        problem=problem,
        known=len(start.scores),
        total=settings.scores * (2 if settings.control else 1),
        device=settled,
        unsuited=unsuited(table, target) if any(r.name == "latency" for r in problem.resources()) else None,
    )
    return _Prepared(plan=plan, settings=settings, evaluator=evaluator, start=start, follows=follows, table=table)


def _searched(
    prepared: _Prepared,
    *,
    test: bool,
    workers: int | None,
    cluster: str,
    on_progress: Callable[[SearchProgress], None],
    should_stop: Callable[[], bool],
) -> Searched:
    """Search, and write down what was found."""
    plan, start = prepared.plan, prepared.start
    began = time.monotonic()

    def note(asked: int, line: SubnetScore) -> None:
        left = (time.monotonic() - began) / cache.made * (plan.total - asked)
        on_progress(SearchProgress(asked, plan.total, line, left))

    cache = ScoreCache(
        *(plan.run, plan.net, plan.step, prepared.evaluator, start),
        workers=workers,
        cluster=cluster,
        on_progress=note,
        should_stop=should_stop,
    )
    try:
        scores = search_problem(plan.problem, start.scores, cache, prepared.settings)
        result = search_result(plan.problem, start.scores, scores)
        best = _chosen(best_within(cache.lines[arch] for arch in result.scored))
        tested = _tested(cache, plan.net.space.parse(best.arch), plan.data) if test else None
    except SearchStopped:
        return _unfinished(plan, time.monotonic() - began, asked=cache.asked, made=cache.made)
    front = _front(prepared, result, best, tested)
    plan.run.write_front(front)
    return Searched(
        plan=plan,
        result=result,
        best=best,
        front=front,
        test=tested,
        asked=cache.asked,
        made=cache.made,
        seconds=time.monotonic() - began,
        finished=True,
    )


def budget(
    max_macs: Amount | None,
    max_params: Amount | None,
    max_latency: Amount | None,
    max_memory: Amount | None,
    max_size: Amount | None,
) -> dict[str, Amount]:
    """The limits that are given, by resource."""
    most = zip(NAMES, (max_macs, max_params, max_latency, max_memory, max_size), strict=True)
    return {name: amount for name, amount in most if amount is not None}


def numbers_of(target: str | None) -> str:
    """The numbers that the files of an export target compute in; float32 without one. Raises `UserError` for no target.

    They say what memory and file size are where no runtime has measured them (`trainonce.search.footprint`).
    """
    if target is None:
        return "float32"
    from trainonce.pipeline.exporting import target_named  # what exports is loaded by those that ask for it

    return target_named(target).precision


def limits_of(
    net: Supernet, most: Mapping[str, Amount], table: str | Path | None, *, target: str | None = None
) -> list[Limit]:
    """The limits of a budget, for the files of an export target where one is named.

    Raises `UserError` for what is no quantity, no target, and for a table missing.
    """
    numbers = numbers_of(target)
    values = {name: quantity(name, amount) for name, amount in most.items()}
    return [
        Limit(resource=resource_named(name, net, latency_table=table, numbers=numbers, target=target), most=value)
        for name, value in values.items()
    ]


def calibration_of(run: RunDirectory, line: SubnetScore) -> EvaluateSettings:
    """As a recorded score was calibrated; as usual where its line does not say. Raises `UserError` for damage."""
    file = run.search_file if line.search else run.population_file
    said = line.calibration
    return EvaluateSettings() if said is None else EvaluateSettings.parse(said, where=str(file))


def problem_of(
    net: Supernet,
    most: Mapping[str, Amount],
    table: str | Path | None,
    minimise: Sequence[str] = (),
    *,
    target: str | None = None,
) -> Problem:
    """High top-1 within a budget. Raises `UserError` as `limits_of`, and where `minimise` names a resource twice."""
    limits, numbers = limits_of(net, most, table, target=target), numbers_of(target)
    limited = {limit.resource.name: limit.resource for limit in limits}
    names = list(minimise) or list(limited) or ["macs"]
    if len(set(names)) < len(names):
        raise UserError(f"--minimise names a resource twice: {','.join(minimise)}")
    resources = [
        limited.get(name) or resource_named(name, net, latency_table=table, numbers=numbers, target=target)
        for name in names
    ]
    return Problem(cost=net.cost, limits=tuple(limits), minimised=tuple(resources))


def _calibration(run: RunDirectory, step: int, follows: JsonObject, images: int | None) -> EvaluateSettings:
    """As this search began; else as the scores recorded with these weights were made, so that they count.

    Then with as many images as were asked for, where they were.
    """
    first = first_line(run.searched(), name_of(step, follows))
    if first is not None:
        return calibration_of(run, first)
    lines = newest_lines((line for line in run.scores() if line.step == step), "validate")
    settings = calibration_of(run, lines[-1]) if lines else EvaluateSettings()
    return settings if images is None else settings.model_copy(update={"calibration_images": images})


def _follows_from(
    problem: Problem, settings: SearchSettings, table: str | Path | None, calibration_images: int | None
) -> JsonObject:
    """Everything that the search follows from, beside what is recorded: of a table its content, not its place."""
    used = table if any(resource.name == "latency" for resource in problem.resources()) else None
    return {
        "settings": settings.model_dump(),
        **problem.to_json(),
        "latency_sha256": None if used is None else LatencyTable.read(used).sha256,
        "calibration_images": calibration_images,
    }


def _tested(cache: ScoreCache, best: Architecture, data: DataSet) -> ChosenSubnet:
    """The subnet to take on the test split; its score is recorded, too."""
    examiner = ScoreCache(
        *(cache.run, cache.net, cache.step, Evaluator(data, "test", cache.evaluator.settings), cache.start),
        workers=cache.workers,
        cluster=cache.cluster,
        should_stop=cache.should_stop,
    )
    examiner([best])
    return _chosen(examiner.lines[best])


def _chosen(line: SubnetScore) -> ChosenSubnet:
    return ChosenSubnet(arch=line.arch, top1=line.top1, loss=line.loss, images=line.images)


def _unfinished(plan: SearchPlan, seconds: float, *, asked: int = 0, made: int = 0) -> Searched:
    return Searched(
        plan=plan,
        result=None,
        best=None,
        front=None,
        test=None,
        asked=asked,
        made=made,
        seconds=seconds,
        finished=False,
    )


def _front(prepared: _Prepared, result: SearchResult, best: ChosenSubnet, tested: ChosenSubnet | None) -> RecordedFront:
    """What front.json holds."""
    plan, evaluator, follows = prepared.plan, prepared.evaluator, prepared.follows
    values = {
        "format": FORMAT,
        "name": prepared.start.name,
        "run": str(plan.run.path),
        "step": plan.step,
        "split": evaluator.split_name,
        "images": len(evaluator.split),
        "calibration": evaluator.settings.model_dump(exclude={"score_batch"}),
        **follows,
        "latency_table": str(prepared.table) if follows["latency_sha256"] else None,
        "recorded": result.recorded,
        "search": result.search.recorded(),
        "control": result.control and result.control.recorded(),
        "rounds": list(result.scores.rounds),
        "finalists": result.scores.finalists,
        "best": best,
        "test": tested,
        "provenance": provenance(plan.device),
    }
    return RecordedFront.read(values, where="what was found")
