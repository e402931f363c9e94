"""What `trainonce fit` is asked for, what it hands over for each device, and what it records of both."""

from collections.abc import Sequence
from typing import Annotated, final

from pydantic import Field, field_validator

from trainonce.data import DataSet
from trainonce.evaluation.evaluator import Score
from trainonce.evaluation.per_class import PerClass
from trainonce.models import Supernet
from trainonce.names import plain
from trainonce.recipes import Recipe
from trainonce.records import read_json
from trainonce.run.directory import RunConfig, RunDirectory, Start
from trainonce.settings import Settings


def name_of(max_macs: float) -> str:
    """The name of a device's directory: 5M, 0.8M."""
    return f"{plain(max_macs / 1e6)}M"


@final
class FitSettings(Settings):
    """What is wanted, and in what time."""

    minutes: float = Field(gt=0, le=60 * 24 * 366)
    """Time for everything: training, choosing, and fine-tuning, if the recipe leaves time for it."""
    max_macs: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    """The most MACs of each device's network."""
    finetune_lr: float | None = Field(None, gt=0)
    """Highest learning rate of fine-tuning, for 64 images; None for what suits the recipe's optimizer."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the training, of the candidates' draw and of fine-tuning."""
    device: str = "cpu"
    """Where it is computed: cpu, cuda, cuda:1."""

    @field_validator("max_macs")
    @classmethod
    def _check_macs(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len({name_of(value) for value in values}) < len(values):
            raise ValueError("must differ, by more than a ten-thousandth")
        return tuple(round(value, 6) for value in values)  # as `quantity` has it, so that 4.1 million is 4.1M


@final
class Fitted(Settings):
    """The network for one device."""

    max_macs: float
    """The device's budget."""
    arch: str
    macs: int
    params: int
    resolution: int | None = None
    """Side in pixels of the images that it takes; None where an earlier version recorded it."""
    name: str
    """Of its directory in the run's `subnets`, in the form that `trainonce extract` writes."""
    candidates: int
    """The number of subnets scored for the device, of which it had the least loss."""
    before_subnets: bool = False
    """Whether it is the largest subnet as it was before others shared its weights."""
    finetuned_epochs: int
    """Which epoch of fine-tuning it is of; 0 where the recipe leaves no time for it, there was too little for one, or
    none had less loss on validate."""
    before: Score
    """On validate, as it came out of the supernet: the least loss of `candidates`, which flatters a little."""
    after: Score
    """On validate, as it is handed over. Its epoch was chosen by it, which flatters a little."""
    test: Score
    """On the test split, read once."""
    per_class: PerClass
    """On the test split, class by class."""


def sharing(fitted: Sequence[Fitted]) -> list[list[Fitted]]:
    """The devices' networks, those of devices that have the same together."""
    found: dict[tuple[str, bool], list[Fitted]] = {}
    for one in fitted:
        found.setdefault((one.arch, one.before_subnets), []).append(one)
    return list(found.values())


def smaller_ones_as_good(fitted: Sequence[Fitted]) -> list[tuple[Fitted, Fitted]]:
    """The networks to which one of fewer MACs is equal or superior on validate, each with the best of those."""
    found = []
    for one in fitted:
        smaller = [other for other in fitted if other.macs < one.macs and other.after.top1 >= one.after.top1]
        if smaller:
            found.append((one, max(smaller, key=lambda other: (other.after.top1, -other.macs))))
    return found


@final
class FitRecord(Settings):
    """What `fit.json` holds."""

    settings: FitSettings
    recipe: Recipe | None = None
    """The recipe that was asked for, before it was scaled to the time; None where an earlier version recorded it."""
    trained: bool
    """Whether the supernet is trained."""
    seconds: float = Field(ge=0)
    """Seconds spent up to the last stage that is done; while training, up to its beginning."""
    devices: tuple[Fitted, ...]
    """Those that are done, in the order of `settings.max_macs`."""


def fit_recorded(run: RunDirectory) -> FitRecord:
    """What `fit.json` of a run says. Raises `UserError` where it is damaged."""
    return FitRecord.parse(read_json(run.fit_file), where=str(run.fit_file))


def begun_otherwise(
    record: FitRecord,
    config: RunConfig,
    settings: FitSettings,
    recipe: Recipe,
    net: Supernet,
    data: DataSet,
    start: Start | None,
) -> str:
    """How a fit was begun, if otherwise than it is asked for now: the first thing that differs, in words, else "".

    Of fits of earlier versions only the scaled recipe is known. Raises `UserError` where the run's model is damaged.
    """
    before = record.settings.model_dump(exclude={"device"})
    for key, wanted in settings.model_dump(exclude={"device"}).items():
        if before[key] != wanted:
            return f"{_asked(key, before[key])}, not {_asked(key, wanted)}"
    if config.data_fingerprint != data.fingerprint():
        return "with other images, or other ones held out"
    if otherwise := config.prepared_otherwise(data):
        return f"with images that were normalised or varied otherwise ({otherwise})"
    if recipe.name != config.recipe.name:
        return f"by the recipe {config.recipe.name}, not {recipe.name}"
    if recipe.class_balance != config.recipe.class_balance:
        return f"with --class-balance {config.recipe.class_balance:g}, not {recipe.class_balance:g}"
    if record.recipe and record.recipe.model_dump(exclude={"about"}) != recipe.model_dump(exclude={"about"}):
        return f"by another recipe of the name {recipe.name}"
    began, begins = (one and one.identity() for one in (config.start, start))
    if (config.family, began) != (net.family, begins) or _model(config, net) != net.settings:
        return "with another network, or other weights to begin with"
    return ""


def _model(config: RunConfig, net: Supernet) -> Settings:
    """A run's settings of the supernet, as the family of `net` reads them."""
    return type(net.settings).parse(config.model, where="run.json")


def _asked(key: str, value: tuple[float, ...] | float | None) -> str:
    """A value of `FitSettings`, as a person asks for it on the command line."""
    option = f"--{key.replace('_', '-')}"
    if value is None:
        return f"without {option}"
    values = [macs / 1e6 for macs in value] if isinstance(value, tuple) else [value]
    return "with " + " ".join(f"{option} {one if isinstance(one, int) else f'{one:.7g}'}" for one in values)
