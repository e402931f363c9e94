"""`trainonce conclude`: what studies say, from their recorded results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from trainonce.cli import display
from trainonce.cli.options import Json
from trainonce.cli.stopping import importing
from trainonce.errors import RunError, UserError

if TYPE_CHECKING:
    from trainonce.lab.studies.results import RecordedComparison, RecordedConclusion
    from trainonce.settings import JsonObject


def conclude(
    paths: Annotated[list[Path], typer.Argument(metavar="STUDY...", help="Studies' directories.", show_default=False)],
    spread: Annotated[
        bool,
        typer.Option(
            "--spread",
            help="Only say how far differences spread between seeds, and how many seeds it takes to show that there "
            "is none; write nothing. For planning more seeds without looking at what was found.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Draw the conclusions of studies again from their recorded results; writes STUDY/conclusion.json."""
    with importing():
        from trainonce.lab.studies.run_study import StudyDirectory
        from trainonce.lab.studies.summary import conclusion_of, write_conclusion
        from trainonce.pipeline.turns import for_each

    directories = [StudyDirectory(path) for path in paths]
    for directory in directories:
        if not directory.recorded():
            raise UserError(f"{directory.path} holds no study (there is no {directory.study_file.name} in it)")
    found: JsonObject = {}
    for directory, conclusion in for_each(directories, conclusion_of if spread else write_conclusion):
        if isinstance(conclusion, Exception):
            display.err.print(f"{directory.path} failed: {conclusion}.")
            continue
        found[str(directory.path)] = list(_spreads(conclusion)) if spread else conclusion.to_json()
        if not as_json:
            _say_conclusion(directory.path, conclusion, spread=spread)
    if as_json:
        display.print_json(found)
    if len(found) < len(directories):
        raise RunError(f"{len(directories) - len(found)} of {len(directories)} studies could not be concluded")


def _say_conclusion(path: Path, conclusion: RecordedConclusion, *, spread: bool) -> None:
    if spread:
        display.out.print(path)
        display.out.print(_spread_table(conclusion.comparisons))
    else:
        display.out.print(f"{path}: {conclusion.sentence}")


def _spreads(conclusion: RecordedConclusion) -> list[JsonObject]:
    """Of each comparison what says nothing of its difference."""
    keys = {"names", "seeds", "sd", "margin", "seeds_needed"}
    return [comparison.model_dump(include=keys) for comparison in conclusion.comparisons]


def _spread_table(rows: Sequence[RecordedComparison]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("difference", "seeds", "spread between seeds, points", "seeds to show equivalence"):
        table.add_column(name, justify="left" if name == "difference" else "right")
    for row in rows:
        shown = ("–", "–") if row.sd is None else (f"{row.sd:.2f}", f"{row.seeds_needed:,}")
        table.add_row(" − ".join(row.names), str(row.seeds), *shown)
    return table
