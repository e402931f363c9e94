"""`trainonce evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trainonce.cli import display, results
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
    Seed,
    Threads,
    Workers,
)
from trainonce.cli.stopping import importing
from trainonce.cli.tools import bucket_centres, refuse_beside, work
from trainonce.errors import UserError
from trainonce.names import command

if TYPE_CHECKING:
    from trainonce.pipeline.evaluating import Evaluated, EvaluatePlan

OF_ONE = {"run_path", "arch", "run", "split", "data_path", "data_dir", "device", "threads", "decode_workers", "as_json"}
"""What can be said of one subnet."""


def evaluate(
    context: typer.Context,
    run_path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|SUBNET", help="A run's directory, or that of a subnet taken out of one.", show_default=False
        ),
    ],
    arch: Annotated[
        str | None,
        typer.Option(
            help="Score this subnet alone, class by class: an architecture, largest or smallest.", show_default=False
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Of a SUBNET, the run it was taken from. Default: where it was then.")
    ] = None,
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
        Literal["choices", "subnets", "even"] | None,
        typer.Option(
            help="How subnets are drawn: each choice uniformly, distinct subnets uniformly, or even ones, with all "
            "choices of a role at about the same share of their values. Default: even where the recipe ends with "
            "those, else choices."
        ),
    ] = None,
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

    What is recorded already is not done again. Under torchrun, the ranks share the work and the first one records. With
    --arch, or of a SUBNET, one subnet is scored class by class, and nothing is written.
    """
    with importing():
        from trainonce.parallel.fan_out import ranks_at_work
        from trainonce.pipeline import evaluate
        from trainonce.pipeline.evaluating_one import is_subnet

    if not context.with_resource(ranks_at_work()):
        return
    if arch is not None or is_subnet(run_path):
        _evaluate_one(context, run_path, arch)
        return
    if run is not None:
        raise UserError("--run goes with the directory of a subnet")
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
        display.print_json(
            {"run": str(done.plan.run.path), "split": split, "over": done.plan.over, "buckets": summaries}
        )
    else:
        _say(done)


def _evaluate_one(context: typer.Context, path: Path, arch: str | None) -> None:
    from trainonce.pipeline import evaluate_subnet
    from trainonce.run.directory import RunDirectory

    what = "the directory of a subnet" if arch is None else "--arch"
    refuse_beside(context, what, OF_ONE | (set() if arch is None else {"seed", "calibration_images"}))
    asked = context.params
    done = evaluate_subnet(
        path,
        arch,
        split=asked["split"],
        calibration_images=asked["calibration_images"],
        run=asked["run"],
        data=asked["data_path"],
        data_dir=asked["data_dir"],
        seed=asked["seed"],
        device=asked["device"],
        threads=asked["threads"],
        decode_workers=asked["decode_workers"],
        on_data=display.say_streamed,
        on_reached=partial(display.say_unfinished, RunDirectory(path)),
    )
    if asked["as_json"]:
        display.print_json(
            {
                "path": str(done.path),
                "architecture": done.arch,
                **asdict(done.cost),
                "split": done.split,
                "score": asdict(done.score),
                "interval": done.score.interval(),
                "classes": done.class_names,
                "per_class": done.per_class.model_dump(mode="json"),
            }
        )
        return
    macs, params = done.cost.macs / 1e6, done.cost.params / 1e6
    display.out.print(f"{done.arch}\n{done.score} on {done.split}; {macs:.3f} M MACs, {params:.3f} M parameters")
    results.say_per_class(done.per_class, done.class_names)


def _say_plan(plan: EvaluatePlan) -> None:
    count, buckets = len(plan.population), len(plan.buckets)
    drawn = " even" if plan.over == "even" else ""
    display.err.print(f"{count}{drawn} subnets in {buckets} buckets, {plan.split} split, weights of step {plan.step}")
    display.say_unfinished(plan.run, plan.run.reached(plan.step, len(plan.data.train)))
    display.say_streamed(plan.data)
    display.say_slow(plan.device)


def _say(done: Evaluated) -> None:
    from trainonce.evaluation.evaluator import wilson
    from trainonce.evaluation.population import middle_budget

    plan, run = done.plan, done.plan.run
    display.out.print(f"Top-1 in percent on {done.lines[0].images} {plan.split} images of {plan.data.name}")
    display.out.print(results.population_table(done.summaries))
    best = max(summary.maximum for summary in done.summaries)
    low, high = wilson(best, done.lines[0].images)
    display.out.print(
        f"The best, {best:.2f}%, has the 95% interval {low:.1f} to {high:.1f} on so many images; as the best of "
        f"{len(done.lines)} it flatters a little."
    )
    display.say_baseline(run.baseline() if plan.split == "validate" else None, best)
    if plan.split == "validate":  # by which `extract` chooses
        budget = middle_budget(line.macs for line in done.lines)
        display.err.print(f"Next: {command('trainonce', 'extract', run.path, '--max-macs', budget)}")
