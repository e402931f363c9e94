"""What the commands share: stopping on signals, reading options, estimating time, TensorBoard."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import typer
from torch.nn import functional as F

from trainonce.data import DataSet
from trainonce.errors import UserError
from trainonce.models import Supernet
from trainonce.population import PAPER_BUCKETS_M
from trainonce.recipes import Recipe
from trainonce.run import RunDirectory
from trainonce.sampling import CANDIDATES, SubnetDraws
from trainonce.train import Progress


class Stop:
    """The signal that asked to stop, if one did."""

    number: int | None = None


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Note SIGTERM and the first Ctrl-C instead of dying of them; a second Ctrl-C does interrupt."""
    stop = Stop()

    def note(number: int, _frame: FrameType | None) -> None:
        if stop.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.number = number

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def estimated_seconds(net: Supernet, data: DataSet, recipe: Recipe, device: str, *, processes: int = 1) -> float:
    """About how long a recipe takes on a device: a few batches timed for each phase.

    With several processes each times its share of a batch; what they say to each other is left out.
    A forward pass without gradients, of a teacher or of a trial, counts as a third of a training pass.
    Augmentation and the optimizer are left out.
    """
    batch_size = min(recipe.batch_size, len(data.train))
    x_BCHW = torch.zeros(-(-batch_size // processes), data.channels, data.image_size, data.image_size, device=device)
    x_BCHW, y_B = x_BCHW.contiguous(memory_format=torch.channels_last), torch.zeros_like(x_BCHW[:, 0, 0, 0]).long()
    net = net.to(device).train()
    seconds = 0.0
    for phase in recipe.phases:
        draws = SubnetDraws(phase.subnets, net.cost.within(phase.subspace(net.space)))
        began, passes = 0.0, 0
        for trial in range(4):
            if trial == 1:  # the first warms up
                began = time.monotonic()
            for arch, *_ in draws.draw(random.Random(trial), trial):
                torch.autograd.backward(F.cross_entropy(net(x_BCHW, arch), y_B))
                passes += trial > 0
            float(next(net.parameters()).detach().flatten()[0])  # waits for the device
        pace = (time.monotonic() - began) / passes
        trials = sum(slot in ("best_up", "worst_up") for slot in phase.subnets) * CANDIDATES
        extra = (trials + len(phase.subnets) * (phase.target == "labels+teacher")) / 3
        seconds += pace * phase.epochs * (len(phase.subnets) + extra) * len(data.train) / batch_size
    return seconds


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
    return PAPER_BUCKETS_M if text == "paper" else numbers(text, "--buckets", float) if text else ()


def numbers(text: str, option: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    """The numbers of an option, with commas between. Raises `UserError` that names the option."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} takes numbers with commas between, such as 4,6,8; not {text!r}") from None


def device_named(name: str) -> str:
    """The torch device of that name, `auto` being a GPU if there is one. Raises `UserError` if it is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"the device {name!r} is not to be had here: {str(error).splitlines()[0]}") from error
    return name
