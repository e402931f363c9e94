"""`trainonce extract`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from trainonce.cli import display, results
from trainonce.cli.options import (
    CountedFor,
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
from trainonce.cli.tools import given


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
    target: CountedFor = None,
    latency: Latency = None,
    recalibrate: Annotated[
        bool,
        typer.Option(help="Give the subnet batch-norm statistics of its own; else they are cut from the supernet's."),
    ] = True,
    fuse: Annotated[
        bool,
        typer.Option("--fuse", help="Merge parallel convolutions of a network of yours (RepVGG, MobileOne) into one."),
    ] = False,
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
        from trainonce.pipeline import extract
        from trainonce.run.directory import RunDirectory

    done = extract(
        run_path,
        arch,
        max_macs=max_macs,
        max_params=max_params,
        max_latency=max_latency,
        max_memory=max_memory,
        max_size=max_size,
        target=target,
        latency=latency,
        recalibrate=recalibrate,
        fuse=fuse,
        test=test,
        out=out,
        license=license_name,
        data=data_path,
        data_dir=data_dir,
        seed=seed if given(context, "seed") else None,
        device=device,
        threads=threads,
        decode_workers=decode_workers,
        on_data=display.say_streamed,
        on_reached=partial(display.say_unfinished, RunDirectory(run_path)),
    )
    if as_json:
        intervals = {name: score.interval() for name, score in done.scores.items()}
        display.print_json({"path": str(done.path), **done.description.to_json(), "intervals": intervals})
        return
    measured = "; ".join(f"{found} on {name}" for name, found in done.scores.items())
    macs, params = done.cost.macs / 1e6, done.cost.params / 1e6
    display.out.print(f"{done.arch}\n{measured}; {macs:.3f} M MACs, {params:.3f} M parameters")
    results.say_per_class(done.per_class, done.class_names)
    display.say_baseline(done.run.baseline(), done.scores["validate"].top1)
    recorded = done.description.scores or {}
    if "test" in recorded and "test" not in done.scores:
        display.out.print(f"Kept from before, of the same network: {recorded['test'].top1:.2f}% on test")
    display.out.print(f"Written to {done.path}; reloaded, and its output is the same to the last bit.")
    display.out.print(f"Load it without trainonce: {done.path}/README.md, its model card, says how.")
