"""What the commands share: stopping on signals, reading options, estimating time, TensorBoard."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from trainonce.cli.known import LOCAL
from trainonce.errors import RunError, UserError

if TYPE_CHECKING:
    from trainonce.data import DataSet
    from trainonce.lab.measures.forgetting import Prober
    from trainonce.models import Supernet
    from trainonce.nn.precision import Precision
    from trainonce.recipes import Recipe
    from trainonce.run.directory import RunDirectory
    from trainonce.training.loop import Progress

WORTH_WORKERS_S = 30.0
"""How much work it takes until starting workers, of some seconds each, is worth it."""
PROBES = 4
"""How many subnets are looked at while training, unless it is said."""
START_UP_S = 4.0
"""About how long workers take to start: they import torch, all at once, and calibrate."""


def use_threads(threads: int | None) -> None:
    """Let torch compute with so many threads; None: as it would."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


T = TypeVar("T")
Found = TypeVar("Found")


def for_each(items: Sequence[T], work: Callable[[T], Found]) -> Iterator[tuple[T, Found | UserError | RunError]]:
    """What some work gives for each item, or what it was refused with, which keeps no other from its turn.

    The refusal of an only item is raised.
    """
    for item in items:
        try:
            found: Found | UserError | RunError = work(item)
        except (UserError, RunError) as error:
            if len(items) == 1:
                raise
            found = error
        yield item, found


@contextmanager
def tensorboard_writer(wanted: bool, run: RunDirectory) -> Iterator[Callable[[Progress], None]]:
    """A function that writes progress to RUN/tensorboard, or does nothing. Raises `UserError` without the extra."""
    if not wanted:
        yield lambda _: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs an extra: pip install 'trainonce[tensorboard]'") from error
    with SummaryWriter(run.path / "tensorboard") as writer:

        def write(at: Progress) -> None:
            for name in ("loss", "top1", "lr", "macs"):
                writer.add_scalar(f"train/{name}", getattr(at, name), at.step)

        yield write


def scaled(recipe: Recipe, epochs: float | None, passes: float | None, batch_size: int | None) -> Recipe:
    """The recipe at the length and batch size that the options ask for."""
    if epochs is not None and passes is not None:
        raise UserError("give --epochs or --passes, not both")
    if epochs is not None:
        recipe = recipe.scaled(epochs / recipe.epochs)
    if passes is not None:
        recipe = recipe.scaled(passes / recipe.passes)
    return recipe if batch_size is None else recipe.with_batch_size(batch_size)


