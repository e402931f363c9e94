"""`trainonce study`: many runs planned, run and reported together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trainonce.cli import display, known, results
from trainonce.cli.known import DATA_SETS, FILES, LOCAL, LONGEST_SCALE, MOST_PER_BUCKET, MOST_SEEDS
from trainonce.cli.options import (
    DataDir,
    Device,
    DryRun,
    Family,
    Geometry,
    Grey,
    ImageSize,
    Json,
    SkipBroken,
    Threads,
    TrainImages,
)
from trainonce.cli.stopping import importing
from trainonce.cli.tools import bucket_centres, work
from trainonce.errors import UserError

if TYPE_CHECKING:
    from trainonce.lab.studies.results import FinishedRun, RecordedConclusion
    from trainonce.pipeline.studying import Studied, StudyPlan, StudyProgress


Name = Annotated[
    str,
    typer.Argument(help=f"A study ({', '.join(known.STUDIES)}) or a .toml file with your own.", show_default=False),
]
Images = Annotated[
    str | None,
    typer.Argument(
        help=f"A data set ({', '.join(DATA_SETS)}), or the path of an image folder or {FILES} file. Default: the "
        "file's own.",
        show_default=False,
    ),
]
Out = Annotated[Path | None, typer.Option(help="The study's directory. Default: studies/NAME-DATA.")]
Scale = Annotated[
    float,
    typer.Option(min=0, max=LONGEST_SCALE, help="Multiplies every run's length; 1 is the paper's. The design stays."),
]
Seeds = Annotated[
    int | None, typer.Option(min=1, max=MOST_SEEDS, help="How many seeds, from 0. Default: 3, or the file's own.")
]
Rates = Annotated[
    list[str] | None,
    typer.Option(
        metavar="RECIPE=FACTOR",
        help="Train a recipe of baseline or geometry at a multiple of its own learning rates, such as rss=3. May "
        "be given several times.",
        show_default=False,
    ),
]
BatchSize = Annotated[int | None, typer.Option(min=2, help="Images in a step; learning rates scale with it.")]
ScoredOn = Annotated[
    Literal["validate", "test"] | None,
    typer.Option(help="What subnets are scored on. Default: test, which is read once; or the file's own."),
]
Centres = Annotated[
    str,
    typer.Option(
        help="Centres in million MACs, such as 4,6,8; or paper. Default: the paper's where the network reaches "
        "them, else six, evenly. Not for dose and solo, whose probes come from buckets of their own."
    ),
]
PerBucket = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=MOST_PER_BUCKET,
        help="Random subnets in each bucket; 0 scores probes alone. Default: 20; of dose and solo 0.",
    ),
]
CalibrationImages = Annotated[
    int | None, typer.Option(min=2, help="Augmented images for recalibrating batch norms. Default: 2000.")
]
RunsAtOnce = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Runs at the same time, which share --threads. Default: one a thread on the CPU, else 1; on Ray, as "
        "many as there is room for.",
    ),
]
WhereRun = Annotated[
    str,
    typer.Option(
        metavar="local|ray|ADDRESS",
        help="Where workers are: processes on this machine; Ray on this machine; or the Ray cluster at an address, "
        "which must see the study's directory under the same path.",
    ),
]


def study(
    name: Name,
    data: Images = None,
    out: Out = None,
    scale: Scale = 1.0,
    seeds: Seeds = None,
    rate: Rates = None,
    batch_size: BatchSize = None,
    family: Family = None,
    geometry: Geometry = None,
    split: ScoredOn = None,
    buckets: Centres = "",
    per_bucket: PerBucket = None,
    calibration_images: CalibrationImages = None,
    image_size: ImageSize = None,
    grey: Grey = False,
    train_images: TrainImages = None,
    skip_broken: SkipBroken = False,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
    workers: RunsAtOnce = None,
    cluster: WhereRun = LOCAL,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run a study: many runs planned, trained, scored and reported together.

    Run the same command again to go on; what is recorded is not done again.
    """
    with importing():
        from trainonce.pipeline import study

    with work() as at_work:
        done = study(
            name,
            data,
            out=out,
            scale=scale,
            seeds=seeds,
            rate=_rates(rate or []),
            batch_size=batch_size,
            family=family,
            geometry=geometry,
            split=split,
            buckets=bucket_centres(buckets),
            per_bucket=per_bucket,
            calibration_images=calibration_images,
            image_size=image_size,
            grey=grey,
            train_images=train_images,
            skip_broken=skip_broken,
            data_dir=data_dir,
            device=device,
            threads=threads,
            workers=workers,
            cluster=cluster,
            dry_run=dry_run,
            on_plan=_say_plan,
            on_estimate=_say_estimate,
            on_start=at_work.start,
            on_progress=lambda at: at_work.show(at.done, at.total, _progress_line(at)),
            on_run=_say_run,
            should_stop=at_work.should_stop,
        )
    if dry_run:
        _say_dry(done, as_json=as_json)
    elif done.conclusion is None:
        recorded, runs = len(done.plan.directory.finished()), len(done.plan.study.runs)
        display.err.print(
            f"Stopped; {recorded} of {runs} runs are recorded, the others go on from their last checkpoint. "
            "Run the same command again to go on."
        )
        raise typer.Exit(128 + (at_work.stopped_by or 15))
    else:
        _say(done, done.conclusion, as_json=as_json)


def _rates(given: Sequence[str]) -> dict[str, float]:
    """Factors by recipe. Raises `UserError` for what is no number."""
    rates = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            rates[name] = float(number)
        except ValueError:
            from trainonce.recipes import RECIPES

            raise UserError(
                f"--rate takes RECIPE=FACTOR, such as rss=3, not {text!r}; recipes are {', '.join(RECIPES)}"
            ) from None
    return rates


def _say_plan(plan: StudyPlan) -> None:
    about, images = plan.study, plan.data
    display.err.print(f"{about.name} on {images.name}, into {plan.directory.path}: {about.question}\n{about.about}")
    display.say_classes(images)
    display.err.print(results.study_plan(about))


def _say_estimate(plan: StudyPlan, seconds: float) -> None:
    shared = f", {plan.workers} at a time" if plan.workers and plan.workers > 1 else ""
    missing, runs = len(plan.missing), len(plan.study.runs)
    display.err.print(f"{missing} of {runs} runs to do{shared}: about {display.duration(seconds)} on this machine")


def _progress_line(at: StudyProgress) -> str:
    under_way = ", ".join(f"{name} {100 * share:.0f}%" for name, share in at.under_way.items()) or "starting"
    return f"runs; {under_way}; about {display.duration(at.seconds_left)} left"


def _say_run(line: FinishedRun) -> None:
    display.err.print(f"{line.run}: trained in {display.duration(line.train_seconds)}, scored and recorded")


def _say_dry(done: Studied, *, as_json: bool) -> None:
    if as_json:
        runs, missing = len(done.plan.study.runs), len(done.plan.missing)
        plan = {"runs": runs, "missing": missing, "seconds": round(done.seconds, 1)}
        display.print_json(plan | {"workers": done.plan.workers})


def _say(done: Studied, conclusion: RecordedConclusion, *, as_json: bool) -> None:
    place = done.plan.directory.path
    if as_json:
        arms = [asdict(summary) for summary in done.arms]
        display.print_json({"study": str(place), "arms": arms, "conclusion": conclusion.to_json()})
        return
    display.out.print(f"Top-1 in percent on the {done.plan.study.evaluate.split} split")
    display.out.print(results.study_table(done.arms))
    display.out.print(conclusion.sentence)
    display.err.print(f"Written to {place}")
