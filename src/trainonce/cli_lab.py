"""The laboratory's commands."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from trainonce import display
from trainonce.cli_options import DataDir, Device, Json, MovedData, RunArgument, Threads
from trainonce.cli_tools import device_named, use_threads
from trainonce.errors import UserError
from trainonce.files import to_json, write_atomic
from trainonce.lab.forgetting import MOST_PROBES, default_probes
from trainonce.lab.measure import MeasureSettings, measure, verdict
from trainonce.lab.run_study import StudyDirectory
from trainonce.lab.summary import conclusion_of, write_conclusion
from trainonce.run import RunDirectory


def register(app: typer.Typer) -> None:
    """Add the laboratory's commands."""
    app.command(name="measure")(measure_run)
    app.command(name="conclude")(conclude_studies)


def measure_run(
    run_path: RunArgument,
    probes: Annotated[
        int, typer.Option(min=2, max=MOST_PROBES, help="Subnets to compare: smallest, largest, and others in between.")
    ] = 6,
    batches: Annotated[int, typer.Option(min=2, help="Batches that gradients are taken on.")] = 8,
    lr: Annotated[
        float | None,
        typer.Option(min=0, help="Step whose effect is measured. Default: the last phase's.", show_default=False),
    ] = None,
    calibration_images: Annotated[
        int, typer.Option(min=2, help="Augmented images for recalibrating batch norms.")
    ] = 2000,
    data_path: MovedData = None,
    data_dir: DataDir = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the probes and images.")] = 0,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure what the subnets of a trained run do to each other; writes RUN/interference.json."""
    use_threads(threads)
    run = RunDirectory(run_path)
    net, step = run.load_supernet()
    recipe = run.config().recipe
    settings = MeasureSettings.parse(
        {
            "batches": batches,
            "batch_size": recipe.batch_size,
            "lr": recipe.phases[-1].lr if lr is None else lr,
            "calibration_images": calibration_images,
            "seed": seed,
        },
        where="the command line",
    )
    chosen = default_probes(net, probes, seed=seed)
    display.err.print(f"{len(chosen)} probes, {batches} batches, weights of step {step}")
    settled = device_named(device)
    data = run.load_data(data_dir, moved_to=data_path).to(settled)
    found = measure(net.to(settled), data, chosen, step=step, settings=settings)
    write_atomic(run.interference_file, to_json(found))
    if as_json:
        display.print_json(found)
        return
    display.out.print("R, what training the column's subnet does for the row's (1: as much as its own; below 0: harm)")
    display.out.print(_matrix(found, found["transfer"]["r"]))
    display.out.print("\nAgreement of gradients on shared weights, corrected for noise (1 alike, -1 opposed)")
    display.out.print(_matrix(found, found["gradient"]["agreement"]))
    scores = found["statistics"]
    gains = [own - mixed for own, mixed in zip(scores["top1_recalibrated"], scores["top1_supernet"], strict=True)]
    display.out.print(
        f"\nRecalibrating batch norms gives {min(gains):.1f} to {max(gains):.1f} points of top-1: those were lost to "
        f"wrong statistics, not to wrong weights.\n{verdict(found)}\nWritten to {run.interference_file}"
    )


def _matrix(found: dict[str, Any], rows: list[list[float | None]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for label in found["labels"]:
        table.add_column(label, justify="right")
    for label, row in zip(found["labels"], rows, strict=True):
        table.add_row(label, *("–" if value is None else f"{value:.2f}" for value in row))
    return table


def conclude_studies(
    paths: Annotated[list[Path], typer.Argument(metavar="STUDY...", help="Studies' directories.", show_default=False)],
    spread: Annotated[
        bool,
        typer.Option(
            "--spread",
            help="Only say how far differences spread between seeds, and how many seeds it takes to show that there "
            "is none; write nothing. For planning more seeds without looking at what was found.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Conclude studies anew from their recorded results; writes STUDY/conclusion.json."""
    directories = [StudyDirectory(path) for path in paths]
    for directory in directories:
        if not directory.recorded():
            raise UserError(f"{directory.path} holds no study (there is no {directory.study_file.name} in it)")
    if spread:
        spreads = {str(directory.path): _spreads(conclusion_of(directory)) for directory in directories}
        if as_json:
            display.print_json(spreads)
            return
        for path, rows in spreads.items():
            display.out.print(path)
            display.out.print(_spread_table(rows))
        return
    found = {str(directory.path): write_conclusion(directory) for directory in directories}
    if as_json:
        display.print_json(found)
        return
    for path, conclusion in found.items():
        display.out.print(f"{path}: {conclusion['sentence']}")


def _spreads(conclusion: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each comparison what says nothing of its difference."""
    keys = ("names", "seeds", "sd", "margin", "seeds_needed")
    return [{key: comparison[key] for key in keys} for comparison in conclusion["comparisons"]]


def _spread_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("difference", "seeds", "spread between seeds, points", "seeds to show equivalence"):
        table.add_column(name, justify="left" if name == "difference" else "right")
    for row in rows:
        shown = ("–", "–") if row["sd"] is None else (f"{row['sd']:.2f}", f"{row['seeds_needed']:,}")
        table.add_row(" − ".join(row["names"]), str(row["seeds"]), *shown)
    return table
