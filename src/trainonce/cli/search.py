"""The command that searches, and the options for budgets that it shares with `extract`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from trainonce.cli import display, results
from trainonce.cli.known import LOCAL, MOST_SCORES, RESOURCES
from trainonce.cli.options import (
    Cluster,
    CountedFor,
    DataDir,
    DecodeWorkers,
    Device,
    DryRun,
    Json,
    Latency,
    MaxLatency,
    MaxMacs,
    MaxMemory,
    MaxParams,
    MaxSize,
    MovedData,
    RunArgument,
    Threads,
    Workers,
)
from trainonce.cli.stopping import importing
from trainonce.cli.tools import work
from trainonce.names import command

if TYPE_CHECKING:
    from trainonce.pipeline.searching import Searched, SearchPlan
    from trainonce.search import SearchResult
    from trainonce.search.recorded import ChosenSubnet


def search(
    context: typer.Context,
    run_path: RunArgument,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    max_latency: MaxLatency = None,
    max_memory: MaxMemory = None,
    max_size: MaxSize = None,
    target: CountedFor = None,
    latency: Latency = None,
    minimise: Annotated[
        str,
        typer.Option(
            help=f"What to keep small beside a high top-1, of {', '.join(RESOURCES)}. Default: what has a limit."
        ),
    ] = "",
    scores: Annotated[
        int, typer.Option(min=1, max=MOST_SCORES, help="True scores to ask for; random search gets as many.")
    ] = 100,
    predictor: Annotated[
        bool, typer.Option(help="Predict top-1 from what is recorded, where that is good enough.")
    ] = True,
    control: Annotated[bool, typer.Option(help="Do random search beside it.")] = True,
    test: Annotated[
        bool, typer.Option("--test", help="Also score the subnet of least loss on the test split.")
    ] = False,
    calibration_images: Annotated[
        int | None,
        typer.Option(min=2, help="Augmented images for recalibrating. Default: as the population was scored."),
    ] = None,
    data_path: MovedData = None,
    data_dir: DataDir = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of everything random in the search.")] = 0,
    device: Device = "auto",
    threads: Threads = None,
    workers: Workers = None,
    decode_workers: DecodeWorkers = None,
    cluster: Cluster = LOCAL,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Search for the best subnets under a budget, beside random search with as many scores; writes RUN/front.json.

    Every score is recorded in RUN/search.jsonl and never made again, so the same command goes on where it was stopped.
    """
    with importing():
        from trainonce.parallel.fan_out import ranks_at_work
        from trainonce.pipeline import search
        from trainonce.search.evolution import require_optuna

    require_optuna()
    if not context.with_resource(ranks_at_work()):
        return
    with work() as at_work:
        done = search(
            run_path,
            max_macs=max_macs,
            max_params=max_params,
            max_latency=max_latency,
            max_memory=max_memory,
            max_size=max_size,
            target=target,
            latency=latency,
            minimise=[name.strip() for name in minimise.split(",")] if minimise else (),
            scores=scores,
            predictor=predictor,
            control=control,
            test=test,
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
        display.say_duration(done.seconds, as_json)
    elif done.result is None or done.best is None or done.front is None:
        display.err.print(f"Stopped; {done.asked} of {done.plan.total} scores are recorded. The same command goes on.")
        raise typer.Exit(128 + (at_work.stopped_by or 0))
    elif as_json:
        display.print_json(done.front.to_json())
    else:
        _say(done, done.result, done.best)


def _say_plan(plan: SearchPlan) -> None:
    display.say_unfinished(plan.run, plan.run.reached(plan.step, len(plan.data.train)))
    display.say_streamed(plan.data)
    display.say_slow(plan.device)
    if plan.unsuited:
        display.err.print(f"Note: {plan.unsuited}.")
    display.err.print(
        f"{plan.net.space.count():.3g} subnets, {results.limits_text(plan.problem)}; {plan.known} scores recorded; "
        f"weights of step {plan.step}"
    )


def _say(done: Searched, result: SearchResult, best: ChosenSubnet) -> None:
    display.print_wide(results.front_table(result))
    for sentence in results.search_sentences(result):
        display.out.print(sentence)
    display.out.print(
        f"To take is the subnet of least loss on validate of all scored within the limits, since that tells better "
        f"than top-1 how it does on other images: {best.loss:.3f}, with a top-1 of {best.top1:.2f}%."
    )
    if done.test is not None:
        from trainonce.evaluation.evaluator import wilson

        low, high = wilson(done.test.top1, done.test.images)
        display.out.print(
            f"It has {done.test.top1:.2f}% on {done.test.images} test images (95% interval {low:.1f} to {high:.1f})."
        )
    there = f"; {done.asked - done.made} were there already" if done.asked > done.made else ""
    display.err.print(f"Of {done.asked} scores asked for, {done.made} were made now{there}.")
    display.err.print(f"Next: {command('trainonce', 'extract', done.plan.run.path, best.arch)}")
