"""What a page is made of: tables, figures, sections. Values only; `trainonce.report.page` writes them as HTML."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trainonce.report.figures.charts import Spec

if TYPE_CHECKING:
    import altair as alt


@dataclass(frozen=True)
class Command:
    """A cell that is a command to copy."""

    text: str


@dataclass(frozen=True)
class Thumbnail:
    """A cell that is a small square picture."""

    jpeg: bytes
    about: str
    """What it shows, for those who do not see it."""


Cell = str | int | float | Command | Thumbnail | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """The numbers behind a figure."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    shown: bool = False
    """Whether it is there to be read, and not only where one asks for it."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One chart: its Vega-Lite spec, and a short label where a figure has several."""

    label: str
    spec: Spec


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Charts with what they show in one sentence, how to read them, a text alternative, and the numbers."""

    key: str
    title: str
    caption: str
    summary: str
    pictures: Sequence[Picture]
    tables: Sequence[Table]
    clickable: bool = False
    """Whether a click on a subnet shows its command."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a group's page; without figures or tables it was not recorded."""

    key: str
    heading: str
    figures: Sequence[Figure] = ()
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    how_to_record: str = ""
    part: str = ""
    """The heading of the part of the page that begins with it."""
    notes: list[str] = field(default_factory=list)


def picture(chart: "alt.TopLevelMixin", label: str = "") -> Picture:
    """A chart as part of a figure. Altair does not check it: that takes seconds, and the tests do it."""
    return Picture(label=label, spec=chart.to_dict(validate=False))
