"""`trainonce study`: many runs planned, run and reported together."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trainonce.cli import display, known
from trainonce.cli.known import DATA_SETS, DEFAULT_FAMILY, LOCAL, LONGEST_SCALE, MOST_PER_BUCKET, MOST_SEEDS
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
from trainonce.cli.stopping import importing, stop_on_signal
from trainonce.cli.tools import bucket_centres
from trainonce.errors import UserError

if TYPE_CHECKING:
    from trainonce.data import DataSet
    from trainonce.evaluation.population import Line
    from trainonce.lab.studies.run_study import StudyDirectory
    from trainonce.lab.studies.study import Ground, Study, StudyFile, StudyRun
    from trainonce.pipeline.pace import Pace

LOOK_EVERY_S = 2.0
"""How often running runs are looked at for progress."""


def study(
    name: Annotated[
        str,
        typer.Argument(help=f"A study ({', '.join(known.STUDIES)}) or a .toml file with your own.", show_default=False),
    ],
    data: Annotated[
        str | None,
        typer.Argument(
            help=f"A data set ({', '.join(DATA_SETS)}), or the path of an image folder or .npz file. Default: the "
            "file's own.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The study's directory. Default: studies/NAME-DATA.")] = None,
    scale: Annotated[
        float,
        typer.Option(
            min=0, max=LONGEST_SCALE, help="Multiplies every run's length; 1 is the paper's. The design stays."
        ),
    ] = 1.0,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=MOST_SEEDS, help="How many seeds, from 0. Default: 3, or the file's own.")
    ] = None,
    rate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RECIPE=FACTOR",
            help="Train a recipe of baseline or geometry at a multiple of its own learning rates, such as rss=3. May "
            "be given several times.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images in a step; learning rates scale with it.")
    ] = None,
    family: Family = None,
    geometry: Geometry = None,
    split: Annotated[
        Literal["validate", "test"] | None,
        typer.Option(help="What subnets are scored on. Default: test, which is read once; or the file's own."),
    ] = None,
    buckets: Annotated[
        str,
        typer.Option(
            help="Centres in million MACs, such as 4,6,8; or paper. Default: the paper's where the network reaches "
            "them, else six, evenly. Not for dose and solo, whose probes come from buckets of their own."
        ),
    ] = "",
    per_bucket: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MOST_PER_BUCKET,
            help="Random subnets in each bucket; 0 scores probes alone. Default: 20; of dose and solo 0.",
        ),
    ] = None,
    calibration_images: Annotated[
        int | None, typer.Option(min=2, help="Augmented images for recalibrating batch norms. Default: 2000.")
    ] = None,
    image_size: ImageSize = None,
    grey: Grey = False,
    train_images: TrainImages = None,
    skip_broken: SkipBroken = False,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs at the same time, which share --threads. Default: one a thread on the CPU, else 1; on Ray, as "
            "many as there is room for.",
        ),
    ] = None,
    cluster: Annotated[
        str,
        typer.Option(
            metavar="local|ray|ADDRESS",
            help="Where workers are: processes on this machine; Ray on this machine; or the Ray cluster at an address, "
            "which must see the study's directory under the same path.",
        ),
    ] = LOCAL,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run a study: many runs planned, trained, scored and reported together.

    Run the same command again to go on; what is recorded is not done again.
    """
    with importing():
        from trainonce.data import load_dataset
        from trainonce.lab.studies.built_in import STUDIES
        from trainonce.lab.studies.run_study import StudyDirectory, identity, run_study
        from trainonce.lab.studies.study import Ground, check_architectures, load_study
        from trainonce.parallel.distributed import ranks_in
        from trainonce.pipeline.machine import device_named, use_threads
        from trainonce.pipeline.pace import Pace
        from trainonce.run.directory import provenance

    if ranks_in(os.environ, "cpu").size > 1:
        raise UserError("a study's runs are divided by --workers or --cluster, not by torchrun")
    use_threads(threads)
    file = load_study(Path(name)) if name.endswith(".toml") else None
    source = data or (file.data if file else None)
    if file is None and name not in STUDIES:
        raise UserError(f"unknown study {name!r}; the studies are {', '.join(STUDIES)}, or name a .toml file")
    if buckets and file is None and STUDIES[name].own_buckets:
        raise UserError(f"{name} draws its probes from buckets of its own: leave out --buckets")
    if name == "tuning" and split == "test":
        raise UserError("tuning chooses rates, and nothing is chosen on the test split: leave out --split test")
    if source is None:
        raise UserError("name a data set, a folder of images or an .npz file to study on")
    if scale <= 0:
        raise UserError(f"--scale must be over 0, not {scale:g}")
    images = load_dataset(
        source,
        data_dir=data_dir,
        image_size=image_size,
        grey=grey,
        train_images=train_images,
        skip_broken=skip_broken,
    )
    settled = device_named(device)
    directory = StudyDirectory(out or Path("studies") / f"{file.name if file else name}-{images.name}")
    meter = Pace(images, settled)
    ground = Ground(
        image_size=images.image_size,
        channels=images.channels,
        classes=images.num_classes,
        train_images=len(images.train),
        family=family or DEFAULT_FAMILY,
        geometry=geometry,
        scale=scale,
        seeds=tuple(range(seeds)) if seeds else (file.seeds if file else (0, 1, 2)),
        batch_size=batch_size,
        rates=_rates(rate or []),
    )
    planned = _planned(name, file, ground)
    changes = {
        "split": split,
        "buckets_m": bucket_centres(buckets) or None,
        "half_m": 0.5 if buckets else None,
        "per_bucket": per_bucket,
        "calibration_images": calibration_images,
    }
    evaluate = planned.evaluate.model_copy(update={key: value for key, value in changes.items() if value is not None})
    planned = planned.model_copy(update={"evaluate": evaluate})
    check_architectures(planned)
    if recorded := directory.recorded():
        directory.check(recorded, identity(planned, images))
    _announce(planned, images, directory)
    finished = {line["run"] for line in directory.finished()}
    missing = [run for run in planned.runs if run.name not in finished]
    at_once = _workers(settled, workers, cluster, len(missing))
    with _threads_of_a_worker(settled, workers, cluster):
        estimates = _estimates(planned, missing, meter, images)
    alone = sum(estimates[run.name] for run in missing)
    seconds = max([alone / (at_once or 1), *(estimates[run.name] for run in missing)], default=0.0)
    shared = f", {at_once} at a time" if at_once and at_once > 1 else ""
    display.err.print(
        f"{len(missing)} of {len(planned.runs)} runs to do{shared}: about {display.duration(seconds)} on this machine"
    )
    if dry_run:
        if as_json:
            plan = {"runs": len(planned.runs), "missing": len(missing), "seconds": round(seconds, 1)}
            display.print_json(plan | {"workers": at_once})
        return
    with directory.lock(), stop_on_signal() as stop, display.progress() as show:
        directory.claim(planned, images, provenance=provenance(settled))
        watch = _Watch(planned, directory, estimates, seconds, show, images)

        def should_stop() -> bool:
            watch.look()
            return stop.number is not None

        complete = run_study(
            planned,
            directory,
            images,
            data_dir=data_dir,
            device=settled,
            workers=at_once,
            cluster=cluster,
            on_run=watch.on_run,
            should_stop=should_stop,
        )
    if not complete:
        done = len(directory.finished())
        display.err.print(
            f"Stopped; {done} of {len(planned.runs)} runs are recorded, the others go on from their last checkpoint. "
            "Run the same command again to go on."
        )
        raise typer.Exit(128 + (stop.number or 15))
    _report(planned, directory, as_json=as_json)


