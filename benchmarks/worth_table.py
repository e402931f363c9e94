"""What `worth.py` measured, as values: the best setting of each side, the break-even, tables, goals, one picture."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from trainonce.lab.statistics import student
from trainonce.report.figures.charts import chart_of, require_plotting, save_chart

DEVICES = (0.25, 0.5, 1.0)
"""The devices: shares of the largest subnet's MACs."""
OURS, ALONE, RESNET = "ours", "alone", "resnet"
CLASSIFIERS = {"svm", "logistic"}
"""scikit-learn's."""

Row = TypeVar("Row")


class Goal(NamedTuple):
    """How many points ours is to be ahead of a side, at least; None for no such goal."""

    device: float | None = None
    """On each device."""
    mean: float | None = None
    """On the mean of the devices."""


GOALS = {ALONE: Goal(device=0.0, mean=0.0), RESNET: Goal(device=-1.0)} | dict.fromkeys(CLASSIFIERS, Goal(device=5.0))
"""Below `LONG` minutes; ours has reached that over a classifier where it is above `AMPLE` percent."""
LONG_GOALS = {ALONE: Goal(mean=0.0), RESNET: Goal(mean=0.0)}
LONG, AMPLE = 40, 95.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """One network on one device: a line of the file."""

    data: str
    geometry: str
    """Of the supernet, whose largest MACs the devices are shares of."""
    minutes: float
    seed: int
    side: str
    """ours, alone, resnet, svm, logistic or timm's name."""
    settings: str
    """How the side was set, in words; settings of a side compete on validate."""
    sharing: int
    """Among how many devices the budget is shared: each of them gets that part of the time."""
    device: float | None
    """Share of the largest MACs; None for a network or classifier that is the same for all devices."""
    macs: int | None
    params: int | None
    validate: float
    """Top-1 in percent."""
    test: float
    seconds: float
    """CPU seconds: this network's own, or a third of what ours took for its three."""
    about: dict[str, Any] = field(default_factory=dict)
    """Whatever else was noted: the architecture, steps, where the time went."""

    @property
    def group(self) -> tuple[str, str, float]:
        """What is compared with each other: the same set, geometry and budget."""
        return self.data, self.geometry, self.minutes

    @property
    def name(self) -> str:
        """The side, and for networks trained alone its part of the time."""
        return f"{self.side}, 1/{self.sharing} each" if self.side == ALONE else self.side


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """From how many devices on training once is ahead; None where it is not at any number that was measured."""

    devices: int | None
    measured: tuple[int, ...]
    """Numbers of devices with a measured rival, rising."""

    def __str__(self) -> str:
        if not self.measured:
            return "none measured"
        if self.devices is None:
            return f"more than {self.measured[-1]}"
        return f"{self.devices}" if self.devices > self.measured[0] else f"{self.devices} or fewer"


def break_even(ours: Mapping[int, float], alone: Mapping[int, Mapping[int, float]]) -> BreakEven:
    """From how many devices on training once beats training each alone in the same total time T.

    Whoever trains n devices' networks alone has T / n for each; training once takes T for all of them. The break-even
    is the smallest measured n from which on, at every larger measured n too, ours is at least as accurate as networks
    trained alone for T / n. `ours` has the mean test accuracy over the three devices for each seed, and `alone` the
    same for each n; compared are means over the seeds that both have. Ours finetunes for three devices whatever n is.
    """
    ahead: dict[int, bool] = {}
    for count, by_seed in sorted(alone.items()):
        seeds = sorted(set(ours) & set(by_seed))
        if seeds:
            ahead[count] = statistics.mean(ours[s] - by_seed[s] for s in seeds) >= 0
    first = None
    for count in reversed(ahead):
        if not ahead[count]:
            break
        first = count
    return BreakEven(devices=first, measured=tuple(ahead))


def mean_by_seed(results: Iterable[Result], split: str = "test") -> dict[int, float]:
    """The mean accuracy over the devices for each seed that has all of them, or a network that is the same for all."""
    found: dict[int, dict[float | None, float]] = {}
    for one in results:
        found.setdefault(one.seed, {})[one.device] = one.validate if split == "validate" else one.test
    return {
        seed: statistics.mean(by_device.values())
        for seed, by_device in found.items()
        if None in by_device or set(by_device) >= set(DEVICES)
    }


