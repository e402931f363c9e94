"""The page: one HTML file with its charts, their library and all numbers inside, that asks for nothing from outside."""

import base64
import functools
import html
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from trainonce.pages import json_in_script, write_page
from trainonce.report.figures.charts import require_plotting, theme
from trainonce.report.loading import Group
from trainonce.report.parts import Cell, Command, Figure, Section, Table, Thumbnail
from trainonce.report.sections.all import sections_of
from trainonce.version import __version__

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""Content security policy: nothing is fetched, and nothing is evaluated from text."""

EXPLANATION = (
    "A <em>supernet</em> is one large network trained once, inside which lie very many smaller ones, the "
    "<em>subnets</em>: each uses some of its layers, channels and kernel sizes, so all of them share weights. "
    "Any of them can be taken out and used without training again, one for each device.",
    "Because they share weights, a training step for one subnet also moves the weights of others. If that makes the "
    "others worse, it is called <em>interference</em>. Elaborate training schemes such as Progressive Shrinking exist "
    "to avoid it; Random Subnet Sampling does nothing about it.",
    "To see interference itself, not just its supposed effects, one compares a subnet inside a supernet with the same "
    "subnet trained alone for as long, and watches what a step for one subnet does to another. Another cause can look "
    "the same: <em>selection bias</em>, when the subnets that are evaluated are hardly those that were trained.",
)


def write_report(groups: Sequence[Group], path: str | Path) -> None:
    """Write the report into an .html file. Raises `RunError` where the disk refuses, `UserError` without the extra."""
    write_page(path, build_page(groups).encode(errors="backslashreplace"))


def build_page(groups: Sequence[Group]) -> str:
    """The page of these groups as HTML. Raises `UserError` without the extra that draws."""
    require_plotting()
    from altair.utils.schemapi import debug_mode

    static = files("trainonce.report") / "static"
    with debug_mode(False):  # Altair would check every row of data
        parts = [(group, sections_of(group)) for group in groups]
    body = "\n".join(
        _group(number, group, sections, alone=len(parts) == 1) for number, (group, sections) in enumerate(parts)
    )
    themes = {"light": theme(), "dark": theme(dark=True)}
    titles = "; ".join(group.title for group in groups)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(titles)} – trainonce report</title>
<style>
{(static / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<header>
<h1>{html.escape(titles)}</h1>
{_explanation() if len(parts) > 1 else ""}
{_contents(parts)}
</header>
<main>
{body}
</main>
<footer><p>Written by trainonce {__version__} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. This file holds everything
that it shows and needs no connection.</p></footer>
<script type="application/json" id="themes">{json_in_script(themes)}</script>
<script>{_library()}</script>
<script>
{(static / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""


@functools.cache
def _library() -> str:
    """The charts' library as a script that fits into a page; bundling it takes a second, so once for all pages."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _explanation() -> str:
    return "".join(f"<p>{sentence}</p>" for sentence in EXPLANATION)


def _contents(parts: Sequence[tuple[Group, Sequence[Section]]]) -> str:
    """Links to all sections; where there are several groups, with each one's question and answer in short."""
    lists = []
    for number, (group, sections) in enumerate(parts):
        links = [
            f'<li><a href="#g{number}-{section.key}">{html.escape(section.heading)}</a></li>'
            for section in sections
            if _recorded(section)
        ]
        short = ""
        if len(parts) > 1:
            answer = next((section.text[0] for section in sections if section.text), "")
            short = (
                f'<p><strong><a href="#g{number}">{html.escape(group.title)}</a></strong> '
                f'<span class="about">{html.escape(group.question)}</span></p><p>{html.escape(answer)}</p>'
            )
        lists.append(f"{short}<ul>{''.join(links)}</ul>")
    return f'<nav aria-label="Contents">{"".join(lists)}</nav>'


def _recorded(section: Section) -> bool:
    return bool(section.figures or section.tables or section.text)


