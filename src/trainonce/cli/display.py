"""What the command line shows: progress while it works, tables when it is done. Nothing here computes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.segment import Segment
from rich.table import Table

from trainonce.names import printable

if TYPE_CHECKING:
    from trainonce.data import DataSet
    from trainonce.data.baseline import Baseline
    from trainonce.evaluation.per_class import PerClass
    from trainonce.evaluation.population import BucketSummary
    from trainonce.lab.studies.study import Study
    from trainonce.lab.studies.summary import ArmSummary
    from trainonce.models import Supernet
    from trainonce.pipeline.fitting import Fitted
    from trainonce.pipeline.folds import OverFolds
    from trainonce.pipeline.shipping import Shipped
    from trainonce.recipes import Recipe
    from trainonce.run.directory import RunDirectory, Start
    from trainonce.run.lines import SubnetScore
    from trainonce.search import Problem, SearchResult
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

FRONT_ROWS = 25
"""At most so many subnets of a front are shown; front.json has all."""

CLASS_ROWS = 20
"""At most so many classes are shown; the JSON has all."""
CONFUSED_WITH = 3
"""So many other classes that a class is taken for are shown."""
WORST_SHOWN = 5
"""So many of the images that are classified worst are shown."""

WIDE = 120
"""A wide table has so many columns of text: where a line is longer than the terminal, that breaks it."""

SECONDS_BETWEEN_LINES = 15.0
"""How often progress is printed where stderr is not a terminal."""


def duration(seconds: float) -> str:
    """A length of time as people say it: 42 s, 3 min 5 s, 2 h 10 min."""
    whole = round(seconds)
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


@contextmanager
def progress() -> Iterator[Callable[[int, int, str], None]]:
    """A function `show(done, total, text)`: a live bar in a terminal, a line now and then elsewhere."""
    if err.is_terminal:
        columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=err, transient=True, expand=True) as bar:
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


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right")
    return table


def recipe_plan(recipe: Recipe) -> Table:
    """The phases of a recipe, one a row."""
    table = _table("phase", "epochs", "subnets a step", "lr", "trains", "learns", left=6)
    for phase in recipe.phases:
        part: dict[str, int | list[int] | str] = {
            **phase.keep_largest,
            **{k: list(v) for k, v in phase.restrict.items()},
            **phase.couple,
        }
        trained = ", ".join(f"{name}: {_kept(value)}" for name, value in part.items()) or "the whole space"
        trained = f"the head alone; {trained}" if phase.trains == "head" else trained
        held = f", {_held(phase.hold_epochs)}" if phase.hold == "epoch" else ""
        subnets = (
            " + ".join(phase.subnets) if len(set(phase.subnets)) > 1 else f"{len(phase.subnets)} {phase.subnets[0]}"
        )
        subnets += f" of {len(phase.cycle)}" if phase.cycle else ""
        table.add_row(phase.name, f"{phase.epochs:.3g}", subnets + held, f"{phase.lr:.2g}", trained, phase.target)
    return table


def _held(epochs: float) -> str:
    return "one an epoch" if epochs == 1 else f"each for {epochs:.3g} epochs"


def _kept(value: int | list[int] | str) -> str:
    if isinstance(value, int):
        return "the largest" if value == 1 else f"the {value} largest"
    return f"by {value}" if isinstance(value, str) else "/".join(map(str, value))


def population_table(summaries: Sequence[BucketSummary]) -> Table:
    """Medians, quartiles and ranges of top-1 by bucket."""
    table = _table("bucket (MACs)", "subnets", "mean MACs", "median", "quartiles", "range")
    for s in summaries:
        table.add_row(
            str(s.bucket),
            str(s.count),
            f"{s.macs_mean / 1e6:.2f} M",
            f"{s.median:.2f}",
            f"{s.lower_quartile:.2f} to {s.upper_quartile:.2f}",
            f"{s.minimum:.2f} to {s.maximum:.2f}",
        )
    return table


def recipes_table(recipes: Sequence[Recipe]) -> Table:
    """The recipes with their cost."""
    table = _table("recipe", "epochs", "passes", "about")
    table.columns[3].justify = "left"
    for recipe in recipes:
        table.add_row(recipe.name, f"{recipe.epochs:.4g}", f"{recipe.passes:.4g}", recipe.about)
    return table


def study_plan(study: Study) -> Table:
    """The arms of a study with their number of runs and their length, which may differ within an arm."""
    table = _table("arm", "runs", "epochs", "passes", "about")
    table.columns[4].justify = "left"
    for arm in study.arms:
        runs = [run for run in study.runs if run.arm == arm.name]
        epochs = _range([run.recipe.epochs for run in runs])
        table.add_row(arm.name, str(len(runs)), epochs, _range([run.recipe.passes for run in runs]), arm.about)
    return table


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low} to {high}"


def study_table(summaries: Sequence[ArmSummary]) -> Table:
    """What the arms of a study came to."""
    table = _table("arm", "seeds", "subnets", "top-1", "seeds' range", "training", "passes")
    for s in summaries:
        table.add_row(
            s.arm,
            str(s.seeds),
            str(s.subnets),
            f"{s.top1:.2f}",
            f"{s.lowest_seed:.2f} to {s.highest_seed:.2f}",
            duration(s.train_seconds),
            f"{s.passes:.4g}",
        )
    return table


def limits_text(problem: Problem) -> str:
    """What is looked for, in words."""
    limits = " and ".join(map(str, problem.limits)) or "no limit"
    return f"{limits}; high top-1, low {', '.join(resource.name for resource in problem.minimised)}"


def front_table(result: SearchResult) -> Table:
    """The search's front and random search's, in one table by falling top-1."""
    from trainonce.search.resources import SHOWN

    found = {entry.arch: (entry, "search") for entry in result.search.front}
    for entry in result.control.front if result.control else []:
        found[entry.arch] = (entry, "both" if entry.arch in found else "random")
    others = [name for name in result.search.best.resources if name not in ("macs", "params")]
    table = _table("front", "top-1", "M MACs", "M params", *(SHOWN[name][0] for name in others), "architecture")
    table.columns[-1].justify, table.columns[-1].overflow = "left", "fold"
    rows = sorted(found.values(), key=lambda row: (-row[0].top1, row[0].macs))
    for entry, by in rows[:FRONT_ROWS]:
        table.add_row(
            f"{by}, known before" if entry.known else by,
            f"{entry.top1:.2f}",
            f"{entry.macs / 1e6:.3f}",
            f"{entry.params / 1e6:.3f}",
            *(f"{entry.resources[name] / SHOWN[name][1]:.4g}" for name in others),
            str(entry.arch),
        )
    if len(rows) > FRONT_ROWS:
        table.add_row(f"and {len(rows) - FRONT_ROWS} more in front.json")
    return table


def search_sentences(result: SearchResult) -> list[str]:
    """How the search compares with random search, and what its predictor was worth."""
    found, control = result.search, result.control
    sentences = [
        f"Best within the limits: {found.best.top1:.2f}% by search, with {found.evaluations} true scores beyond the "
        f"{result.recorded} recorded; its front fills {found.hypervolume:.3f} of the box of what was seen."
    ]
    if control is not None:
        gain = found.best.top1 - control.best.top1
        ahead = f"{abs(gain):.2f} points {'ahead' if gain > 0 else 'behind'}" if gain else "level with it"
        sentences.append(
            f"Random search, with {control.evaluations}: {control.best.top1:.2f}% and {control.hypervolume:.3f}; "
            f"search is {ahead}."
        )
    tried = [one.predictor for one in result.scores.rounds if one.predictor is not None]
    if tried:
        used = sum(report.used for report in tried)
        sentences.append(f"Predictor: used in {used} of {len(tried)} rounds; at last {tried[-1].why}.")
        held_out = tried[-1].held_out
        if held_out is not None and held_out.rho is not None:
            sentences.append(
                f"  {tried[-1].model}, learnt from {tried[-1].subnets} scores; held out: Spearman {held_out.rho:.2f}, "
                f"mean error {held_out.mean_error:.2f} points."
            )
    return sentences


def fitted_table(fitted: Sequence[Fitted]) -> Table:
    """The network for each device; its directory has the device's name."""
    from trainonce.pipeline.fitting import name_of

    table = _table("device", "M MACs", "M params", "from supernet", "fine-tuned", "test", "95% interval")
    for one in fitted:
        table.add_row(
            name_of(one.max_macs),
            f"{one.macs / 1e6:.3f}",
            f"{one.params / 1e6:.3f}",
            f"{one.before.top1:.2f}%",
            f"{one.after.top1:.2f}%"
            if one.finetuned_epochs
            else "as it was alone"
            if one.before_subnets
            else "as it was",
            f"{one.test.top1:.2f}%",
            "{:.1f} to {:.1f}".format(*one.test.interval()),
        )
    return table


