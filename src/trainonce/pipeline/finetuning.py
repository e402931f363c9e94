"""A subnet trained further on its own, into a new directory."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainonce.data import DataSet
from trainonce.errors import UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, finite, refuse_empty, score
from trainonce.evaluation.per_class import PerClass, score_by_class
from trainonce.pipeline.machine import device_named, use_threads
from trainonce.run.directory import RunDirectory, provenance
from trainonce.subnets import check_place, read_subnet, verify_subnet, write_subnet
from trainonce.subnets.description import SubnetDescription
from trainonce.subnets.finetune import (
    Finetuned,
    FinetuneProgress,
    FinetuneSettings,
    described_finetuned,
    finetuning_pace,
    largest_as_teacher,
)
from trainonce.subnets.finetune import finetune as finetune_network


@dataclass(frozen=True, kw_only=True)
class FinetunedSubnet:
    """A subnet that was trained further."""

    path: Path
    """Its directory; nothing is written there unless finished."""
    settings: FinetuneSettings
    result: Finetuned | None
    """The network and what the epochs came to; None unless finished."""
    description: SubnetDescription | None
    """What its config.json holds; None unless finished."""
    per_class: PerClass | None = None
    """On the test split, class by class, where that was asked for."""
    seconds: float
    """What it took; after a dry run, about what it would take."""
    finished: bool
    """Whether it is written: not where `should_stop` said so, nor after a dry run."""


def finetune(
    subnet: str | Path,
    epochs: float,
    *,
    run: str | Path | None = None,
    lr: float | None = None,
    optimizer: str = "sgd",
    batch_size: int = 64,
    class_balance: float | None = None,
    distill: bool = False,
    out: str | Path | None = None,
    seed: int = 0,
    test: bool = False,
    data: DataSet | str | Path | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    decode_workers: int | None = None,
    dry_run: bool = False,
    on_data: Callable[[DataSet], None] = lambda _: None,
    on_start: Callable[[], None] = lambda: None,
    on_progress: Callable[[FinetuneProgress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    where: str = "the options",
) -> FinetunedSubnet:
    """Train a subnet further on its run's training images: `trainonce finetune`, whose options these are.

    The epoch of the least loss on the validate split is kept, in `out` or SUBNET-finetuned. `run` and `data` say where
    the run and its images are now, if they have moved; `class_balance` by default is that of the run's recipe.
    `on_data` is called with the images before the work, `on_start` where training begins: from there on `should_stop`
    is asked, and then nothing is written. `where` is what refusals call the options. Raises `UserError` for what cannot
    be, `RunError` where scores are not finite.
    """
    use_threads(threads)
    began, subnet = time.monotonic(), Path(subnet)
    settings = FinetuneSettings.by(
        optimizer,
        lr=lr,
        epochs=epochs,
        batch_size=batch_size,
        class_balance=class_balance or 0.0,
        distill=distill,
        seed=seed,
        where=where,
    )
    network, description = read_subnet(subnet)
    path = Path(out or subnet.with_name(f"{subnet.resolve().name}-finetuned"))
    if path.resolve() == subnet.resolve():
        raise UserError(f"{path} is the subnet to start from: name another directory with --out")
    check_place(path)
    place = run_of(description, run, subnet)
    if class_balance is None:
        settings = settings.model_copy(update={"class_balance": place.config().recipe.class_balance})
    settled = device_named(device)
    images = place.load_data(data_dir, moved_to=data, workers=decode_workers).to(settled)
    refuse_other_images(description, place, images, subnet)
    if test:
        refuse_empty(images, "test")
    on_data(images)
    evaluator = Evaluator(images, "validate", _calibration(description, subnet))
    network = network.to(settled)
    teacher = largest_as_teacher(place.load_supernet()[0].to(settled), evaluator) if distill else None

    def unfinished(seconds: float) -> FinetunedSubnet:
        return FinetunedSubnet(
            path=path, settings=settings, result=None, description=None, seconds=seconds, finished=False
        )

    if dry_run:
        pace = finetuning_pace(network, evaluator, settings, teacher=teacher)
        return unfinished(pace.seconds(settings.epochs))
    on_start()
    result = finetune_network(
        *(network, evaluator, settings), teacher=teacher, on_progress=on_progress, should_stop=should_stop
    )
    if result is None:
        return unfinished(time.monotonic() - began)
    before = finite(score(network, images.test, images), "test") if test else None
    after, classes = score_by_class(result.network, images.test, images, "test") if test else (None, None)
    described = described_finetuned(
        *(description, result, evaluator, settings),
        tests=(before, after) if before and after else None,
        run=str(place.path.resolve()),
        provenance=provenance(settled),
    )
    if classes is not None:
        described |= {"per_class": classes.recorded("test")}
    if should_stop():
        return unfinished(time.monotonic() - began)
    write_subnet(path, result.network, described)
    verify_subnet(path, result.network)
    return FinetunedSubnet(
        path=path,
        settings=settings,
        result=result,
        description=described,
        per_class=classes,
        seconds=time.monotonic() - began,
        finished=True,
    )


def run_of(description: SubnetDescription, given: str | Path | None, subnet: str | Path) -> RunDirectory:
    """The run that a subnet was taken from, at `given` if it has moved. Raises `UserError` where there is none."""
    recorded = description.trained.run if description.trained else None
    if given is None and recorded is None:
        raise UserError(f"{subnet} does not say which run it was taken from: name it with --run")
    run = RunDirectory(given or str(recorded))
    if given is None and not run.config_file.exists():
        raise UserError(f"{subnet} was taken from {recorded}, where there is no run now: say where it is with --run")
    run.checked_config()
    return run


def refuse_other_images(description: SubnetDescription, run: RunDirectory, data: DataSet, subnet: str | Path) -> None:
    """Raise `UserError` where a subnet was made for other images, or for other classes, sizes or normalisation.

    Other images of the same kind could be divided into other splits, and the test split be what it was trained on.
    """
    given, ours = description.preprocessing, run.config().data_fingerprint
    then_fingerprint = description.trained.data_fingerprint if description.trained else None
    for what, then, now in (
        ("classes", description.classes, list(data.class_names)),
        ("channels", given.channels, data.channels),
        ("mean", given.mean, data.mean),
        ("std", given.std, data.std),
        ("sizes", given.image_size or data.image_size, data.image_size),  # older subnets do not say
        ("interpolations", given.interpolation, data.source.interpolation or "bilinear"),
        ("fingerprints", then_fingerprint or ours, ours),
    ):
        if then != now:
            raise UserError(f"{subnet} was made for other images than those of {run.path}: their {what} differ")


def _calibration(description: SubnetDescription, subnet: Path) -> EvaluateSettings:
    """How the subnet's batch norms were calibrated; the default way where they were not."""
    return EvaluateSettings.parse(description.recalibrated or {}, where=f"{subnet}, recalibrated")
