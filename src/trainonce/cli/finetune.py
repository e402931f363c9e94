"""`trainonce finetune`: a subnet trained further on its own."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainonce.cli import display, results
from trainonce.cli.options import (
    ClassBalance,
    DataDir,
    DecodeWorkers,
    Device,
    DryRun,
    Json,
    MovedData,
    Seed,
    SubnetArgument,
    Threads,
)
from trainonce.cli.stopping import importing, stoppable
from trainonce.cli.tools import work
from trainonce.errors import Stopped

if TYPE_CHECKING:
    from trainonce.data import DataSet
    from trainonce.pipeline.finetuning import FinetunedSubnet
    from trainonce.subnets.description import SubnetDescription
    from trainonce.subnets.finetune import Finetuned


def finetune(
    subnet: SubnetArgument,
    epochs: Annotated[
        float, typer.Option(min=0, help="Passes over the training images; 0.5 is half of one.", show_default=False)
    ],
    run_path: Annotated[
        Path | None, typer.Option("--run", help="The run it was taken from. Default: where it was then.")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(min=0, help="Highest learning rate. Default: 0.01; of adamw 0.001.", show_default=False),
    ] = None,
    optimizer: Annotated[
        str, typer.Option(metavar="sgd|adamw", help="sgd on a cosine, or adamw in one cycle.")
    ] = "sgd",
    batch_size: Annotated[int, typer.Option(min=2, help="Images in a step.")] = 64,
    class_balance: ClassBalance = None,
    distill: Annotated[
        bool, typer.Option("--distill/--no-distill", help="Also learn from the supernet's largest network.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Directory to write. Default: SUBNET-finetuned.")] = None,
    seed: Seed = 0,
    test: Annotated[bool, typer.Option("--test", help="Also score before and after on the test split.")] = False,
    data_path: MovedData = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
    decode_workers: DecodeWorkers = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a subnet further on its own, on its run's training images, into a new directory.

    The epoch of the least loss on the validate split is kept. Stopped by Ctrl-C or SIGTERM, it writes nothing.
    """
    with importing():
        from trainonce.pipeline import finetune

    kept = f"nothing was written, and {subnet} is as it was: run it again to begin anew"
    with stoppable(lambda: kept), work() as at_work:
        done = finetune(
            subnet,
            epochs,
            run=run_path,
            lr=lr,
            optimizer=optimizer,
            batch_size=batch_size,
            class_balance=class_balance,
            distill=distill,
            out=out,
            seed=seed,
            test=test,
            data=data_path,
            data_dir=data_dir,
            device=device,
            threads=threads,
            decode_workers=decode_workers,
            dry_run=dry_run,
            on_data=_say_data,
            on_start=at_work.start,
            on_progress=lambda at: at_work.show(at.step, at.steps, display.finetuning_line(at)),
            should_stop=at_work.should_stop,
            where="the command line",
        )
    if dry_run:
        display.say_duration(done.seconds, as_json)
    elif done.result is None or done.description is None:
        raise Stopped(f"stopped; {kept}", 128 + (at_work.stopped_by or signal.SIGTERM))
    elif as_json:
        scores = done.description.scores or {}
        intervals = {name: score.score().interval() for name, score in scores.items()}
        display.print_json({"path": str(done.path), **done.description.to_json(), "intervals": intervals})
    else:
        _say(done, done.result, done.description)


def _say_data(data: DataSet) -> None:
    display.say_streamed(data)
    display.say_slow(data.train.device.type)


def _say(done: FinetunedSubnet, result: Finetuned, description: SubnetDescription) -> None:
    assert description.trained is not None
    how = description.trained.finetuned
    assert how is not None
    for split, after in how.after.items():
        before = how.before[split]
        display.out.print(
            f"{split}: top-1 {before.score()} before, {after.score()} after; loss {before.loss:.4f} before, "
            f"{after.loss:.4f} after"
        )
    if done.per_class is not None:
        results.say_per_class(done.per_class, description.classes)
    last = result.epochs[-1].score
    display.out.print(
        f"Epoch {result.epoch} of {len(result.epochs)} had the least loss on validate and is kept; the last had "
        f"{last.loss:.4f}."
    )
    if not result.better:
        display.out.print("It did not get better on validate: the subnet as it was is the one to use.")
    display.out.print(f"Written to {done.path}; reloaded, and its output is the same to the last bit.")