def _rates(given: Sequence[str]) -> dict[str, float]:
    """Factors by recipe. Raises `UserError` for what is no known recipe and positive number."""
    from trainonce.recipes import RECIPES

    rates = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            factor = float(number)
        except ValueError:
            factor = 0.0
        if name not in RECIPES or not 0 < factor < math.inf:
            raise UserError(
                f"--rate takes RECIPE=FACTOR, such as rss=3, not {text!r}; recipes are {', '.join(RECIPES)}"
            )
        rates[name] = factor
    return rates


def _planned(name: str, file: StudyFile | None, ground: Ground) -> Study:

    from trainonce.lab.studies.built_in import STUDIES

    if file is None:
        return STUDIES[name].study(ground)
    if ground.rates:
        raise UserError(f"--rate is for the built-in studies: write the learning rates of {name} into its recipes")
    return file.build(ground, folder=Path(name).parent, where=name)


def _workers(device: str, workers: int | None, cluster: str, runs: int) -> int | None:
    """How many runs at a time; None where only the cluster knows."""
    import torch

    if workers is None and cluster == LOCAL:
        workers = torch.get_num_threads() if device == "cpu" else 1
    return None if workers is None else max(1, min(workers, runs))


class _threads_of_a_worker:
    """Inside, torch has as many threads as a worker will have."""

    def __init__(self, device: str, workers: int | None, cluster: str) -> None:
        import torch

        self.before = torch.get_num_threads()
        at_once = _workers(device, workers, cluster, self.before) or self.before
        self.inside = max(1, self.before // at_once) if cluster == LOCAL else 1

    def __enter__(self) -> None:
        import torch

        torch.set_num_threads(self.inside)

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self.before)


