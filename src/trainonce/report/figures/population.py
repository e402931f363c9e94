"""The population as the paper draws it: top-1 against MACs, a box for each bucket, arms side by side; Pareto fronts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainonce.errors import UserError
from trainonce.evaluation.evaluator import SplitName
from trainonce.evaluation.population import (
    Bucket,
    BucketSummary,
    make_buckets,
    newest_lines,
    pareto_front,
    summarise,
)
from trainonce.models import Supernet
from trainonce.names import command, plural, quoted
from trainonce.report.figures.charts import MEDIAN, ChartRow, arm_colour, arm_dash, chart_of, layered, require_plotting
from trainonce.report.loading import PlottedScore, arms_of, scored
from trainonce.run.directory import RunDirectory

if TYPE_CHECKING:
    import altair as alt

SLOTS_USED = 0.8
"""The part of the way from one bucket's centre to the next that its boxes take together."""
BOX_USED = 0.9
"""The part of its slot that a box takes."""
INSIDE_BOX = 0.75
"""The part of a box's width over which its points lie."""


@dataclass(frozen=True, kw_only=True)
class ArmPopulation:
    """One arm's scores: all seeds together in the buckets, a front for each run."""

    label: str
    seeds: list[int]
    lines: list[PlottedScore]
    summaries: list[BucketSummary]
    fronts: dict[str, list[PlottedScore]]
    """By run."""

    @property
    def text(self) -> str:
        """How many subnets of how many trainings these are."""
        supernets = "one supernet" if len(self.fronts) == 1 else f"{len(self.fronts)} supernets"
        return f"{plural(len(self.lines), 'subnet')} of {supernets}"


@dataclass(frozen=True, kw_only=True)
class Lead:
    """How far one arm is ahead of another on the subnets, and seeds, scored in both: the mean difference in points."""

    ahead: str
    behind: str
    points: float
    subnets: int

    @property
    def text(self) -> str:
        """Who is ahead by how much, as a sentence begins."""
        points = f"{self.points:.1f}"
        if points == "0.0":
            return f"{self.ahead} is level with {self.behind}"
        return f"{self.ahead} is ahead of {self.behind} by {points} points of top-1"


@dataclass(frozen=True, kw_only=True)
class PopulationInfo:
    """What the figures show."""

    data: str
    split: SplitName
    images: int
    buckets: list[Bucket]
    arms: list[ArmPopulation]
    leads: list[Lead]


def population_info(
    runs: Sequence[RunDirectory],
    split: SplitName = "validate",
    centres_m: Sequence[float] = (),
    half_m: float | None = None,
) -> PopulationInfo:
    """The scores of the newest weights scored on a split, by bucket (see `make_buckets`; those of the first run).

    Needs run.json and population.jsonl alone, so it also draws results whose weights were not kept.

    Raises `UserError` for a run without scores, and for runs on different data.
    """
    by_arm: dict[str, list[PlottedScore]] = {}
    net: Supernet | None = None
    configs = [run.config() for run in runs]
    if len({config.data_fingerprint for config in configs}) > 1:
        raise UserError("the runs were trained on different data: draw them one by one")
    for run, config, arm in zip(runs, configs, arms_of(runs), strict=True):
        net = net or run.build_supernet()
        lines = newest_lines(run.population(), split)
        if not lines:
            raise UserError(f"{run.path} has no scores on the {split} split: run `trainonce evaluate` on it first")
        by_arm.setdefault(arm, []).extend(scored(line, run.path, config.seed) for line in lines)
    assert net is not None
    return population_of(by_arm, make_buckets(net.cost, centres_m, half_m), data=configs[0].data.name, split=split)


def population_of(
    by_arm: Mapping[str, Sequence[PlottedScore]], buckets: Sequence[Bucket], *, data: str, split: SplitName
) -> PopulationInfo:
    """What the scores of each arm come to."""
    arms = []
    for label, lines in by_arm.items():
        by_run: dict[str, list[PlottedScore]] = {}
        for line in lines:
            by_run.setdefault(line.run, []).append(line)
        arms.append(
            ArmPopulation(
                label=label,
                seeds=sorted({line.seed for line in lines}),
                lines=list(lines),
                summaries=summarise(lines, buckets),
                fronts={run: pareto_front(found) for run, found in by_run.items()},
            )
        )
    return PopulationInfo(
        data=data,
        split=split,
        images=max(line.images for arm in arms for line in arm.lines),
        buckets=list(buckets),
        arms=arms,
        leads=_leads(arms),
    )


