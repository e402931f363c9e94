"""`trainonce train`."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainonce.cli import display
from trainonce.cli.known import DATA_SETS, FILES, MOST_PROBES
from trainonce.cli.options import (
    ClassBalance,
    DataDir,
    DecodeWorkers,
    Device,
    DryRun,
    Family,
    From,
    Geometry,
    Grey,
    ImageSize,
    Json,
    Kernels,
    Model,
    Recipe,
    Resolutions,
    Rigid,
    Seed,
    SkipBroken,
    SplitSeed,
    Stages,
    Threads,
    TrainImages,
    Width,
)
from trainonce.cli.stopping import importing
from trainonce.cli.tools import fold_named, numbers, refuse_beside, work
from trainonce.names import command

if TYPE_CHECKING:
    from trainonce.pipeline.training import Trained, TrainPlan

Data = Annotated[
    str | None,
    typer.Argument(
        help=f"A data set ({', '.join(DATA_SETS)}), or the path of a folder (one class a folder) or {FILES} file.",
        show_default=False,
    ),
]
Out = Annotated[Path | None, typer.Option(help="The run's directory. Default: runs/DATA-RECIPE-SEED.")]
Resume = Annotated[
    Path | None, typer.Option(help="Continue the run in this directory. Needs nothing else; name DATA if it moved.")
]
Epochs = Annotated[float | None, typer.Option(min=0, help="Scale the recipe to this many epochs; proportions stay.")]
Passes = Annotated[
    float | None,
    typer.Option(min=0, help="Scale it to this many subnet passes over the images: what it costs."),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        min=0, help="Scale it to what is trained here in this time; some steps are timed first.", show_default=False
    ),
]
BatchSize = Annotated[int | None, typer.Option(min=2, help="Images in a step; learning rates scale with it.")]
Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Leave a folder's images on disk and decode them as they are needed, or hold them all in memory. "
        "Default: stream what would take more than a quarter of the memory.",
        show_default=False,
    ),
]
CheckpointEvery = Annotated[float, typer.Option(min=0, help="Seconds between checkpoints.")]
Probes = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=MOST_PROBES,
        help="Subnets, from the smallest to the largest, that are scored now and then while training, in at most "
        "a hundredth of its arithmetic: they show what is forgotten. Default: 4; resumed, those looked at before, "
        "if any were.",
        show_default=False,
    ),
]
SyncBn = Annotated[
    bool | None,
    typer.Option(
        "--sync-bn/--no-sync-bn",
        help="With several processes, normalise by the images of all. Default: no; resumed, as before.",
        show_default=False,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="float32|bfloat16",
        help="The numbers that networks compute in; weights are float32. Default: float32; resumed, as before.",
        show_default=False,
    ),
]
CudaGraphs = Annotated[
    bool,
    typer.Option("--cuda-graphs/--no-cuda-graphs", help="On a GPU, replay steps, or their blocks, as CUDA graphs."),
]
KeepAt = Annotated[
    str | None,
    typer.Option(
        help="Shares of the training after which the weights are kept for good, such as 0.1,0.5: `measure` looks "
        "at them too. Default: none; resumed, as before.",
        show_default=False,
    ),
]
Tensorboard = Annotated[bool, typer.Option("--tensorboard", help="Also write RUN/tensorboard.")]


def train(
    context: typer.Context,
    data: Data = None,
    recipe: Recipe = None,
    out: Out = None,
    resume: Resume = None,
    epochs: Epochs = None,
    passes: Passes = None,
    minutes: Minutes = None,
    batch_size: BatchSize = None,
    class_balance: ClassBalance = None,
    model: Model = None,
    weights: From = None,
    stages: Stages = False,
    kernels: Kernels = False,
    rigid: Rigid = None,
    family: Family = None,
    geometry: Geometry = None,
    image_size: ImageSize = None,
    resolutions: Resolutions = None,
    width: Width = None,
    grey: Grey = False,
    train_images: TrainImages = None,
    split_seed: SplitSeed = 0,
    fold: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            help="Test on this part of the images: 2/5 is the second of five, of which each image is in one.",
            show_default=False,
        ),
    ] = None,
    stream: Stream = None,
    decode_workers: DecodeWorkers = None,
    skip_broken: SkipBroken = False,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    checkpoint_every: CheckpointEvery = 60.0,
    probes: Probes = None,
    sync_bn: SyncBn = None,
    precision: Precision = None,
    cuda_graphs: CudaGraphs = True,
    keep_at: KeepAt = None,
    tensorboard: Tensorboard = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a supernet.

    Stops cleanly on Ctrl-C and SIGTERM; `--resume RUN` goes on. In many processes: `torchrun … -m trainonce train …`.
    """
    with importing():
        from trainonce.parallel.distributed import is_first_process
        from trainonce.pipeline.training import BESIDE_RESUME, train

    if resume is not None:
        refuse_beside(context, "--resume", BESIDE_RESUME | {"as_json"})
    looks: list[Sequence[float]] = [()]
    with display.silent(not is_first_process()), work() as at_work:
        done = train(
            data,
            recipe=recipe,
            out=out,
            resume=resume,
            epochs=epochs,
            passes=passes,
            minutes=minutes,
            batch_size=batch_size,
            class_balance=class_balance,
            model=model,
            weights=weights,
            stages=stages,
            kernels=kernels,
            rigid=rigid or (),
            family=family,
            geometry=geometry,
            image_size=image_size,
            resolutions=None if resolutions is None else numbers(resolutions, "--resolutions", int),
            width=width,
            grey=grey,
            train_images=train_images,
            split_seed=split_seed,
            fold=None if fold is None else fold_named(fold),
            stream=stream,
            decode_workers=decode_workers,
            skip_broken=skip_broken,
            data_dir=data_dir,
            seed=seed,
            device=device,
            threads=threads,
            checkpoint_every=checkpoint_every,
            probes=probes,
            sync_bn=sync_bn,
            precision=precision,
            cuda_graphs=cuda_graphs,
            keep_at=None if keep_at is None else numbers(keep_at, "--keep-at", float),
            tensorboard=tensorboard,
            dry_run=dry_run,
            on_plan=partial(_say_plan, whole=dry_run),
            on_baseline=lambda found: display.err.print(f"For comparison: {found}"),
            on_start=at_work.start,
            on_progress=lambda at: at_work.show(at.step, at.steps, display.training_line(at, looks[-1])),
            on_look=looks.append,
            should_stop=at_work.should_stop,
            where="the command line",
        )
        _say(done, at_work.stopped_by, dry_run=dry_run, as_json=as_json and is_first_process())


