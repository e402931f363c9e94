"""The commands that show results: `draw` one picture, `report` one page."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from trainonce.cli import display
from trainonce.cli.options import BucketHalfWidth, Buckets, Json
from trainonce.cli.stopping import importing
from trainonce.cli.tools import bucket_centres


def draw(
    run_paths: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="One or more runs' directories.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The picture to write: .png, .svg or .pdf.")] = Path("population.png"),
    split: Annotated[Literal["validate", "test"], typer.Option(help="Whose scores to draw.")] = "validate",
    buckets: Buckets = "",
    bucket_half_width: BucketHalfWidth = None,
    as_json: Json = False,
) -> None:
    """Draw the evaluated population: accuracy against MACs, runs side by side."""
    with importing():
        from trainonce.pipeline import draw

    info = draw(*run_paths, out=out, split=split, buckets=bucket_centres(buckets), bucket_half_width=bucket_half_width)
    if as_json:
        display.print_json({"picture": str(out), **asdict(info)})
        return
    display.out.print(f"Drew {out}")


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|STUDY...", help="Directories of runs and of studies.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page to write. Default: report.html in the directory given first; compared.html for several."
        ),
    ] = None,
    split: Annotated[
        Literal["validate", "test"] | None,
        typer.Option(
            help="Whose scores to show. Default: a study's own; test where all runs have them, else validate."
        ),
    ] = None,
    buckets: Buckets = "",
    bucket_half_width: BucketHalfWidth = None,
    as_json: Json = False,
) -> None:
    """Write one page that shows runs or studies: figures, their numbers, what was run. It opens offline.

    Needs the small files alone, not the weights.
    """
    with importing():
        from trainonce.pipeline import report

    done = report(*paths, out=out, split=split, buckets=bucket_centres(buckets), bucket_half_width=bucket_half_width)
    if as_json:
        display.print_json({"page": str(done.page), "bytes": done.page.stat().st_size, "groups": list(done.groups)})
        return
    display.out.print(f"Wrote {done.page}: open it in a browser; it needs no connection.")
