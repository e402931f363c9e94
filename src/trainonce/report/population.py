"""The population as the paper draws it: top-1 against MACs, a box for each bucket, runs side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainonce.errors import RunError, UserError
from trainonce.evaluate import SplitName
from trainonce.population import Bucket, BucketSummary, Line, make_buckets, newest_lines, pareto_front, summarise
from trainonce.run import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette: told apart by people who do not see red and green apart."""

FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True)
class RunPopulation:
    """One run's scores: every line, and what lies in the buckets."""

    label: str
    lines: list[Line]
    summaries: list[BucketSummary]
    front: list[Line]


@dataclass(frozen=True, kw_only=True)
class PopulationInfo:
    """What the figure shows."""

    data: str
    split: SplitName
    images: int
    buckets: list[Bucket]
    runs: list[RunPopulation]


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
    populations = []
    buckets: list[Bucket] = []
    configs = [run.config() for run in runs]
    if len({config.data_fingerprint for config in configs}) > 1:
        raise UserError("the runs were trained on different data: draw them one by one")
    for run, config in zip(runs, configs, strict=True):
        buckets = buckets or make_buckets(run.build_supernet().cost, centres_m, half_m)
        lines = newest_lines(run.population(), split)
        if not lines:
            raise UserError(f"{run.path} has no scores on the {split} split: run `trainonce evaluate` on it first")
        summaries = summarise(lines, buckets)
        label = f"{config.recipe.name}, {config.recipe.passes:.4g} passes, seed {config.seed}"
        populations.append(RunPopulation(label=label, lines=lines, summaries=summaries, front=pareto_front(lines)))
    return PopulationInfo(
        data=configs[0].data.name,
        split=split,
        images=populations[0].lines[0]["images"],
        buckets=buckets,
        runs=populations,
    )


def draw_population(info: PopulationInfo, path: Path) -> None:
    """Draw the figure into a .png, .svg or .pdf file. Raises `UserError` for another ending or without matplotlib."""
    if path.suffix not in FORMATS:
        raise UserError(f"a picture's name must end in {', '.join(FORMATS)}, not {path.name!r}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("drawing needs an extra: pip install 'trainonce[plot]'") from error
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for number, run in enumerate(info.runs):
        _draw_run(axes, info, run, number)
    subnets = sum(len(run.lines) for run in info.runs)
    axes.set_title(f"{info.data}: {subnets} subnets, no retraining", loc="left")
    axes.set_xlabel("million MACs of the extracted network")
    axes.set_ylabel(f"top-1, percent of {info.images:,} {info.split} images")
    axes.grid(visible=True, axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside upper right", ncols=min(2, len(info.runs) + 1))
    try:
        figure.savefig(path, dpi=144)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def _draw_run(axes: "Axes", info: PopulationInfo, run: RunPopulation, number: int) -> None:
    colour = COLOURS[number % len(COLOURS)]
    macs_m = [line["macs"] / 1e6 for line in run.lines]
    axes.scatter(macs_m, [line["top1"] for line in run.lines], s=9, color=colour, alpha=0.35, linewidths=0)
    axes.step(
        [*(line["macs"] / 1e6 for line in run.front), max(macs_m)],
        [*(line["top1"] for line in run.front), run.front[-1]["top1"]],
        where="post",
        color=colour,
        linewidth=1,
        linestyle=":",
        label="best under each budget" if number == 0 else None,
    )
    half = min((bucket.half for bucket in info.buckets), default=1.0) / 1e6
    width = 1.6 * half / len(info.runs)
    offset = (number - (len(info.runs) - 1) / 2) * width
    boxes = axes.bxp(
        [
            {
                "med": s.median,
                "q1": s.lower_quartile,
                "q3": s.upper_quartile,
                "whislo": s.minimum,
                "whishi": s.maximum,
            }
            for s in run.summaries
        ],
        positions=[s.bucket.centre / 1e6 + offset for s in run.summaries],
        widths=width * 0.9,
        showfliers=False,
        manage_ticks=False,
        patch_artist=True,
        boxprops={"facecolor": colour, "alpha": 0.35, "edgecolor": colour},
        medianprops={"color": "black", "linewidth": 1.6},
        whiskerprops={"color": colour},
        capprops={"color": colour},
    )
    boxes["boxes"][0].set_label(run.label)
