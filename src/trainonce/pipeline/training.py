"""A supernet trained into a run directory, or further in one."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path

from trainonce.data import DataSet, load_dataset
from trainonce.data.baseline import Baseline, baseline
from trainonce.data.formats import FILES
from trainonce.data.splits import Fold
from trainonce.errors import UserError
from trainonce.extras import try_import
from trainonce.lab.measures.forgetting import PROBES, Prober, default_probes
from trainonce.models import Supernet
from trainonce.models.registry import OF_NETWORKS
from trainonce.parallel.distributed import Ranks, process_group
from trainonce.pipeline.beginning import begin, default_recipe
from trainonce.pipeline.machine import device_named, use_threads
from trainonce.pipeline.outlook import learned, outlook
from trainonce.pipeline.pace import Pace, Planned, for_minutes, planned_seconds, said_left_out
from trainonce.recipes import Recipe, hides_known, load_recipe
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory, Start
from trainonce.run.lines import MetricsLine
from trainonce.training.loop import refuse_large_step, train_supernet
from trainonce.training.settings import Progress, TrainSettings


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """What is about to be trained."""

    run: RunDirectory
    data: DataSet
    net: Supernet
    recipe: Recipe
    settings: TrainSettings
    seed: int
    start: Start | None = None
    """Where the network and its weights come from, if they are given."""
    resumed_at: str | None = None
    """The checkpoint that the run goes on from, or its beginning; None where it is a new one."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a training ended."""

    plan: TrainPlan
    seconds: float
    """What it took; after a dry run, about what it would take."""
    finished: bool
    """Whether all of it is trained: not where `should_stop` said so, nor after a dry run."""
    metrics: MetricsLine | None
    """The last line of metrics.jsonl: loss, top1 (percent, of augmented images, not mixed), …; None unless finished.

    Under torchrun the first process alone has it.
    """
    left_out: str = ""
    """That steps were left out for want of time, in a sentence; empty where none were."""
    outlook: str | None = None
    """Whether more time would help, in a sentence; None unless finished, and where there are no probes or
    every batch is mixed."""


