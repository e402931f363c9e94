"""`trainonce extract`."""

from pathlib import Path
from typing import Annotated

import typer

from trainonce.cli import display
from trainonce.cli import search as cli_search
from trainonce.cli.known import MEASURES
from trainonce.cli.options import (
    DataDir,
    DecodeWorkers,
    Device,
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
)
from trainonce.cli.stopping import importing
from trainonce.cli.tools import given, refuse_beside


def extract(
    context: typer.Context,
    run_path: RunArgument,
    arch: Annotated[
        str | None,
        typer.Argument(
            help="An architecture, as `evaluate` and `search` record it; or largest, or smallest. Without it, the "
            "best under the budget of all that they scored.",
            show_default=False,
        ),
    ] = None,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    max_latency: MaxLatency = None,
    max_memory: MaxMemory = None,
    max_size: MaxSize = None,
    latency: Latency = None,
    recalibrate: Annotated[
        bool,
        typer.Option(help="Give the subnet batch-norm statistics of its own. Without, it is the supernet's cut."),
    ] = True,
    test: Annotated[bool, typer.Option("--test", help="Also score it on the test split and record that.")] = False,
    out: Annotated[Path | None, typer.Option(help="Directory to write. Default: RUN/subnets/ID.")] = None,
    license_name: Annotated[
        str | None, typer.Option("--license", help="The licence that its model card names, such as apache-2.0.")
    ] = None,
    data_path: MovedData = None,
    data_dir: DataDir = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Seed of the calibration. Default: as the subnet was scored.")
    ] = 0,
    device: Device = "auto",
    threads: Threads = None,
    decode_workers: DecodeWorkers = None,
    as_json: Json = False,
) -> None:
    """Take one subnet out: a directory that loads with torch and safetensors alone."""
    with importing():
        from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, finite
        from trainonce.evaluation.per_class import score_by_class
        from trainonce.evaluation.population import best_within, newest_lines
        from trainonce.pipeline.machine import device_named, use_threads
        from trainonce.run.directory import RunDirectory
        from trainonce.search.measures import table_at
        from trainonce.subnets import check_place, verify_subnet, write_subnet
        from trainonce.subnets.taken import describe_taken

    use_threads(threads)
    run = RunDirectory(run_path)
    net, step = run.load_supernet()
    data = run.load_data(data_dir, moved_to=data_path, workers=decode_workers).to(device_named(device))
    display.say_streamed(data)
    net, settings = net.to(device_named(device)), EvaluateSettings(seed=seed)
    if arch is not None:
        budgets = {f"max_{name}" for name in MEASURES} | {"latency"}
        refuse_budget = {p.name for p in context.command.params if p.name} - budgets
        refuse_beside(context, "an architecture", refuse_budget)
    else:
        texts = dict(zip(MEASURES, (max_macs, max_params, max_latency, max_memory, max_size), strict=True))
        limits = cli_search.limits_of(net, texts, table_at(run, latency))
        recorded_lines = [*run.population(), *run.searched()]
        lines = newest_lines((line for line in recorded_lines if line["step"] == step), "validate")
        best = best_within(
            lines,
            fits=lambda line: all(limit.violation(net.space.parse(line["arch"])) <= 0 for limit in limits),
        )
        arch = str(best["arch"])
        if not given(context, "seed"):
            settings = cli_search.calibration_of(run, best)
    chosen = net.space.parse(arch)
    path = out or run.subnets / chosen.id
    check_place(path)
    evaluator = Evaluator(data, "validate", settings)
    network = evaluator.recalibrated(net, chosen) if recalibrate else net.extract(chosen)
    scores = {"validate": finite(evaluator.score(network), "validate")} if test else {}
    last = "test" if test else "validate"
    scores[last], classes = score_by_class(network, data.test if test else data.validate, data, last)
    calibration = evaluator.settings if recalibrate else None
    description = describe_taken(net, chosen, data, run, step, calibration=calibration, scores=scores)
    description["per_class"] = {"split": last, **classes.model_dump(mode="json")}
    if license_name:
        description["license"] = license_name
    write_subnet(path, network, description)
    verify_subnet(path, network)
    if as_json:
        display.print_json({"path": str(path), **description})
        return
    measured = "; ".join(f"{found} on {name}" for name, found in scores.items())
    cost = net.cost_of(chosen)
    display.out.print(f"{chosen}\n{measured}; {cost.macs / 1e6:.3f} M MACs, {cost.params / 1e6:.3f} M parameters")
    display.say_per_class(classes, data.class_names)
    display.say_baseline(run.baseline(), scores["validate"].top1)
    display.out.print(f"Written to {path}; reloaded, and its output is the same to the last bit.")
    display.out.print(f"Load it without trainonce: {path}/README.md, its model card, says how.")
