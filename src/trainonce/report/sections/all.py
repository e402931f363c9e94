"""The sections of a group's page, in order. Each figure's title is the sentence that its numbers make."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from trainonce.names import plural
from trainonce.report.figures.charts import SeedMean
from trainonce.report.figures.population import PopulationInfo
from trainonce.report.figures.studies import (
    Dose,
    Effect,
    MeanGap,
    dose_info,
    draw_dose,
    draw_effects,
    draw_gaps,
    draw_seeds,
    effects_info,
    gap_info,
    seeds_info,
)
from trainonce.report.loading import Group, PlottedScore
from trainonce.report.parts import Cell, Figure, Section, Table, picture
from trainonce.report.sections.networks import networks_sections
from trainonce.report.sections.population import pareto_section, population_section, populations
from trainonce.report.sections.probe import forgetting_section, interference_section
from trainonce.report.sections.search import search_section
from trainonce.report.sections.training import curves_section, exposure_section, selection_section, times_section


def sections_of(group: Group) -> list[Section]:
    """Every section, those of what was not recorded too."""
    infos = populations(group)
    scored: dict[str, list[PlottedScore]] = {}
    for info in infos:
        for arm in info.arms:
            scored.setdefault(arm.label, []).extend(arm.lines)
    gaps, doses, effects = gap_info(group.runs), dose_info(group.runs), effects_info(group.conclusion)
    studies = [_gap_section(gaps)] if gaps else []
    studies += [_dose_section(doses)] if doses else []
    laboratory = [
        _answer(group, infos, studies, effects),
        *studies,
        population_section(group, infos),
        pareto_section(group, infos),
        *([] if group.path else [search_section(group)]),  # a study's runs are not searched
        *([] if group.of_one_run else [_comparisons(scored, effects)]),
        times_section(group),
        curves_section(group),
        exposure_section(group, scored),
        selection_section(group, scored),
        interference_section(group),
        forgetting_section(group),
        _what_was_run(group),
    ]
    if not group.of_one_run:
        return laboratory
    first, *others = map(_without_arms, laboratory)
    return [*networks_sections(group.runs[0]), replace(first, part="The laboratory"), *others]


def _without_arms(section: Section) -> Section:
    """The section of one run: without the columns that name the arm, which is always the same."""
    figures = [replace(figure, tables=[_without_arm(table) for table in figure.tables]) for figure in section.figures]
    return replace(section, figures=figures, tables=[_without_arm(table) for table in section.tables])


def _without_arm(table: Table) -> Table:
    kept = [place for place, column in enumerate(table.columns) if column != "arm"]
    return replace(
        table,
        columns=[table.columns[place] for place in kept],
        rows=[[row[place] for place in kept] for row in table.rows],
    )


def _answer(
    group: Group, infos: Sequence[PopulationInfo], studies: Sequence[Section], effects: Sequence[Effect]
) -> Section:
    found = [section.figures[0].title for section in studies]
    concluded = group.conclusion
    sentences = [concluded.sentence] if concluded else found or _lead_sentences(group, infos)
    text = [*sentences, *_how_sure(group, effects), *(concluded.notes if concluded else ())]
    tables = _tables_of(concluded.tables) if concluded else []
    heading = "The population in short" if group.of_one_run else "The answer"
    return Section(key="answer", heading=heading, text=text, tables=tables)


def _tables_of(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Table]:
    """The tables that a conclusion rests on, as it has them."""
    tables = []
    for name, rows in found.items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [[_plain(row.get(column)) for column in columns] for row in rows]
        tables.append(Table(caption=f"behind the answer: {name}", columns=columns, rows=cells))
    return tables


def _plain(value: Any) -> Cell:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)


def _lead_sentences(group: Group, infos: Sequence[PopulationInfo]) -> list[str]:
    if not infos:
        return ["Nothing was evaluated yet: this report shows the training alone."]
    sentences = []
    for info in infos:
        if info.leads:
            lead = info.leads[0]
            sentences.append(f"{lead.text}, in the mean over the {plural(lead.subnets, 'subnet')} scored in both.")
        else:
            arm = info.arms[0]
            best = max(arm.lines, key=lambda line: line.top1)
            sentences.append(
                f"{arm.text} ({arm.label}) were scored without training again; "
                f"the best has {best.top1:.1f}% top-1 at {best.macs / 1e6:.2f} M MACs."
            )
    sentences.append(
        "This compares populations; it does not measure interference, for which subnets must also be trained alone "
        "(trainonce study solo)."
    )
    return sentences


def _how_sure(group: Group, effects: Sequence[Effect]) -> list[str]:
    if group.of_one_run:
        return ["How sure: this is one training run; it is not known how much another would differ."]
    counts: dict[str, set[int]] = {}
    for run in group.runs:
        counts.setdefault(run.arm, set()).add(run.seed)
    fewest, most = min(map(len, counts.values())), max(map(len, counts.values()))
    seeds = plural(fewest, "seed") if fewest == most else f"{fewest} to {most} seeds"
    sure = f"How sure: {seeds} an arm, {plural(len(group.runs), 'training run')}"
    if effects:
        margins = sorted({effect.margin for effect in effects})
        verdicts = [effect.verdict for effect in effects]
        spoken = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
        sure += (
            f"; of {plural(len(effects), 'comparison')} over seeds, {spoken} "
            f"(equivalent: surely within {margins[0]:g} points)"
        )
    if fewest == 1:
        sure += "; with one seed it is not known how much another training would differ"
    sentences = [f"{sure}."]
    if group.missing:
        every = len(group.missing) + len(group.runs)
        sentences.append(
            f"This study is not finished: {len(group.missing)} of its {plural(every, 'run')} have no results yet "
            "and are not in this report."
        )
    return sentences


def interval(mean: SeedMean) -> str:
    """An interval as a sentence has it."""
    return "one seed, no interval" if mean.low is None else f"95% interval {mean.low:.2f} to {mean.high:.2f}"


def _gap_section(gaps: Sequence[MeanGap]) -> Section:
    sentences = []
    for against in dict.fromkeys(gap.against for gap in gaps):
        found = [gap for gap in gaps if gap.against == against]
        mean = sum(gap.gap.mean for gap in found) / len(found)
        clear_alone = sum(gap.gap.low is not None and gap.gap.low > 0 for gap in found)
        clear_inside = sum(gap.gap.high is not None and gap.gap.high < 0 for gap in found)
        better = "better alone" if mean > 0 else "better inside"
        sentences.append(
            f"{against} the {plural(len(found), 'probe')} are {abs(mean):.2f} points {better} in the mean "
            f"({clear_alone} clearly worse off inside, {clear_inside} clearly better off)"
        )
    title = _sentence("; ".join(sentences))
    table = Table(
        caption="the gap of every probe, alone − inside, in points",
        columns=["held equal", "inside", "probe", "M MACs", "gap", "low", "high", "seeds", "by seed"],
        rows=[_gap_row(gap) for gap in gaps],
    )
    caption = (
        "Each probe subnet was trained alone and also inside a supernet. Right of zero: alone it is better. That is "
        "harm by sharing only where the probe alone has nothing left to learn; in a short training, one inside has "
        "also been trained less. Bars are 95% intervals over seeds (Student's t), each probe by itself; where a bar "
        "crosses zero, the sign is not known. Equal exposure: alone it gets the same learning-rate-weighted updates as "
        "its weights got inside."
    )
    figure = Figure(
        key="gaps", title=title, caption=caption, summary=title, pictures=[picture(draw_gaps(gaps))], tables=[table]
    )
    return Section(key="gaps", heading="Alone against inside", figures=[figure])


def _gap_row(of: MeanGap) -> list[Cell]:
    gap = of.gap
    return [
        of.match,
        of.strategy,
        of.probe,
        of.macs / 1e6,
        gap.mean,
        gap.low,
        gap.high,
        gap.seeds,
        _by_seed(of.by_seed),
    ]


def _dose_section(doses: Sequence[Dose]) -> Section:
    first, last = doses[0], doses[-1]
    change = last.mean.mean - first.mean.mean
    size = f"{abs(change):.2f}"
    moved = "stay level" if size == "0.00" else f"{'rise' if change > 0 else 'fall'} by {size} points"
    title = (
        f"From {first.dose} to {last.dose} subnets on the same weights the probes {moved}, "
        f"from {first.mean.mean:.2f}% to {last.mean.mean:.2f}%."
    )
    if len(doses) < 2:
        title = f"One dose alone has results that can be compared: {first.dose}, with {first.mean.mean:.2f}%."
    table = Table(
        caption="top-1 of the probes by dose, in percent",
        columns=["subnets", "mean", "low", "high", "seeds", "by seed"],
        rows=[[d.dose, d.mean.mean, d.mean.low, d.mean.high, d.mean.seeds, _by_seed(d.by_seed)] for d in doses],
    )
    caption = (
        "The same probes share their weights with ever more other subnets, while their own training stays the same. "
        "Falling: net interference. Rising: net transfer. Flat: neither, or both cancel. Dots are seeds (means over "
        "probes), the line their mean, bars 95% intervals over seeds (Student's t). A probe counts with a seed where "
        "it has results at every dose drawn, so that doses are compared on the same probes."
    )
    figure = Figure(
        key="dose", title=title, caption=caption, summary=title, pictures=[picture(draw_dose(doses))], tables=[table]
    )
    return Section(key="dose", heading="Dose and response", figures=[figure])


def _comparisons(scored: dict[str, list[PlottedScore]], effects: Sequence[Effect]) -> Section:
    figures = []
    if effects:
        figures.append(_effects_figure(effects))
    if scored:
        figures.append(_seeds_figure(scored))
    return Section(
        key="arms", heading="Arms compared", figures=figures, how_to_record="trainonce evaluate RUN, trainonce study"
    )


def _effects_figure(effects: Sequence[Effect]) -> Figure:
    widest = max(effects, key=lambda effect: abs(effect.difference))
    title = (
        f"The largest difference is {widest.label}: {widest.difference:+.2f} points ({_reach(widest)}), which counts "
        f"as “{widest.verdict}”."
    )
    rows: list[list[Cell]] = [
        [
            *(e.label, e.difference, e.low, e.high, e.verdict, e.seeds),
            *(e.p_difference, e.p_holm, e.p_equivalence, e.seeds_needed, e.sentence),
        ]
        for e in effects
    ]
    columns = ["a − b", "difference", "low", "high", "verdict", "seeds", "p difference", "p corrected", "p equivalence"]
    columns += ["seeds to show equivalence", "in words"]
    caption = (
        "Each row is one arm minus another, in points of top-1, over paired seeds; bars are Student's 95% intervals "
        f"over seeds. The grey band is ±{max(e.margin for e in effects):g} points: an effect that is surely inside "
        "counts as equivalent; “cannot tell” is a verdict too. Where several effects are tested their verdicts rest on "
        "the corrected p (Holm), so that a bar may leave out zero and still not count."
    )
    return Figure(
        key="effects",
        title=title,
        caption=caption,
        summary=title,
        pictures=[picture(draw_effects(effects))],
        tables=[Table(caption="every comparison", columns=columns, rows=rows)],
    )


def _reach(effect: Effect) -> str:
    if effect.low is None or effect.high is None:
        return "one seed, no interval"
    return f"{effect.low:+.2f} to {effect.high:+.2f}"


def _seeds_figure(scored: dict[str, list[PlottedScore]]) -> Figure:
    arms = seeds_info(scored)
    ranked = sorted(arms, key=lambda arm: -arm.mean.mean)
    listed = "; ".join(f"{arm.arm} {arm.mean.mean:.2f}% ({interval(arm.mean)})" for arm in ranked)
    table = Table(
        caption="mean top-1 of every arm over its subnets, in percent",
        columns=["arm", "mean", "low", "high", "seeds", "by seed"],
        rows=[[a.arm, a.mean.mean, a.mean.low, a.mean.high, a.mean.seeds, _by_seed(a.by_seed)] for a in arms],
    )
    return Figure(
        key="seeds",
        title=f"Mean over all subnets: {'; '.join(f'{arm.arm} {arm.mean.mean:.1f}%' for arm in ranked)}.",
        caption="A dot is one seed: the mean over its scored subnets. The tick is the mean over seeds, the bar its 95% "
        "interval (Student's t over seeds); with one seed there is none.",
        summary=listed,
        pictures=[picture(draw_seeds(arms))],
        tables=[table],
    )


def _by_seed(values: dict[int, float]) -> str:
    return ", ".join(f"{seed}: {value:.2f}" for seed, value in values.items())


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _what_was_run(group: Group) -> Section:
    rows: list[list[Cell]] = []
    for run in group.runs:
        said = run.provenance
        machine = f"{said.get('machine', '?')}, {said.get('cpus', '?')} CPUs, {said.get('threads', '?')} threads"
        versions = ", ".join(
            f"{name} {said[name]}" for name in ("trainonce", "torch", "numpy", "python") if name in said
        )
        rows.append(
            [
                run.arm,
                run.seed,
                run.recipe,
                run.passes,
                run.data,
                str(said.get("command", "")),
                str(said.get("started", "")),
                versions,
                f"{machine}, {said.get('device', '?')}",
                str(run.path),
            ]
        )
    columns = ["arm", "seed", "recipe", "passes", "data", "command", "started", "versions", "machine", "directory"]
    tables = [Table(caption=f"{plural(len(rows), 'run')}, each with its command", columns=columns, rows=rows)]
    if any(group.arms.values()):
        arms = Table(
            caption="what each arm is", columns=["arm", "about"], rows=[[*pair] for pair in group.arms.items()]
        )
        tables.insert(0, arms)
    return Section(key="run", heading="What was run", tables=tables)
