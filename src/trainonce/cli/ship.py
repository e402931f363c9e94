"""`trainonce ship`: a certified file for each device."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainonce.cli import display, results
from trainonce.cli.known import DEVICES, MOST_SCORES
from trainonce.cli.options import DataDir, DecodeWorkers, DryRun, Json, MovedData, RunArgument, Seed, Threads, Workers
from trainonce.cli.stopping import importing
from trainonce.cli.tools import work
from trainonce.errors import RunError

if TYPE_CHECKING:
    from trainonce.pipeline.shipping import Shipment


def ship(
    run_path: RunArgument,
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DEVICE]...", help="Devices, as --device names them.", show_default=False),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE",
            help=f"A device: {', '.join(DEVICES)}, or a .toml file. May be given several times, and several files "
            "after it.",
            show_default=False,
        ),
    ] = None,
    scores: Annotated[
        int,
        typer.Option(
            min=0, max=MOST_SCORES, help="True scores that each search asks for; 0: the best of what is scored already."
        ),
    ] = 40,
    finetune_epochs: Annotated[
        int,
        typer.Option(min=0, max=10_000, help="Train each network so many epochs further; a device file may differ."),
    ] = 0,
    images: Annotated[
        int, typer.Option(min=1, help="Random images that are compared, beside the whole test split.")
    ] = 64,
    calibration_images: Annotated[
        int | None, typer.Option(min=2, help="Augmented images for recalibrating. Default: as `trainonce search` does.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory to write. Default: RUN/ship.")] = None,
    data_path: MovedData = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    compute: Annotated[
        str, typer.Option(help="Where torch computes: cpu, cuda or cuda:1; auto takes a GPU if there is one.")
    ] = "auto",
    threads: Threads = None,
    workers: Workers = None,
    decode_workers: DecodeWorkers = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make a network for each device, in one call: search, extract, fine-tune, export, certificate.

    OUT/DEVICE is the network, OUT/ship.json what each device got. What is done and certified is not done again, so the
    same command goes on where it was stopped. Where a device fails, the others are done, and the exit code is 1.
    """
    with importing():
        from trainonce.pipeline import ship
        from trainonce.run.directory import RunDirectory

    devices = [*(device or []), *(more or [])]
    with work() as at_work:
        done = ship(
            run_path,
            devices,
            scores=scores,
            finetune_epochs=finetune_epochs,
            images=images,
            calibration_images=calibration_images,
            out=out,
            data=data_path,
            data_dir=data_dir,
            seed=seed,
            compute=compute,
            threads=threads,
            workers=workers,
            decode_workers=decode_workers,
            dry_run=dry_run,
            on_reached=partial(display.say_unfinished, RunDirectory(run_path)),
            on_start=at_work.start,
            on_stage=lambda device, sentence: display.err.print(f"{device.name}: {sentence}"),
            on_progress=lambda at: at_work.show(at.done, at.total, f"{at.device.name}: {at.stage}"),
            on_failed=lambda device, error: display.err.print(f"{device.name} failed: {error}."),
            should_stop=at_work.should_stop,
        )
    if as_json:
        shipped = [one.to_json() for one in done.done]
        display.print_json({"out": str(done.out), "shipped": shipped, "failed": done.failed, "seconds": done.seconds})
    elif dry_run:
        display.say_duration(done.seconds, as_json)
    else:
        _say(done)
    if not done.finished and not dry_run:
        display.err.print("Stopped; what is done is kept. The same command goes on.")
        raise typer.Exit(128 + (at_work.stopped_by or 0))
    if done.failed:
        raise RunError(f"{len(done.failed)} of {len(devices)} devices failed")


def _say(done: Shipment) -> None:
    if not done.done:
        return
    display.print_wide(results.shipped_table(done.done, done.failed))
    for sentence in results.shipped_sentences(done.done):
        display.out.print(sentence)
    display.out.print(
        f"The networks are in {done.out}/{done.done[0].name} and so on, what they are in {done.out}/ship.json."
    )
