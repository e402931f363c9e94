"""The sections on the population: the boxes as the paper draws them, and Pareto fronts."""

import json
from collections.abc import Sequence

from trainonce.evaluation.evaluator import wilson
from trainonce.evaluation.population import Bucket, make_buckets
from trainonce.models import build
from trainonce.names import plain, plural
from trainonce.report.figures.charts import millions
from trainonce.report.figures.population import (
    ArmPopulation,
    PopulationInfo,
    draw_pareto,
    draw_population,
    extract_command,
    population_of,
)
from trainonce.report.loading import Group, PlottedScore, RunRecord
from trainonce.report.parts import Cell, Command, Figure, Section, Table, picture

LISTED = 2000
"""At most so many subnets are listed one by one; all are in the results' files."""


def populations(group: Group) -> list[PopulationInfo]:
    """What was evaluated of a group: one for each kind of supernet, since another kind has other MACs."""
    kinds: dict[tuple[str, str], list[RunRecord]] = {}
    drawn = any(_population_lines(run, group) for run in group.runs)
    for run in group.runs:
        if _population_lines(run, group, probes=not drawn):
            kinds.setdefault((run.family, json.dumps(run.model, sort_keys=True)), []).append(run)
    infos = []
    for runs in kinds.values():
        scored: dict[str, list[PlottedScore]] = {}
        for run in _in_order(runs, list(group.arms)):
            lines = _population_lines(run, group, probes=not drawn)
            scored.setdefault(run.arm, []).extend(lines)
        infos.append(population_of(scored, _buckets(runs[0], group), data=runs[0].data, split=group.split))
    return infos


def _population_lines(run: RunRecord, group: Group, *, probes: bool = False) -> list[PlottedScore]:
    """A run's scores that are of the population: of a study, those in a bucket that are no probes; or the probes."""
    return [
        line
        for line in run.scores.get(group.split, [])
        if group.path is None or (line.bucket is not None and line.probe == probes)
    ]


def _in_order(runs: Sequence[RunRecord], arms: list[str]) -> list[RunRecord]:
    return sorted(runs, key=lambda run: (arms.index(run.arm), run.seed))


def _buckets(run: RunRecord, group: Group) -> list[Bucket]:
    net = build(run.family, run.model, where=f"run {run.name}", beside=run.path)
    return make_buckets(net.cost, group.buckets_m, group.half_m)


def population_section(group: Group, infos: Sequence[PopulationInfo]) -> Section:
    """The population as the paper draws it, a figure for each kind of supernet."""
    figures = []
    for number, info in enumerate(infos):
        title = _population_title(info)
        subnets = sum(len(arm.lines) for arm in info.arms)
        caption = (
            f"Each box holds half of the subnets{'' if len(info.arms) == 1 else ' of one arm'} in one bucket of MACs, "
            "its whiskers reach the best and the worst, the line inside is the median. Points are the "
            f"{plural(subnets, 'subnet')} scored (all seeds together), none trained again; inside a box they lie from "
            "fewer MACs to more. Point at one to see its architecture (d depth, k kernel size, e expand ratio); click "
            "it for the command that takes it out."
        )
        figures.append(
            Figure(
                key=f"boxes{number}",
                title=title,
                caption=caption + _weights_note(group),
                summary=f"Box plot of top-1 against MACs. {title} {_medians(info)}",
                pictures=[picture(draw_population(info))],
                tables=[_bucket_table(info), *_subnet_tables(info)],
                clickable=True,
            )
        )
    return Section(key="population", heading="The population", figures=figures, how_to_record="trainonce evaluate RUN")


def _weights_note(group: Group) -> str:
    if all(run.has_weights for run in group.runs):
        return ""
    return " The weights are not beside these results, so the command works only where they were kept."


def _population_title(info: PopulationInfo) -> str:
    if info.leads:
        lead = info.leads[0]
        between = "" if len(info.arms) == 2 else f"Of {plural(len(info.arms), 'arm')}, "
        return f"{between}{lead.text} in the mean over the same {plural(lead.subnets, 'subnet')}."
    arm = info.arms[0]
    if len(arm.summaries) < 2:
        return f"{arm.text}, without training again."
    first, last = arm.summaries[0], arm.summaries[-1]
    return (
        f"From {millions(first.macs_mean)} to {millions(last.macs_mean)} MACs the median top-1 of {arm.label} goes "
        f"from {first.median:.1f}% to {last.median:.1f}%, without training again."
    )


