"""`trainonce fit`: from images to a network for each device, in a time that a person gives."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainonce.cli import display, results
from trainonce.cli.known import DATA_SETS, FILES
from trainonce.cli.options import (
    ClassBalance,
    DataDir,
    Device,
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
from trainonce.cli.tools import numbers, work
from trainonce.errors import Stopped
from trainonce.names import command

if TYPE_CHECKING:
    from trainonce.pipeline.fitting_images import FitPlan, FittedDevices


def fit(
    data: Annotated[
        str,
        typer.Argument(
            help=f"An image folder (one class a folder), an {FILES} file or a data set ({', '.join(DATA_SETS)}).",
            show_default=False,
        ),
    ],
    minutes: Annotated[float, typer.Option(min=0, help="Time for everything.", show_default=False)],
    max_macs: Annotated[
        list[str] | None,
        typer.Option(
            "--max-macs",
            help="A device: the most MACs of its network; 10 or 10M is ten million. Give it once for each device. "
            "Default: a quarter, half and all of the largest network's.",
            show_default=False,
        ),
    ] = None,
    recipe: Recipe = None,
    class_balance: ClassBalance = None,
    out: Annotated[Path | None, typer.Option(help="The run's directory. Default: runs/DATA-fit-SEED.")] = None,
    model: Model = None,
    weights: From = None,
    stages: Stages = False,
    kernels: Kernels = False,
    rigid: Rigid = None,
    family: Family = None,
    geometry: Geometry = None,
    width: Width = None,
    resolutions: Resolutions = None,
    image_size: ImageSize = None,
    grey: Grey = False,
    train_images: TrainImages = None,
    split_seed: SplitSeed = 0,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Cross-validate: so often, in a share of the time each, with another part of the images as the test "
            "split. For few images.",
            show_default=False,
        ),
    ] = None,
    skip_broken: SkipBroken = False,
    finetune_lr: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Highest learning rate of fine-tuning. Default: 0.01; where the recipe's optimizer is adamw, 0.001.",
            show_default=False,
        ),
    ] = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train once, and hand over a network for every device, in a given time.

    Trains a supernet for most of the time, chooses a subnet for each budget on the validate split, fine-tunes it
    where the recipe leaves time for that, scores it on the test split and writes its directory. If stopped, the same
    command goes on.
    """
    with importing():
        from trainonce.pipeline import fit
        from trainonce.pipeline.fitting import Watch

    with work() as at_work:
        done = fit(
            data,
            minutes,
            max_macs=max_macs or (),
            recipe=recipe,
            class_balance=class_balance,
            out=out,
            model=model,
            weights=weights,
            stages=stages,
            kernels=kernels,
            rigid=rigid or (),
            family=family,
            geometry=geometry,
            width=width,
            resolutions=None if resolutions is None else numbers(resolutions, "--resolutions", int),
            image_size=image_size,
            grey=grey,
            train_images=train_images,
            split_seed=split_seed,
            folds=folds,
            skip_broken=skip_broken,
            finetune_lr=finetune_lr,
            data_dir=data_dir,
            seed=seed,
            device=device,
            threads=threads,
            on_plan=_say_plan,
            on_start=at_work.start,
            watch=Watch(
                stage=display.err.print,
                training=lambda at: at_work.show(at.step, at.steps, display.training_line(at)),
                choosing=lambda done, count: at_work.show(done, count, "subnets scored"),
                finetuning=lambda at: at_work.show(at.step, at.steps, display.finetuning_line(at)),
                should_stop=at_work.should_stop,
            ),
            where="the command line",
        )
    if not done.finished:
        raise Stopped("stopped and saved; the same command goes on", 128 + (at_work.stopped_by or signal.SIGTERM))
    if as_json:
        display.print_json(_told(done))
    elif done.folds:
        _say_folds(done)
    else:
        _say(done)