def _leads(arms: Sequence[ArmPopulation]) -> list[Lead]:
    """Every pair of arms, compared subnet by subnet on their means over seeds, the widest lead first."""
    leads = []
    for a, b in combinations(arms, 2):
        seeds = set(a.seeds) & set(b.seeds) or {*a.seeds, *b.seeds}
        first, second = _means(a, seeds), _means(b, seeds)
        shared = sorted(first.keys() & second.keys())
        if not shared:
            continue
        points = float(np.mean([first[arch] - second[arch] for arch in shared]))
        ahead, behind = (a, b) if points >= 0 else (b, a)
        leads.append(Lead(ahead=ahead.label, behind=behind.label, points=abs(points), subnets=len(shared)))
    return sorted(leads, key=lambda lead: -lead.points)


def _means(arm: ArmPopulation, seeds: set[int]) -> dict[str, float]:
    """The mean top-1 of each subnet over these seeds."""
    found: dict[str, list[float]] = {}
    for line in arm.lines:
        if line.seed in seeds:
            found.setdefault(line.arch, []).append(line.top1)
    return {arch: float(np.mean(values)) for arch, values in found.items()}


def extract_command(run: str, arch: str) -> str:
    """The command that takes a subnet out of a run."""
    return command("trainonce", "extract", Path(run), arch)


def readable(arch: str) -> list[tuple[str, str]]:
    """An architecture part by part: ("stage 1", "d2 · k3 e6 · k7 e4"), … from `d2.k3e6.k7e4_…`."""
    parts = []
    stage = 0
    for group in arch.split("_"):
        spaced = re.sub(r"(?<=\d)(?=[a-z])", " ", group).replace(".", " · ")
        whole = re.fullmatch(r"r\d+", group) is not None
        stage += not whole
        parts.append(("resolution" if whole else f"stage {stage}", spaced))
    return parts


def boxes(info: PopulationInfo) -> list[ChartRow]:
    """A row for each box: where it stands and its five numbers."""
    rows = []
    for number, arm in enumerate(info.arms):
        for s in arm.summaries:
            middle, width = _place(info, s.bucket, number)
            rows.append(
                {
                    "arm": arm.label,
                    "bucket": str(s.bucket),
                    "x": middle,
                    "left": middle - BOX_USED * width / 2,
                    "right": middle + BOX_USED * width / 2,
                    "minimum": s.minimum,
                    "q1": s.lower_quartile,
                    "median": s.median,
                    "q3": s.upper_quartile,
                    "maximum": s.maximum,
                    "count": s.count,
                }
            )
    return rows


def points(info: PopulationInfo) -> list[ChartRow]:
    """A row for each subnet scored. Inside a bucket it lies within its arm's box, from fewer MACs to more."""
    rows = []
    for number, arm in enumerate(info.arms):
        for line in arm.lines:
            bucket = next((bucket for bucket in info.buckets if line.macs in bucket), None)
            x = line.macs / 1e6
            if bucket is not None:
                middle, width = _place(info, bucket, number)
                x = middle + (line.macs - bucket.centre) / bucket.half * INSIDE_BOX * width / 2
            row = {"arm": arm.label, "x": round(x, 4), "top1": line.top1, "macs": line.macs / 1e6}
            row |= {
                "params": line.params / 1e6,
                "arch": quoted(line.arch),
                "seed": line.seed,
                "run": quoted(Path(line.run)),
            }
            rows.append(row)
    return rows


def _place(info: PopulationInfo, bucket: Bucket, number: int) -> tuple[float, float]:
    """The middle and the width, in million MACs, of an arm's slot in a bucket."""
    centres = sorted(b.centre for b in info.buckets)
    room = min((after - before for before, after in pairwise(centres)), default=2 * bucket.half)
    width = SLOTS_USED * room / 1e6 / len(info.arms)
    return bucket.centre / 1e6 + (number - (len(info.arms) - 1) / 2) * width, width


