"""A run's population: random subnets by MACs, scored and summed up."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from trainonce.data import DataSet
from trainonce.errors import UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, SplitName
from trainonce.evaluation.population import (
    PAPER_BUCKETS_M,
    Bucket,
    BucketSummary,
    DrawnOver,
    draw_population,
    drawn_over,
    evaluate_population,
    make_buckets,
    recorded,
    summarise,
)
from trainonce.parallel.fan_out import LOCAL
from trainonce.pipeline.machine import cluster_chosen, device_named, planned_workers, use_threads
from trainonce.run.directory import RunDirectory
from trainonce.run.lines import SubnetScore
from trainonce.space import Architecture

Buckets = Sequence[float] | Literal["paper"]
"""Centres in million MACs, or the paper's; none: six, evenly."""


@dataclass(frozen=True, kw_only=True)
class EvaluatePlan:
    """What is about to be scored."""

    run: RunDirectory
    step: int
    """The weights are of so many steps of training."""
    split: SplitName
    data: DataSet
    buckets: list[Bucket]
    over: DrawnOver
    """What the population is drawn over."""
    population: list[tuple[Bucket, Architecture]]
    recorded: int
    """How many of them are scored already."""
    device: str


class EvaluateProgress(NamedTuple):
    """Where scoring stands after a subnet."""

    done: int
    total: int
    line: SubnetScore
    """What is recorded of the subnet."""
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The population as far as it is scored."""

    plan: EvaluatePlan
    lines: list[SubnetScore]
    """What is recorded of each subnet."""
    summaries: list[BucketSummary]
    """Of each bucket that has subnets; none unless finished."""
    seconds: float
    """What it took; after a dry run, about what it would take."""
    workers: int | None
    """How many processes share the work; None where the cluster decides."""
    finished: bool
    """Whether all are scored: not where `should_stop` said so, nor after a dry run."""


def centres_of(buckets: Buckets) -> tuple[float, ...]:
    """The centres in million MACs; none for six, evenly."""
    return PAPER_BUCKETS_M if isinstance(buckets, str) else tuple(buckets)


def evaluate(
    run: str | Path,
    *,
    split: SplitName = "validate",
    buckets: Buckets = (),
    bucket_half_width: float | None = None,
    per_bucket: int = 100,
    over: DrawnOver | None = None,
    calibration_images: int = 2000,
    data: DataSet | str | Path | None = None,
    data_dir: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    decode_workers: int | None = None,
    cluster: str = LOCAL,
    dry_run: bool = False,
    on_plan: Callable[[EvaluatePlan], None] = lambda _: None,
    on_start: Callable[[], None] = lambda: None,
    on_progress: Callable[[EvaluateProgress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluated:
    """Score random subnets of a run in buckets of MACs: `trainonce evaluate`, whose options these are.

    `over` says what is drawn over, None what suits the recipe (`drawn_over`).
    What is recorded in RUN/population.jsonl is not done again. `data` says where the images are now, if they have
    moved. `on_start` is called where the scoring begins: from there on `should_stop` is asked. Under torchrun, call it
    inside `trainonce.parallel.fan_out.ranks_at_work`, on the rank that leads. Raises `UserError` for what cannot be.
    """
    use_threads(threads)
    cluster, workers = cluster_chosen(cluster, workers)
    place = RunDirectory(run)
    if per_bucket < 1:
        raise UserError(f"at least one subnet of each bucket is scored, not {per_bucket}")
    net, step = place.load_supernet()
    chosen = make_buckets(net.cost, centres_of(buckets), bucket_half_width)
    over = over or drawn_over(place.config().recipe)
    population = draw_population(net.cost, chosen, per_bucket, seed=seed, over=over)
    settled = device_named(device)
    images = place.load_data(data_dir, moved_to=data, workers=decode_workers).to(settled)
    net = net.to(settled)
    evaluator = Evaluator(images, split, EvaluateSettings(calibration_images=calibration_images, seed=seed))
    known = recorded(place, evaluator, step)
    before = sum(str(arch) in known for _, arch in population)
    plan = EvaluatePlan(
        run=place,
        step=step,
        split=split,
        data=images,
        buckets=chosen,
        over=over,
        population=population,
        recorded=before,
        device=settled,
    )
    on_plan(plan)
    if dry_run or (workers is None and cluster == LOCAL):
        middle = population[len(population) // 2][1]
        workers, seconds = planned_workers(
            lambda: evaluator(net, middle), len(population) - before, workers, cluster=cluster, device=settled
        )
        if dry_run:
            return Evaluated(plan=plan, lines=[], summaries=[], seconds=seconds, workers=workers, finished=False)
    began = time.monotonic()

    def note(done: int, line: SubnetScore) -> None:
        left = (time.monotonic() - began) / (done - before) * (len(population) - done)
        on_progress(EvaluateProgress(done, len(population), line, left))

    with place.lock():
        on_start()
        lines = evaluate_population(
            *(net, step, evaluator, place, (arch for _, arch in population)),
            workers=workers,
            cluster=cluster,
            on_progress=note,
            should_stop=should_stop,
        )
    finished = len(lines) == len(population)
    return Evaluated(
        plan=plan,
        lines=lines,
        summaries=summarise(lines, chosen) if finished else [],
        seconds=time.monotonic() - began,
        workers=workers,
        finished=finished,
    )