def chosen_settings(results: Sequence[Result]) -> dict[str, list[Result]]:
    """For each side the results of the setting with the best mean accuracy on validate, seeds with all devices only."""
    chosen: dict[str, tuple[float, list[Result]]] = {}
    for (name, _), found in _grouped(results, lambda one: (one.name, one.settings)).items():
        means = mean_by_seed(found, "validate")
        if means and (name not in chosen or statistics.mean(means.values()) > chosen[name][0]):
            chosen[name] = statistics.mean(means.values()), [one for one in found if one.seed in means]
    return {name: found for name, (_, found) in chosen.items()}


def _grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    return {name: list(found) for name, found in groupby(sorted(rows, key=key), key=key)}


def break_even_of(chosen: Mapping[str, Sequence[Result]]) -> BreakEven:
    """The break-even of one set and budget, from the chosen setting of each side."""
    alone = {found[0].sharing: mean_by_seed(found) for found in chosen.values() if found[0].side == ALONE}
    return break_even(mean_by_seed(chosen.get(OURS, ())), alone)


def interval(values: Sequence[float]) -> str:
    """The mean, and with two or more seeds the half width of Student's 95% interval: 61.2 ± 1.4."""
    over = student(values)
    return f"{values[0]:.1f}" if over is None else f"{over.estimate:.1f} ± {over.high - over.estimate:.1f}"


def overview(results: Sequence[Result]) -> str:
    """Markdown: a row for each set and budget, with the setting of each side that validate chose.

    Accuracy is top-1 on test in percent, of ours on each device, of the others the mean over the devices; mean ± half
    of Student's 95% interval over seeds.
    """
    rivals = sorted({one.name for one in results if one.side != OURS})
    heads = ["set", "minutes", "seeds", *(f"ours, {device:.0%}" for device in DEVICES), "ours, mean", *rivals]
    lines = [_row([*heads, "break-even in devices"]), "|---" * (len(heads) + 1) + "|"]
    for (data, geometry, minutes), found in _grouped(results, lambda one: one.group).items():
        chosen = chosen_settings(found)
        ours = chosen.get(OURS, [])
        cells = [f"{data}, {geometry}", f"{minutes:g}", str(len(mean_by_seed(ours)))]
        cells += [_over_seeds([one.test for one in ours if one.device == device]) for device in DEVICES]
        cells += [_over_seeds(list(mean_by_seed(chosen.get(name, ())).values())) for name in (OURS, *rivals)]
        lines.append(_row([*cells, str(break_even_of(chosen))]))
    return "\n".join(lines)


def ahead(results: Sequence[Result]) -> str:
    """Markdown: by how many points ours is ahead of each side, on each device and on the mean, over the seeds of both.

    Of `CLASSIFIERS` with the better one on validate. Mean ± half of Student's 95% interval. In bold means that miss the
    goal at their budget (`GOALS`).
    """
    heads = ["set", "minutes", "ours less", *(f"{device:.0%}" for device in DEVICES), "mean"]
    lines = [_row(heads), "|---" * len(heads) + "|"]
    for (data, geometry, minutes), found in _grouped(results, lambda one: one.group).items():
        chosen = chosen_settings(found)
        ours = chosen.pop(OURS, [])
        for name in sorted(CLASSIFIERS & chosen.keys(), key=lambda name: _on_validate(chosen[name]))[:-1]:
            del chosen[name]
        for name, rival in sorted(chosen.items()):
            goal = goal_of(rival[0], minutes)
            cells = [_difference(ours, rival, device, goal.device) for device in DEVICES]
            cells.append(_difference(ours, rival, None, goal.mean))
            lines.append(_row([f"{data}, {geometry}", f"{minutes:g}", name, *cells]))
    return "\n".join(lines)


def goal_of(rival: Result, minutes: float) -> Goal:
    """What ours is to be ahead of a rival by in a budget; none of one that has more than a device's part of it."""
    goals = LONG_GOALS if minutes >= LONG else GOALS
    return goals.get(rival.side, Goal()) if rival.sharing == len(DEVICES) else Goal()


def _on_validate(side: Sequence[Result]) -> float:
    return statistics.mean(mean_by_seed(side, "validate").values())


