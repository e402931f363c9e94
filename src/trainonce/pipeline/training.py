"""A supernet trained into a run directory, or further in one."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional as F

from trainonce.data import DataSet
from trainonce.errors import UserError
from trainonce.lab.measures.forgetting import Prober, default_probes
from trainonce.models import Supernet
from trainonce.nn.precision import Precision, logits_in
from trainonce.recipes import Recipe
from trainonce.run.directory import RunDirectory
from trainonce.sampling import CANDIDATES, SubnetDraws
from trainonce.training.loop import Progress

PROBES = 4
"""How many subnets are looked at while training, unless it is said."""


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
    before = () if count is not None else dict.fromkeys(line["probe"] for line in run.forgetting())
    probes = tuple(net.space.parse(text) for text in before)
    probes = probes or default_probes(net, PROBES if count is None else count, seed=seed)
    return Prober(net, recipe, data, run, probes=probes, seed=seed) if probes else None
