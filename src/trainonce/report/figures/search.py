"""What the last search of a run found: its front, and random search's with as many true scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainonce.names import quoted
from trainonce.report.figures.charts import ZERO, ChartRow, arm_colour, arm_dash, chart_of, layered, require_plotting
from trainonce.report.loading import RunRecord
from trainonce.search.predictor import PredictorReport
from trainonce.search.recorded import ChosenSubnet, FrontEntry, RecordedFront
from trainonce.search.resources import SHOWN

if TYPE_CHECKING:
    import altair as alt

SEARCH, CONTROL = "search", "random search"


@dataclass(frozen=True, kw_only=True)
class Found:
    """One way of looking: its front, by falling top-1."""

    label: str
    evaluations: int
    hypervolume: float
    front: Sequence[FrontEntry]


@dataclass(frozen=True, kw_only=True)
class SearchInfo:
    """What the figure shows of one run."""

    run: str
    arm: str
    seed: int
    split: str
    images: int
    recorded: int
    resource: str
    """The name of the resource along the axis: the first that was kept small."""
    minimised: Sequence[str]
    limits: Mapping[str, float]
    numbers: str
    """What memory and size are counted in."""
    sides: Sequence[Found]
    predictor: PredictorReport | None
    """The report on the last round's predictor."""
    test: ChosenSubnet | None


def search_info(runs: Sequence[RunRecord]) -> list[SearchInfo]:
    """What the searches of these runs found, one for each run that was searched."""
    return [_info(run, run.front) for run in runs if run.front is not None]


def _info(run: RunRecord, found: RecordedFront) -> SearchInfo:
    reports = [one.predictor for one in found.rounds if one.predictor is not None]
    return SearchInfo(
        run=str(run.path),
        arm=run.arm,
        seed=run.seed,
        split=found.split,
        images=found.images,
        recorded=found.recorded,
        resource=found.minimised[0],
        minimised=found.minimised,
        limits=found.limits,
        numbers=found.numbers,
        sides=[
            Found(
                label=label,
                evaluations=side.evaluations,
                hypervolume=side.hypervolume,
                front=sorted(side.front, key=lambda entry: -entry.top1),
            )
            for label, side in ((SEARCH, found.search), (CONTROL, found.control))
            if side is not None
        ],
        predictor=reports[-1] if reports else None,
        test=found.test,
    )


def value_of(entry: FrontEntry, name: str) -> float:
    """What an entry of a front has of a resource, in the unit in which it is shown."""
    values = {**entry.measures, "macs": entry.macs, "params": entry.params}
    return float(values[name]) / SHOWN[name][1]


def points_of(info: SearchInfo) -> list[ChartRow]:
    """A row for each subnet of each front."""
    return [
        {
            "arm": side.label,
            "run": quoted(Path(info.run)),
            "seed": info.seed,
            "x": value_of(entry, info.resource),
            "top1": entry.top1,
            "macs": entry.macs / 1e6,
            "arch": quoted(entry.arch),
        }
        for side in info.sides
        for entry in side.front
    ]


def draw_search(info: SearchInfo) -> "alt.LayerChart":
    """Top-1 against the first resource that was kept small, a line for each side, and the limit where there is one."""
    require_plotting()
    import altair as alt

    labels = [side.label for side in info.sides]
    unit, worth = SHOWN[info.resource]
    rows = points_of(info)
    chart = chart_of(rows).encode(
        x=alt.X("x:Q", title=f"{info.resource}, {unit}", scale=alt.Scale(zero=False)),
        y=alt.Y("top1:Q", title=f"top-1, % of {info.images:,} {info.split} images", scale=alt.Scale(zero=False)),
        color=arm_colour(labels, lines=True),
    )
    tips = [alt.Tooltip("arm:N"), alt.Tooltip("top1:Q", title="top-1, %", format=".2f")]
    tips += [alt.Tooltip("x:Q", title=unit, format=".4~g"), alt.Tooltip("arch:N", title="architecture")]
    layers = [
        chart.mark_line(interpolate="step-after", strokeWidth=2).encode(strokeDash=arm_dash(labels)),
        chart.mark_circle(size=40, cursor="pointer").encode(tooltip=tips),
    ]
    if info.resource in info.limits:
        limit = chart_of([{"x": info.limits[info.resource] / worth}])
        layers.insert(0, limit.mark_rule(style=ZERO, strokeDash=[4, 4]).encode(x="x:Q"))
    return layered(*layers, height=300)
