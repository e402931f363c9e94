"""`trainonce finetune`: a subnet trained further on its own."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainonce.cli import display
from trainonce.cli.options import DataDir, DecodeWorkers, Device, DryRun, Json, MovedData, Seed, SubnetArgument, Threads
from trainonce.cli.stopping import importing, stop_on_signal, stoppable
from trainonce.errors import Stopped, UserError

if TYPE_CHECKING:
    from trainonce.data import DataSet
    from trainonce.evaluation.evaluator import EvaluateSettings
    from trainonce.run.directory import RunDirectory
    from trainonce.subnets.finetune import Finetuned, FinetuneProgress, FinetuneSettings


def finetune(
    subnet: SubnetArgument,
    epochs: Annotated[int, typer.Option(min=0, help="Passes over the training images.", show_default=False)],
    run_path: Annotated[
        Path | None, typer.Option("--run", help="The run it was taken from. Default: where it was then.")
    ] = None,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate at the top of the cosine.")] = 0.01,
    batch_size: Annotated[int, typer.Option(min=2, help="Images in a step.")] = 64,
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

    The epoch that is best on the validate split is kept. Stopped by Ctrl-C or SIGTERM, it writes nothing.
    """
    with importing():
        import torch

        from trainonce.evaluation.evaluator import Evaluator, finite, score
        from trainonce.pipeline.machine import device_named, use_threads
        from trainonce.run.directory import provenance
        from trainonce.subnets import check_place, read_subnet, verify_subnet, write_subnet
        from trainonce.subnets.finetune import (
            FinetuneSettings,
            described_finetuned,
            estimated_seconds,
            finetune,
            largest_as_teacher,
        )

    use_threads(threads)
    settings = FinetuneSettings.parse(
        {"epochs": epochs, "lr": lr, "batch_size": batch_size, "distill": distill, "seed": seed},
        where="the command line",
    )
    network, description = read_subnet(subnet)
    path = out or subnet.with_name(f"{subnet.resolve().name}-finetuned")
    if path.resolve() == subnet.resolve():
        raise UserError(f"{path} is the subnet to start from: name another directory with --out")
    check_place(path)
    run = _run_of(description, run_path, subnet)
    settled = device_named(device)
    kept = f"nothing was written, and {subnet} is as it was: run it again to begin anew"
    with stoppable(lambda: kept):
        data = run.load_data(data_dir, moved_to=data_path, workers=decode_workers).to(settled)
        _refuse_other_images(description, run, data, subnet)
        display.say_streamed(data)
        display.say_slow(torch.device(settled).type)
        evaluator = Evaluator(data, "validate", _calibration(description, subnet))
        network = network.to(settled)
        teacher = largest_as_teacher(run.load_supernet()[0].to(settled), evaluator) if distill else None
        if dry_run:
            seconds = estimated_seconds(network, evaluator, settings, teacher=teacher)
            if as_json:
                display.print_json({"seconds": round(seconds, 1)})
            display.err.print(f"Would take about {display.duration(seconds)} on this machine.")
            return
        with stop_on_signal() as stop, display.progress() as show:

            def on_progress(at: FinetuneProgress) -> None:
                show(at.step, at.steps, display.finetuning_line(at))

            result = finetune(
                *(network, evaluator, settings),
                teacher=teacher,
                on_progress=on_progress,
                should_stop=lambda: stop.number is not None,
            )
        if result is None:
            raise Stopped(f"stopped; {kept}", 128 + (stop.number or signal.SIGTERM))
        tests = None
        if test:
            before, after = (finite(score(net, data.test, data), "test") for net in (network, result.network))
            tests = before, after
        described = described_finetuned(
            *(description, result, evaluator, settings),
            tests=tests,
            run=str(run.path.resolve()),
            provenance=provenance(settled),
        )
        with stop_on_signal():  # it is nearly done
            write_subnet(path, result.network, described)
            verify_subnet(path, result.network)
    _say_result(path, result, described, settings, as_json=as_json)


def _say_result(
    path: Path, result: Finetuned, described: dict[str, Any], settings: FinetuneSettings, *, as_json: bool
) -> None:
    from trainonce.evaluation.evaluator import Score

    if as_json:
        display.print_json({"path": str(path), **described})
        return
    how = described["trained"]["finetuned"]
    for split, after in how["after"].items():
        before = how["before"][split]
        display.out.print(
            f"{split}: top-1 {before['top1']:.2f}% before, {Score(**after)} after; loss {before['loss']:.4f} before, "
            f"{after['loss']:.4f} after"
        )
    last = result.epochs[-1].score
    display.out.print(
        f"Epoch {result.epoch} of {settings.epochs} was best on validate and is kept; the last had {last.top1:.2f}%."
    )
    if result.after.top1 <= result.before.top1:
        display.out.print("It did not get better on validate: the subnet as it was is the one to use.")
    display.out.print(f"Written to {path}; reloaded, and its output is the same to the last bit.")


def _run_of(description: dict[str, Any], given: Path | None, subnet: Path) -> RunDirectory:
    from trainonce.run.directory import RunDirectory

    recorded = (description.get("trained") or {}).get("run")
    if given is None and not isinstance(recorded, str):
        raise UserError(f"{subnet} does not say which run it was taken from: name it with --run")
    run = RunDirectory(given or str(recorded))
    if given is None and not run.config_file.exists():
        raise UserError(f"{subnet} was taken from {recorded}, where there is no run now: say where it is with --run")
    run.checked_config()
    return run


def _refuse_other_images(description: dict[str, Any], run: RunDirectory, data: DataSet, subnet: Path) -> None:
    """Raise `UserError` where a subnet was made for other images, or for other classes, sizes or normalisation.

    Other images of the same kind could be divided into other splits, and the test split be what it was trained on.
    """
    given, ours = description["preprocessing"], run.config().data_fingerprint
    for what, then, now in (
        ("classes", description["classes"], list(data.class_names)),
        ("channels", given["channels"], data.channels),
        ("mean", given["mean"], list(data.mean)),
        ("std", given["std"], list(data.std)),
        ("sizes", given.get("image_size") or data.image_size, data.image_size),  # older subnets do not say
        ("fingerprints", (description.get("trained") or {}).get("data_fingerprint") or ours, ours),
    ):
        if then != now:
            raise UserError(f"{subnet} was made for other images than those of {run.path}: their {what} differ")


def _calibration(description: dict[str, Any], subnet: Path) -> EvaluateSettings:
    """How the subnet's batch norms were calibrated; the default way where they were not."""
    from trainonce.evaluation.evaluator import EvaluateSettings

    return EvaluateSettings.parse(description.get("recalibrated") or {}, where=f"{subnet}, recalibrated")
