"""`trainonce train`."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainonce.cli import display
from trainonce.cli.known import DATA_SETS, GEOMETRIES, MOST_PROBES
from trainonce.cli.options import (
    DataDir,
    DecodeWorkers,
    Device,
    DryRun,
    Grey,
    ImageSize,
    Json,
    RecipeName,
    Seed,
    SkipBroken,
    Threads,
    TrainImages,
    Width,
)
from trainonce.cli.stopping import importing, stop_on_signal
from trainonce.cli.tools import numbers, refuse_beside
from trainonce.errors import UserError
from trainonce.names import command

if TYPE_CHECKING:
    from trainonce.training.loop import Progress


BESIDE_RESUME = {
    "resume",
    "data",
    "data_dir",
    "device",
    "threads",
    "checkpoint_every",
    "probes",
    "sync_bn",
    "precision",
    "cuda_graphs",
    "keep_at",
    "tensorboard",
    "as_json",
    "stream",
    "decode_workers",
}


def train(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            help=f"A data set ({', '.join(DATA_SETS)}), or the path of an image folder (one class a folder) "
            "or .npz file.",
            show_default=False,
        ),
    ] = None,
    recipe: RecipeName = "rss",
    out: Annotated[Path | None, typer.Option(help="The run's directory. Default: runs/DATA-RECIPE-SEED.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the run in this directory. Needs nothing else; name DATA if it moved.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(min=0, help="Scale the recipe to this many epochs; proportions stay.")
    ] = None,
    passes: Annotated[
        float | None,
        typer.Option(min=0, help="Scale it to this many subnet passes over the images: what it costs."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images in a step; learning rates scale with it.")
    ] = None,
    geometry: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(GEOMETRIES)}. Default: tiny up to 16 pixels, else paper."),
    ] = None,
    image_size: ImageSize = None,
    resolutions: Annotated[
        str | None, typer.Option(help="Elastic input resolution, such as 24,28,32 (pixels).")
    ] = None,
    width: Width = None,
    grey: Grey = False,
    train_images: TrainImages = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Leave a folder's images on disk and decode them as they are needed, or hold them all in memory. "
            "Default: stream what would take more than a quarter of the memory.",
            show_default=False,
        ),
    ] = None,
    decode_workers: DecodeWorkers = None,
    skip_broken: SkipBroken = False,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    checkpoint_every: Annotated[float, typer.Option(min=0, help="Seconds between checkpoints.")] = 60.0,
    probes: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MOST_PROBES,
            help="Subnets, from the smallest to the largest, that are scored now and then while training, in at most "
            "a hundredth of its arithmetic: they show what is forgotten. Default: 4; resumed, those looked at before, "
            "if any were.",
            show_default=False,
        ),
    ] = None,
    sync_bn: Annotated[
        bool | None,
        typer.Option(
            "--sync-bn/--no-sync-bn",
            help="With several processes, normalise by the images of all. Default: no; resumed, as before.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="float32|bfloat16",
            help="The numbers that networks compute in; weights are float32. Default: float32; resumed, as before.",
            show_default=False,
        ),
    ] = None,
    cuda_graphs: Annotated[
        bool,
        typer.Option("--cuda-graphs/--no-cuda-graphs", help="On a GPU, replay steps, or their blocks, as CUDA graphs."),
    ] = True,
    keep_at: Annotated[
        str | None,
        typer.Option(
            help="Shares of the training after which the weights are kept for good, such as 0.1,0.5: `measure` looks "
            "at them too. Default: none; resumed, as before.",
            show_default=False,
        ),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write RUN/tensorboard.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a supernet.

    Stops cleanly on Ctrl-C and SIGTERM; `--resume RUN` goes on where it stopped. Several processes or hosts:
    `torchrun --nproc-per-node 2 -m trainonce train …` trains one supernet together.
    """
    with importing():
        from trainonce.data import load_dataset
        from trainonce.data.baseline import baseline
        from trainonce.models import MobileNetV3, MobileNetV3Settings
        from trainonce.parallel.distributed import process_group
        from trainonce.pipeline.machine import device_named, use_threads
        from trainonce.pipeline.training import estimated_seconds, prober, scaled, tensorboard_writer
        from trainonce.recipes import load_recipe
        from trainonce.run import checkpoint
        from trainonce.run.directory import RunDirectory
        from trainonce.training.loop import TrainSettings, refuse_large_step, train_supernet

    use_threads(threads)
    ranks = context.with_resource(process_group(device_named(device)))
    context.with_resource(display.silent(not ranks.first))
    kept = () if keep_at is None else numbers(keep_at, "--keep-at", float)
    with ranks.together():
        if resume is not None:
            refuse_beside(context, "--resume", BESIDE_RESUME)
            run = RunDirectory(resume)
            config = run.config()
            images = run.load_data(data_dir, moved_to=data, stream=stream, workers=decode_workers)
            net, chosen, seed = run.build_supernet(), config.recipe, config.seed
            sync_bn = config.sync_batch_norm if sync_bn is None else sync_bn
            precision = precision or config.precision
            kept = config.keep_at if keep_at is None else kept
            newest = checkpoint.newest(run.checkpoints)
            if newest is None and run.metrics():
                raise UserError(
                    f"{resume} was trained before but its checkpoints are gone: there is nothing to go on from"
                )
            display.err.print(f"Resuming {resume} at {newest.name if newest else 'its beginning'}")
        else:
            if data is None:
                raise UserError("name a data set, a folder of images or an .npz file, or give --resume RUN")
            chosen = scaled(load_recipe(recipe), epochs, passes, batch_size)
            images = load_dataset(
                data,
                data_dir=data_dir,
                image_size=image_size,
                grey=grey,
                train_images=train_images,
                stream=stream,
                workers=decode_workers,
                skip_broken=skip_broken,
            )
            fields: dict[str, Any] = {} if width is None else {"width_mult": width}
            if resolutions is not None:
                fields["resolutions"] = numbers(resolutions, "--resolutions", int)
            net = MobileNetV3(
                MobileNetV3Settings.for_images(
                    image_size=images.image_size,
                    in_channels=images.channels,
                    num_classes=images.num_classes,
                    geometry=geometry,
                    **fields,
                ),
                seed=seed,
            )
            run = RunDirectory(out or Path("runs") / f"{images.name}-{chosen.name}-{seed}")
        refuse_large_step(net, chosen, images, ranks, ranks.device)
    display.announce(images, net, chosen, run)
    display.say_slow(ranks.device)
    settings = TrainSettings.parse(
        {
            "device": ranks.device,
            "checkpoint_every_s": checkpoint_every,
            "sync_batch_norm": bool(sync_bn),
            "precision": precision or "float32",
            "cuda_graphs": cuda_graphs,
            "keep_at": kept,
        },
        where="the command line",
    )
    plain = baseline(images) if ranks.first and not (resume and run.baseline_file.exists()) else None
    if plain is not None:
        display.err.print(f"For comparison: {plain}")
    if dry_run:
        seconds = estimated_seconds(
            net, images, chosen, settings.device, processes=ranks.size, precision=settings.precision
        )
        display.say_duration(seconds, as_json and ranks.first)
        return
    began = time.monotonic()
    board_wanted = tensorboard and ranks.first
    look = prober(net.to(ranks.device), chosen, images, run, count=probes, seed=seed) if ranks.first else None
    with stop_on_signal() as stop, display.progress() as show, tensorboard_writer(board_wanted, run) as board:

        def on_progress(at: Progress) -> None:
            if plain is not None and not run.baseline_file.exists():
                run.write_baseline(plain)
            board(at)
            show(at.step, at.steps, display.training_line(at))

        finished = train_supernet(
            net,
            chosen,
            images,
            run,
            seed=seed,
            resume=resume is not None,
            settings=settings,
            on_progress=on_progress,
            on_epoch=look,
            should_stop=lambda: stop.number is not None,
            ranks=ranks,
        )
    if not finished:
        display.err.print(f"Stopped and saved. Go on with: {command('trainonce', 'train', '--resume', run.path)}")
        raise typer.Exit(128 + (stop.number or signal.SIGTERM))  # another process may have been the one to be told
    if not ranks.first:
        return
    metrics = run.metrics()[-1]
    result = {"run": str(run.path), "seconds": round(time.monotonic() - began, 1), **metrics}
    if as_json:
        display.print_json(result)
        return
    display.out.print(
        f"Trained in {display.duration(result['seconds'])}: training loss {metrics['loss']:.3f}, "
        f"top-1 {metrics['top1']:.1f}% on augmented images.\nNext: {command('trainonce', 'evaluate', run.path)}"
    )
