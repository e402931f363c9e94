"""Interference between probes: matrices of gradient agreement, loss transfer and batch-norm shift; forgetting."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from trainonce.lab.measures.forgetting import forgetting
from trainonce.lab.measures.recorded import Interference, Matrix
from trainonce.report.figures.charts import CELL_TEXT, ZERO, chart_of, distinct, layered, millions, require_plotting
from trainonce.report.loading import RunRecord

if TYPE_CHECKING:
    import altair as alt

OverRuns = Callable[[Sequence[float | None]], float | None]
"""One value of what several runs have."""
Measure: TypeAlias = str
"""A key of `MEASURES`."""


@dataclass(frozen=True, kw_only=True)
class MeasureSource:
    """A matrix between probes that interference.json has, and how it is drawn."""

    matrix: Callable[[Interference], Matrix]
    """Empty where it was not measured."""
    by: str
    """What stands above the columns, which are subnets."""
    errors: Callable[[Interference], Matrix] = lambda _: []
    """Its standard errors over batches; empty where they were not recorded."""
    signed: bool = False
    """Whether colours diverge from 0."""


MEASURES: dict[Measure, MeasureSource] = {
    "agreement": MeasureSource(
        matrix=lambda found: found.gradient.agreement,
        errors=lambda found: found.gradient.agreement_error,
        by="gradient of",
        signed=True,
    ),
    "conflict": MeasureSource(
        matrix=lambda found: found.gradient.conflict,
        errors=lambda found: found.gradient.conflict_error,
        by="gradient of",
    ),
    "transfer": MeasureSource(
        matrix=lambda found: found.transfer.r,
        errors=lambda found: found.transfer.r_error,
        by="after a step of",
        signed=True,
    ),
    "bn_shift": MeasureSource(matrix=lambda found: found.bn_shift.mean, by="statistics of"),
}
"""The measures that have a matrix; how each is read is in `trainonce.report.sections.probe`."""


@dataclass(frozen=True, kw_only=True)
class Along:
    """Means over pairs of different probes at one point of the training, over an arm's runs; None where none was had.

    Errors are standard errors over batches of the mean over runs.
    """

    step: int
    runs: int
    agreement: float | None
    agreement_error: float | None
    transfer: float | None
    transfer_error: float | None


@dataclass(frozen=True, kw_only=True)
class InterferenceInfo:
    """An arm's matrices between P probes, [P][P] means over its runs. Rows are whose loss it is."""

    arm: str
    seeds: int
    probes: list[str]
    labels: list[str]
    macs: list[float]
    matrices: dict[Measure, Matrix]
    errors: dict[Measure, Matrix]
    """Their standard errors over batches; no key where they were not recorded."""
    along: list[Along]
    """From the first point of the training that was measured to its end; empty where the end alone was."""
    tested: int
    """Pairs of different probes, over all runs, whose transfer was tested against noise; 0 where none was."""
    harmed: int
    """Of these, the pairs in which a step for the one raised the loss of the other beyond noise."""
    helped: int
    """And those in which it lowered it beyond noise."""
    top1_supernet: list[float]
    """With the supernet's own batch-norm statistics; empty where not recorded."""
    top1_recalibrated: list[float]


def interference_info(runs: Sequence[RunRecord]) -> list[InterferenceInfo]:
    """The matrices of each arm, averaged over runs that have the same probes; none where none was measured."""
    arms: dict[tuple[str, tuple[str, ...]], list[Interference]] = {}
    for run in runs:
        if run.interference is not None:
            arms.setdefault((run.arm, tuple(run.interference.probes)), []).append(run.interference)
    return [_of_arm(arm, list(probes), found) for (arm, probes), found in arms.items()]


