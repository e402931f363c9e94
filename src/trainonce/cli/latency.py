"""`trainonce latency`: a table of what subnets take on this machine, made, shown and checked."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from trainonce.cli import display
from trainonce.cli.known import MOST_BATCH, MOST_THREADS, RUNTIMES
from trainonce.cli.options import DryRun, Json, RunArgument
from trainonce.cli.stopping import importing, stoppable
from trainonce.cli.tools import WholeHelp
from trainonce.errors import UserError

if TYPE_CHECKING:
    from trainonce.latency import BuildSettings, LatencyTable
    from trainonce.models import Supernet
    from trainonce.run.directory import RunDirectory
    from trainonce.settings import JsonObject

TableArgument = Annotated[Path, typer.Argument(metavar="TABLE", help="A table's file.", show_default=False)]

RuntimeOption = Annotated[str, typer.Option("--runtime", help=f"What runs the subnets: {', '.join(RUNTIMES)}.")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, max=MOST_THREADS, help="Threads of the runtime.")]
BatchOption = Annotated[int, typer.Option("--batch", min=1, max=MOST_BATCH, help="Images in a call.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="A fifth of the subnets and half of the repetitions: for a first look.")
]
SubnetSeed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of the random subnets.")]

latency = typer.Typer(
    cls=WholeHelp, help="How long subnets take on this machine: a table, and its error.", no_args_is_help=True
)


@latency.command()
def build(
    run_path: RunArgument,
    runtime: RuntimeOption = "onnxruntime",
    threads: ThreadsOption = 1,
    batch: BatchOption = 1,
    out: Annotated[
        Path | None, typer.Option(help="The table to write. Default: RUN/latency/RUNTIME-THREADS-BATCH.json.")
    ] = None,
    quick: Quick = False,
    seed: SubnetSeed = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Measure this machine and write a table; the run need not be trained. If stopped, the same command goes on.

    Let the machine do nothing else while it measures. The table also says how well it predicts other subnets.
    """
    with importing():
        from trainonce.latency import build_table, table_seconds
        from trainonce.latency.build import make_plan

    run, net, settings = _asked(run_path, quick=quick, runtime=runtime, threads=threads, batch=batch, seed=seed)
    path = out or run.latency / f"{runtime}-{threads}-{batch}.json"
    seconds = table_seconds(net, settings)
    held_out = make_plan(net, settings).held_out
    display.err.print(
        f"{held_out.count(False)} subnets to measure and {held_out.count(True)} to check by, {runtime}, {threads} "
        f"thread{'s' if threads > 1 else ''}, batch {batch}: about {display.duration(seconds)}; into {path}"
    )
    if dry_run:
        if as_json:
            display.print_json({"seconds": round(seconds, 1), "table": str(path)})
        return
    began = time.monotonic()
    partial = path.with_name(f".{path.name}.measured.jsonl")
    with stoppable(lambda: _kept(partial)), display.progress() as shown:
        table = build_table(net, settings, partial_file=partial, out=path, on_progress=shown)
    if as_json:
        display.print_json({"table": str(path), "seconds": round(time.monotonic() - began, 1), **_summary(table)})
        return
    display.out.print(f"A table of {len(table.parts)} parts.")
    _say_error(table)
    display.out.print(f"Wrote {path}")


@latency.command()
def pack(
    run_path: RunArgument,
    out: Annotated[Path, typer.Option(help="The folder to write.", show_default=False)],
    runtime: RuntimeOption = "onnxruntime",
    threads: ThreadsOption = 1,
    batch: BatchOption = 1,
    quick: Quick = False,
    seed: SubnetSeed = 0,
    as_json: Json = False,
) -> None:
    """Write a folder that measures another machine, which needs a runtime, numpy and Python, and nothing of trainonce.

    Take it there, start measure.py, and bring result.json back to `trainonce latency unpack`. The networks are in it
    without their weights, which are made there at random.
    """
    with importing():
        from trainonce.latency import pack_bench

    _, net, settings = _asked(run_path, quick=quick, runtime=runtime, threads=threads, batch=batch, seed=seed)
    with stoppable(lambda: f"{out} is not whole: delete it"), display.progress() as shown:
        size = pack_bench(net, settings, out, on_progress=shown)
    if as_json:
        display.print_json({"folder": str(out), "bytes": size})
        return
    display.out.print(
        f"Wrote {out}, {size / 1e6:.1f} MB. There: python measure.py (README.txt says what it needs); then here: "
        f"trainonce latency unpack {out} {run_path}"
    )


