"""What was trained against what is evaluated, which is selection bias: exposure of every value, passes over MACs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trainonce.population import Line
from trainonce.report.charts import chart_of, layered, require_plotting
from trainonce.report.loading import ExposureCounts, RunRecord

if TYPE_CHECKING:
    import altair as alt

MACS_BINS = 25
"""Bars of a histogram over MACs, at most: bins that were recorded are joined."""
SHORT = {"kernel_size": "k", "expand_ratio": "e", "depth": "d", "resolution": "r"}

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
    divergence: float | None
    """Total variation between the two: 0 the same, 1 nothing in common."""


def exposure_info(runs: Sequence[RunRecord], scored: dict[str, list[Line]] | None = None) -> list[ArmExposure]:
    """Each arm that recorded exposure, with what was evaluated of it (`scored`, lines by arm); none where none did.

    An arm whose runs differ in more than their seed is left out: there is no one thing that it trained.
    """
    arms: dict[str, list[RunRecord]] = {}
    for run in runs:
        if run.exposure is not None:
            arms.setdefault(run.arm, []).append(run)
    found = []
    for arm, of_arm in arms.items():
        counts = [run.exposure for run in of_arm if run.exposure is not None]
        same = all(
            (c.names, c.values, c.macs_edges) == (counts[0].names, counts[0].values, counts[0].macs_edges)
            for c in counts
        )
        if same and len({run.seed for run in of_arm}) == len(of_arm):
            macs = [line["macs"] for line in (scored or {}).get(arm, [])]
            found.append(_arm_exposure(arm, counts, macs))
    return found


def _arm_exposure(arm: str, counts: Sequence[ExposureCounts], macs: Sequence[float]) -> ArmExposure:
    exposure = np.mean([np.array(c.exposure) / (c.lr_sum or 1.0) for c in counts], axis=0)
    choice = np.mean([np.array(c.passes) / max(1, sum(c.macs_passes)) for c in counts], axis=0)
    shares = []
    for name, value, exposed, chosen in zip(counts[0].names, counts[0].values, exposure, choice, strict=True):
        place, _, last = name.rpartition(".")
        short = f"{SHORT.get(last, last)}{value}"
        shares.append(ValueShare(place=place or last, value=short, exposure=float(exposed), choice=float(chosen)))
    join = max(1, -(-len(counts[0].macs_passes) // MACS_BINS))
    edges = [*counts[0].macs_edges[:-1][::join], counts[0].macs_edges[-1]]
    passes = np.sum([c.macs_passes for c in counts], axis=0)
    trained = [float(passes[i : i + join].sum()) for i in range(0, len(passes), join)]
    evaluated = np.histogram(np.clip(macs, edges[0], edges[-1]), bins=edges)[0].tolist() if macs else None
    return ArmExposure(
        arm=arm,
        seeds=len(counts),
        shares=shares,
        edges_m=[edge / 1e6 for edge in edges],
        trained=_to_shares(trained),
        evaluated=None if evaluated is None else _to_shares(evaluated),
        divergence=None if evaluated is None else total_variation(trained, evaluated),
    )


def _to_shares(counts: Sequence[float]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def total_variation(a: Sequence[float], b: Sequence[float]) -> float:
    """Half the sum of the absolute differences between two histograms' shares: from 0, the same, to 1, disjoint."""
    return 0.5 * sum(abs(x - y) for x, y in zip(_to_shares(a), _to_shares(b), strict=True))


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