def _of_arm(arm: str, probes: list[str], found: list[Interference]) -> InterferenceInfo:
    matrices: dict[Measure, Matrix] = {}
    errors: dict[Measure, Matrix] = {}
    for measure, source in MEASURES.items():
        values = [matrix for matrix in map(source.matrix, found) if matrix]
        if values:
            matrices[measure] = mean_matrix(values)
        own = [matrix for matrix in map(source.errors, found) if matrix]
        if values and len(own) == len(values):
            errors[measure] = _over_runs(own, _error_of_mean)
    if "agreement" in matrices:
        _set_diagonal(matrices["agreement"], [one.gradient.control for one in found], _mean)
    if "agreement" in errors:
        _set_diagonal(errors["agreement"], [one.gradient.control_error for one in found], _error_of_mean)
    macs = [float(value) for value in found[0].macs]
    order = sorted(range(len(macs)), key=lambda i: macs[i])

    def mean_of(runs: Sequence[Sequence[float]]) -> list[float]:
        lists = [values for values in runs if values]
        return [float(np.mean([values[i] for values in lists])) for i in order] if lists else []

    verdicts = [one.transfer for one in found if one.transfer.harmful and one.transfer.helpful]
    return InterferenceInfo(
        arm=arm,
        seeds=len(found),
        probes=[probes[i] for i in order],
        labels=distinct([millions(macs[i]) for i in order]),
        macs=[macs[i] for i in order],
        matrices={m: [[matrix[i][j] for j in order] for i in order] for m, matrix in matrices.items()},
        errors={m: [[matrix[i][j] for j in order] for i in order] for m, matrix in errors.items()},
        along=_along(found),
        tested=len(verdicts) * len(probes) * (len(probes) - 1),
        harmed=sum(_pairs(one.harmful) for one in verdicts),
        helped=sum(_pairs(one.helpful) for one in verdicts),
        top1_supernet=mean_of([one.statistics.top1_supernet for one in found]),
        top1_recalibrated=mean_of([one.statistics.top1_recalibrated for one in found]),
    )


def _pairs(which: Sequence[Sequence[bool]]) -> int:
    """How many pairs of different probes are marked."""
    return sum(marked for i, row in enumerate(which) for j, marked in enumerate(row) if i != j)


