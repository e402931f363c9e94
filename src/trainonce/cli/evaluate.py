"""`trainonce evaluate`."""

import time
from dataclasses import asdict
from typing import Annotated, Any, Literal

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
from trainonce.cli.stopping import importing, stop_on_signal
from trainonce.cli.tools import bucket_centres
from trainonce.names import command


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
        import torch

        from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
        from trainonce.evaluation.population import (
            draw_population,
            evaluate_population,
            make_buckets,
            recorded,
            summarise,
        )
        from trainonce.parallel.fan_out import ranks_at_work
        from trainonce.pipeline.machine import cluster_chosen, device_named, planned_workers, use_threads
        from trainonce.run.directory import RunDirectory

    if not context.with_resource(ranks_at_work()):
        return
    use_threads(threads)
    cluster, workers = cluster_chosen(cluster, workers)
    run = RunDirectory(run_path)
    net, step = run.load_supernet()
    chosen = make_buckets(net.cost, bucket_centres(buckets), bucket_half_width)
    population = draw_population(net.cost, chosen, per_bucket, seed=seed, over=over)
    display.err.print(f"{len(population)} subnets in {len(chosen)} buckets, {split} split, weights of step {step}")
    data = run.load_data(data_dir, moved_to=data_path, workers=decode_workers)
    display.say_streamed(data)
    settled = torch.device(device_named(device))
    display.say_slow(settled.type)
    net, data = net.to(settled), data.to(settled)
    settings = EvaluateSettings(calibration_images=calibration_images, seed=seed)
    evaluator = Evaluator(data, split, settings)
    known = recorded(run, evaluator, step)
    before = sum(str(arch) in known for _, arch in population)
    if dry_run or (workers is None and cluster == LOCAL):
        middle = population[len(population) // 2][1]
        workers, seconds = planned_workers(
            lambda: evaluator(net, middle), len(population) - before, workers, cluster=cluster, device=settled.type
        )
        if dry_run:
            display.say_duration(seconds, as_json, workers)
            return
    began = time.monotonic()
    with run.lock(), stop_on_signal() as stop, display.progress() as show:

        def on_progress(done: int, line: dict[str, Any]) -> None:
            left = (time.monotonic() - began) / (done - before) * (len(population) - done)
            show(done, len(population), f"{display.subnet_line(line)}; {display.duration(left)} left")

        lines = evaluate_population(
            net,
            step,
            evaluator,
            run,
            population,
            workers=workers,
            cluster=cluster,
            on_progress=on_progress,
            should_stop=lambda: stop.number is not None,
        )
    if stop.number is not None:
        display.err.print(f"Stopped; {len(lines)} of {len(population)} subnets are recorded. Run it again to go on.")
        raise typer.Exit(128 + stop.number)
    summaries = summarise(lines, chosen)
    if as_json:
        display.print_json({"run": str(run.path), "split": split, "buckets": [asdict(s) for s in summaries]})
        return
    display.out.print(f"Top-1 in percent on {lines[0]['images']} {split} images of {data.name}")
    display.out.print(display.population_table(summaries))
    display.say_baseline(run.baseline() if split == "validate" else None, max(s.maximum for s in summaries))
    middle_macs = f"{chosen[len(chosen) // 2].centre / 1e6:.2g}"
    display.err.print(f"Next: {command('trainonce', 'extract', run.path, '--max-macs', middle_macs)}")
