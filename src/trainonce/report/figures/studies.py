"""What only a study shows: dose and response, probes alone and inside, arms compared with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trainonce.lab.studies.dose import DOUBLE_TURNS, Subnets, subnets_of
from trainonce.lab.studies.gap import StandAloneGap, stand_alone_gaps
from trainonce.lab.studies.results import RecordedConclusion
from trainonce.lab.studies.solo import INSIDE
from trainonce.report.figures.charts import (
    MEDIAN,
    ZERO,
    SeedMean,
    arm_colour,
    arm_scale,
    chart_of,
    distinct,
    layered,
    millions,
    require_plotting,
    seed_mean,
)
from trainonce.report.loading import PlottedScore, RunRecord

if TYPE_CHECKING:
    import altair as alt


@dataclass(frozen=True, kw_only=True)
class Dose:
    """How many subnets share the weights, and the probes' top-1: one value a seed, its mean over probes."""

    dose: str
    by_seed: dict[int, float]
    mean: SeedMean


def dose_info(runs: Sequence[RunRecord]) -> list[Dose]:
    """Probe top-1 by dose (the factor `dose`), in rising order with "all" last; none where no run has a dose.

    The control whose probe alone has more turns is left out.
    A seed counts for a dose as the mean over its probes. A probe counts with a seed where it has all doses with it, so
    that doses are compared on the same probes; where none has all, the doses that fewest have are left out.
    """
    found: dict[Subnets, dict[tuple[int, str], float]] = {}
    for run in runs:
        if "dose" in run.factors and (dose := subnets_of(run.factors)) != DOUBLE_TURNS:
            scores = {(run.seed, line.arch): line.top1 for line in probe_lines(run)}
            found.setdefault(dose, {}).update(scores)
    while found and not set.intersection(*map(set, found.values())):
        del found[min(found, key=lambda dose: len(found[dose]))]
    pairs = sorted(set.intersection(*map(set, found.values()))) if found else []
    doses = []
    for dose in sorted(found, key=lambda d: (isinstance(d, str), d)):
        values: dict[int, list[float]] = {}
        for seed, arch in pairs:
            values.setdefault(seed, []).append(found[dose][seed, arch])
        by_seed = {seed: float(np.mean(of_seed)) for seed, of_seed in values.items()}
        doses.append(Dose(dose=str(dose), by_seed=by_seed, mean=seed_mean(by_seed.values())))
    return doses


def probe_lines(run: RunRecord) -> list[PlottedScore]:
    """The scores of a run's probes."""
    return [line for lines in run.scores.values() for line in lines if line.probe]


