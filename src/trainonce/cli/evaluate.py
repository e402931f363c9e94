"""`trainonce evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trainonce.cli import display
from trainonce.cli.known import LOCAL, MOST_PER_BUCKET
from trainonce.cli.options import (
    BucketHalfWidth,
    Cluster,
    DataDir,
    DecodeWorkers,
    Device,
    DryRun,
    Json,
    MovedData,
    RunArgument,
    Seed,
    Threads,
    Workers,
)
from trainonce.cli.stopping import importing
from trainonce.cli.tools import bucket_centres, work
from trainonce.names import command

if TYPE_CHECKING:
    from trainonce.pipeline.evaluating import Evaluated, EvaluatePlan


def evaluate(
    context: typer.Context,
    run_path: RunArgument,
    split: Annotated[
        Literal["validate", "test"],
        typer.Option(help="validate to choose by; test to report, once."),
    ] = "validate",
    buckets: Annotated[
        str,
        typer.Option(help="Centres in million MACs, such as 4,6,8; or paper: 4,6,8,10,12,14. Default: six, evenly."),
    ] = "",
    bucket_half_width: BucketHalfWidth = None,
    per_bucket: Annotated[
        int, typer.Option(min=1, max=MOST_PER_BUCKET, help="Distinct random subnets in each bucket.")
    ] = 100,
    over: Annotated[
        Literal["choices", "subnets"],
        typer.Option(help="What is uniform within a bucket: the values of choices, or distinct subnets."),
    ] = "choices",
    calibration_images: Annotated[
        int, typer.Option(min=2, help="Augmented images for recalibrating batch norms.")
    ] = 2000,
    data_path: MovedData = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    workers: Workers = None,
    decode_workers: DecodeWorkers = None,
    cluster: Cluster = LOCAL,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Score random subnets in buckets of MACs, and print the population.

    What is recorded already is not done again. Under torchrun, the ranks share the work and the first one records.
    """
    with importing():
        from trainonce.parallel.fan_out import ranks_at_work
        from trainonce.pipeline import evaluate

    if not context.with_resource(ranks_at_work()):
        return
    with work() as at_work:
        done = evaluate(
            run_path,
            split=split,
            buckets=bucket_centres(buckets),
            bucket_half_width=bucket_half_width,
            per_bucket=per_bucket,
            over=over,
            calibration_images=calibration_images,
            data=data_path,
            data_dir=data_dir,
            seed=seed,
            device=device,
            threads=threads,
            workers=workers,
            decode_workers=decode_workers,
            cluster=cluster,
            dry_run=dry_run,
            on_plan=_say_plan,
            on_start=at_work.start,
            on_progress=lambda at: at_work.show(at.done, at.total, display.scoring_line(at.line, at.seconds_left)),
            should_stop=at_work.should_stop,
        )
    if dry_run:
        display.say_duration(done.seconds, as_json, done.workers)
    elif at_work.stopped_by is not None:
        total = len(done.plan.population)
        display.err.print(f"Stopped; {len(done.lines)} of {total} subnets are recorded. Run it again to go on.")
        raise typer.Exit(128 + at_work.stopped_by)
    elif as_json:
        summaries = [asdict(summary) for summary in done.summaries]
        display.print_json({"run": str(done.plan.run.path), "split": split, "buckets": summaries})
    else:
        _say(done)


def _say_plan(plan: EvaluatePlan) -> None:
    count, buckets = len(plan.population), len(plan.buckets)
    display.err.print(f"{count} subnets in {buckets} buckets, {plan.split} split, weights of step {plan.step}")
    display.say_streamed(plan.data)
    display.say_slow(plan.device)


def _say(done: Evaluated) -> None:
    plan, run = done.plan, done.plan.run
    display.out.print(f"Top-1 in percent on {done.lines[0].images} {plan.split} images of {plan.data.name}")
    display.out.print(display.population_table(done.summaries))
    best = max(summary.maximum for summary in done.summaries)
    display.say_baseline(run.baseline() if plan.split == "validate" else None, best)
    middle_macs = f"{plan.buckets[len(plan.buckets) // 2].centre / 1e6:.2g}"
    display.err.print(f"Next: {command('trainonce', 'extract', run.path, '--max-macs', middle_macs)}")
