"""What was trained against what is evaluated, which is selection bias: exposure of every value, passes over MACs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from trainonce.lab.measures.exposure import SelectionBias, selection_bias
from trainonce.report.figures.charts import chart_of, layered, require_plotting
from trainonce.report.loading import PlottedScore, RunRecord
from trainonce.run.exposure import ExposureTable

if TYPE_CHECKING:
    import altair as alt

MACS_BINS = 25
"""Bars of a histogram over MACs, at most: bins that were recorded are joined."""

Share = Literal["exposure", "choice"]


@dataclass(frozen=True, kw_only=True)
class ValueShare:
    """One value of one choice. Shares are of 1, means over runs."""

    place: str
    """The stage or block."""
    value: str
    """The choice's letter and its value: k3, e6, d2."""
    exposure: float
    """Of the learning-rate sum, the part in steps that used the weights which this value adds."""
    choice: float
    """Of all subnet passes, the part whose subnet has exactly this value."""


@dataclass(frozen=True, kw_only=True)
class ArmExposure:
    """An arm's exposure, a mean over its runs, and its passes over MACs beside the subnets evaluated."""

    arm: str
    seeds: int
    shares: list[ValueShare]
    edges_m: list[float]
    trained: list[float]
    """Share of passes in each bin of MACs."""
    evaluated: list[float] | None
    """Share of evaluated subnets in each bin; None where none is scored."""
    bins: int
    """The bins recorded, of which `trained` and `evaluated` join several for drawing."""
    bias: SelectionBias | None
    """How far apart the two are, in the bins recorded; None where nothing was trained or nothing is scored."""


def exposure_info(runs: Sequence[RunRecord], scored: dict[str, list[PlottedScore]] | None = None) -> list[ArmExposure]:
    """Each arm that recorded exposure, with what was evaluated of it (`scored`, lines by arm); none where none did.

    An arm whose runs differ in more than their seed is left out: there is no one thing that it trained.
    """
    arms: dict[str, list[RunRecord]] = {}
    for run in runs:
        if run.exposure is not None:
            arms.setdefault(run.arm, []).append(run)
    found = []
    for arm, of_arm in arms.items():
        tables = [run.exposure for run in of_arm if run.exposure is not None]
        if all(_same_rows(table, tables[0]) for table in tables) and len({run.seed for run in of_arm}) == len(of_arm):
            macs = [line.macs for line in (scored or {}).get(arm, [])]
            found.append(_arm_exposure(arm, tables, macs))
    return found


def _same_rows(a: ExposureTable, b: ExposureTable) -> bool:
    """Whether two tables are of one space: the same values of the same choices and the same bins."""
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("names", "values", "macs_edges"))


def _arm_exposure(arm: str, tables: Sequence[ExposureTable], macs: Sequence[float]) -> ArmExposure:
    first = tables[0]
    exposure = np.mean([table.exposure / (table.lr_sum or 1.0) for table in tables], axis=0)
    choice = np.mean([table.passes / max(1, table.macs_passes.sum()) for table in tables], axis=0)
    shares = []
    for name, value, exposed, chosen in zip(first.names.tolist(), first.values.tolist(), exposure, choice, strict=True):
        place, _, last = name.rpartition(".")
        short = f"{last[0]}{value}"
        shares.append(ValueShare(place=place or last, value=short, exposure=float(exposed), choice=float(chosen)))
    whole = replace(first, macs_passes=np.sum([table.macs_passes for table in tables], axis=0))
    edges = whole.macs_edges
    join = max(1, -(-len(whole.macs_passes) // MACS_BINS))
    starts = np.arange(0, len(whole.macs_passes), join)
    evaluated = np.histogram(np.clip(macs, edges[0], edges[-1]), bins=edges)[0] if macs else None
    return ArmExposure(
        arm=arm,
        seeds=len(tables),
        shares=shares,
        edges_m=[edge / 1e6 for edge in [*edges[:-1][starts].tolist(), float(edges[-1])]],
        trained=_to_shares(np.add.reduceat(whole.macs_passes, starts)),
        evaluated=None if evaluated is None else _to_shares(np.add.reduceat(evaluated, starts)),
        bins=len(whole.macs_passes),
        bias=selection_bias(whole, macs) if macs and whole.macs_passes.sum() else None,
    )


def _to_shares(counts: NDArray[np.int64]) -> list[float]:
    shares: list[float] = (counts / max(1, counts.sum())).tolist()
    return shares


def draw_exposure(info: ArmExposure, share: Share = "exposure") -> "alt.LayerChart":
    """A heat map: a row for each stage and block, a column for each value."""
    require_plotting()
    import altair as alt

    rows = [
        {"place": s.place, "value": s.value, "share": of_one, "percent": round(100 * of_one)}
        for s in info.shares
        for of_one in [s.exposure if share == "exposure" else s.choice]
    ]
    columns = list(dict.fromkeys(s.value for s in sorted(info.shares, key=lambda s: "kedr".find(s.value[0]) % 9)))
    title = {"exposure": "share of the learning-rate sum", "choice": "share of the passes"}[share]
    base = chart_of(rows).encode(
        x=alt.X("value:N", sort=columns, title=None, axis=alt.Axis(orient="top", labelAngle=0, domain=False)),
        y=alt.Y("place:N", sort=list(dict.fromkeys(s.place for s in info.shares)), title=None, axis=_labels(alt)),
    )
    colour = alt.Color("share:Q", scale=alt.Scale(scheme="viridis", domain=[0, 1]), legend=None)
    tips = [alt.Tooltip("place:N"), alt.Tooltip("value:N"), alt.Tooltip("share:Q", title=title, format=".1%")]
    ink = alt.condition("datum.share > 0.6", alt.value("#111111"), alt.value("#ffffff"))
    cells = base.mark_rect().encode(color=colour, tooltip=tips)
    text = base.mark_text(style="cell-text").encode(text="percent:Q", color=ink)
    return layered(cells, text, height=18 * len({s.place for s in info.shares}))


def _labels(alt: Any) -> Any:
    return alt.Axis(domain=False, ticks=False, labelLimit=120)


def draw_selection(info: ArmExposure) -> "alt.LayerChart":
    """What was trained (filled) and what is evaluated (outlined), over MACs."""
    require_plotting()
    import altair as alt

    names = ["trained", "evaluated"]
    rows = []
    for name, shares in zip(names, (info.trained, info.evaluated), strict=True):
        for left, right, share in zip(info.edges_m[:-1], info.edges_m[1:], shares or [], strict=False):
            rows.append({"what": name, "left": left, "right": right, "share": share})
    base = chart_of(rows).encode(
        x=alt.X("left:Q", title="million MACs", scale=alt.Scale(zero=False, nice=False)),
        x2="right:Q",
        y2=alt.datum(0),
        y=alt.Y("share:Q", title="share", axis=alt.Axis(format=".0%", tickCount=4)),
        tooltip=["what:N", alt.Tooltip("left:Q", format=".2f"), alt.Tooltip("share:Q", format=".1%")],
    )
    scale = alt.Scale(domain=names)
    filled = base.transform_filter("datum.what == 'trained'").mark_bar(opacity=0.6, binSpacing=0)
    outlined = base.transform_filter("datum.what == 'evaluated'").mark_bar(
        fillOpacity=0, strokeWidth=1.6, strokeOpacity=1, binSpacing=0
    )
    colour = alt.Color("what:N", scale=scale)
    return layered(
        filled.encode(color=colour), outlined.encode(color=colour, stroke=alt.Stroke("what:N", scale=scale)), height=180
    )