def draw_dose(doses: Sequence[Dose]) -> "alt.LayerChart":
    """Top-1 of the probes against the dose: a dot for each seed, the mean and its interval."""
    require_plotting()
    import altair as alt

    order = [dose.dose for dose in doses]
    seeds = [{"dose": d.dose, "seed": seed, "top1": value} for d in doses for seed, value in d.by_seed.items()]
    means = [{"dose": d.dose, "mean": d.mean.mean, "low": d.mean.low, "high": d.mean.high} for d in doses]
    x = alt.X("dose:N", sort=order, title="subnets that share the weights", axis=alt.Axis(labelAngle=0))
    base = chart_of(means).encode(x=x)
    tips = [alt.Tooltip(f"{name}:Q", format=".2f") for name in ("mean", "low", "high")]
    scale = alt.Scale(zero=False)
    title = "probes' top-1, %"
    bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2, style=MEDIAN)
    bars = bars.encode(y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q", tooltip=tips)
    line = base.mark_line(point=alt.OverlayMarkDef(size=60), strokeWidth=2)
    line = line.encode(y=alt.Y("mean:Q", title=title, scale=scale), tooltip=tips)
    dots = chart_of(seeds).mark_circle(size=36, opacity=0.75)
    dots = dots.encode(
        x=x,
        y=alt.Y("top1:Q", scale=scale),
        color=alt.Color("seed:N", legend=alt.Legend(labelExpr="'seed ' + datum.label")),
        tooltip=["seed:N", "top1:Q"],
    )
    known = [bars] if any(d.mean.low is not None for d in doses) else []
    return layered(*known, line, dots, height=280)


@dataclass(frozen=True, kw_only=True)
class MeanGap:
    """A probe's stand-alone gap in points: of each seed, and their mean with its interval."""

    match: str
    """What was held equal: exposure or epochs."""
    strategy: str | None
    """What trained the supernet; earlier versions named none."""
    probe: str
    label: str
    macs: float
    by_seed: dict[int, float]
    gap: SeedMean

    @property
    def against(self) -> str:
        """What was held equal and where the probe was inside, as in `at equal epochs, inside rss`."""
        place = "" if self.strategy is None else f", inside {self.strategy}"
        return f"at equal {self.match}{place}"


def gap_info(runs: Sequence[RunRecord]) -> list[MeanGap]:
    """Gaps by match (the factor `match`), supernet (`strategy`) and probe, by rising MACs.

    None where no run trains a probe alone.
    """
    lines: dict[str, list[PlottedScore]] = {}
    inside: dict[str | None, list[PlottedScore]] = {}
    for run in runs:
        if run.factors.get("match") == INSIDE:
            strategy = run.factors.get("strategy")
            inside.setdefault(None if strategy is None else str(strategy), []).extend(probe_lines(run))
        elif "match" in run.factors and "probe" in run.factors:
            lines.setdefault(str(run.factors["match"]), []).extend(probe_lines(run))
    found = {
        (match, strategy): _by_probe(stand_alone_gaps(alone, within))
        for match, alone in sorted(lines.items())
        for strategy, within in inside.items()
    }
    macs = {arch: float(gaps[0].macs) for probes in found.values() for arch, gaps in probes.items()}
    order = sorted(macs, key=lambda arch: (macs[arch], arch))
    labels = dict(zip(order, distinct([millions(macs[arch]) for arch in order]), strict=True))
    return [
        MeanGap(
            match=match,
            strategy=strategy,
            probe=arch,
            label=labels[arch],
            macs=macs[arch],
            by_seed=(points := {gap.seed: gap.points for gap in probes[arch]}),
            gap=seed_mean(points.values()),
        )
        for (match, strategy), probes in found.items()
        for arch in order
        if arch in probes
    ]


def _by_probe(gaps: Sequence[StandAloneGap]) -> dict[str, list[StandAloneGap]]:
    """Each probe's gaps, by rising seed."""
    found: dict[str, list[StandAloneGap]] = {}
    for gap in gaps:
        found.setdefault(gap.arch, []).append(gap)
    return found


def draw_gaps(gaps: Sequence[MeanGap]) -> "alt.LayerChart":
    """Each probe's gap with its interval; right of zero the supernet cost it accuracy."""
    require_plotting()
    import altair as alt

    matches = list(dict.fromkeys(gap.against for gap in gaps))
    rows = [
        {"arm": g.against, "probe": g.label, "arch": g.probe, "gap": g.gap.mean, "seeds": g.gap.seeds}
        | {"low": g.gap.low, "high": g.gap.high}
        for g in gaps
    ]
    order = list(dict.fromkeys(gap.label for gap in sorted(gaps, key=lambda gap: gap.macs)))
    base = chart_of(rows).encode(
        y=alt.Y("probe:N", sort=order, title=None, axis=alt.Axis(grid=True)),
        yOffset=alt.YOffset("arm:N", sort=matches),
        color=arm_colour(matches),
        tooltip=["arm:N", "probe:N", *(alt.Tooltip(f"{n}:Q", format=".2f") for n in ("gap", "low", "high")), "arch:N"],
    )
    x = alt.X("gap:Q", title="alone − inside, points of top-1")
    bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q")
    dots = base.mark_point(filled=True, size=60, opacity=1).encode(x=x)
    known = [bars] if any(g.gap.low is not None for g in gaps) else []
    return layered(_zero(), *known, dots, height=24 * len(gaps))


def _zero() -> "alt.Chart":
    line: alt.Chart = chart_of([{"gap": 0}]).mark_rule(style=ZERO, strokeWidth=1.5)
    return line.encode(x="gap:Q")


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One comparison: a - b in points, with its interval and what follows."""

    label: str
    difference: float
    low: float | None
    high: float | None
    """Student's 95% interval over seeds; None where one seed allows none."""
    margin: float
    verdict: str
    seeds: int | None
    seeds_needed: float | None
    """For showing that there is no difference beyond the margin."""
    p_difference: float | None
    p_holm: float | None
    p_equivalence: float | None
    sentence: str


def effects_info(conclusion: RecordedConclusion | None) -> list[Effect]:
    """The comparisons that a study's conclusion rests on; none where it has none."""
    return [
        Effect(
            label=" − ".join(comparison.names),
            difference=comparison.difference,
            low=comparison.low,
            high=comparison.high,
            margin=comparison.margin,
            verdict=comparison.verdict,
            seeds=comparison.seeds,
            seeds_needed=comparison.seeds_needed,
            p_difference=comparison.p_difference,
            p_holm=comparison.p_holm,
            p_equivalence=comparison.p_equivalence,
            sentence=comparison.sentence,
        )
        for comparison in (conclusion.comparisons if conclusion else ())
        if comparison.difference is not None
    ]


def draw_effects(effects: Sequence[Effect]) -> "alt.LayerChart":
    """Each difference with its interval, over the band within which it counts as none."""
    require_plotting()
    import altair as alt

    rows = [
        {"label": e.label, "gap": e.difference, "low": e.low, "high": e.high, "verdict": e.verdict} for e in effects
    ]
    margin = max(effect.margin for effect in effects)
    band = chart_of([{"left": -margin, "right": margin}]).mark_rect(opacity=0.12, color="#80868f")
    verdicts = ["better", "equivalent", "cannot tell", "worse"]
    shapes = ["triangle-right", "square", "circle", "triangle-left"]
    base = chart_of(rows).encode(
        y=alt.Y("label:N", sort=[e.label for e in effects], title=None, axis=alt.Axis(grid=True, labelLimit=150)),
        color=alt.Color("verdict:N", scale=alt.Scale(domain=verdicts)),
        tooltip=["label:N", "verdict:N", *(alt.Tooltip(f"{n}:Q", format=".2f") for n in ("gap", "low", "high"))],
    )
    x = alt.X("gap:Q", title="difference, points of top-1")
    bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q")
    dots = base.mark_point(filled=True, size=80, opacity=1).encode(
        x=x, shape=alt.Shape("verdict:N", scale=alt.Scale(domain=verdicts, range=shapes))
    )
    known = [bars] if any(effect.low is not None for effect in effects) else []
    return layered(band.encode(x="left:Q", x2="right:Q"), _zero(), *known, dots, height=30 * len(effects))


@dataclass(frozen=True, kw_only=True)
class ArmSeeds:
    """An arm's mean top-1 over its subnets, one value a seed, and the mean over seeds."""

    arm: str
    by_seed: dict[int, float]
    mean: SeedMean


def seeds_info(scored: Mapping[str, Sequence[PlottedScore]]) -> list[ArmSeeds]:
    """What each arm scores, seed by seed; `scored` has scores by arm."""
    arms = []
    for arm, lines in scored.items():
        found: dict[int, list[float]] = {}
        for line in lines:
            found.setdefault(line.seed, []).append(line.top1)
        by_seed = {seed: float(np.mean(values)) for seed, values in sorted(found.items())}
        arms.append(ArmSeeds(arm=arm, by_seed=by_seed, mean=seed_mean(by_seed.values())))
    return arms


def draw_seeds(arms: Sequence[ArmSeeds]) -> "alt.LayerChart":
    """A dot for each seed of each arm, beside the mean and its 95% interval over seeds."""
    require_plotting()
    import altair as alt

    names = [arm.arm for arm in arms]
    seeds = [{"arm": a.arm, "seed": seed, "top1": value} for a in arms for seed, value in a.by_seed.items()]
    means = [{"arm": a.arm, "mean": a.mean.mean, "low": a.mean.low, "high": a.mean.high} for a in arms]
    y = alt.Y("arm:N", sort=names, title=None, axis=alt.Axis(grid=True, labelLimit=140))
    colour = alt.Color("arm:N", scale=arm_scale(names), legend=None)
    scale = alt.Scale(zero=False)
    tips = [alt.Tooltip("arm:N"), *(alt.Tooltip(f"{name}:Q", format=".2f") for name in ("mean", "low", "high"))]
    base = chart_of(means).encode(y=y, color=colour, tooltip=tips)
    title = "mean top-1 over the subnets, %"
    x = alt.X("low:Q", title=title, scale=scale)
    bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2).encode(x=x, x2="high:Q")
    ticks = base.mark_tick(thickness=3, height=18).encode(x=alt.X("mean:Q", scale=scale, title=title))
    dots = chart_of(seeds).mark_circle(size=44, opacity=0.6)
    dots = dots.encode(x=alt.X("top1:Q", scale=scale), y=y, color=colour, tooltip=["arm:N", "seed:N", "top1:Q"])
    known = [bars] if any(a.mean.low is not None for a in arms) else []
    return layered(*known, ticks, dots, height=34 * len(arms))
