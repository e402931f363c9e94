"""The run directory: the names and formats of its files, in one place.

run.json           what is trained and how (`RunConfig`), written once
metrics.jsonl      one line for each stretch of training
exposure.npz       how much training each choice's values got, see `trainonce.run.exposure`
forgetting.jsonl   one line for each look at a probe while training
interference.json  what the trained subnets do to each other
checkpoints/       step-000123/…, see `trainonce.run.checkpoint`
kept/              weights from along the training, step-000123/…
population.jsonl   one line for each subnet evaluated
search.jsonl       one line for each subnet that a search scored
front.json         what the last search found, see `trainonce.search`
latency/           tables of a device's latencies
subnets/<id>/      a subnet taken out, see `trainonce.subnets`
baseline.json      what a plain classifier made of the same images, see `trainonce.data.baseline`
fit.json           what `trainonce fit` was asked for and has done, see `trainonce.pipeline.fitted`
ship/              what `trainonce ship` made for each device, see `trainonce.pipeline.shipped`
"""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import torch
from pydantic import Field

from trainonce.data import DataSet, DataSource
from trainonce.data.baseline import Baseline
from trainonce.data.dataset import Preparation
from trainonce.data.load import load_source
from trainonce.errors import RunError, UserError
from trainonce.files import is_there, locked, write_atomic
from trainonce.models import Supernet, build
from trainonce.names import command, refuse_code_inside
from trainonce.nn import native
from trainonce.nn.precision import Precision
from trainonce.recipes import Reached, Recipe, reached
from trainonce.records import append_line, read_json, read_lines, to_json, write_lines
from trainonce.run import checkpoint
from trainonce.run.exposure import ExposureTable
from trainonce.run.lines import ForgettingLine, MetricsLine, SubnetScore
from trainonce.settings import JsonObject, Record, Settings
from trainonce.version import __version__


class Imported(Settings):
    """Weights that were trained elsewhere."""

    name: str
    """What their publisher calls the network."""
    file: str
    """Where they were read."""
    sha256: str
    """Hash of that file."""


class Start(Settings):
    """Where the weights come from that a training began with."""

    network: str
    """The network: timm:NAME, torchvision:NAME, package.module:function, or the family of a run."""
    file: str | None = None
    """Where its weights were read: a file, or a run's checkpoint; None where the function gave them."""
    sha256: str | None = None
    """Hash of that file."""
    trained: bool
    """Whether the weights were trained: a file's, a run's or a function's own, not those that a library draws."""
    fresh_head: bool
    """Whether the last layer was drawn anew."""

    def identity(self) -> Self:
        """What must be the same for a run to go on: everything but where the file lay."""
        return self.model_copy(update={"file": None})


class RunConfig(Settings):
    """Everything that a run's weights follow from, and where it was run."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of everything random in the run."""
    data: DataSource
    """Where the images come from."""
    data_fingerprint: str
    """Hash of the images and labels, so that a run refuses to go on with others."""
    preparation: Preparation | None = None
    """How they were normalised, and varied as the recipe says; None where an earlier version did not record it."""
    family: str
    """The supernet's family, a key of `trainonce.models.FAMILIES` unless it is a person's own."""
    model: JsonObject
    """The settings of the supernet, as its family reads them."""
    recipe: Recipe
    """The strategy, already scaled."""
    imported: Imported | None = None
    """Where the weights come from, if not from training here; the recipe then is what their publisher says of them."""
    start: Start | None = None
    """Where the weights come from that the training began with; None where they were drawn from the seed."""
    sync_batch_norm: bool = False
    """Whether several processes normalise by the images of all. May be another when the run goes on."""
    precision: Precision = "float32"
    """The numbers it was computed in. May be others when the run goes on."""
    keep_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Shares of the training after which the weights are kept for good. May be others when the run goes on."""
    planned_step_s: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Seconds that a step of each phase may take, where the run has a time to keep (`TrainSettings`)."""
    provenance: JsonObject = Field(default_factory=dict)
    """Command, time, versions and machine. Says where the run comes from; nothing follows from it."""

    def identity(self) -> JsonObject:
        """What must be the same for a run to go on: everything but how it is carried out.

        Without `preparation` where that was not recorded: it is then not held against anything.
        """
        unknown = {"preparation"} if self.preparation is None else set()
        values = self.model_dump(mode="json", exclude=HOW | unknown)
        start = self.start and self.start.identity().model_dump(mode="json")
        return values | {"data": self.data.identity(), "start": start}

    def prepared_otherwise(self, data: DataSet) -> str:
        """How images are normalised or varied otherwise than the run's, in words; empty where nothing is known to be.

        Varied, they are as the recipe says: subnets are recalibrated on images varied as in training.
        """
        return self.preparation.difference(data.varied_by(self.recipe).preparation) if self.preparation else ""


