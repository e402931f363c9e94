"""The sections on probes: the matrices of interference, and forgetting."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trainonce.names import plural
from trainonce.report.figures.interference import (
    InterferenceInfo,
    Measure,
    ProbeCurve,
    draw_forgetting,
    draw_interference,
    forgetting_info,
    interference_info,
    off_diagonal,
)
from trainonce.report.loading import Group
from trainonce.report.parts import Cell, Figure, Section, Table, picture


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a measure's matrix is read."""

    name: str
    caption: str
    finding: Callable[[str, Sequence[float], Sequence[InterferenceInfo]], str]
    """A sentence from the averages in words, the values between different subnets, and the arms."""
    form: str = "{:.2f}"
    """How an average is written."""


HOW_TO_READ: dict[Measure, Reading] = {
    "agreement": Reading(
        name="gradient agreement",
        caption=(
            "Cosine between the gradients of two subnets on the weights they share, corrected for the noise of "
            "batches: 1 the same direction, 0 unrelated, below 0 (orange) opposed. The diagonal is a control: a "
            "subnet against itself on other images, not corrected. Labels are the subnets' MACs."
        ),
        finding=lambda span, values, arms: (
            f"Gradients of different subnets agree by {span} on average; {_below(values, arms)}."
        ),
    ),
    "conflict": Reading(
        name="gradient conflict",
        caption="Share of pairs of batches on which the gradients of two subnets oppose each other: a half is chance.",
        finding=lambda span, _values, _arms: (
            f"Gradients of different subnets oppose each other on {span} of the pairs of batches."
        ),
        form="{:.0%}",
    ),
    "transfer": Reading(
        name="loss transfer",
        caption=(
            "R: what a training step for the column's subnet does to the held-out loss of the row's, relative to a "
            "step of the row's own, which is 1. Above 0 it helps; below 0 (orange) it harms, and only that is "
            "interference: where it is beyond noise, by more standard errors over batches than chance gives any of "
            "the pairs. A cell alone does not say that."
        ),
        finding=lambda span, _values, arms: (
            f"A step for one subnet does another {span} of the good that the other's own step does; {_tested(arms)}."
        ),
        form="{:.0%}",
    ),
    "bn_shift": Reading(
        name="batch-norm shift",
        caption=(
            "How far the statistics that two subnets give the same layers lie apart, in units of their variance: "
            "large values mean wrong statistics, which recalibration repairs, rather than wrong weights."
        ),
        finding=lambda span, values, _arms: (
            f"Batch-norm statistics of different subnets are {span} apart on average, {max(values):.2f} at most."
        ),
    ),
}


def interference_section(group: Group) -> Section:
    """A figure for each measure, with a matrix for each arm."""
    arms = interference_info(group.runs)
    figures = [
        _measure_figure(measure, [arm for arm in arms if measure in arm.matrices])
        for measure in HOW_TO_READ
        if any(measure in arm.matrices for arm in arms)
    ]
    return Section(
        key="interference",
        heading="Interference between probes",
        figures=figures,
        how_to_record="trainonce measure RUN",
    )


def _measure_figure(measure: Measure, arms: Sequence[InterferenceInfo]) -> Figure:
    reading = HOW_TO_READ[measure]
    title = _finding(measure, arms)
    tables = [_matrix_table(measure, arm) for arm in arms]
    tables += [_error_table(measure, arm) for arm in arms if measure in arm.errors]
    if measure == "agreement" and any(arm.along for arm in arms):
        tables.append(_along_table(arms))
    known = [arm for arm in arms if arm.top1_supernet and arm.top1_recalibrated]
    if measure == "bn_shift" and known:
        tables.append(_statistics_table(known))
    return Figure(
        key=measure.replace("_", "-"),
        title=title,
        caption=reading.caption,
        summary=f"Matrix of {reading.name}. {title}",
        pictures=[picture(draw_interference(arm, measure), f"{reading.name}, {arm.arm}") for arm in arms],
        tables=tables,
    )


def _finding(measure: Measure, arms: Sequence[InterferenceInfo]) -> str:
    """One sentence over all arms: the averages between different subnets, and how many pairs are on the bad side."""
    between = [(arm.arm, off_diagonal(arm.matrices[measure])) for arm in arms]
    means = sorted((float(np.mean(values)), arm) for arm, values in between if values)
    if not means:
        return "There is one probe alone, so nothing to compare."
    every = [value for _, values in between for value in values]
    form = HOW_TO_READ[measure].form
    (least, least_arm), (most, most_arm) = means[0], means[-1]
    span = form.format(least)
    if form.format(least) != form.format(most):
        span += f" ({least_arm}) to {form.format(most)} ({most_arm})"
    return HOW_TO_READ[measure].finding(span, every, arms)


def _below(values: Sequence[float], arms: Sequence[InterferenceInfo]) -> str:
    """How many are below 0, and how many of them clearly."""
    text = f"{sum(value < 0 for value in values)} of {plural(len(values), 'pair')} point against each other"
    if not all("agreement" in arm.errors for arm in arms):
        return text
    clear = sum(
        i != j and value is not None and error is not None and value < -2 * error
        for arm in arms
        for i, (row, errors) in enumerate(zip(arm.matrices["agreement"], arm.errors["agreement"], strict=True))
        for j, (value, error) in enumerate(zip(row, errors, strict=True))
    )
    return f"{text}, {clear} of them by more than two standard errors over batches"