def _group(number: int, group: Group, sections: Sequence[Section], *, alone: bool) -> str:
    about = " ".join(html.escape(text) for text in (group.question, group.about) if text)
    written = [
        _section(f"g{number}-{section.key}", section, explained=alone and section.key == "answer")
        for section in sections
        if _recorded(section)
    ]
    missing = [f"{section.heading.lower()} ({section.how_to_record})" for section in sections if not _recorded(section)]
    left_out = (
        f'<p class="missing">Not recorded, so not shown: {html.escape("; ".join(missing))}.</p>' if missing else ""
    )
    title = html.escape(group.title)
    heading = "" if alone else f'<h2 id="g{number}">{title}</h2>'
    return f"""<section aria-label="{title}">
{heading}
{f'<p class="about">{about}</p>' if about else ""}
{"".join(written)}
{left_out}
</section>"""


def _section(key: str, section: Section, *, explained: bool) -> str:
    text = "".join(f"<p{' class=main' if i == 0 else ''}>{html.escape(t)}</p>" for i, t in enumerate(section.text))
    part = f'<h2 class="part">{html.escape(section.part)}</h2>' if section.part else ""
    return f"""{part}<section id="{key}">
<h3>{html.escape(section.heading)}</h3>
{f'<div class="answer">{text}</div>' if text else ""}{_explanation() if explained else ""}
{"".join(_figure(f"{key}-{figure.key}", figure) for figure in section.figures)}
{"".join(_details(table) for table in section.tables)}
</section>"""


def _figure(key: str, figure: Figure) -> str:
    charts = []
    for number, picture in enumerate(figure.pictures):
        name = f"{key}-{number}"
        spoken = f"{picture.label}. {figure.summary}" if picture.label else figure.summary
        label = f'<p class="label">{html.escape(picture.label)}</p>' if picture.label else ""
        charts.append(
            f'<div>{label}<div class="chart" role="img" aria-label="{html.escape(spoken)}" data-spec="{name}"></div>'
            f'<script type="application/json" id="{name}">{json_in_script(picture.spec)}</script></div>'
        )
    picked = (
        '<div class="picked" aria-live="polite" hidden><p class="facts"></p>'
        '<div class="command"><code></code><button type="button" class="copy">copy</button></div></div>'
    )
    return f"""<figure id="{key}"{' data-clickable="1"' if figure.clickable else ""}>
<p class="title">{html.escape(figure.title)}</p>
<div class="charts{" many" if len(charts) > 1 else ""}">{"".join(charts)}</div>
{picked if figure.clickable else ""}
<figcaption>{html.escape(figure.caption)}</figcaption>
{"".join(_details(table) for table in figure.tables)}
</figure>"""


def _details(table: Table) -> str:
    numeric = [
        bool(table.rows) and all(row[i] is None or isinstance(row[i], int | float) for row in table.rows)
        for i in range(len(table.columns))
    ]
    head = "".join(
        f'<th scope="col"{" class=n" if n else ""}>{html.escape(name)}</th>'
        for name, n in zip(table.columns, numeric, strict=True)
    )
    rows = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in table.rows)
    caption = html.escape(table.caption)
    scrolled = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    if table.shown:
        return f'<div class="shown">{scrolled}<p class="about">{caption}</p></div>'
    return f"<details><summary>Table: {caption}</summary>{scrolled}</details>"


def _cell(cell: Cell) -> str:
    if isinstance(cell, Command):
        button = '<button type="button" class="copy">copy</button>'
        return f'<td><div class="command"><code>{html.escape(cell.text)}</code>{button}</div></td>'
    if isinstance(cell, Thumbnail):
        content = base64.b64encode(cell.jpeg).decode()
        return f'<td><img class="small" src="data:image/jpeg;base64,{content}" alt="{html.escape(cell.about)}"></td>'
    if isinstance(cell, float):
        return f'<td class="n">{_number(cell)}</td>'
    if isinstance(cell, int):
        return f'<td class="n">{cell}</td>'
    return f"<td>{'' if cell is None else html.escape(cell)}</td>"


def _number(value: float) -> str:
    if value == 0 or 0.01 <= abs(value) < 1e5:
        return f"{value:.3f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"
    return f"{value:.3g}"