def _estimates(study: Study, missing: Sequence[StudyRun], meter: Pace, images: DataSet) -> dict[str, float]:
    """About how many seconds each missing run takes by itself. Timed for one seed; the others are taken to be alike."""
    from trainonce.lab.studies.run_study import subnets_to_score
    from trainonce.models import build
    from trainonce.pipeline.pace import scoring_seconds

    known: dict[str, float] = {}
    scoring: dict[str, float] = {}
    estimates = {}
    for run in missing:
        alike = run.name.removesuffix(f"-seed{run.seed}")
        if alike not in known:
            net = build(run.family, run.model, where=f"run {run.name}")
            subnets = len(subnets_to_score(net, study.evaluate, run))
            model = repr((run.family, run.model))
            if model not in scoring:
                scoring[model] = scoring_seconds(net, images, study.evaluate.split, study.evaluate.calibration_images)
            known[alike] = meter.seconds(net, run.recipe) + subnets * scoring[model]
        estimates[run.name] = known[alike]
    return estimates


class _Watch:
    """Shows how far the runs are, by looking at their metrics now and then."""

    def __init__(
        self,
        study: Study,
        directory: StudyDirectory,
        estimates: dict[str, float],
        seconds: float,
        show: Callable[[int, int, str], None],
        images: DataSet,
    ) -> None:
        self.study, self.directory, self.estimates, self.show = study, directory, estimates, show
        self.seconds = seconds
        self.finished = {line["run"] for line in directory.finished()}
        self.steps = {run.name: _steps(run, images) for run in study.runs}
        self.began = self.looked = time.monotonic()
        self.before = self.work()[0]

    def work(self) -> tuple[float, dict[str, float]]:
        """The estimated seconds of work that are done, and the share done of each run that is under way."""
        from trainonce.lab.studies.run_study import progress_of

        shares = {
            run.name: progress_of(self.directory, run, self.steps[run.name])
            for run in self.study.runs
            if run.name in self.estimates and run.name not in self.finished
        }
        done = sum(self.estimates[name] for name in self.finished if name in self.estimates)
        done += sum(self.estimates[name] * share for name, share in shares.items())
        return done, {name: share for name, share in shares.items() if share > 0}

    def look(self) -> None:
        """Show progress, if it is time to."""
        if time.monotonic() - self.looked < LOOK_EVERY_S:
            return
        self.looked = time.monotonic()
        done, shares = self.work()
        pace = (done - self.before) / (self.looked - self.began)
        total = sum(self.estimates.values())
        left = (total - done) / pace if pace > 0 else self.seconds
        under_way = ", ".join(f"{name} {100 * share:.0f}%" for name, share in shares.items()) or "starting"
        self.show(len(self.finished), len(self.study.runs), f"runs; {under_way}; about {display.duration(left)} left")

    def on_run(self, line: Line) -> None:
        """Note that a run is recorded."""
        self.finished.add(line["run"])
        display.err.print(f"{line['run']}: trained in {display.duration(line['train_seconds'])}, scored and recorded")


def _steps(run: StudyRun, images: DataSet) -> int:
    from trainonce.recipes import timetable

    per_epoch = len(images.train) // min(run.recipe.batch_size, len(images.train))
    return timetable(run.recipe, per_epoch)[-1].end


def _announce(study: Study, images: DataSet, directory: StudyDirectory) -> None:
    display.err.print(f"{study.name} on {images.name}, into {directory.path}: {study.question}\n{study.about}")
    display.say_classes(images)
    display.err.print(display.study_plan(study))


def _report(study: Study, directory: StudyDirectory, *, as_json: bool) -> None:
    from trainonce.lab.studies.summary import arm_summaries, write_conclusion

    summaries = arm_summaries(study.arms, directory.results(), directory.finished())
    conclusion = write_conclusion(directory)
    if as_json:
        result: dict[str, Any] = {"study": str(directory.path), "arms": [asdict(s) for s in summaries]}
        display.print_json(result | {"conclusion": conclusion})
        return
    display.out.print(f"Top-1 in percent on the {study.evaluate.split} split")
    display.out.print(display.study_table(summaries))
    display.out.print(str(conclusion["sentence"]))
    display.err.print(f"Written to {directory.path}")