def _tested(arms: Sequence[InterferenceInfo]) -> str:
    """How many pairs were harmed or helped beyond noise."""
    tested, harmed, helped = (
        sum(counts) for counts in zip(*((a.tested, a.harmed, a.helped) for a in arms), strict=True)
    )
    if not tested:
        return "whether any is harmed was not tested against noise"
    verb = "is" if harmed == 1 else "are"
    return f"of {plural(tested, 'measured pair')} {harmed} {verb} harmed beyond noise and {helped} helped"


def _matrix_table(measure: Measure, arm: InterferenceInfo) -> Table:
    rows: list[list[Cell]] = [
        [probe, label, *values]
        for probe, label, values in zip(arm.probes, arm.labels, arm.matrices[measure], strict=True)
    ]
    name = HOW_TO_READ[measure].name
    return Table(caption=f"{name}, {arm.arm}", columns=["subnet of the row", "MACs", *arm.labels], rows=rows)


def _error_table(measure: Measure, arm: InterferenceInfo) -> Table:
    rows: list[list[Cell]] = [
        [probe, label, *values]
        for probe, label, values in zip(arm.probes, arm.labels, arm.errors[measure], strict=True)
    ]
    name = HOW_TO_READ[measure].name
    caption = f"{name}, {arm.arm}: standard errors over batches (jackknife)"
    return Table(caption=caption, columns=["subnet of the row", "MACs", *arm.labels], rows=rows)


def _along_table(arms: Sequence[InterferenceInfo]) -> Table:
    rows: list[list[Cell]] = [
        [arm.arm, at.step, at.runs, at.agreement, at.agreement_error, at.transfer, at.transfer_error]
        for arm in arms
        for at in arm.along
    ]
    columns = ["arm", "step", "runs", "mean agreement", "its standard error", "mean R", "its standard error"]
    return Table(caption="along the training: means over pairs of different subnets", columns=columns, rows=rows)


def _statistics_table(arms: Sequence[InterferenceInfo]) -> Table:
    rows: list[list[Cell]] = [
        [arm.arm, probe, label, before, after]
        for arm in arms
        for probe, label, before, after in zip(
            arm.probes, arm.labels, arm.top1_supernet, arm.top1_recalibrated, strict=True
        )
    ]
    columns = ["arm", "probe", "MACs", "top-1 with the supernet's statistics", "recalibrated"]
    return Table(caption="what recalibrating the statistics is worth", columns=columns, rows=rows)


def forgetting_section(group: Group) -> Section:
    """Top-1 of the probes while the supernet trains, and how far each is below its best."""
    curves = forgetting_info(group.runs)
    if not curves:
        return Section(key="forgetting", heading="Forgetting", how_to_record="runs trained with probes")
    pictures = []
    for arm in dict.fromkeys(curve.arm for curve in curves):
        of_arm = [curve for curve in curves if curve.arm == arm]
        pictures.append(picture(draw_forgetting(of_arm), f"top-1, {arm}"))
        if any(len(curve.top1) > 1 for curve in of_arm):
            pictures.append(picture(draw_forgetting(of_arm, "forgotten"), f"forgotten, {arm}"))
    title = _forgotten_title(curves)
    caption = (
        "Fixed probe subnets, scored (recalibrated) again and again while the supernet trains other subnets. Forgotten "
        "is the best top-1 so far minus the one now: 0 at every new best; few looks can miss it. "
        "Scores are of finite images, so small values are noise. Colours are the probes' MACs; lines "
        "are means over seeds."
    )
    figure = Figure(
        key="curves",
        title=title,
        caption=caption,
        summary=f"Lines over epochs. {title}",
        pictures=pictures,
        tables=_forgetting_tables(curves),
    )
    return Section(key="forgetting", heading="Forgetting", figures=[figure])


def _forgotten_title(curves: Sequence[ProbeCurve]) -> str:
    """How far probes end below their best, of those looked at more than once: one look cannot show forgetting."""
    lost: dict[str, list[float]] = {}
    for curve in curves:
        if len(curve.top1) > 1:
            lost.setdefault(curve.arm, []).append(curve.forgotten[-1])
    if not lost:
        return "Every probe was looked at once, at the end: that cannot show forgetting."
    means = sorted((float(np.mean(values)), arm) for arm, values in lost.items())
    span = f"{means[0][0]:.2f}"
    if len(means) > 1:
        span += f" ({means[0][1]}) to {means[-1][0]:.2f} ({means[-1][1]})"
    looks = sorted({len(curve.top1) for curve in curves if len(curve.top1) > 1})
    times = f"{looks[0]}" if len(looks) == 1 else f"{looks[0]} to {looks[-1]}"
    title = (
        f"The probes end {span} points below their best of {times} looks on average, "
        f"{max(map(max, lost.values())):.2f} at most."
    )
    once = [arm for arm in dict.fromkeys(curve.arm for curve in curves) if arm not in lost]
    return f"{title} One look cannot show forgetting: {', '.join(once)}." if once else title


def _forgetting_tables(curves: Sequence[ProbeCurve]) -> list[Table]:
    ends: list[list[Cell]] = [
        [c.arm, c.seed, c.label, c.probe, max(c.top1), c.top1[-1], c.forgotten[-1], max(c.forgotten)] for c in curves
    ]
    looks: list[list[Cell]] = [
        [c.arm, c.seed, c.label, epoch, top1, lost]
        for c in curves
        for epoch, top1, lost in zip(c.epochs, c.top1, c.forgotten, strict=True)
    ]
    return [
        Table(
            caption="probes at the end",
            columns=["arm", "seed", "MACs", "probe", "best top-1", "at the end", "forgotten", "most ever forgotten"],
            rows=ends,
        ),
        Table(
            caption="every look at every probe",
            columns=["arm", "seed", "MACs", "epoch", "top-1, %", "forgotten"],
            rows=looks,
        ),
    ]
