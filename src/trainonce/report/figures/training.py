"""Training: how long each arm took, and how loss and accuracy went."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from trainonce.report.figures.charts import (
    ChartRow,
    SeedMean,
    arm_colour,
    arm_dash,
    arm_scale,
    chart_of,
    layered,
    page_size,
    require_plotting,
    seed_mean,
)
from trainonce.report.loading import RunRecord
from trainonce.run.lines import MetricsLine

if TYPE_CHECKING:
    import altair as alt

CURVE_POINTS = 150
ALL_POINTS = 4000
"""At most so many points of a run, and about so many of all, are drawn; each is the mean of the lines it stands for."""


@dataclass(frozen=True, kw_only=True)
class ArmTime:
    """How long an arm trained, in seconds, over its seeds."""

    arm: str
    seconds: SeedMean
    passes: float
    """Subnet passes over the images that were made in that time, in the mean."""
    times_less: float
    """The slowest arm's seconds over these."""


@dataclass(frozen=True, kw_only=True)
class TimesInfo:
    """Training times of the arms, as they are drawn."""

    arms: list[ArmTime]
    slowest: str
    beside: list[int]
    """How many runs trained at the same time, where that is recorded."""


def times_info(runs: Sequence[RunRecord]) -> TimesInfo | None:
    """Mean training seconds by arm and how many times less that is than the slowest; None where no run says."""
    by_arm: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        if run.train_seconds and run.passes is not None:
            by_arm.setdefault(run.arm, []).append((run.train_seconds, run.passes))
    if not by_arm:
        return None
    seconds = {arm: seed_mean(taken for taken, _ in found) for arm, found in by_arm.items()}
    slowest = max(seconds, key=lambda arm: seconds[arm].mean)
    arms = [
        ArmTime(
            arm=arm,
            seconds=seconds[arm],
            passes=float(np.mean([passes for _, passes in found])),
            times_less=seconds[slowest].mean / seconds[arm].mean,
        )
        for arm, found in by_arm.items()
    ]
    return TimesInfo(arms=arms, slowest=slowest, beside=sorted({run.beside for run in runs if run.beside}))


def spoken(seconds: float) -> str:
    """A time as a figure's label has it: 42 s, 12.3 min, 4.57 h."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"


def draw_times(info: TimesInfo) -> "alt.LayerChart":
    """A bar for each arm with its time and how many times less it is than the slowest."""
    require_plotting()
    import altair as alt

    names = [arm.arm for arm in info.arms]
    rows = [
        {
            "arm": arm.arm,
            "minutes": arm.seconds.mean / 60,
            "label": spoken(arm.seconds.mean) + ("" if arm.arm == info.slowest else f", {arm.times_less:.2f}x less"),
            "passes": arm.passes,
            "seeds": arm.seconds.seeds,
        }
        for arm in info.arms
    ]
    longest = max(row["minutes"] for row in rows if isinstance(row["minutes"], float))
    tips = [alt.Tooltip("arm:N"), alt.Tooltip("label:N", title="time"), alt.Tooltip("passes:Q", format=".4~g")]
    base = chart_of(rows).encode(
        y=alt.Y("arm:N", sort=names, title=None, axis=alt.Axis(labelLimit=140)),
        x=alt.X("minutes:Q", title="minutes of training", scale=alt.Scale(domain=[0, longest * 1.7])),
        tooltip=[*tips, alt.Tooltip("seeds:Q")],
    )
    bars = base.mark_bar(height={"band": 0.7}).encode(color=alt.Color("arm:N", scale=arm_scale(names), legend=None))
    text = base.mark_text(align="left", dx=5, fontSize=11).encode(text="label:N")
    return layered(bars, text, height=34 * len(names))


Quantity = Literal["loss", "top1"]
Against = Literal["passes", "seconds"]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run's training, thinned: [N] values each."""

    arm: str
    seed: int
    run: str
    passes: list[float]
    seconds: list[float] | None
    loss: list[float]
    top1: list[float]


@dataclass(frozen=True, kw_only=True)
class CurvesInfo:
    """The learning curves of all runs."""

    curves: list[Curve]


def curves_info(runs: Sequence[RunRecord]) -> CurvesInfo | None:
    """Every run's curves, each thinned to means of neighbouring lines; None where no run has metrics."""
    trained = [run for run in runs if run.metrics]
    points = max(20, min(CURVE_POINTS, ALL_POINTS // max(1, len(trained))))
    curves = [_curve(run, points) for run in trained]
    return CurvesInfo(curves=curves) if curves else None


def _curve(run: RunRecord, points: int) -> Curve:
    parts = np.array_split(np.arange(len(run.metrics)), min(points, len(run.metrics)))

    def means(of: Callable[[MetricsLine], float]) -> list[float]:
        values = np.array([of(line) for line in run.metrics], dtype=np.float64)
        return [float(values[part].mean()) for part in parts]

    timed = all(line.seconds is not None for line in run.metrics)
    return Curve(
        arm=run.arm,
        seed=run.seed,
        run=run.name,
        passes=means(lambda line: line.passes),
        seconds=means(lambda line: line.seconds or 0.0) if timed else None,
        loss=means(lambda line: line.loss),
        top1=means(lambda line: line.top1),
    )


def draw_curves(info: CurvesInfo, quantity: Quantity = "loss", against: Against = "passes") -> "alt.Chart":
    """Loss or top-1 on training images against passes or seconds, a line for each run."""
    require_plotting()
    import altair as alt

    rows: list[ChartRow] = []
    for curve in info.curves:
        xs = curve.passes if against == "passes" else curve.seconds
        ys = curve.loss if quantity == "loss" else curve.top1
        named = {"arm": curve.arm, "seed": curve.seed, "run": curve.run}
        rows += [named | {"x": round(x, 4), "y": round(y, 4)} for x, y in zip(xs or [], ys, strict=False)]
    arms = list(dict.fromkeys(curve.arm for curve in info.curves))
    title = {"passes": "subnet passes over the training images", "seconds": "seconds of training"}[against]
    named_y = {"loss": "training loss", "top1": "top-1 on training images, %"}[quantity]
    lines: alt.Chart = chart_of(rows).mark_line(strokeWidth=1.6, opacity=0.85)
    return lines.encode(
        x=alt.X("x:Q", title=title, scale=alt.Scale(nice=False)),
        y=alt.Y("y:Q", title=named_y, scale=alt.Scale(zero=False)),
        color=arm_colour(arms, lines=True),
        strokeDash=arm_dash(arms),
        detail="run:N",
        tooltip=[alt.Tooltip("arm:N"), alt.Tooltip("seed:N"), alt.Tooltip("x:Q", title=against), "y:Q"],
    ).properties(**page_size(240))
