"""What all figures share: colours, the light and the dark theme, and writing a chart as a picture.

Altair and vl-convert are an extra, so a function that draws calls `require_plotting` before it imports them.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from trainonce.errors import RunError, UserError
from trainonce.extras import try_import
from trainonce.lab.statistics import checked, student

if TYPE_CHECKING:
    import altair as alt

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B6B6B", "#8A7A00")
"""Okabe and Ito's palette: told apart by people who do not see red and green apart."""

DARK_COLOURS = ("#56B4E9", "#F28E5C", "#2FC79A", "#E3A0C8", "#E69F00", "#8FB8FF", "#A8A8A8", "#F0E442")
"""The same hues, light enough for a dark page."""

DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [1, 3], [10, 2], [2, 6])
"""A second sign for each arm, for print and for eyes that see no colour."""

FORMATS = (".png", ".svg", ".pdf")
PICTURE_WIDTH = 720
"""Pixels of a chart written as a picture; on a page it takes the width there is."""

MEDIAN = "median"
ZERO = "zero"
CELL_TEXT = "cell-text"
"""Styles that the themes colour."""


Spec: TypeAlias = dict[str, Any]
"""A chart, or a part of one, in Vega-Lite's JSON."""
ChartRow: TypeAlias = dict[str, Any]
"""What a chart is drawn from, by column."""


def require_plotting() -> None:
    """Raises `UserError` that names the extra where Altair or vl-convert is not installed."""
    with try_import("drawing", "plot"):
        for name in ("altair", "vl_convert"):
            if find_spec(name) is None:
                raise ImportError(name)


def theme(*, dark: bool = False) -> Spec:
    """Vega-Lite's config for a light or a dark page."""
    ink, soft, line, grid = (
        ("#e6e6e6", "#b8bcc2", "#80868f", "#33383f") if dark else ("#1a1a1a", "#4a4f57", "#80868f", "#e3e5e8")
    )
    font = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
    axis = {"labelColor": soft, "titleColor": soft, "domainColor": line, "tickColor": line, "gridColor": grid}
    return {
        "font": font,
        "background": "transparent",
        "padding": {"left": 2, "top": 5, "right": 16, "bottom": 5},
        "view": {"stroke": "transparent"},
        "axis": axis | {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelOverlap": True},
        "axisX": {"grid": False},
        "legend": {
            "orient": "top",
            "title": None,
            "labelColor": soft,
            "titleColor": soft,
            "labelFontSize": 12,
            "labelLimit": 260,
            "symbolStrokeWidth": 2,
        },
        "title": {"color": ink, "anchor": "start", "fontSize": 13, "fontWeight": 600},
        "text": {"color": ink},
        "range": {"category": list(DARK_COLOURS if dark else COLOURS)},
        "style": {
            MEDIAN: {"color": ink, "stroke": ink},
            ZERO: {"color": line, "stroke": line},
            CELL_TEXT: {"fontSize": 11},
        },
        "aria": False,
    }


def save_chart(chart: "alt.TopLevelMixin", path: str | Path) -> None:
    """Write a chart into a .png, .svg or .pdf file. Raises `UserError` for another ending or without the extra."""
    path = Path(path)
    if path.suffix not in FORMATS:
        raise UserError(f"a picture's name must end in {', '.join(FORMATS)}, not {path.name!r}")
    require_plotting()
    import vl_convert

    # As text: of a path that is not UTF-8, in a tip that a picture does not show, half characters are no text.
    spec = json.dumps(standing_alone(chart.to_dict()), ensure_ascii=False).encode(errors="replace").decode()
    try:
        if path.suffix == ".svg":
            path.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
        elif path.suffix == ".pdf":
            path.write_bytes(vl_convert.vegalite_to_pdf(spec))
        else:
            path.write_bytes(vl_convert.vegalite_to_png(spec, scale=2))
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def standing_alone(spec: Spec) -> Spec:
    """A chart's spec with the light theme, a white ground and a width of its own, for places that are no page."""
    width = {"width": PICTURE_WIDTH} if spec.get("width") == "container" else {}
    return spec | width | {"config": theme() | {"background": "white", "padding": 12}}


def page_size(height: int) -> Spec:
    """Properties of a chart that is as wide as the page lets it be."""
    import altair as alt

    return {"width": "container", "height": height, "autosize": alt.AutoSizeParams(type="fit-x", contains="padding")}


def chart_of(rows: Sequence[ChartRow]) -> "alt.Chart":
    """A chart of these rows, yet without marks."""
    import altair as alt

    return alt.Chart(alt.InlineData(values=list(rows)))


def layered(*layers: "alt.Chart | alt.LayerChart", height: int) -> "alt.LayerChart":
    """Layers, the first at the back, as wide as the page lets them be."""
    import altair as alt

    whole = alt.layer(*layers)
    assert isinstance(whole, alt.LayerChart)
    return whole.properties(**page_size(height))


def arm_scale(arms: Sequence[str]) -> "alt.Scale":
    """Arms in their order, coloured by the theme's palette."""
    import altair as alt

    return alt.Scale(domain=list(arms))


def arm_colour(arms: Sequence[str], *, lines: bool = False) -> "alt.Color":
    """The colour of a row's `arm`; a legend, of lines or of dots, where there are several."""
    import altair as alt

    legend = alt.Legend(symbolType="stroke") if lines else alt.Legend()
    return alt.Color("arm:N", scale=arm_scale(arms), legend=legend if len(arms) > 1 else None)


def arm_dash(arms: Sequence[str]) -> "alt.StrokeDash":
    """The dashes of a row's `arm`, in the legend of its colour."""
    import altair as alt

    scale = alt.Scale(domain=list(arms), range=[list(DASHES[i % len(DASHES)]) for i in range(len(arms))])
    return alt.StrokeDash("arm:N", scale=scale, legend=alt.Legend(symbolType="stroke") if len(arms) > 1 else None)


@dataclass(frozen=True, kw_only=True)
class SeedMean:
    """A mean over seeds with the 95% interval of Student's t; None where one seed allows no interval."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


def seed_mean(values: Iterable[float]) -> SeedMean:
    """The mean of one value a seed, and how far it is known (`trainonce.lab.statistics.student`).

    Raises ValueError for no values or values not finite.
    """
    by_seed = checked(list(values), "values")
    over = student(by_seed)
    if over is None:
        return SeedMean(mean=float(by_seed[0]), low=None, high=None, seeds=1)
    return SeedMean(mean=over.estimate, low=over.low, high=over.high, seeds=len(by_seed))


def distinct(labels: Sequence[str]) -> list[str]:
    """Labels in order, with a letter after each that stands more than once: 4.00 M a, 4.00 M b."""
    return [
        f"{label} {_letter(labels[:i].count(label))}" if labels.count(label) > 1 else label
        for i, label in enumerate(labels)
    ]


def _letter(number: int) -> str:
    """a to z, then aa, ab, …"""
    return (_letter(number // 26 - 1) if number > 25 else "") + chr(ord("a") + number % 26)


def millions(macs: float) -> str:
    """MACs as people say them: 4.05 M."""
    return f"{macs / 1e6:.3g} M" if macs < 1e6 else f"{macs / 1e6:.2f} M"
