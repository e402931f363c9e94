"""What the command line says: its consoles, progress while it works, what it begins with. Nothing here computes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from trainonce.names import command, plain, printable

if TYPE_CHECKING:
    from trainonce.data import DataSet
    from trainonce.data.baseline import Baseline
    from trainonce.models import Supernet
    from trainonce.recipes import Phase, Reached, Recipe
    from trainonce.run.directory import RunDirectory, Start
    from trainonce.run.lines import SubnetScore
    from trainonce.subnets.finetune import FinetuneProgress
    from trainonce.training.settings import Progress as TrainProgress


class _Printable(Console):
    """A console that shows what names make a terminal obey, instead of handing it on."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """The segments of something to show, as `Console.render` gives them."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


out = _Printable(highlight=False, soft_wrap=True, markup=False)
err = _Printable(stderr=True, highlight=False, soft_wrap=True, markup=False)


SECONDS_BETWEEN_LINES = 15.0
"""How often progress is printed where stderr is not a terminal."""


def duration(seconds: float) -> str:
    """A length of time as people say it: 42 s, 3 min 5 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 1:
        return "less than 1 s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@contextmanager
def silent(wanted: bool) -> Iterator[None]:
    """Inside, show nothing where `wanted`: one of several processes speaks."""
    before = out.quiet, err.quiet
    out.quiet, err.quiet = (True, True) if wanted else before
    try:
        yield
    finally:
        out.quiet, err.quiet = before


class _Bar(Progress):
    """A bar as wide as the terminal, and under it what is said, over more lines where it is longer."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, then the text."""
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.description, no_wrap=False, overflow="fold") for task in self.tasks)


@contextmanager
def progress() -> Iterator[Callable[[int, int, str], None]]:
    """A function `show(done, total, text)`: a live bar in a terminal, a line now and then elsewhere."""
    if err.is_terminal:
        columns = (BarColumn(bar_width=None), MofNCompleteColumn())
        with _Bar(*columns, console=err, transient=True, expand=True) as bar:
            task = bar.add_task("starting", total=None)
            yield lambda done, total, text: bar.update(task, completed=done, total=total, description=text)
        return
    printed = float("-inf")

    def show(done: int, total: int, text: str) -> None:
        nonlocal printed
        if time.monotonic() - printed >= SECONDS_BETWEEN_LINES or done == total:
            err.print(f"{done}/{total}  {text}")
            printed = time.monotonic()

    yield show


