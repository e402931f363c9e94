"""The command that says whether files are whole."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from trainonce.cli import display
from trainonce.cli.options import Json
from trainonce.cli.stopping import importing


def verify(
    path: Annotated[Path, typer.Argument(metavar="RUN|STUDY|SUBNET|FILE", help="What to look at.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Check every file of a run, a study, a subnet or an export; the exit code is 1 where one is damaged.

    whole: it is what was written. unchecked: it has no sum, as those of early versions. foreign: trainonce reads no
    such file. damaged: it was changed, cut or lost.
    """
    with importing():
        from trainonce.pipeline.verifying import verify

    findings = verify(path)
    if as_json:
        files = [{"path": str(one.path), "state": one.state, "why": one.why} for one in findings]
        display.print_json({"path": str(path), "files": files})
    else:
        for one in findings:
            display.out.print(f"{one.state:9} {one.why or one.path}")
        counts = Counter(one.state for one in findings)
        display.err.print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "nothing there")
    if any(one.state == "damaged" for one in findings):
        raise typer.Exit(1)