def draw_population(info: PopulationInfo) -> "alt.LayerChart":
    """Boxes by bucket and arm, with every subnet as a point that says what it is."""
    require_plotting()
    import altair as alt

    arms = [arm.label for arm in info.arms]
    colour = arm_colour(arms)
    ticks = [round(bucket.centre / 1e6, 2) for bucket in info.buckets]
    x = alt.X("x:Q", title="million MACs of the subnet taken out", scale=alt.Scale(zero=False, nice=False, padding=14))
    x = x.axis(values=ticks, format=".3~g") if ticks else x
    y = alt.Y("top1:Q", title=f"top-1, % of {info.images:,} {info.split} images", scale=alt.Scale(zero=False))
    box = chart_of(boxes(info))
    about = [alt.Tooltip("arm:N"), alt.Tooltip("bucket:N"), alt.Tooltip("count:Q", title="subnets")]
    about += [alt.Tooltip(f"{name}:Q", format=".2f") for name in ("maximum", "q3", "median", "q1", "minimum")]
    whiskers = box.mark_rule(strokeWidth=1.2).encode(x=x, y=alt.Y("minimum:Q"), y2="maximum:Q", color=colour)
    bodies = box.mark_rect(fillOpacity=0.3, strokeWidth=1.2).encode(
        x=alt.X("left:Q"), x2="right:Q", y=alt.Y("q1:Q"), y2="q3:Q", color=colour, stroke=colour, tooltip=about
    )
    medians = box.mark_rule(style=MEDIAN, strokeWidth=2).encode(x=alt.X("left:Q"), x2="right:Q", y=alt.Y("median:Q"))
    dots = _dots(info).encode(x=x, y=y, color=colour)
    return layered(whiskers, bodies, dots, medians, height=380)


def _dots(info: PopulationInfo) -> "alt.Chart":
    import altair as alt

    longest = max((line.arch for arm in info.arms for line in arm.lines), key=lambda arch: str(arch).count("_"))
    tips = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("seed:N"),
        alt.Tooltip("top1:Q", title="top-1, %", format=".2f"),
        alt.Tooltip("macs:Q", title="MACs, M", format=".3f"),
        alt.Tooltip("params:Q", title="params, M", format=".3f"),
    ]
    chart = chart_of(points(info))
    for i, (name, _) in enumerate(readable(longest)):
        group = f"(split(datum.arch, '_')[{i}] || '')"
        blocks = f"replace({group}, regexp('[.]', 'g'), ' · ')"
        chart = chart.transform_calculate(**{f"part{i}": f"replace({blocks}, regexp('([0-9])([a-z])', 'g'), '$1 $2')"})
        tips.append(alt.Tooltip(f"part{i}:N", title=name))
    dots: alt.Chart = chart.mark_circle(size=26, opacity=0.6, cursor="pointer")
    return dots.encode(tooltip=tips)


def steps_of_fronts(info: PopulationInfo) -> list[ChartRow]:
    """The corners of each run's front: the best top-1 under a budget, which holds to the most MACs scored."""
    last = max(line.macs for arm in info.arms for line in arm.lines) / 1e6
    rows = []
    for arm in info.arms:
        for run, front in arm.fronts.items():
            corners = [(line.macs / 1e6, line.top1, line.arch) for line in front]
            corners.append((last, front[-1].top1, front[-1].arch))
            named = {"arm": arm.label, "run": quoted(Path(run)), "seed": front[0].seed}
            rows += [named | {"macs": macs, "top1": top1, "arch": quoted(arch)} for macs, top1, arch in corners]
    return rows


def draw_pareto(info: PopulationInfo) -> "alt.LayerChart":
    """The best top-1 under every budget, a line for each run."""
    require_plotting()
    import altair as alt

    arms = [arm.label for arm in info.arms]
    chart = chart_of(steps_of_fronts(info)).encode(
        x=alt.X("macs:Q", title="budget, million MACs", scale=alt.Scale(zero=False, nice=False)),
        y=alt.Y("top1:Q", title="best top-1 under the budget, %", scale=alt.Scale(zero=False)),
        color=arm_colour(arms, lines=True),
        detail="run:N",
    )
    tips = [alt.Tooltip("arm:N"), alt.Tooltip("seed:N"), alt.Tooltip("macs:Q", title="MACs, M", format=".3f")]
    tips += [alt.Tooltip("top1:Q", title="top-1, %", format=".2f"), alt.Tooltip("arch:N", title="architecture")]
    lines = chart.mark_line(interpolate="step-after", strokeWidth=2).encode(strokeDash=arm_dash(arms))
    dots = chart.mark_circle(size=40, cursor="pointer").encode(tooltip=tips)
    return layered(lines, dots, height=300)