def _medians(info: PopulationInfo) -> str:
    said = []
    for arm in info.arms:
        medians = ", ".join(f"{s.median:.1f}% at {plain(s.bucket.centre / 1e6, 3)} M" for s in arm.summaries)
        said.append(f"Medians of {arm.label}: {medians}.")
    return " ".join(said)


def _bucket_table(info: PopulationInfo) -> Table:
    rows: list[list[Cell]] = [
        [
            arm.label,
            str(s.bucket),
            s.count,
            s.macs_mean / 1e6,
            s.median,
            s.lower_quartile,
            s.upper_quartile,
            s.minimum,
            s.maximum,
        ]
        for arm in info.arms
        for s in arm.summaries
    ]
    columns = ["arm", "bucket, MACs", "subnets", "mean M MACs", "median", "quartile 1", "quartile 3", "least", "most"]
    return Table(caption="boxes: top-1 in percent by bucket", columns=columns, rows=rows)


def _subnet_row(arm: ArmPopulation, line: PlottedScore) -> list[Cell]:
    """A subnet in a table: arm, seed, million MACs and parameters, top-1 in percent, and the command."""
    macs_m, params_m = line.macs / 1e6, line.params / 1e6
    return [
        arm.label,
        line.seed,
        macs_m,
        params_m,
        line.top1,
        Command(extract_command(line.run, line.arch)),
    ]


def _subnet_tables(info: PopulationInfo) -> list[Table]:
    rows: list[list[Cell]] = [
        _subnet_row(arm, line)
        for arm in info.arms
        for line in sorted(arm.lines, key=lambda line: (line.seed, line.macs))
    ]
    if len(rows) > LISTED:
        return []
    columns = ["arm", "seed", "M MACs", "M params", "top-1, %", "take it out"]
    return [Table(caption="every subnet, with its command", columns=columns, rows=rows)]


def pareto_section(group: Group, infos: Sequence[PopulationInfo]) -> Section:
    """The best subnet under every budget, a figure for each kind of supernet."""
    figures = []
    for number, info in enumerate(infos):
        best = {
            arm.label: max((front[-1] for front in arm.fronts.values()), key=lambda line: float(line.top1))
            for arm in info.arms
        }
        top = max(best, key=lambda arm: best[arm].top1)
        whose, of = "scored has" if len(best) == 1 else f"of all is one of {top}:", best[top]
        title = f"The best subnet {whose} {of.top1:.1f}% at {of.macs / 1e6:.2f} M MACs{_runner_up(best, top)}."
        caption = (
            "A line shows the best top-1 that any scored subnet reaches under a budget of MACs, one line for each run. "
            f"The best of many is a little lucky on the images it was chosen by.{_interval(best[top])} Click a corner "
            "for its command."
        )
        rows: list[list[Cell]] = [
            _subnet_row(arm, line) for arm in info.arms for front in arm.fronts.values() for line in front
        ]
        columns = ["arm", "seed", "M MACs", "M params", "top-1, %", "take it out"]
        figures.append(
            Figure(
                key=f"front{number}",
                title=title,
                caption=caption + _weights_note(group),
                summary=f"Step lines of the best top-1 under each budget. {title}",
                pictures=[picture(draw_pareto(info))],
                tables=[Table(caption="the subnets on the fronts", columns=columns, rows=rows)],
                clickable=True,
            )
        )
    return Section(
        key="pareto", heading="Best under each budget", figures=figures, how_to_record="trainonce evaluate RUN"
    )


def _interval(best: PlottedScore) -> str:
    """How well so many images tell its top-1."""
    if not best.images:
        return ""
    return " On {} images the best's 95% interval is {:.1f} to {:.1f}%.".format(
        best.images, *wilson(best.top1, best.images)
    )


def _runner_up(best: dict[str, PlottedScore], top: str) -> str:
    others = {arm: line for arm, line in best.items() if arm != top}
    if not others:
        return ""
    arm = max(others, key=lambda arm: float(others[arm].top1))
    return f"; the best of {arm} has {others[arm].top1:.1f}%"
