"""The command that searches, and the options for budgets that it shares with `extract`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainonce.cli import display
from trainonce.cli.known import LOCAL, MEASURES, MOST_SCORES
from trainonce.cli.options import (
    Cluster,
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
from trainonce.cli.stopping import importing, stop_on_signal
from trainonce.errors import UserError
from trainonce.names import command

if TYPE_CHECKING:
    from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
    from trainonce.evaluation.population import Line
    from trainonce.models import Supernet
    from trainonce.run.directory import RunDirectory
    from trainonce.search import Limit, Memo, Outcome, Problem, SearchSettings, Start


def limits_of(net: Supernet, texts: Mapping[str, str | None], table: Path | None) -> list[Limit]:
    """The limits that options name, by measure. Raises `UserError` for what is no quantity, and for a table missing."""
    from trainonce.search import Limit, measure_named, quantity

    most = {name: quantity(name, text) for name, text in texts.items() if text is not None}
    return [Limit(measure=measure_named(name, net, latency_table=table), most=value) for name, value in most.items()]


def calibration_of(run: RunDirectory, line: Line) -> EvaluateSettings:
    """As a recorded score was calibrated; as usual where its line does not say. Raises `UserError` for damage."""
    from trainonce.evaluation.evaluator import EvaluateSettings

    file = run.search_file if "search" in line else run.population_file
    said = line.get("calibration")
    return EvaluateSettings.parse(said, where=str(file)) if isinstance(said, dict) else EvaluateSettings()


def search(
    context: typer.Context,
    run_path: RunArgument,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    max_latency: MaxLatency = None,
    max_memory: MaxMemory = None,
    max_size: MaxSize = None,
    latency: Latency = None,
    minimise: Annotated[
        str,
        typer.Option(
            help=f"What to keep small beside a high top-1, of {', '.join(MEASURES)}. Default: what has a limit."
        ),
    ] = "",
    scores: Annotated[
        int, typer.Option(min=1, max=MOST_SCORES, help="True scores to ask for; random search gets as many.")
    ] = 100,
    predictor: Annotated[
        bool, typer.Option(help="Predict top-1 from what is recorded, where that is good enough.")
    ] = True,
    control: Annotated[bool, typer.Option(help="Do random search beside it.")] = True,
    test: Annotated[bool, typer.Option("--test", help="Also score the best subnet on the test split.")] = False,
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
        import torch

        from trainonce.evaluation.evaluator import Evaluator
        from trainonce.parallel.fan_out import ranks_at_work
        from trainonce.pipeline.machine import cluster_chosen, device_named, planned_workers, use_threads
        from trainonce.run.directory import RunDirectory
        from trainonce.search import Memo, SearchSettings, Stopped, feasible_subnet, outcome_of, search, start_of
        from trainonce.search.evolution import require_optuna
        from trainonce.search.measures import table_at

    require_optuna()
    if not context.with_resource(ranks_at_work()):
        return
    use_threads(threads)
    cluster, workers = cluster_chosen(cluster, workers)
    run = RunDirectory(run_path)
    net, step = run.load_supernet()
    texts = dict(zip(MEASURES, (max_macs, max_params, max_latency, max_memory, max_size), strict=True))
    table = table_at(run, latency)
    problem = _problem(net, texts, table, minimise)
    feasible = feasible_subnet(problem)
    settings = SearchSettings(scores=scores, predictor=predictor, control=control, seed=seed)
    data = run.load_data(data_dir, moved_to=data_path, workers=decode_workers)
    if len(data.validate) == 0:
        raise UserError(f"{data.name} has no validate images, and a search reads no others: give it some")
    display.say_streamed(data)
    settled = torch.device(device_named(device))
    display.say_slow(settled.type)
    net, data = net.to(settled), data.to(settled)
    plan = _plan(problem, settings, table, calibration_images)
    evaluator = Evaluator(data, "validate", _calibration(run, step, plan))
    start = start_of(run, evaluator, step, net.space, plan)
    display.err.print(
        f"{net.space.count():.3g} subnets, {display.limits_text(problem)}; {len(start.scores)} scores recorded; "
        f"weights of step {step}"
    )
    total = scores * (2 if control else 1)
    if dry_run or (workers is None and cluster == LOCAL):
        batch = max(1, scores // (settings.rounds + 1))
        workers, seconds = planned_workers(
            lambda: evaluator(net, feasible), batch, workers, cluster=cluster, device=settled.type
        )
        if dry_run:
            display.say_duration(seconds * total / batch, as_json)
            return
    began = time.monotonic()
    with run.lock(), stop_on_signal() as stop, display.progress() as show:

        def on_progress(asked: int, line: dict[str, Any]) -> None:
            left = (time.monotonic() - began) / memo.made * (total - asked)
            show(asked, total, f"{display.subnet_line(line)}; {display.duration(left)} left")

        def make_memo(evaluator: Evaluator, on_progress: Callable[[int, dict[str, Any]], None]) -> Memo:
            return Memo(
                run,
                net,
                step,
                evaluator,
                start,
                workers=workers,
                cluster=cluster,
                on_progress=on_progress,
                should_stop=lambda: stop.number is not None,
            )

        memo = make_memo(evaluator, on_progress)
        try:
            outcome = outcome_of(problem, start.scores, search(problem, start.scores, memo, settings))
            tested = None
            if test:
                best = outcome.best.arch
                examiner = make_memo(Evaluator(data, "test", evaluator.settings), lambda _asked, _line: None)
                examiner([best])
                tested = {name: examiner.lines[best][name] for name in ("arch", "top1", "loss", "images")}
        except Stopped:
            display.err.print(f"Stopped; {memo.asked} of {total} scores are recorded. The same command goes on.")
            raise typer.Exit(128 + (stop.number or 0)) from None
        found = _found(run, evaluator, step, plan, table, start, outcome, tested, str(settled))
        run.write_front(found)
    if as_json:
        display.print_json(found)
        return
    _show(run, outcome, memo, tested)


def _problem(net: Supernet, texts: Mapping[str, str | None], table: Path | None, minimise: str) -> Problem:
    from trainonce.search import Problem, measure_named

    limits = limits_of(net, texts, table)
    limited = {limit.measure.name: limit.measure for limit in limits}
    names = [name.strip() for name in minimise.split(",")] if minimise else list(limited) or ["macs"]
    if len(set(names)) < len(names):
        raise UserError(f"--minimise names a measure twice: {minimise}")
    measures = [limited.get(name) or measure_named(name, net, latency_table=table) for name in names]
    return Problem(cost=net.cost, limits=tuple(limits), minimised=tuple(measures))


def _calibration(run: RunDirectory, step: int, plan: Mapping[str, Any]) -> EvaluateSettings:
    """As this search began; else as the scores recorded with these weights were made, so that they count.

    Then with as many images as were asked for, where they were.
    """
    from trainonce.evaluation.evaluator import EvaluateSettings
    from trainonce.evaluation.population import newest_lines
    from trainonce.search.memo import first_line, name_of

    searched = run.searched()
    first = first_line(searched, name_of(step, plan))
    if first is not None:
        return calibration_of(run, first)
    recorded = [line for line in (*searched, *run.population()) if line["step"] == step]
    lines = newest_lines(recorded, "validate")
    settings = calibration_of(run, lines[-1]) if lines else EvaluateSettings()
    images = plan["calibration_images"]
    return settings if images is None else settings.model_copy(update={"calibration_images": images})


def _plan(
    problem: Problem, settings: SearchSettings, table: Path | None, calibration_images: int | None
) -> dict[str, Any]:
    """Everything that the search follows from, beside what is recorded: of a table its content, not its place."""
    from trainonce.latency import LatencyTable

    told = problem.to_json()
    used = table if "latency" in {*told["minimised"], *told["limits"]} else None
    return {
        "settings": settings.model_dump(),
        **told,
        "latency_sha256": None if used is None else LatencyTable.read(used).sha256,
        "calibration_images": calibration_images,
    }


def _found(
    run: RunDirectory,
    evaluator: Evaluator,
    step: int,
    plan: dict[str, Any],
    table: Path | None,
    start: Start,
    outcome: Outcome,
    tested: dict[str, Any] | None,
    device: str,
) -> dict[str, Any]:
    """What front.json holds."""
    from trainonce.run.directory import provenance
    from trainonce.search.outcome import FORMAT

    return {
        "format": FORMAT,
        "name": start.name,
        "run": str(run.path),
        "step": step,
        "split": evaluator.split_name,
        "images": len(evaluator.split),
        "calibration": evaluator.settings.model_dump(exclude={"score_batch"}),
        **plan,
        "latency_table": str(table) if plan["latency_sha256"] else None,
        **outcome.to_json(),
        "test": tested,
        "provenance": provenance(device),
    }


def _show(run: RunDirectory, outcome: Outcome, memo: Memo, tested: dict[str, Any] | None) -> None:
    display.out.print(display.front_table(outcome))
    for sentence in display.search_sentences(outcome):
        display.out.print(sentence)
    if tested is not None:
        display.out.print(f"The better of both has {tested['top1']:.2f}% on {tested['images']} test images.")
    display.err.print(f"{memo.made} scores were made now, {memo.asked - memo.made} were recorded before.")
    display.err.print(f"Next: {command('trainonce', 'extract', run.path, str(outcome.best.arch))}")