def _difference(ours: Sequence[Result], rival: Sequence[Result], device: float | None, goal: float | None) -> str:
    """Ours less a rival's on a device, None for the mean over all, over the seeds of both; in bold below the goal."""
    if device is None:
        first, other = mean_by_seed(ours), mean_by_seed(rival)
    else:
        first, other = ({one.seed: one.test for one in side if one.device in (device, None)} for side in (ours, rival))
    both = sorted(first.keys() & other.keys())
    if not both:
        return "–"
    differences = [first[seed] - other[seed] for seed in both]
    ample = rival[0].side in CLASSIFIERS and statistics.mean(first[seed] for seed in both) > AMPLE
    missed = goal is not None and statistics.mean(differences) < goal and not ample
    return f"**{interval(differences)}**" if missed else interval(differences)


def table(results: Sequence[Result], *, every_setting: bool = False) -> str:
    """Markdown: a row for each side of each set and budget, with the setting that validate chose, or with all of them.

    Accuracy is on test in percent, mean ± half of Student's 95% interval over seeds; `seconds` are CPU seconds for all
    three devices together, a mean over seeds; a difference is ours less the side's, over seeds that both have.
    """
    heads = [f"{device:.0%}" for device in DEVICES]
    titles = [
        "set",
        "geometry",
        "minutes",
        "side",
        "settings",
        *heads,
        "mean",
        "mean on validate",
        "ours ahead by",
        "seconds",
    ]
    lines = [_row([*titles, "seeds"]), "|---" * (len(titles) + 1) + "|"]
    for (data, geometry, minutes), found in _grouped(results, lambda one: one.group).items():
        chosen = chosen_settings(found)
        ours = mean_by_seed(chosen.get(OURS, ()))
        rows = list(chosen.values())
        if every_setting:
            rows = list(_grouped(found, lambda one: (one.name, one.settings)).values())
        for row in rows:
            lines.append(_row([data, geometry, f"{minutes:g}", *_cells(row, ours)]))
    return "\n".join(lines)


def _cells(row: Sequence[Result], ours: Mapping[int, float]) -> list[str]:
    means, on_validate = mean_by_seed(row), mean_by_seed(row, "validate")
    cells = [row[0].name, row[0].settings]
    for device in DEVICES:
        cells.append(_over_seeds([one.test for one in row if one.device in (device, None)]))
    seeds = {one.seed for one in row}
    both = sorted(set(means) & set(ours)) if row[0].side != OURS else []
    cells += [_over_seeds(list(means.values())), _over_seeds(list(on_validate.values()))]
    cells.append(_over_seeds([ours[seed] - means[seed] for seed in both]))
    return [*cells, f"{sum(one.seconds for one in row) / len(seeds):.0f}", str(len(seeds))]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _over_seeds(values: Sequence[float]) -> str:
    return interval(values) if values else "–"


def draw(results: Sequence[Result], path: str | Path) -> None:
    """Test accuracy against CPU seconds for all three devices, a panel for each set and device, into a picture.

    Raises `UserError` without the extra `plot`, and for an ending that is none of a picture.
    """
    require_plotting()
    import altair as alt

    rows: list[dict[str, Any]] = []
    for (data, geometry, _), found in _grouped(results, lambda one: one.group).items():
        for chosen in chosen_settings(found).values():
            seconds = sum(one.seconds for one in chosen) / len({one.seed for one in chosen})
            for device in DEVICES:
                top1 = statistics.mean(one.test for one in chosen if one.device in (device, None))
                place = {"set": f"{data}, {geometry} geometry", "device": f"{device:.0%} of the MACs"}
                rows.append(place | {"seconds": seconds, "side": chosen[0].side, "top1": top1})
    scale = alt.Scale(domain=sorted({row["side"] for row in rows}))
    encoded = {
        "x": alt.X("seconds:Q", scale=alt.Scale(type="log"), title="CPU seconds for all three devices"),
        "y": alt.Y("top1:Q", scale=alt.Scale(zero=False), title="top-1 on test, %"),
        "color": alt.Color("side:N", scale=scale),
    }
    panels = []
    for name, of_set in _grouped(rows, lambda row: row["set"]).items():
        chart = chart_of(of_set)
        points = chart.mark_point(filled=True, size=70, opacity=1).encode(
            shape=alt.Shape("side:N", scale=scale), **encoded
        )
        whole = alt.layer(chart.mark_line(strokeWidth=1.5).encode(**encoded), points).properties(width=210, height=160)
        order = [f"{device:.0%} of the MACs" for device in DEVICES]
        panels.append(whole.facet(column=alt.Column("device:N", sort=order, title=None), title=name))
    save_chart(alt.vconcat(*panels), path)