@latency.command()
def unpack(
    result: Annotated[
        Path, typer.Argument(metavar="RESULT", help="What came back: result.json, or its folder.", show_default=False)
    ],
    run_path: RunArgument,
    out: Annotated[
        Path | None, typer.Option(help="The table to write. Default: RUN/latency/RUNTIME-THREADS-BATCH.json.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the table of a machine that was measured by a folder of `latency pack`."""
    with importing():
        from trainonce.latency import LatencyTable, unpack_table
        from trainonce.run.directory import RunDirectory

    run = RunDirectory(run_path)
    run.checked_config()
    table = unpack_table(result, run.build_supernet())
    path = out or run.latency / f"{table.runtime}-{table.threads}-{table.batch}.json"
    if out is None and path.exists() and LatencyTable.read(path).machine != table.machine:
        raise UserError(f"{path} is the table of another machine: name this one with --out")
    table.write(path)
    if as_json:
        display.print_json({"table": str(path), "machine": table.machine, **_summary(table)})
        return
    display.out.print(f"Measured on {table.machine.get('cpu')}, {table.machine.get('cores')} cores.")
    _say_error(table)
    display.out.print(f"Wrote {path}")


def _kept(partial: Path) -> str:
    from trainonce.records import read_lines

    kept = len(read_lines(partial)) - 1  # the first line says of what
    if kept < 1:
        return "nothing is measured yet"
    return f"{kept} measurements are kept in {partial}: run the same again to go on"


@latency.command()
def show(table_path: TableArgument, as_json: Json = False) -> None:
    """Show where a table was made, its error, and what parts take."""
    with importing():
        from trainonce.latency import LatencyTable

    table = LatencyTable.read(table_path)
    if as_json:
        display.print_json(table.model_dump(mode="json"))
        return
    display.out.print(
        f"{table.runtime}, {table.threads} thread{'s' if table.threads > 1 else ''}, batch {table.batch}, "
        f"{', '.join(map(str, table.resolutions))} pixels; made {table.made}\n"
        f"on {table.machine.get('cpu')}, {table.machine.get('cores')} cores, {table.machine.get('system')}; "
        + ", ".join(f"{name} {version}" for name, version in sorted(table.versions.items()))
    )
    _say_error(table)
    display.out.print(_parts(table))


@latency.command()
def check(
    table_path: TableArgument,
    run_path: RunArgument,
    networks: Annotated[int, typer.Option(min=2, help="Random subnets to measure.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions of each; the median counts.")] = 20,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the random subnets.")] = 1,
    as_json: Json = False,
) -> None:
    """Measure random subnets that a table was not made from on this machine, and compare them with what it predicts."""
    with importing():
        from trainonce.latency import LatencyTable, check_table
        from trainonce.latency.bench import this_machine
        from trainonce.latency.runtimes import versions_of
        from trainonce.run.directory import RunDirectory

    table = LatencyTable.read(table_path)
    run = RunDirectory(run_path)
    run.checked_config()
    net = run.build_supernet()
    here, versions = this_machine(), versions_of(table.runtime)
    for name, then, now in [
        *((name, table.machine.get(name), here[name]) for name in here),
        *((name, table.versions.get(name), versions[name]) for name in versions),
    ]:
        if then != now:
            display.err.print(f"The table was made with another {name}: {then}; here it is {now}")
    with stoppable(lambda: "a check keeps nothing, and the table is as it was"), display.progress() as shown:
        found = check_table(table, net, networks=networks, rounds=rounds, seed=seed, on_progress=shown)
    error, (slow, fast) = found.error, found.drift
    if error.networks < networks:
        display.err.print(f"The space has only {error.networks} subnets that the table was not made from")
    if as_json:
        display.print_json({**error.model_dump(), "drift": found.drift})
        return
    display.out.print(
        f"Here and now: {error}.\nThis is {error.factor:.2f} times what the table says; "
        f"but for that factor the mean error is {100 * error.scaled_mean:.1f}%.\n"
        f"The machine's pace went from {fast:.2f} to {slow:.2f} times its usual time meanwhile, which is taken out."
    )


def _asked(
    run_path: Path, *, quick: bool, runtime: str, threads: int, batch: int, seed: int
) -> tuple[RunDirectory, Supernet, BuildSettings]:
    """The run, its supernet, and how it is to be measured. Raises `UserError` for an unknown runtime."""
    from trainonce.latency import BuildSettings
    from trainonce.run.directory import RunDirectory

    if runtime not in RUNTIMES:
        raise UserError(f"unknown runtime {runtime!r}; the runtimes are {', '.join(RUNTIMES)}")
    run = RunDirectory(run_path)
    run.checked_config()
    make = BuildSettings.quick if quick else BuildSettings
    return run, run.build_supernet(), make(runtime=runtime, threads=threads, batch=batch, seed=seed)


def _say_error(table: LatencyTable) -> None:
    from trainonce.latency import was_quiet

    display.out.print(f"On subnets it was not made from: {table.error}.")
    display.out.print(f"The same measured twice: {table.repeat}. No table can do much better here.")
    if not was_quiet(table.drift):
        display.out.print(f"{display.not_quiet(table.drift)}, and the table would be better made when it is.")


def _parts(table: LatencyTable) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("part", "adds ms", "alone ms"):
        shown.add_column(column, justify="left" if column == "part" else "right")
    for entry in sorted(table.parts, key=lambda entry: -entry.ms):
        alone = "" if entry.alone_ms is None else f"{entry.alone_ms:.4f}"
        shown.add_row(_described(entry.part), f"{entry.ms:.4f}", alone)
    return shown


def _described(part: JsonObject) -> str:
    from trainonce.latency.parts import BLOCK

    if "weight" in part:
        return f"{part['weight']}, its {part.get('part')}, at {part.get('resolution')} pixels"
    if part.get("part") != BLOCK:
        return f"{part.get('part')}, at {part.get('resolution')} pixels"
    channels = " > ".join(str(part.get(name)) for name in ("in_channels", "mid_channels", "out_channels"))
    known = {"part", "size", "in_channels", "mid_channels", "out_channels"}
    rest = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sorted(part.items()) if name not in known)
    return f"{channels} channels at {part.get('size')}: {rest}"


def _summary(table: LatencyTable) -> JsonObject:
    return {
        "parts": len(table.parts),
        "drift": list(table.drift),
        "error": table.error.model_dump(),
        "repeat": table.repeat.model_dump(),
    }