HOW = {"provenance", "sync_batch_norm", "precision", "keep_at", "planned_step_s"}
"""What a `RunConfig` says of how a run is carried out."""


class RunDirectory:
    """A run's files. Stages read and write here and nowhere else."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "run.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.exposure_file = self.path / "exposure.npz"
        self.forgetting_file = self.path / "forgetting.jsonl"
        self.interference_file = self.path / "interference.json"
        self.population_file = self.path / "population.jsonl"
        self.search_file = self.path / "search.jsonl"
        self.front_file = self.path / "front.json"
        self.fit_file = self.path / "fit.json"
        self.baseline_file = self.path / "baseline.json"
        self.latency = self.path / "latency"
        self.checkpoints = self.path / "checkpoints"
        self.kept = self.path / "kept"
        self.subnets = self.path / "subnets"
        self._locked = False

    def refuse_another(self) -> None:
        """Raise `UserError` if a run is there already."""
        if is_there(self.config_file) or any(self.checkpoints.glob("step-*")):
            raise UserError(f"{self.path} already holds a run; continue it with --resume or name another directory")

    def create(self, config: RunConfig) -> None:
        """Make the directory and write `run.json`. Raises `UserError` if a run is there already."""
        self.refuse_another()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(self.config_file, to_json(config.model_dump(mode="json")))
        except OSError as error:
            raise RunError(f"cannot write {self.config_file}: {error.strerror}") from error

    def config(self) -> RunConfig:
        """What `run.json` says.

        Raises `UserError` if there is no run here, the file is not valid, or code that it names lies in the run.
        """
        if not is_there(self.config_file):
            why = f"there is no {self.config_file.name} in it" if self.path.is_dir() else "it is no directory"
            raise UserError(f"{self.path} holds no run ({why})")
        config = RunConfig.parse(read_json(self.config_file), where=str(self.config_file))
        for name, what in config.recipe.own_code().items():
            refuse_code_inside(self.path, name, what)
        return config

    def checked_config(self) -> RunConfig:
        """What `run.json` says, held against what the newest checkpoint was trained with.

        Raises `UserError` as `config` does, and where they are of different runs, as after damage that no sum shows.
        """
        config, found = self.config(), checkpoint.newest_state(self.checkpoints)
        recorded = None if found is None else found[1].get("identity")
        if found is not None and isinstance(recorded, dict):  # imported weights of earlier versions have none
            trained = RunConfig.parse(recorded, where=str(found[0])).identity()
            for key, value in config.identity().items():
                if trained.get(key, value) != value:
                    raise UserError(
                        f"{self.config_file} is not what {found[0]} was trained with: its {key.replace('_', ' ')} "
                        "differs; one of them is damaged or of another run"
                    )
        return config

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training or evaluating here meanwhile. Raises `UserError` if one does.

        Inside it, what this object locks again stays locked.
        """
        if self._locked:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path / ".lock", f"another process is working in {self.path}"):
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    def load_data(
        self,
        data_dir: str | Path | None = None,
        *,
        moved_to: DataSet | str | Path | None = None,
        stream: bool | None = None,
        workers: int | None = None,
    ) -> DataSet:
        """The run's images; `moved_to` is where their folder or file is now, if it has moved, or they themselves.

        They are varied as the run's recipe says, so that every stage recalibrates on what was trained on. Whether they
        are streamed is as the run recorded it unless `stream` says otherwise; `workers` as `load_dataset`.
        Raises `UserError` where they cannot be had or are not the ones trained on.
        """
        config = self.config()
        if isinstance(moved_to, DataSet):
            return self._same(moved_to, config, "the data set given")
        source = config.data if moved_to is None else config.data.model_copy(update={"name_or_path": str(moved_to)})
        if moved_to is None and Path(source.name_or_path).is_absolute() and not Path(source.name_or_path).exists():
            raise UserError(
                f"the images of {self.path} were at {source.name_or_path} and are not there now; say where they are: "
                "--data PATH, or to resume: trainonce train PATH --resume RUN"
            )
        if stream is not None:
            source = source.model_copy(update={"stream": stream})
        data = load_source(source, data_dir=data_dir, workers=workers, beside=self.path)
        return self._same(data, config, source.name_or_path)

    def _same(self, data: DataSet, config: RunConfig, what: str) -> DataSet:
        """The images, varied as the recipe says. Raises `UserError` where they are not the run's, as they were then."""
        if data.fingerprint() != config.data_fingerprint:
            raise UserError(f"{what} holds other images than those {self.path} was trained on")
        if otherwise := config.prepared_otherwise(data):
            raise UserError(
                f"{what} is not normalised and varied as the images {self.path} was trained on: {otherwise}; give them "
                "as they were"
            )
        return replace(data.varied_by(config.recipe), source=config.data)

    def build_supernet(self) -> Supernet:
        """The run's supernet as it was before training."""
        config = self.config()
        return build(config.family, config.model, seed=config.seed, where=str(self.config_file), beside=self.path)

    def load_supernet(self) -> tuple[Supernet, int]:
        """The supernet with the newest whole checkpoint's weights, in evaluation mode, and its step.

        Raises `UserError` if there is no run, no checkpoint, or none that fits the run's network.
        """
        imported = self.config().imported is not None
        found = checkpoint.load_latest(self.checkpoints)
        if found is None or (found.step == 0 and not imported):
            raise UserError(f"{self.path} has no trained weights yet: train it first")
        return self._with_weights(found), found.step

    def newest_step(self) -> int:
        """The step of the newest weights, 0 where there are none."""
        found = checkpoint.newest_state(self.checkpoints)
        return 0 if found is None else int(found[1]["step"])

    def reached(self, step: int, train_images: int) -> Reached:
        """How far the training had come at a step, without the steps that were left out for want of time (of passes
        about); weights from elsewhere have all that their publisher says."""
        config = self.config()
        if config.imported is not None:
            return Reached(config.recipe.epochs, config.recipe.passes, ended=True)
        found = reached(config.recipe, config.recipe.steps_per_epoch(train_images), step)
        left_out = next((line.left_out for line in reversed(self.metrics()) if line.step <= step), 0)
        made = 1 - left_out / max(step, 1)
        return found if made == 1 else found._replace(epochs=made * found.epochs, passes=made * found.passes)

    def kept_steps(self) -> list[int]:
        """The steps whose weights were kept along the training, in order."""
        return checkpoint.steps(self.kept)

    def load_kept(self, step: int) -> Supernet:
        """The supernet as it was after one of `kept_steps`, in evaluation mode.

        Raises `UserError` where the step was not kept, is damaged or does not fit the run's network.
        """
        return self._with_weights(checkpoint.load_step(self.kept, step))

    def _with_weights(self, found: checkpoint.Checkpoint) -> Supernet:
        self.checked_config()
        net = self.build_supernet()
        weights = found.tensors.get("weights", {})
        expected = net.state_dict()
        for name in [*expected, *weights]:
            shapes = [tuple(d[name].shape) if name in d else None for d in (expected, weights)]
            if shapes[0] != shapes[1]:
                raise UserError(
                    f"{found.path} is of another network: {name} is {shapes[1]} there and {shapes[0]} in {self.path}"
                )
        net.load_state_dict(weights)
        return net.eval()

    def append_metrics(self, line: MetricsLine) -> None:
        """Record one stretch of training. Raises `RunError` where the disk refuses."""
        with _disk_refusing(self.metrics_file):
            append_line(self.metrics_file, line.to_json())

    def metrics(self) -> list[MetricsLine]:
        """All stretches recorded. Raises `UserError` that names a damaged line."""
        return MetricsLine.read_lines(self.metrics_file)

    def drop_after(self, step: int) -> None:
        """Forget the stretches and looks that end after `step`, which a resumed run will do again."""
        ends = {
            self.metrics_file: [line.step for line in self.metrics()],
            self.forgetting_file: [line.step for line in self.forgetting()],
        }
        for path, steps in ends.items():
            kept = [line for line, end in zip(read_lines(path), steps, strict=True) if end <= step]
            if len(kept) < len(steps):
                with _disk_refusing(path):
                    write_lines(path, kept)

    def append_forgetting(self, line: ForgettingLine) -> None:
        """Record one look at a probe. Raises `RunError` where the disk refuses."""
        with _disk_refusing(self.forgetting_file):
            append_line(self.forgetting_file, line.to_json())

    def forgetting(self) -> list[ForgettingLine]:
        """All looks at probes recorded. Raises `UserError` that names a damaged line."""
        return ForgettingLine.read_lines(self.forgetting_file)

    def write_exposure(self, table: ExposureTable) -> None:
        """Replace what is recorded of exposure. Raises `RunError` where the disk refuses."""
        with _disk_refusing(self.exposure_file):
            write_atomic(self.exposure_file, table.to_npz())

    def exposure(self) -> ExposureTable:
        """What was trained how much. Raises `UserError` where it was not recorded or is damaged."""
        return ExposureTable.read(self.exposure_file)

    def append_population(self, line: SubnetScore) -> None:
        """Record one evaluation. Raises `RunError` where the disk refuses."""
        with _disk_refusing(self.population_file):
            append_line(self.population_file, line.to_json())

    def population(self) -> list[SubnetScore]:
        """All evaluations recorded. Raises `UserError` that names a damaged line."""
        return SubnetScore.read_lines(self.population_file)

    def append_searched(self, line: SubnetScore) -> None:
        """Record one score that a search made. Raises `RunError` where the disk refuses."""
        with _disk_refusing(self.search_file):
            append_line(self.search_file, line.to_json())

    def searched(self) -> list[SubnetScore]:
        """All scores that searches made. Raises `UserError` that names a damaged line."""
        return SubnetScore.read_lines(self.search_file)

    def scores(self) -> list[SubnetScore]:
        """All evaluations and all scores of searches, those of a search where it began. Raises as these do."""
        population, found, taken = self.population(), list[SubnetScore](), 0
        for line in self.searched():
            known = len(population) if line.knew is None else max(taken, line.knew[0])
            found += [*population[taken:known], line]
            taken = known
        return found + population[taken:]

    def write_baseline(self, found: Baseline) -> None:
        """Record what a plain classifier makes of the run's images."""
        with _disk_refusing(self.baseline_file):
            write_atomic(self.baseline_file, to_json(found.to_json()))

    def baseline(self) -> Baseline | None:
        """What a plain classifier makes of the run's images; None where that was not recorded."""
        if not is_there(self.baseline_file):
            return None
        return Baseline.read_file(self.baseline_file)

    def write_front(self, found: Record) -> None:
        """Replace what the last search found. Raises `RunError` where the disk refuses."""
        with _disk_refusing(self.front_file):
            write_atomic(self.front_file, to_json(found.to_json()))


@contextmanager
def _disk_refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; what it holds is safe") from error


def provenance(device: str) -> JsonObject:
    """The command, the time, and the versions, device and machine that results depend on."""
    program = Path(sys.argv[0]).name
    return {
        "command": command("trainonce" if program == "__main__.py" else program, *sys.argv[1:]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "trainonce": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "native_kernels": device == "cpu" and not native.why_not(),
        "native_flags": native.tuned() if device == "cpu" else "",
    }