def _say_plan(plan: TrainPlan, *, whole: bool) -> None:
    """What is about to be trained; `whole` also says of a person's own network what is elastic and what stays."""
    if plan.resumed_at is not None:
        display.err.print(f"Resuming {plan.run.path} at {plan.resumed_at}")
    display.announce(plan.data, plan.net, plan.recipe, plan.run)
    if plan.resumed_at is None:
        display.say_start(plan.start)
    if whole and plan.start is not None:
        from trainonce.models.traced import Traced, table

        if isinstance(plan.net, Traced):
            display.err.print(table(plan.net))
    display.say_slow(plan.settings.device)


def _say(done: Trained, stopped_by: int | None, *, dry_run: bool, as_json: bool) -> None:
    run = done.plan.run.path
    if dry_run:
        display.say_duration(done.seconds, as_json)
    elif not done.finished:
        display.err.print(f"Stopped and saved. Go on with: {command('trainonce', 'train', '--resume', run)}")
        raise typer.Exit(128 + (stopped_by or signal.SIGTERM))  # another process may have been the one to be told
    elif done.metrics is not None:
        if as_json:
            said = {
                "run": str(run),
                "seconds": round(done.seconds, 1),
                **done.metrics.to_json(),
                "outlook": done.outlook,
            }
            display.print_json(said)
            return
        display.out.print(
            f"Trained in {display.duration(done.seconds)}: training loss {done.metrics.loss:.3f}, "
            f"top-1 {done.metrics.top1:.1f}% on augmented images."
        )
        for sentence in (done.left_out, done.outlook):
            if sentence:
                display.out.print(sentence)
        display.out.print(f"Next: {command('trainonce', 'evaluate', run)}")
