"""What a command shows when it is done: tables, and the sentences under them. Nothing here computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from trainonce.cli import display
from trainonce.names import plain

if TYPE_CHECKING:
    from trainonce.evaluation.per_class import PerClass
    from trainonce.evaluation.population import BucketSummary
    from trainonce.lab.studies.study import Study
    from trainonce.lab.studies.summary import ArmSummary
    from trainonce.pipeline.fitted import Fitted
    from trainonce.pipeline.folds import OverFolds
    from trainonce.pipeline.shipped import Shipped
    from trainonce.recipes import Recipe
    from trainonce.search import Problem, SearchResult

FRONT_ROWS = 25
"""At most so many subnets of a front are shown; front.json has all."""
CLASS_ROWS = 20
"""At most so many classes are shown; the JSON has all."""
CONFUSED_WITH = 3
"""So many other classes that a class is taken for are shown."""
WORST_SHOWN = 5
"""So many of the images that are classified worst are shown."""


def population_table(summaries: Sequence[BucketSummary]) -> Table:
    """Medians, quartiles and ranges of top-1 by bucket."""
    table = display.plain_table("bucket (MACs)", "subnets", "mean MACs", "median", "quartiles", "range")
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
    table = display.plain_table("recipe", "epochs", "passes", "about")
    table.columns[3].justify = "left"
    for recipe in recipes:
        table.add_row(recipe.name, f"{recipe.epochs:.4g}", f"{recipe.passes:.4g}", recipe.about)
    return table


def study_plan(study: Study) -> Table:
    """The arms of a study with their number of runs and their length, which may differ within an arm."""
    table = display.plain_table("arm", "runs", "epochs", "passes", "about")
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
    table = display.plain_table("arm", "seeds", "subnets", "top-1", "seeds' range", "training", "passes")
    for s in summaries:
        table.add_row(
            s.arm,
            str(s.seeds),
            str(s.subnets),
            f"{s.top1:.2f}",
            f"{s.lowest_seed:.2f} to {s.highest_seed:.2f}",
            display.duration(s.train_seconds),
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
    table = display.plain_table(
        "front", "top-1", "M MACs", "M params", *(SHOWN[name][0] for name in others), "architecture"
    )
    table.columns[-1].justify = "left"
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
        f"Best within the limits: {found.best.top1:.2f}% by search, with {found.evaluations} true scores beside the "
        f"{result.recorded} recorded before; its front fills {found.hypervolume:.3f} of the box around all that was "
        "scored."
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


def as_they_came(fitted: Sequence[Fitted]) -> bool:
    """Whether every device's network is as it is in the supernet at its end."""
    return not any(one.finetuned_epochs or one.before_subnets for one in fitted)


def fitted_table(fitted: Sequence[Fitted]) -> Table:
    """The network for each device; its directory has the device's name."""
    from trainonce.pipeline.fitted import name_of

    validate = ("validate",) if as_they_came(fitted) else ("from supernet", "fine-tuned")
    table = display.plain_table("device", "M MACs", "M params", "pixels", *validate, "test", "95% interval")
    for one in fitted:
        after = "as it was alone" if one.before_subnets else "as it was"
        tuned = f"{one.after.top1:.2f}%" if one.finetuned_epochs else after
        table.add_row(
            name_of(one.max_macs),
            f"{one.macs / 1e6:.3f}",
            f"{one.params / 1e6:.3f}",
            str(one.resolution or "-"),
            f"{one.before.top1:.2f}%",
            *((tuned,) if len(validate) > 1 else ()),
            f"{one.test.top1:.2f}%",
            "{:.1f} to {:.1f}".format(*one.test.interval()),
        )
    return table


def shipped_table(shipped: Sequence[Shipped], failed: Mapping[str, str]) -> Table:
    """What each device got; those that failed are named below."""
    columns = ("M MACs", "validate", "test", "95% interval", "KB file", "KB RAM", "ms", "certificate")
    table = display.plain_table("device", "target", *columns, left=2)
    for one in shipped:
        ms = "-" if one.latency_ms is None else f"{plain(one.latency_ms, 3)}{'' if one.latency_table else '*'}"
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


def per_class_table(found: PerClass, class_names: Sequence[str]) -> Table:
    """Recall and precision of the classes, and what their images are taken for; of many, of those found least."""
    table = display.plain_table("class", "images", "recall", "precision", "taken for")
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
    from trainonce.pipeline.fitted import name_of

    table = display.plain_table("class", "images", *(f"recall, {name_of(one.max_macs)}" for one in fitted))
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
    from trainonce.pipeline.fitted import name_of

    table = display.plain_table("device", "mean", "95% interval", "lowest fold", "highest fold")
    for one in found:
        interval = f"{one.low:.1f} to {one.high:.1f}"
        row = (f"{one.mean:.2f}%", interval, f"{min(one.top1):.2f}%", f"{max(one.top1):.2f}%")
        table.add_row(name_of(one.max_macs), *row)
    return table


def folds_recall_table(found: Sequence[OverFolds], class_names: Sequence[str]) -> Table:
    """Recall over all folds by class and device; of many classes, of those found least in the mean."""
    from trainonce.pipeline.fitted import name_of

    table = display.plain_table("class", *(f"recall, {name_of(one.max_macs)}" for one in found))
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
    display.out.print(per_class_table(found, class_names))
    for sentence in found.sentences(class_names):
        display.out.print(sentence)
    for line in worst_lines(found, class_names):
        display.out.print(line)


def worst_lines(found: PerClass, class_names: Sequence[str], by: str = "") -> list[str]:
    """The images that are classified worst, one a line, under a heading that says by which network."""
    lines = [
        f"  {one.file or f'image {one.row}'}: {class_names[one.actual]}, taken for {class_names[one.taken_for]} with "
        f"{one.probability:.1%}"
        for one in found.worst[:WORST_SHOWN]
    ]
    return [f"Classified worst{f' by {by}' if by else ''}:", *lines] if lines else []