def print_wide(table: Table) -> None:
    """Print a table whose cells are not broken, however narrow the terminal is, or a file that it goes to."""
    before, out.width = out.width, max(out.width, WIDE)
    try:
        out.print(table)
    finally:
        out.width = before


def not_quiet(drift: Sequence[float]) -> str:
    """That a machine was busy while it was measured, by its slowest and fastest pace: how a sentence begins."""
    slow, fast = drift
    return f"The machine's pace went from {fast:.2f} to {slow:.2f} times its usual time meanwhile: it was not quiet"


def shipped_table(shipped: Sequence[Shipped], failed: Mapping[str, str]) -> Table:
    """What each device got; those that failed are named below."""
    columns = ("M MACs", "validate", "test", "95% interval", "KB file", "KB RAM", "ms", "certificate")
    table = _table("device", "target", *columns, left=2)
    for one in shipped:
        ms = "-" if one.latency_ms is None else f"{one.latency_ms:.3g}{'' if one.latency_table else '*'}"
        table.add_row(
            one.name,
            str(one.device["target"]),
            f"{one.macs / 1e6:.2f}",
            f"{one.validate_score.top1:.2f}%",
            f"{one.test_top1:.2f}%",
            "{:.1f} to {:.1f}".format(*one.test_interval),
            f"{one.file_bytes / 1e3:,.0f}",
            f"{one.ram_bytes / 1e3:,.0f}{'' if one.ram_measured else '~'}",
            ms,
            "passed" if one.ran else "not run",
        )
    for name in failed:
        table.add_row(name, *["-"] * 8, "failed")
    return table