def plain_table(*columns: str, left: int = 1) -> Table:
    """A table without lines whose first `left` columns are of text, the others of numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right")
    return table


def recipe_plan(recipe: Recipe, lacking: Collection[str] = ()) -> Table:
    """The phases of a recipe, one a row; of the `lacking` roles, which the network does not have, nothing is said."""
    table = plain_table("phase", "epochs", "subnets a step", "lr", "trains", "learns", left=6)
    for phase in recipe.phases:
        part = [
            *((name, "/".join(map(str, values))) for name, values in phase.restrict.items()),
            *((name, _ends(phase, name)) for name in {**phase.keep_largest, **phase.keep_smallest}),
            *((name, f"by {parent}") for name, parent in phase.couple.items() if parent not in lacking),
        ]
        trained = ", ".join(f"{name}: {kept}" for name, kept in part if name not in lacking) or "the whole space"
        trained = f"the head alone; {trained}" if phase.trains == "head" else trained
        held = f", {_held(phase.hold_epochs)}" if phase.hold == "epoch" else ""
        subnets = (
            " + ".join(phase.subnets) if len(set(phase.subnets)) > 1 else f"{len(phase.subnets)} {phase.subnets[0]}"
        )
        subnets += f" of {len(phase.cycle)}" if phase.cycle else ""
        table.add_row(phase.name, plain(phase.epochs, 3), subnets + held, f"{phase.lr:.2g}", trained, phase.target)
    return table


def _held(epochs: float) -> str:
    return "one an epoch" if epochs == 1 else f"each for {plain(epochs, 3)} epochs"


def _ends(phase: Phase, name: str) -> str:
    """Which ends of the values of a choice a phase keeps, in words."""
    ends = {"smallest": phase.keep_smallest.get(name), "largest": phase.keep_largest.get(name)}
    return " of ".join(f"the {end}" if count == 1 else f"the {count} {end}" for end, count in ends.items() if count)


def print_wide(table: Table) -> None:
    """Print a table whose cells are not broken, however narrow the terminal is, or a file that it goes to.

    Where a line is longer than the terminal, that breaks it.
    """
    wide = Measurement.get(out, out.options.update(max_width=10_000), table).maximum
    before, out.width = out.width, max(out.width, wide)
    try:
        out.print(table)
    finally:
        out.width = before


def not_quiet(drift: Sequence[float]) -> str:
    """That a machine was busy while it was measured, by its slowest and fastest pace: how a sentence begins."""
    slow, fast = drift
    return f"The machine's pace went from {fast:.2f} to {slow:.2f} times its usual time meanwhile: it was not quiet"


def subnet_line(line: SubnetScore) -> str:
    """One evaluated subnet in a line."""
    return f"{line.top1:.2f}% at {line.macs / 1e6:.3f} M MACs, {line.params / 1e6:.3f} M parameters"


def scoring_line(line: SubnetScore, seconds_left: float) -> str:
    """The last subnet scored, and how long the others will take, in a line."""
    return f"{duration(seconds_left)} left; {subnet_line(line)}"


def training_line(at: TrainProgress, looked: Sequence[float] = ()) -> str:
    """Where training stands, in a line. `looked` is the top-1 of probes on validate when they were last looked at."""
    probes = f", on validate {looked[0]:.1f}% (smallest) to {looked[-1]:.1f}% (largest)" if looked else ""
    return (
        f"{duration(at.seconds_left)} left; {at.phase}, epoch {at.epoch:.1f}: loss {at.loss:.3f}, "
        f"top-1 {at.top1:.1f}%{probes}, lr {at.lr:.2g}, subnet {at.macs / 1e6:.2f} M MACs"
    )


def finetuning_line(at: FinetuneProgress) -> str:
    """Where fine-tuning stands, in a line."""
    return (
        f"{duration(at.seconds_left)} left; epoch {at.epoch:.1f}: loss {at.loss:.3f}, top-1 {at.top1:.1f}%, "
        f"lr {at.lr:.2g}"
    )


def say_streamed(data: DataSet) -> None:
    """Say that the images stay on disk, if they do."""
    if data.streamed:
        gigabytes = data.decoded_bytes / 1e9
        size = f"{gigabytes:.3g} GB" if gigabytes >= 1 else f"{1000 * gigabytes:.3g} MB"
        err.print(
            f"{data.name}: streaming; the images stay on disk and are decoded as they are needed (all at once they "
            f"would take {size} of memory)"
        )


def say_classes(data: DataSet) -> None:
    """Say how many training images each class has, and what is worth a warning about that."""
    from trainonce.data.classes import class_warnings, counts_text

    err.print(f"Training images: {counts_text(data)}")
    for warning in class_warnings(data):
        err.print(f"Warning: {warning}")


def say_slow(device: str) -> None:
    """Say why the native kernels are not used or not kept, where the processor computes."""
    from trainonce.nn import native

    if device == "cpu" and native.remark():
        err.print(native.remark())


def say_images(data: DataSet) -> None:
    """Say what there is to train on."""
    err.print(
        f"{data.name}: {len(data.train)} training images of {data.image_size} pixels, {data.num_classes} classes; "
        f"{len(data.calibrate)} calibrate, {len(data.validate)} validate, {len(data.test)} test"
    )
    say_classes(data)
    say_streamed(data)


def say_family(net: Supernet) -> None:
    """Say how many subnets there are, and of what sizes."""
    low, high = net.cost_of(net.space.smallest()), net.cost_of(net.space.largest())
    err.print(
        f"{net.family}: {net.space.count():.3g} subnets of "
        f"{plain(low.macs / 1e6, 3)} to {plain(high.macs / 1e6, 3)} M MACs, "
        f"{plain(low.params / 1e6, 3)} to {plain(high.params / 1e6, 3)} M parameters"
    )


def say_unused(net: Supernet, limits: Sequence[float]) -> None:
    """Say which devices may have more MACs than the largest subnet has."""
    from trainonce.pipeline.fitted import name_of

    most = net.cost_of(net.space.largest()).macs
    beyond = [name_of(limit) for limit in limits if limit > most]
    if beyond:
        err.print(f"No subnet has more than {plain(most / 1e6, 3)} M MACs, so {' and '.join(beyond)} cannot be used up")


def say_start(start: Start | None) -> None:
    """Say what weights a training begins with, where they are not those of a new network."""
    if start is None:
        return
    head = ", but for the classifier, which is new: the number of classes is another" if start.fresh_head else ""
    if not start.trained:
        err.print(f"{start.network} begins with random weights: --from FILE gives it trained ones")
    elif start.file is None:
        err.print(f"{start.network} begins with its own weights{head}")
    else:
        err.print(f"{start.network} begins with the weights of {start.file}{head}")


def say_unfinished(run: RunDirectory, reached: Reached) -> None:
    """Warn where a training has not come to its end."""
    if not reached.ended:
        fitted = run.fit_file.exists()
        again = "the same `trainonce fit`" if fitted else command("trainonce", "train", "--resume", run.path)
        err.print(
            f"Warning: {run.path} was trained for {reached.epochs:.6g} of {run.config().recipe.epochs:.6g} epochs; "
            f"{again} goes on",
            style="bold red",
        )


def announce(data: DataSet, net: Supernet, recipe: Recipe, run: RunDirectory) -> None:
    """Say what is about to be trained."""
    say_images(data)
    say_family(net)
    err.print(
        f"{recipe.name}: {recipe.epochs:.4g} epoch{'' if recipe.epochs == 1 else 's'}, {recipe.passes:.4g} subnet "
        f"pass{'' if recipe.passes == 1 else 'es'}, batch {recipe.batch_size}, "
        f"{recipe.optimizer}{f', weights averaged by {recipe.ema:g}' if recipe.ema else ''}; into {run.path}"
    )
    varied = data.varied_by(recipe).augmentation
    if recipe.augmentation is not None:
        err.print(f"Images varied as the recipe says: {', '.join(map(str, varied)) or 'not at all'}")
    lacking = dict.fromkeys(role for phase in recipe.phases for role in phase.passed_over(net.space))
    err.print(recipe_plan(recipe, lacking))
    if lacking:
        err.print(f"This network has no choice of {' or '.join(lacking)}: what {recipe.name} says of that is left out")


def say_baseline(found: Baseline | None, top1: float) -> None:
    """Say what a plain classifier makes of the same images, beside `top1` on validate; a warning where that is less."""
    if found is None:
        return
    from trainonce.data.baseline import BELOW_IT

    err.print(f"For comparison: {found}")
    if top1 < found.top1:
        err.print(
            f"Warning: {top1:.1f}% is {found.top1 - top1:.1f} points below that. {BELOW_IT}",
            style="bold red",
        )


def print_json(value: Mapping[str, Any]) -> None:
    """Print a value as one line of JSON on stdout."""
    sys.stdout.write(json.dumps(value) + "\n")


def say_duration(seconds: float, as_json: bool, workers: int | None = 1) -> None:
    """Say what a dry run found: how long it would take here; as JSON on stdout too where that is asked for."""
    if as_json:
        print_json({"seconds": round(seconds, 1)} | ({"workers": workers} if workers and workers > 1 else {}))
    shared = f" by {workers} workers" if workers and workers > 1 else ""
    err.print(f"Would take about {duration(seconds)}{shared} on this machine.")