def estimated_seconds(
    net: Supernet,
    data: DataSet,
    recipe: Recipe,
    device: str,
    *,
    processes: int = 1,
    precision: Precision = "float32",
) -> float:
    """About how long a recipe takes on a device: a few batches timed for each phase.

    With several processes each times its share of a batch; what they say to each other is left out.
    A forward pass without gradients, of a teacher or of a trial, counts as a third of a training pass.
    Augmentation, the optimizer and the decoding of streamed images are left out, as is what CUDA graphs save.
    """
    import torch
    from torch.nn import functional as F

    from trainonce.nn.precision import logits_in
    from trainonce.sampling import CANDIDATES, SubnetDraws

    batch_size = min(recipe.batch_size, len(data.train))
    x_BCHW = torch.zeros(-(-batch_size // processes), data.channels, data.image_size, data.image_size, device=device)
    x_BCHW, y_B = x_BCHW.contiguous(memory_format=torch.channels_last), torch.zeros_like(x_BCHW[:, 0, 0, 0]).long()
    net = net.to(device).train()
    seconds = 0.0
    for phase in recipe.phases:
        draws = SubnetDraws(phase.subnets, net.cost.within(phase.subspace(net.space)), phase.cycle)
        began, passes = 0.0, 0
        for trial in range(4):
            if trial == 1:  # the first warms up
                began = time.monotonic()
            for arch, *_ in draws.draw(random.Random(trial), trial):
                torch.autograd.backward(F.cross_entropy(logits_in(precision, net, x_BCHW, arch), y_B))
                passes += trial > 0
            float(next(net.parameters()).detach().flatten()[0])  # waits for the device
        pace = (time.monotonic() - began) / passes
        trials = sum(slot in ("best_up", "worst_up") for slot in phase.subnets) * CANDIDATES
        extra = (trials + (phase.target == "labels+teacher")) / 3
        seconds += pace * phase.epochs * (len(phase.subnets) + extra) * len(data.train) / batch_size
    return seconds


def prober(
    net: Supernet, recipe: Recipe, data: DataSet, run: RunDirectory, *, count: int | None, seed: int
) -> Prober | None:
    """What looks at probes while training: `count` of them, by default those looked at before or `PROBES`."""
    from trainonce.lab.measures.forgetting import Prober, default_probes

    before = () if count is not None else dict.fromkeys(line["probe"] for line in run.forgetting())
    probes = tuple(net.space.parse(text) for text in before)
    probes = probes or default_probes(net, PROBES if count is None else count, seed=seed)
    return Prober(net, recipe, data, run, probes=probes, seed=seed) if probes else None


def given(context: typer.Context, name: str) -> bool:
    """Whether the command line, and not a default, set the parameter of that name."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_beside(context: typer.Context, option: str, allowed: set[str]) -> None:
    """Raise `UserError` where the command line has options beside `option` that it would silently leave unused."""
    for parameter in context.command.params:
        if parameter.name and parameter.name not in allowed and given(context, parameter.name):
            raise UserError(f"{parameter.opts[0]} cannot be given together with {option}")


def bucket_centres(text: str) -> tuple[float, ...]:
    """The centres that --buckets names: numbers, the paper's for `paper`, none for nothing."""
    from trainonce.evaluation.population import PAPER_BUCKETS_M

    return PAPER_BUCKETS_M if text == "paper" else numbers(text, "--buckets", float) if text else ()


def numbers(text: str, option: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    """The numbers of an option, with commas between. Raises `UserError` that names the option."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} takes numbers with commas between, such as 4,6,8; not {text!r}") from None


def device_named(name: str) -> str:
    """The torch device of that name, `auto` being a GPU if there is one. Raises `UserError` where it cannot train."""
    import torch

    from trainonce.training.devices import check_device

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(name)
    return "cpu" if torch.device(name).type == "cpu" else name


def cluster_chosen(cluster: str, workers: int | None) -> tuple[str, int | None]:
    """Who is to work: what the options say, or torchrun's ranks. Raises `UserError` where it is asked for both."""
    from trainonce.parallel.distributed import ranks_in
    from trainonce.parallel.fan_out import TORCHRUN

    size = ranks_in(os.environ, "cpu").size
    if size == 1:
        return cluster, workers
    if workers is not None or cluster != LOCAL:
        raise UserError("under torchrun the ranks do the work: --workers and --cluster cannot be given as well")
    return TORCHRUN, size


def planned_workers(
    score_one: Callable[[], object], count: int, workers: int | None, *, cluster: str, device: str
) -> tuple[int, float]:
    """How many workers are to score `count` subnets, and about how many seconds they take; one subnet is timed.

    Without a number asked for: one for each CPU thread where that is worth it, else this process alone.
    """
    import torch

    threads = torch.get_num_threads()
    if count == 0:
        return workers or 1, 0.0
    if workers is None and cluster != LOCAL:
        raise UserError("how many workers the cluster has room for is not known beforehand: name --workers")
    if workers is None or workers == 1:
        alone = _seconds(score_one) * count
        if workers == 1 or threads == 1 or device != "cpu" or alone < WORTH_WORKERS_S:
            return 1, alone
        workers = threads
    workers = min(workers, count)
    torch.set_num_threads(max(1, threads // workers) if cluster == LOCAL else 1)
    try:
        return workers, START_UP_S + _seconds(score_one) * -(-count // workers)
    finally:
        torch.set_num_threads(threads)


def _seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