def shipped_sentences(shipped: Sequence[Shipped]) -> Iterator[str]:
    """What the columns of `shipped_table` mean, and what the certificates say."""
    first = shipped[0]
    yield (
        f"Validate: of the network, on {first.validate_score.images} images, by which it was chosen. Test: of the "
        f"file, on {first.test_images} images. File and RAM: without the runtime and the program."
    )
    if not all(one.ram_measured for one in shipped):
        yield "~ what the activations take that are live at once; no runtime was asked."
    if any(one.latency_table is None for one in shipped):
        yield "* measured on this machine, not on the device: a latency table says that (docs/latency.md)."
    busy = [one.name for one in shipped if one.quiet is False]
    if busy:
        yield f"Other work ran beside while these were timed, so their ms are not to be quoted: {', '.join(busy)}."
    if not all(one.ran for one in shipped):
        yield "not run: its runtime is not here, so nobody saw the file compute; test is that of the network."
    for one in shipped:
        yield f"{one.name}: {one.verdict}."


def subnet_line(line: SubnetScore) -> str:
    """One evaluated subnet in a line."""
    return f"{line.top1:.2f}% at {line.macs / 1e6:.3f} M MACs, {line.params / 1e6:.3f} M parameters"


def scoring_line(line: SubnetScore, seconds_left: float) -> str:
    """The last subnet scored, and how long the others will take, in a line."""
    return f"{subnet_line(line)}; {duration(seconds_left)} left"


