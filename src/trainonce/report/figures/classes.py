"""What is taken for what: a confusion matrix."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainonce.report.figures.charts import CELL_TEXT, chart_of, layered, require_plotting

if TYPE_CHECKING:
    import altair as alt

MOST_NUMBERED = 15
"""Of more classes than these the cells have no numbers: they would not fit."""


def draw_confusion(confusion: Sequence[Sequence[int]], class_names: Sequence[str]) -> "alt.LayerChart":
    """A matrix of counts, rows the classes of the images, columns what they are taken for, coloured by share of row."""
    require_plotting()
    import altair as alt

    rows = [
        {
            "is": class_names[i],
            "for": class_names[j],
            "images": count,
            "share": count / max(1, sum(row)),
        }
        for i, row in enumerate(confusion)
        for j, count in enumerate(row)
        if count
    ]
    names = list(class_names)
    every = alt.Scale(domain=names)
    above = alt.Axis(orient="top", labelAngle=-45, labelOverlap=False, domain=False, labelLimit=110)
    base = chart_of(rows).encode(
        x=alt.X("for:N", scale=every, title="taken for", axis=above),
        y=alt.Y("is:N", scale=every, title=None, axis=alt.Axis(domain=False, ticks=False, labelLimit=110)),
    )
    tips = [alt.Tooltip("is:N"), alt.Tooltip("for:N", title="taken for"), alt.Tooltip("images:Q")]
    scale = alt.Scale(scheme="blues", domain=[0, 1])
    share = alt.Tooltip("share:Q", title="share of the class", format=".1%")
    cells = base.mark_rect().encode(color=alt.Color("share:Q", scale=scale, legend=None), tooltip=[*tips, share])
    text = base.mark_text(style=CELL_TEXT).encode(
        text="images:Q" if len(names) <= MOST_NUMBERED else alt.value(""),
        color=alt.condition("datum.share > 0.55", alt.value("#ffffff"), alt.value("#111111")),
    )
    return layered(cells, text, height=max(140, (26 if len(names) <= MOST_NUMBERED else 14) * len(names)))