def train(
    data: DataSet | str | Path | None = None,
    *,
    recipe: str | Path | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    epochs: float | None = None,
    passes: float | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    class_balance: float | None = None,
    model: str | None = None,
    weights: str | Path | None = None,
    stages: bool = False,
    kernels: bool = False,
    rigid: Sequence[str] = (),
    family: str | None = None,
    geometry: str | None = None,
    image_size: int | None = None,
    resolutions: Sequence[int] | None = None,
    width: float | None = None,
    grey: bool = False,
    train_images: int | None = None,
    split_seed: int = 0,
    fold: Fold | None = None,
    stream: bool | None = None,
    decode_workers: int | None = None,
    skip_broken: bool = False,
    data_dir: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    checkpoint_every: float = 60.0,
    probes: int | None = None,
    sync_bn: bool | None = None,
    precision: str | None = None,
    cuda_graphs: bool = True,
    keep_at: Sequence[float] | None = None,
    tensorboard: bool = False,
    dry_run: bool = False,
    on_plan: Callable[[TrainPlan], None] = lambda _: None,
    on_baseline: Callable[[Baseline], None] = lambda _: None,
    on_start: Callable[[], None] = lambda: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_look: Callable[[Sequence[float]], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    where: str = "the options",
) -> Trained:
    """Train a supernet on images into a run directory: `trainonce train`, whose options these are.

    `data` is a data set's name, an image folder or an .npz file; the run is in `out`, or runs/DATA-RECIPE-SEED.
    `model`, `weights`, `stages`, `kernels` and `rigid` say what to begin with, see `trainonce.pipeline.beginning`; the
    recipe by default is `transfer` where weights were trained before, `rss` for a new network on a data set known by
    name, and else `quick`. With `resume`, a run's directory, it
    goes on from its newest checkpoint, to the weights of a run that never stopped; then `data` says where the images
    are now, if they have moved, and what the run is made of cannot be given. With `fold`, such as (2, 5), that fold of
    the images is the test split.
    Under torchrun all processes call this, and train together. `on_start` is called where the training begins: from
    there on `should_stop` is asked, and ends it with everything saved. `on_look` is told the top-1 of the probes on
    validate, in percent, from the smallest to the largest, whenever they are looked at. `where` is what refusals call
    the options.
    Raises `UserError` for what cannot be, before anything is written, and `RunError` where it cannot go on.
    """
    given = dict(locals())
    use_threads(threads)
    step_s: tuple[float, ...] = ()
    with process_group(device_named(device)) as ranks:
        with ranks.together():
            if resume is None:
                if data is None:
                    raise UserError(f"name a data set, a folder of images or an {FILES} file, or give --resume RUN")
                writes = ranks.first and not dry_run
                if out is not None and writes:
                    RunDirectory(out).refuse_another()  # before images are read, which may take long
                if minutes is not None and (epochs, passes) != (None, None):
                    raise UserError("--minutes is in place of --epochs and --passes")
                load = partial(
                    load_dataset,
                    data_dir=data_dir,
                    grey=grey,
                    train_images=train_images,
                    split_seed=split_seed,
                    fold=fold,
                    stream=stream,
                    workers=decode_workers,
                    skip_broken=skip_broken,
                )
                begun = begin(
                    load,
                    data,
                    image_size=image_size,
                    model=model,
                    weights=weights,
                    stages=stages,
                    kernels=kernels,
                    rigid=rigid,
                    family=family,
                    geometry=geometry,
                    width=width,
                    resolutions=resolutions,
                    seed=seed,
                )
                images, net, start = begun.data, begun.net, begun.start
                chosen = balanced(load_recipe(recipe or default_recipe(begun)), class_balance)
                chosen = scaled(chosen, epochs, passes, batch_size)
                run, resumed_at = RunDirectory(out or Path("runs") / f"{images.name}-{chosen.name}-{seed}"), None
                if writes:
                    run.refuse_another()
            else:
                _refuse_beside_resume(given)
                run = RunDirectory(resume)
                images = run.load_data(data_dir, moved_to=data, stream=stream, workers=decode_workers)
                net, chosen, seed = run.build_supernet(), run.config().recipe, run.config().seed
                start = run.config().start
                resumed_at = _resumed_at(run)
                sync_bn = run.config().sync_batch_norm if sync_bn is None else sync_bn
                precision = precision or run.config().precision
                keep_at = run.config().keep_at if keep_at is None else keep_at
                step_s = run.config().planned_step_s
            values = {
                "device": ranks.device,
                "checkpoint_every_s": checkpoint_every,
                "sync_batch_norm": bool(sync_bn),
                "precision": precision or "float32",
                "cuda_graphs": cuda_graphs,
                "keep_at": tuple(keep_at or ()),
            }
            settings = TrainSettings.parse(values, where=where)
            refuse_large_step(net, chosen, images, ranks, ranks.device)
            if minutes is not None:
                chosen, step_s = _in_minutes(minutes, net, chosen, images, ranks, settings)
        plan = TrainPlan(
            run=run,
            data=images,
            net=net,
            recipe=chosen,
            settings=settings.model_copy(update={"planned_step_s": step_s if ranks.alone else ()}),
            seed=seed,
            start=start,
            resumed_at=resumed_at,
        )
        on_plan(plan)
        plain = baseline(images) if ranks.first and not (resume and run.baseline_file.exists()) else None
        if plain is not None:
            on_baseline(plain)
        if dry_run:
            seconds = (
                planned_seconds(chosen, step_s, len(images.train))
                if step_s
                else Pace(images, settings).seconds(net, chosen, processes=ranks.size)
            )
            return Trained(plan=plan, seconds=seconds, finished=False, metrics=None)
        return _trained(
            *(plan, ranks, plain),
            probes=probes,
            tensorboard=tensorboard,
            on_start=on_start,
            on_progress=on_progress,
            on_look=on_look,
            should_stop=should_stop,
        )


BESIDE_RESUME = {
    *("resume", "data", "data_dir", "stream", "decode_workers"),
    *("device", "threads", "precision", "cuda_graphs", "sync_bn"),
    *("checkpoint_every", "keep_at", "probes", "tensorboard"),
}
"""The options of `train` that do not say what a run is made of."""


def _refuse_beside_resume(given: Mapping[str, object]) -> None:
    """Raise `UserError` where `train` was given what a run is made of, other than by default."""
    for name, parameter in signature(train).parameters.items():
        told = name == "where" or callable(parameter.default)
        if not told and name not in BESIDE_RESUME and given[name] not in (parameter.default, []):
            option = {"weights": "from"}.get(name, name).replace("_", "-")
            raise UserError(f"--{option} cannot be given together with --resume")


def _in_minutes(
    minutes: float, net: Supernet, recipe: Recipe, data: DataSet, ranks: Ranks, settings: TrainSettings
) -> Planned:
    if not ranks.alone:
        raise UserError("--minutes is planned by the pace of one process: give several --epochs or --passes")
    return for_minutes(net, recipe, data, settings, minutes)


def _resumed_at(run: RunDirectory) -> str:
    newest = checkpoint.newest(run.checkpoints)
    if newest is None and run.metrics():
        raise UserError(f"{run.path} was trained before but its checkpoints are gone: there is nothing to go on from")
    if newest is None and (run.config().start is not None or run.config().family in OF_NETWORKS):
        raise UserError(f"{run.path} has no checkpoint, so the weights it began from are gone: start it anew")
    return newest.name if newest else "its beginning"


def _trained(
    plan: TrainPlan,
    ranks: Ranks,
    plain: Baseline | None,
    *,
    probes: int | None,
    tensorboard: bool,
    on_start: Callable[[], None],
    on_progress: Callable[[Progress], None],
    on_look: Callable[[Sequence[float]], None],
    should_stop: Callable[[], bool],
) -> Trained:
    """Train what is planned; `plain` is recorded with the first line of metrics."""
    began, run = time.monotonic(), plan.run
    look, seen = None, list[float]()

    def looked(top1: Sequence[float]) -> None:
        seen[:] = top1
        on_look(top1)

    if ranks.first:
        net = plan.net.to(ranks.device)
        look = prober(net, plan.recipe, plan.data, run, count=probes, seed=plan.seed, on_look=looked)
    on_start()
    with tensorboard_writer(tensorboard and ranks.first, run) as board:

        def note(at: Progress) -> None:
            if plain is not None and not run.baseline_file.exists():
                run.write_baseline(plain)
            board(at)
            on_progress(at)

        finished = train_supernet(
            plan.net,
            plan.recipe,
            plan.data,
            run,
            seed=plan.seed,
            start=plan.start,
            resume=plan.resumed_at is not None,
            settings=plan.settings,
            on_progress=note,
            on_epoch=look,
            should_stop=should_stop,
            ranks=ranks,
        )
    lines = run.metrics() if finished and ranks.first else []
    metrics = lines[-1] if lines else None
    can_tell = bool(lines and seen) and not hides_known(plan.data.varied_by(plan.recipe).augmentation)
    return Trained(
        plan=plan,
        seconds=time.monotonic() - began,
        finished=finished,
        metrics=metrics,
        left_out="" if metrics is None else said_left_out(metrics),
        outlook=outlook(learned(lines), statistics.fmean(seen)) if can_tell else None,
    )


@contextmanager
def tensorboard_writer(wanted: bool, run: RunDirectory) -> Iterator[Callable[[Progress], None]]:
    """A function that writes progress to RUN/tensorboard, or does nothing. Raises `UserError` without the extra."""
    if not wanted:
        yield lambda _: None
        return
    with try_import("--tensorboard", "tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    with SummaryWriter(run.path / "tensorboard") as writer:

        def write(at: Progress) -> None:
            for name in ("loss", "top1", "lr", "macs"):
                writer.add_scalar(f"train/{name}", getattr(at, name), at.step)

        yield write


def balanced(recipe: Recipe, class_balance: float | None) -> Recipe:
    """The recipe with that class balance, or with its own for None. Raises `UserError` for one beyond 0 to 1."""
    if class_balance is None:
        return recipe
    if not 0 <= class_balance <= 1:
        raise UserError(f"the class balance is between 0 and 1, not {class_balance:g}")
    return recipe.model_copy(update={"class_balance": class_balance})


def scaled(recipe: Recipe, epochs: float | None, passes: float | None, batch_size: int | None) -> Recipe:
    """The recipe at the length and batch size that the options ask for."""
    if epochs is not None and passes is not None:
        raise UserError("give --epochs or --passes, not both")
    for name, length in (("epochs", epochs), ("passes", passes)):
        if length is not None and not length > 0:
            raise UserError(f"--{name} must be more than 0, not {length:g}")
    if epochs is not None:
        recipe = recipe.scaled(epochs / recipe.epochs)
    if passes is not None:
        recipe = recipe.scaled(passes / recipe.passes)
    return recipe if batch_size is None else recipe.with_batch_size(batch_size)


def prober(
    net: Supernet,
    recipe: Recipe,
    data: DataSet,
    run: RunDirectory,
    *,
    count: int | None,
    seed: int,
    on_look: Callable[[Sequence[float]], None] = lambda _: None,
) -> Prober | None:
    """What looks at probes while training: `count` of them, by default those looked at before or `PROBES`."""
    before = () if count is not None else dict.fromkeys(line.probe for line in run.forgetting())
    probes = tuple(net.space.parse(text) for text in before)
    probes = probes or default_probes(net, PROBES if count is None else count, seed=seed)
    return Prober(net, recipe, data, run, probes=probes, seed=seed, on_look=on_look) if probes else None