def training_line(at: TrainProgress, looked: Sequence[float] = ()) -> str:
    """Where training stands, in a line. `looked` is the top-1 of probes on validate when they were last looked at."""
    probes = f", on validate {looked[0]:.1f}% (smallest) to {looked[-1]:.1f}% (largest)" if looked else ""
    return (
        f"{at.phase}, epoch {at.epoch:.1f}: loss {at.loss:.3f}, top-1 {at.top1:.1f}%{probes}, lr {at.lr:.2g}, "
        f"subnet {at.macs / 1e6:.2f} M MACs; {duration(at.seconds_left)} left"
    )


def finetuning_line(at: FinetuneProgress) -> str:
    """Where fine-tuning stands, in a line."""
    return (
        f"epoch {at.epoch:.1f}: loss {at.loss:.3f}, top-1 {at.top1:.1f}%, lr {at.lr:.2g}; "
        f"{duration(at.seconds_left)} left"
    )


def say_streamed(data: DataSet) -> None:
    """Say that the images stay on disk, if they do."""
    if data.streamed:
        err.print(
            f"{data.name}: streaming; the images stay on disk and are decoded as they are needed (all at once they "
            f"would take {data.decoded_bytes / 1e9:.3g} GB of memory)"
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
        f"{net.family}: {net.space.count():.3g} subnets of {low.macs / 1e6:.3g} to {high.macs / 1e6:.3g} M MACs, "
        f"{low.params / 1e6:.3g} to {high.params / 1e6:.3g} M parameters"
    )


def say_untrained(start: Start | None) -> None:
    """Say where a person's own network begins with random weights: it may have been meant otherwise."""
    if start is not None and not start.trained:
        err.print(f"{start.network} begins with random weights: --from FILE gives it trained ones")


def announce(data: DataSet, net: Supernet, recipe: Recipe, run: RunDirectory) -> None:
    """Say what is about to be trained."""
    say_images(data)
    say_family(net)
    err.print(
        f"{recipe.name}: {recipe.epochs:.4g} epochs, {recipe.passes:.4g} subnet passes, batch {recipe.batch_size}, "
        f"{recipe.optimizer}{f', weights averaged by {recipe.ema:g}' if recipe.ema else ''}; into {run.path}"
    )
    varied = data.varied_by(recipe).augmentation
    if recipe.augmentation is not None:
        err.print(f"Images varied as the recipe says: {', '.join(map(str, varied)) or 'not at all'}")
    err.print(recipe_plan(recipe))
    lacking = dict.fromkeys(role for phase in recipe.phases for role in phase.passed_over(net.space))
    if lacking:
        err.print(f"{net.family} has no choice of {' or '.join(lacking)}: what the recipe says of that is ignored")


def say_baseline(found: Baseline | None, top1: float) -> None:
    """Say what a plain classifier makes of the same images, beside `top1` on validate; a warning where that is less."""
    if found is None:
        return
    err.print(f"For comparison: {found}")
    if top1 < found.top1:
        err.print(
            f"Warning: {top1:.1f}% is {found.top1 - top1:.1f} points below that. Train longer, or on smaller images;"
            " as it is, the plain classifier is the better one.",
            style="bold red",
        )


def per_class_table(found: PerClass, class_names: Sequence[str]) -> Table:
    """Recall and precision of the classes, and what their images are taken for; of many, of those found least."""
    table = _table("class", "images", "recall", "precision", "taken for")
    table.columns[-1].justify = "left"
    counts, least = found.counts(), found.least_found()
    for number in least[:CLASS_ROWS] if len(least) > CLASS_ROWS else range(len(class_names)):
        others = [f"{class_names[other]} {count}" for count, other in found.taken_for(number)[:CONFUSED_WITH]]
        table.add_row(
            class_names[number],
            str(counts[number]),
            percent(found.recall[number]),
            percent(found.precision[number]),
            ", ".join(others),
        )
    if len(least) > CLASS_ROWS:
        table.add_row(f"and {len(class_names) - CLASS_ROWS} more, found better")
    return table


