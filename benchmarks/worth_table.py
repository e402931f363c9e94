"""What `worth.py` measured, as values: the best setting of each side, the break-even, one table, one picture."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from trainonce.lab.statistics import student
from trainonce.report.figures.charts import chart_of, require_plotting, save_chart

DEVICES = (0.25, 0.5, 1.0)
"""The devices: shares of the largest subnet's MACs."""
OURS, ALONE, RESNET = "ours", "alone", "resnet"

Row = TypeVar("Row")


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
    lines = [f"| {' | '.join([*titles, 'seeds'])} |", "|---" * (len(titles) + 1) + "|"]
    for (data, geometry, minutes), found in _grouped(results, lambda one: one.group).items():
        chosen = chosen_settings(found)
        ours = mean_by_seed(chosen.get(OURS, ()))
        rows = list(chosen.values())
        if every_setting:
            rows = list(_grouped(found, lambda one: (one.name, one.settings)).values())
        for row in rows:
            lines.append(f"| {data} | {geometry} | {minutes:g} | {' | '.join(_cells(row, ours))} |")
    return "\n".join(lines)


def _cells(row: Sequence[Result], ours: Mapping[int, float]) -> list[str]:
    means, on_validate = mean_by_seed(row), mean_by_seed(row, "validate")
    cells = [row[0].name, row[0].settings]
    for device in DEVICES:
        values = [one.test for one in row if one.device in (device, None)]
        cells.append(interval(values) if values else "–")
    seeds = {one.seed for one in row}
    both = sorted(set(means) & set(ours)) if row[0].side != OURS else []
    cells.append(interval(list(means.values())) if means else "–")
    cells.append(interval(list(on_validate.values())) if on_validate else "–")
    cells.append(interval([ours[seed] - means[seed] for seed in both]) if both else "–")
    return [*cells, f"{sum(one.seconds for one in row) / len(seeds):.0f}", str(len(seeds))]


def break_evens(results: Sequence[Result]) -> str:
    """Markdown: the break-even of each set and budget, and at which numbers of devices a rival was measured."""
    lines = ["| set | geometry | minutes | break-even in devices | measured at |", "|---|---|---|---|---|"]
    for (data, geometry, minutes), found in _grouped(results, lambda one: one.group).items():
        said = break_even_of(chosen_settings(found))
        lines.append(f"| {data} | {geometry} | {minutes:g} | {said} | {', '.join(map(str, said.measured)) or '–'} |")
    return "\n".join(lines)


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