def _set_diagonal(matrix: Matrix, runs: Sequence[Sequence[float | None]], over_runs: OverRuns) -> None:
    """Put what stands on the diagonal for each run, a list a run, over runs; where one has none nothing is put."""
    if all(runs):
        for i, row in enumerate(matrix):
            row[i] = over_runs([values[i] for values in runs])


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are there; None where none is."""
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


def _error_of_mean(errors: Sequence[float | None]) -> float | None:
    """The standard error of the mean over independent runs; None where one has none."""
    known = [error for error in errors if error is not None]
    return math.sqrt(sum(error**2 for error in known)) / len(known) if known and len(known) == len(errors) else None


def _along(found: Sequence[Interference]) -> list[Along]:
    """The points that all runs were measured at; none where that is the end alone."""
    points = [{one.step: one for one in [*run.along, run] if one.step is not None} for run in found]
    steps = sorted(set.intersection(*map(set, points)))
    return [_point(step, [run[step] for run in points]) for step in steps] if len(steps) > 1 else []


def _point(step: int, measured: Sequence[Interference]) -> Along:
    agreement, agreement_error = _of_runs([(one.gradient.mean, one.gradient.mean_error) for one in measured])
    transfer, transfer_error = _of_runs([(one.transfer.mean_r, one.transfer.mean_r_error) for one in measured])
    return Along(
        step=step,
        runs=len(measured),
        agreement=agreement,
        agreement_error=agreement_error,
        transfer=transfer,
        transfer_error=transfer_error,
    )


def _of_runs(values: Sequence[tuple[float | None, float | None]]) -> tuple[float | None, float | None]:
    """The mean over runs and its error; None where a run has no value."""
    means, errors = zip(*values, strict=True)
    return (None, None) if None in means else (_mean(means), _error_of_mean(errors))


def mean_matrix(matrices: Sequence[Matrix]) -> Matrix:
    """The mean of each entry over the matrices that have it; None where none has."""
    return _over_runs(matrices, _mean)


def _over_runs(matrices: Sequence[Matrix], of: OverRuns) -> Matrix:
    size = range(len(matrices[0]))
    return [[of([matrix[i][j] for matrix in matrices]) for j in size] for i in size]


def off_diagonal(matrix: Matrix) -> list[float]:
    """The entries between different probes that are there."""
    return [v for i, row in enumerate(matrix) for j, v in enumerate(row) if i != j and v is not None]


def draw_interference(info: InterferenceInfo, measure: Measure = "agreement") -> "alt.LayerChart":
    """A matrix between probes, smallest first. Colours diverge from 0 where the measure has a sign."""
    require_plotting()
    import altair as alt

    rows = [
        {"of": info.labels[i], "by": info.labels[j], "value": value, "shown": "–" if value is None else f"{value:.2f}"}
        for i, row in enumerate(info.matrices[measure])
        for j, value in enumerate(row)
    ]
    reach = max([abs(v) for row in info.matrices[measure] for v in row if v is not None] or [1.0]) or 1.0
    scale = (
        alt.Scale(scheme="blueorange", domain=[-reach, reach], domainMid=0, reverse=True)
        if MEASURES[measure].signed
        else alt.Scale(scheme="blues", domain=[0, reach])
    )
    base = chart_of(rows).encode(
        x=alt.X(
            "by:N",
            sort=info.labels,
            title=MEASURES[measure].by,
            axis=alt.Axis(orient="top", labelAngle=0, domain=False),
        ),
        y=alt.Y("of:N", sort=info.labels, title=None, axis=alt.Axis(domain=False, ticks=False)),
    )
    tips = [alt.Tooltip("of:N", title="row"), alt.Tooltip("by:N", title="column"), alt.Tooltip("value:Q", format=".3f")]
    cells = base.mark_rect().encode(color=alt.Color("value:Q", scale=scale, legend=None), tooltip=tips)
    strong = f"abs(datum.value) > {0.62 * reach:.6g}"
    text = base.mark_text(style=CELL_TEXT).encode(
        text="shown:N", color=alt.condition(strong, alt.value("#ffffff"), alt.value("#111111"))
    )
    return layered(cells, text, height=30 * len(info.labels))


FEW_LOOKS = 6
"""Fewer looks at a probe are drawn as large dots."""


@dataclass(frozen=True, kw_only=True)
class ProbeCurve:
    """One probe of one run: [N] looks."""

    arm: str
    seed: int
    run: str
    probe: str
    label: str
    macs: float
    epochs: list[float]
    top1: list[float]
    forgotten: list[float]
    """F = best so far - now, in points."""


def forgetting_info(runs: Sequence[RunRecord]) -> list[ProbeCurve]:
    """Every probe's top-1 and what of it is forgotten, by rising MACs in a run; none where none was recorded.

    Labels are the probes' MACs, the same in all runs, with a letter where different probes have the same.
    """
    probes = sorted({(float(line.macs), line.probe) for run in runs for line in run.forgetting})
    labels = dict(zip(probes, distinct([millions(macs) for macs, _ in probes]), strict=True))
    return [
        _curve(run, (macs, probe), label)
        for run in runs
        for (macs, probe), label in labels.items()
        if any((line.macs, line.probe) == (macs, probe) for line in run.forgetting)
    ]


def _curve(run: RunRecord, which: tuple[float, str], label: str) -> ProbeCurve:
    macs, probe = which
    looks = [line for line in run.forgetting if (line.macs, line.probe) == which]
    looks.sort(key=lambda line: float(line.epoch))
    return ProbeCurve(
        arm=run.arm,
        seed=run.seed,
        run=run.name,
        probe=probe,
        label=label,
        macs=macs,
        epochs=[float(line.epoch) for line in looks],
        top1=[float(line.top1) for line in looks],
        forgotten=forgetting(looks)[probe],
    )


def draw_forgetting(curves: Sequence[ProbeCurve], what: Literal["top1", "forgotten"] = "top1") -> "alt.LayerChart":
    """A line over epochs for each probe, coloured by its size: means over seeds."""
    require_plotting()
    import altair as alt

    found: dict[tuple[str, float], list[float]] = {}
    for c in curves:
        for epoch, y in zip(c.epochs, c.top1 if what == "top1" else c.forgotten, strict=True):
            found.setdefault((c.label, epoch), []).append(y)
    rows = [
        {"probe": label, "epoch": epoch, "y": float(np.mean(values)), "seeds": len(values)}
        for (label, epoch), values in found.items()
    ]
    labels = list(dict.fromkeys(c.label for c in sorted(curves, key=lambda c: (c.macs, c.probe))))
    title = {"top1": "top-1, recalibrated, %", "forgotten": "below its best so far, points"}[what]
    base = chart_of(rows).encode(
        x=alt.X("epoch:Q", scale=alt.Scale(nice=False)),
        y=alt.Y("y:Q", title=title, scale=alt.Scale(zero=what == "forgotten")),
        color=alt.Color("probe:N", scale=alt.Scale(domain=labels), sort=labels),
        tooltip=["probe:N", "epoch:Q", alt.Tooltip("y:Q", title=title, format=".2f"), "seeds:Q"],
    )
    zero = chart_of([{"y": 0}]).mark_rule(style=ZERO).encode(y="y:Q")
    few = max(len(c.epochs) for c in curves) < FEW_LOOKS
    lines = base.mark_line(strokeWidth=1.5, opacity=0.9, point=alt.OverlayMarkDef(size=60 if few else 14))
    layers = [zero, lines] if what == "forgotten" else [lines]
    return layered(*layers, height=240)