def recall_table(fitted: Sequence[Fitted], class_names: Sequence[str]) -> Table:
    """Recall on the test images by class and device; of many classes, of those found least in the mean."""
    from trainonce.pipeline.fitting import name_of

    table = _table("class", "images", *(f"recall, {name_of(one.max_macs)}" for one in fitted))
    counts, shown = fitted[0].per_class.counts(), list(range(len(class_names)))
    if len(shown) > CLASS_ROWS:
        found = [number for number in shown if counts[number]]
        shown = sorted(found, key=lambda number: sum(one.per_class.recall[number] or 0 for one in fitted))[:CLASS_ROWS]
    for number in shown:
        recalls = (percent(one.per_class.recall[number]) for one in fitted)
        table.add_row(class_names[number], str(counts[number]), *recalls)
    if len(shown) < len(class_names):
        table.add_row(f"and {len(class_names) - len(shown)} more")
    return table


def folds_table(found: Sequence[OverFolds]) -> Table:
    """What the networks for each device came to over the folds."""
    from trainonce.pipeline.fitting import name_of

    table = _table("device", "mean", "95% interval", "lowest fold", "highest fold")
    for one in found:
        interval = f"{one.low:.1f} to {one.high:.1f}"
        row = (f"{one.mean:.2f}%", interval, f"{min(one.top1):.2f}%", f"{max(one.top1):.2f}%")
        table.add_row(name_of(one.max_macs), *row)
    return table


def folds_recall_table(found: Sequence[OverFolds], class_names: Sequence[str]) -> Table:
    """Recall over all folds by class and device; of many classes, of those found least in the mean."""
    from trainonce.pipeline.fitting import name_of

    table = _table("class", *(f"recall, {name_of(one.max_macs)}" for one in found))
    shown = list(range(len(class_names)))
    if len(shown) > CLASS_ROWS:
        shown = sorted(shown, key=lambda number: sum(one.recall[number] or 0 for one in found))[:CLASS_ROWS]
    for number in shown:
        table.add_row(class_names[number], *(percent(one.recall[number]) for one in found))
    if len(shown) < len(class_names):
        table.add_row(f"and {len(class_names) - len(shown)} more")
    return table


def percent(value: float | None) -> str:
    """A share in percent; a dash where there is none."""
    return "–" if value is None else f"{value:.1f}%"


def say_per_class(found: PerClass, class_names: Sequence[str]) -> None:
    """Say what is done class by class, and which images are classified worst."""
    out.print(per_class_table(found, class_names))
    for sentence in found.sentences(class_names):
        out.print(sentence)
    for line in worst_lines(found, class_names):
        out.print(line)


def worst_lines(found: PerClass, class_names: Sequence[str], by: str = "") -> list[str]:
    """The images that are classified worst, one a line, under a heading that says by which network."""
    lines = [
        f"  {one.file or f'image {one.row}'}: {class_names[one.actual]}, taken for {class_names[one.taken_for]} with "
        f"{one.probability:.1%}"
        for one in found.worst[:WORST_SHOWN]
    ]
    return [f"Classified worst{f' by {by}' if by else ''}:", *lines] if lines else []


def print_json(value: Mapping[str, Any]) -> None:
    """Print a value as one line of JSON on stdout."""
    sys.stdout.write(json.dumps(value) + "\n")


def say_duration(seconds: float, as_json: bool, workers: int | None = 1) -> None:
    """Say what a dry run found: how long it would take here; as JSON on stdout too where that is asked for."""
    if as_json:
        print_json({"seconds": round(seconds, 1)} | ({"workers": workers} if workers and workers > 1 else {}))
    shared = f" by {workers} workers" if workers and workers > 1 else ""
    err.print(f"Would take about {duration(seconds)}{shared} on this machine.")
