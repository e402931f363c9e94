"""`trainonce fit`: from images to a network for each device, in a time that a person gives."""

import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from trainonce.cli import display
from trainonce.cli.known import DATA_SETS
from trainonce.cli.options import (
    DataDir,
    Device,
    Family,
    Geometry,
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
from trainonce.errors import Stopped
from trainonce.names import command

SHARES = (0.25, 0.5, 1.0)
"""Of the largest network's MACs: the devices, where none is named."""
SMALLEST_LIGHT = 16
"""Up to so many pixels the default geometry stays `tiny`."""


def fit(
    data: Annotated[
        str,
        typer.Argument(
            help=f"An image folder (one class a folder), an .npz file or a data set ({', '.join(DATA_SETS)}).",
            show_default=False,
        ),
    ],
    minutes: Annotated[float, typer.Option(min=0, help="Time for everything.", show_default=False)],
    max_macs: Annotated[
        list[float] | None,
        typer.Option(
            "--max-macs",
            help="A device: the most million MACs of its network. Give it once for each device. Default: a quarter, "
            "half and all of the largest network's.",
            show_default=False,
        ),
    ] = None,
    recipe: RecipeName = "quick",
    out: Annotated[Path | None, typer.Option(help="The run's directory. Default: runs/DATA-fit-SEED.")] = None,
    family: Family = None,
    geometry: Geometry = None,
    width: Width = None,
    image_size: ImageSize = None,
    grey: Grey = False,
    train_images: TrainImages = None,
    skip_broken: SkipBroken = False,
    finetune_lr: Annotated[
        float, typer.Option(min=0, help="Learning rate at the top of the cosine of fine-tuning.")
    ] = 0.01,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train once, and hand over a network for every device, in a given time.

    Trains a supernet for three quarters of the time, chooses a subnet for each budget on the validate split, fine-tunes
    it in the time left, scores it on the test split and writes its directory. Stopped, the same command goes on.
    """
    with importing():
        from trainonce.data import load_dataset
        from trainonce.pipeline.fitting import FitSettings, Watch, fit, name_of
        from trainonce.pipeline.machine import device_named, use_threads
        from trainonce.pipeline.training import supernet_for
        from trainonce.recipes import load_recipe
        from trainonce.run.directory import RunDirectory

    use_threads(threads)
    images = load_dataset(
        data,
        data_dir=data_dir,
        image_size=image_size,
        grey=grey,
        train_images=train_images,
        skip_broken=skip_broken,
    )
    if geometry is None and family is None and images.image_size > SMALLEST_LIGHT:
        geometry = "light"
    net = supernet_for(images, family=family, geometry=geometry, width=width, seed=seed)
    largest = net.cost_of(net.space.largest()).macs
    settings = FitSettings.parse(
        {
            "minutes": minutes,
            "max_macs": [million * 1e6 for million in max_macs or []] or [share * largest for share in SHARES],
            "finetune_lr": finetune_lr,
            "seed": seed,
            "device": device_named(device),
        },
        where="the command line",
    )
    run = RunDirectory(out or Path("runs") / f"{images.name}-fit-{seed}")
    display.say_images(images)
    display.say_family(net)
    display.say_slow(settings.device)
    began = time.monotonic()
    with stop_on_signal() as stop, display.progress() as show:
        watch = Watch(
            stage=display.err.print,
            training=lambda at: show(at.step, at.steps, display.training_line(at)),
            choosing=lambda done, count: show(done, count, "subnets scored"),
            finetuning=lambda at: show(at.step, at.steps, display.finetuning_line(at)),
            should_stop=lambda: stop.number is not None,
        )
        fitted = fit(net, load_recipe(recipe), images, run, settings, watch)
    if fitted is None:
        raise Stopped("stopped and saved; the same command goes on", 128 + (stop.number or signal.SIGTERM))
    seconds = time.monotonic() - began
    if as_json:
        devices = [one.model_dump(mode="json") for one in fitted]
        display.print_json({"run": str(run.path), "seconds": round(seconds, 1), "devices": devices})
        return
    first, counted = fitted[0], f"{fitted[0].after.images} validate and {fitted[0].test.images} test images"
    display.out.print(display.fitted_table(fitted))
    for one in fitted:
        for sentence in one.per_class.sentences(images.class_names):
            display.out.print(f"{name_of(one.max_macs)}: {sentence}")
    display.out.print(
        f"Top-1 on {counted}; the columns before the last two are on validate. In {display.duration(seconds)}."
    )
    display.say_baseline(run.baseline(), max(one.after.top1 for one in fitted))
    display.out.print(
        f"The networks are in {run.subnets}/{first.name} and so on; their README.md says how to load them."
    )
    display.err.print(f"Next: {command('trainonce', 'export', run.subnets / first.name, '--to', 'onnx')}")
