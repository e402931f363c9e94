"""`trainonce measure`: what the subnets of a run do to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from trainonce.cli import display
from trainonce.cli.known import MOST_PROBES
from trainonce.cli.options import DataDir, Device, Json, MovedData, RunArgument, Threads
from trainonce.cli.stopping import importing

if TYPE_CHECKING:
    from trainonce.lab.measures.recorded import Interference, Matrix
    from trainonce.pipeline.measuring import Measured


def measure(
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

    Also at the points of its training whose weights `train --keep-at` kept.
    """
    with importing():
        from trainonce.pipeline import measure

    done = measure(
        run_path,
        probes=probes,
        batches=batches,
        lr=lr,
        calibration_images=calibration_images,
        data=data_path,
        data_dir=data_dir,
        seed=seed,
        device=device,
        threads=threads,
        on_step=lambda step, count: display.err.print(f"{count} probes, {batches} batches, weights of step {step}"),
        where="the command line",
    )
    if as_json:
        display.print_json(done.found.to_json())
        return
    _say(done)


def _say(done: Measured) -> None:
    found = done.found
    transfer, gradient, scores = found.transfer, found.gradient, found.statistics
    display.out.print("R, what training the column's subnet does for the row's (1: as much as its own; below 0: harm)")
    display.out.print(_matrix(found, transfer.r, transfer.r_error))
    display.out.print("\nAgreement of gradients on shared weights, corrected for noise (1 alike, -1 opposed)")
    display.out.print(_matrix(found, gradient.agreement, gradient.agreement_error))
    if found.along:
        display.out.print("\nAlong the training: means over pairs of different subnets")
        display.out.print(_along(found))
    gains = [own - mixed for own, mixed in zip(scores.top1_recalibrated, scores.top1_supernet, strict=True)]
    display.out.print(
        f"\nBehind ± stands one standard error over {found.batches} batches (jackknife).\n"
        f"Recalibrating batch norms gives {min(gains):.1f} to {max(gains):.1f} points of top-1: those were lost to "
        f"wrong statistics, not to wrong weights.\n{done.verdict}\nWritten to {done.run.interference_file}"
    )


def _along(found: Interference) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("step", "agreement", "R"):
        table.add_column(name, justify="right")
    for one in [*found.along, found]:
        agreement = _with_error(one.gradient.mean, one.gradient.mean_error)
        table.add_row(str(one.step), agreement, _with_error(one.transfer.mean_r, one.transfer.mean_r_error))
    return table


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"


def _matrix(found: Interference, rows: Matrix, errors: Matrix) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for label in found.labels:
        table.add_column(label, justify="right")
    for label, row, own in zip(found.labels, rows, errors, strict=True):
        table.add_row(label, *(_with_error(value, error) for value, error in zip(row, own, strict=True)))
    return table
