"""What front.json holds, as values: checked once, where they are made or read."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from trainonce.search.algorithm import Round
from trainonce.search.predictor import Accuracy
from trainonce.search.resources import NAMES
from trainonce.settings import JsonObject, Number, Record, Whole

FORMAT = "trainonce-front-1"


class FrontEntry(Record):
    """A subnet of a front."""

    arch: str
    id: str = ""
    """Short name of the architecture."""
    top1: Number
    macs: Number
    params: Number
    measures: dict[str, Number]
    """What it needs of each resource, by its name, in the resource's own unit."""
    known: bool
    """Whether its score was recorded before the search."""


class FrontSide(Record):
    """What one way of looking found."""

    evaluations: Whole
    best: FrontEntry | None = None
    front: list[FrontEntry]
    hypervolume: Number

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.front:
            raise ValueError("its 'front' is empty")
        return self


class ChosenSubnet(Record):
    """The score of the subnet that is to be taken, on one split."""

    arch: str
    top1: Number
    loss: Number
    images: Whole


class RecordedFront(Record):
    """What the last search of a run came to, in the order of the keys of front.json."""

    format: str
    name: str = ""
    """The search, by what it follows from."""
    run: str = ""
    step: Whole | None = None
    """The training step of the weights."""
    split: str
    images: Whole
    calibration: JsonObject = Field(default_factory=dict)
    """`EvaluateSettings` of the version that searched, without the batch of scoring."""
    settings: JsonObject = Field(default_factory=dict)
    """`SearchSettings` of the version that searched."""
    limits: dict[str, Number]
    """The most of each limited resource, in its own unit."""
    numbers: str = "float32"
    """What memory and size are counted in; earlier versions did not write it."""
    target: str | None = None
    """The export target whose operators memory or size are counted by, where they are."""
    minimised: list[str]
    """The resources that are to be small, beside a high top-1."""
    latency_sha256: str | None = None
    """Hash of the latency table, where one was used."""
    calibration_images: Whole | None = None
    """What was asked for; None: as scores recorded before were made."""
    latency_table: str | None = None
    recorded: Whole
    """True scores known before, in or out of the limits."""
    search: FrontSide
    control: FrontSide | None
    """What random search found with as many true scores."""
    rounds: list[Round]
    finalists: Accuracy | None = None
    """How well predictions agreed with the true scores that they led to."""
    best: ChosenSubnet | None = None
    """The subnet of least loss on the split, of all that are scored within the limits; None of earlier versions."""
    test: ChosenSubnet | None
    """The same on the test split; of earlier versions that of highest top-1."""
    provenance: JsonObject = Field(default_factory=dict)

    @field_validator("format")
    @classmethod
    def _of_this_version(cls, value: str) -> str:
        if value != FORMAT:
            raise ValueError(f"it is not what a search of this version writes ({FORMAT})")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [*self.minimised, *self.limits]
        if not self.minimised or not set(names) <= set(NAMES):
            raise ValueError(f"its 'minimised' or 'limits' name no resource of {', '.join(NAMES)}")
        for name, side in (("search", self.search), ("control", self.control)):
            for entry in side.front if side else []:
                missing = set(names) - entry.measures.keys()
                if missing:
                    raise ValueError(f"{name}: the subnet {entry.arch} lacks its {', '.join(sorted(missing))}")
        return self
