"""The laboratory's commands."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from trainonce.cli import display
from trainonce.cli.options import DataDir, Device, Json, MovedData, RunArgument, Threads
from trainonce.cli.tools import device_named, for_each, use_threads
from trainonce.errors import RunError, UserError
from trainonce.files import write_atomic
from trainonce.lab.measures.forgetting import MOST_PROBES, default_probes
from trainonce.lab.measures.measure import MeasureSettings, measure, verdict
from trainonce.lab.studies.run_study import StudyDirectory
from trainonce.lab.studies.summary import conclusion_of, write_conclusion
from trainonce.records import to_json
from trainonce.run.directory import RunDirectory


def register(app: typer.Typer) -> None:
    """Add the laboratory's commands."""
    app.command(name="measure")(measure_run)
    app.command(name="conclude")(conclude_studies)


def measure_run(
    run_path: RunArgument,
    probes: Annotated[
        int, typer.Option(min=2, max=MOST_PROBES, help="Subnets to compare: smallest, largest, and others in between.")
    ] = 6,
    batches: Annotated[int, typer.Option(min=2, help="Batches that gradients are taken on.")] = 100,
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
    """Measure what the subnets of a trained run do to each other; writes RUN/interference.json.

    Also along its training, on the weights that `train --keep-at` kept.
    """
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
    settled = device_named(device)
    data = run.load_data(data_dir, moved_to=data_path).to(settled)
    along = []
    for kept in run.kept_steps():
        display.err.print(f"{len(chosen)} probes, {batches} batches, weights of step {kept}")
        along.append(measure(run.load_kept(kept).to(settled), data, chosen, step=kept, settings=settings))
    display.err.print(f"{len(chosen)} probes, {batches} batches, weights of step {step}")
    found = measure(net.to(settled), data, chosen, step=step, settings=settings) | {"along": along}
    write_atomic(run.interference_file, to_json(found))
    if as_json:
        display.print_json(found)
        return
    _say(found, run)


def _say(found: dict[str, Any], run: RunDirectory) -> None:
    transfer, gradient, scores = found["transfer"], found["gradient"], found["statistics"]
    display.out.print("R, what training the column's subnet does for the row's (1: as much as its own; below 0: harm)")
    display.out.print(_matrix(found, transfer["r"], transfer["r_error"]))
    display.out.print("\nAgreement of gradients on shared weights, corrected for noise (1 alike, -1 opposed)")
    display.out.print(_matrix(found, gradient["agreement"], gradient["agreement_error"]))
    if found["along"]:
        display.out.print("\nAlong the training: means over pairs of different subnets")
        display.out.print(_along(found))
    gains = [own - mixed for own, mixed in zip(scores["top1_recalibrated"], scores["top1_supernet"], strict=True)]
    display.out.print(
        f"\nBehind ± stands one standard error over {found['batches']} batches (jackknife).\n"
        f"Recalibrating batch norms gives {min(gains):.1f} to {max(gains):.1f} points of top-1: those were lost to "
        f"wrong statistics, not to wrong weights.\n{verdict(found)}\nWritten to {run.interference_file}"
    )


def _along(found: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("step", "agreement", "R"):
        table.add_column(name, justify="right")
    for one in [*found["along"], found]:
        gradient, transfer = one["gradient"], one["transfer"]
        agreement = _with_error(gradient["mean"], gradient["mean_error"])
        table.add_row(str(one["step"]), agreement, _with_error(transfer["mean_r"], transfer["mean_r_error"]))
    return table


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"


def _matrix(found: dict[str, Any], rows: list[list[float | None]], errors: list[list[float | None]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for label in found["labels"]:
        table.add_column(label, justify="right")
    for label, row, own in zip(found["labels"], rows, errors, strict=True):
        table.add_row(label, *(_with_error(value, error) for value, error in zip(row, own, strict=True)))
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
    found: dict[str, Any] = {}
    for directory, conclusion in for_each(directories, conclusion_of if spread else write_conclusion):
        if isinstance(conclusion, Exception):
            display.err.print(f"{directory.path} failed: {conclusion}.")
            continue
        found[str(directory.path)] = _spreads(conclusion) if spread else conclusion
        if not as_json:
            _say_conclusion(directory.path, conclusion, spread=spread)
    if as_json:
        display.print_json(found)
    if len(found) < len(directories):
        raise RunError(f"{len(directories) - len(found)} of {len(directories)} studies could not be concluded")


def _say_conclusion(path: Path, conclusion: dict[str, Any], *, spread: bool) -> None:
    if spread:
        display.out.print(path)
        display.out.print(_spread_table(_spreads(conclusion)))
    else:
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