def _say_plan(plan: FitPlan) -> None:
    display.say_images(plan.data)
    display.say_family(plan.net)
    display.say_unused(plan.net, plan.settings.max_macs)
    if not plan.run.config_file.exists():
        display.say_start(plan.start)
    display.say_slow(plan.settings.device)


def _told(done: FittedDevices) -> dict[str, Any]:
    told = {"seconds": round(done.seconds, 1), "classes": done.plan.data.class_names}
    if done.folds:
        over = [one.model_dump(mode="json") for one in done.over_folds]
        return {"run": str(done.plan.run.path.parent), **told, "folds": len(done.folds), "devices": over}
    devices = [one.model_dump(mode="json") | {"interval": one.test.interval()} for one in done.devices]
    return {"run": str(done.plan.run.path), **told, "devices": devices, "outlook": done.outlook}


def _say_folds(done: FittedDevices) -> None:
    place, count, minutes = done.plan.run.path.parent, len(done.folds), done.plan.settings.minutes
    display.out.print(results.folds_table(done.over_folds))
    display.out.print(results.folds_recall_table(done.over_folds, done.plan.data.class_names))
    display.out.print(
        f"Top-1 on test images; each of {done.over_folds[0].images} images was tested once, by a network that was "
        f"trained without it, in {minutes:.3g} minutes. Took {display.duration(done.seconds)}."
    )
    display.out.print(
        "The interval is for networks trained so on other images of the same kind. It is widened since the trainings "
        "share images (Nadeau and Bengio 2003), and rough with so few folds. What is trained for all the time, by the "
        "same command without --folds, is likely better than these."
    )
    display.out.print(f"The folds' runs, with their networks, are in {place}/fold-1 to fold-{count}.")


def _say(done: FittedDevices) -> None:
    from trainonce.pipeline.fitted import name_of, sharing, smaller_ones_as_good

    fitted, run = done.devices, done.plan.run
    first, counted = fitted[0], f"{fitted[0].after.images} validate and {fitted[0].test.images} test images"
    class_names, best = done.plan.data.class_names, max(fitted, key=lambda one: one.test.top1)
    display.out.print(results.fitted_table(fitted))
    display.out.print(results.recall_table(fitted, class_names))
    for shared in sharing(fitted):
        names = ", ".join(name_of(one.max_macs) for one in shared)
        for sentence in shared[0].per_class.sentences(class_names):
            display.out.print(f"{names}: {sentence}")
    for line in results.worst_lines(best.per_class, class_names, name_of(best.max_macs)):
        display.out.print(line)
    chosen = "Subnets are chosen by their loss on validate"
    if not results.as_they_came(fitted):
        chosen = f"The columns before the last two are on validate. {chosen}, and so are epochs of fine-tuning"
    display.out.print(f"Top-1 on {counted}. {chosen}. In {display.duration(done.seconds)}.")
    for shared in sharing(fitted):
        if len(shared) > 1:
            names = " and ".join(name_of(one.max_macs) for one in shared)
            display.out.print(f"One network is for {names}: of those scored for each it had the least loss.")
    for one, smaller in smaller_ones_as_good(fitted):
        display.out.print(
            f"{name_of(smaller.max_macs)}'s network, of {smaller.macs / 1e6:.3f} M MACs, has {smaller.after.top1:.2f}% "
            f"on validate, {name_of(one.max_macs)}'s, of {one.macs / 1e6:.3f} M, {one.after.top1:.2f}%: "
            f"{name_of(one.max_macs)} may as well take the former."
        )
    if done.outlook:
        display.out.print(done.outlook)
    display.say_baseline(run.baseline(), max(one.after.top1 for one in fitted))
    display.out.print(
        f"The networks are in {run.subnets}/{first.name} and so on; their README.md says how to load them."
    )
    display.err.print(f"To look at it: {command('trainonce', 'report', run.path)}")
    display.err.print(f"Next: {command('trainonce', 'export', run.subnets / first.name, '--to', 'onnx')}")
