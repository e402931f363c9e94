"""What a subnet's config.json says, as values: checked once, where they are made or read."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from trainonce.data.picture import Interpolation
from trainonce.evaluation.evaluator import Score
from trainonce.settings import JsonObject, Number, Record, Whole

Side = Annotated[int, Field(ge=1, le=8192)]
"""Pixels."""


class _Open(Record):
    """A record that keeps the keys that its fields do not name: what another version wrote stays in a copy."""

    model_config = ConfigDict(extra="allow")


class Preprocessing(_Open):
    """How an image becomes the network's input."""

    resolution: Side
    """Side of the input in pixels."""
    channels: Literal[1, 3]
    """1 for grey, 3 for RGB."""
    layout: str = "float32 [batch, channels, height, width], (pixel / 255 - mean) / std"
    """The layout of the input, in words."""
    mean: Annotated[tuple[Annotated[float, Field(strict=True)], ...], Field(strict=False)]
    """Mean of the pixels in 0..1, one for each channel."""
    std: Annotated[tuple[Annotated[float, Field(strict=True)], ...], Field(strict=False)]
    """Standard deviation of the pixels in 0..1, one for each channel."""
    image_size: Side | None = None
    """Side in pixels to which files were brought before the network resized them to `resolution`; None, as earlier
    versions wrote it: the same."""
    interpolation: Interpolation = "bilinear"
    """How they were brought there."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std need {self.channels} numbers each")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self


class RecordedScore(Record):
    """The score of a network on a split."""

    top1: Number
    loss: Number
    images: Whole

    @classmethod
    def of(cls, score: Score) -> Self:
        """The record of a score."""
        return cls(top1=score.top1, loss=score.loss, images=score.images)

    def score(self) -> Score:
        """The score, with its interval."""
        return Score(top1=self.top1, loss=self.loss, images=self.images)


class RecordedEpoch(Record):
    """What an epoch of fine-tuning came to."""

    epoch: Whole
    loss: Number
    score: RecordedScore


class FinetunedBy(_Open):
    """`FinetuneSettings` of the version that fine-tuned, in the order of its keys; two are always there."""

    epochs: Number
    lr: Number | None = None
    optimizer: str | None = None
    schedule: str | None = None
    batch_size: Whole | None = None
    momentum: Number | None = None
    weight_decay: Number | None = None
    label_smoothing: Number | None = None
    class_balance: Number | None = None
    distill: bool
    distillation: str | None = None
    distillation_weight: Number | None = None
    seed: int | None = None


class FinetunedFrom(_Open):
    """How a subnet was fine-tuned."""

    from_sha256: str | None = None
    """Checksum of the weights that it started from."""
    run: str | None = None
    settings: FinetunedBy
    epoch: Whole
    """The epoch that was kept."""
    before: dict[str, RecordedScore]
    after: dict[str, RecordedScore]
    epochs: list[RecordedEpoch] | None = None
    seconds: Number | None = None
    provenance: JsonObject | None = None
    earlier: "FinetunedFrom | None" = None
    """How the subnet that it started from was fine-tuned."""


class TrainedBy(_Open):
    """The run that a subnet was taken from."""

    run: str | None = None
    data: str | None = None
    """What the images are called: a data set's name, or whatever a folder or file of one's own is called."""
    published: bool | None = None
    """Whether they are the data set of that name, as `trainonce.data.load_dataset` gives it without folds; None, as
    earlier versions wrote it: not known."""
    data_fingerprint: str | None = None
    recipe: str | None = None
    epochs: Number | None = None
    passes: Number | None = None
    seed: int | None = None
    step: Whole | None = None
    provenance: JsonObject | None = None
    finetuned: FinetunedFrom | None = None


class SubnetDescription(_Open):
    """What config.json holds, in the order of its keys."""

    format: str
    library_name: str = "trainonce"
    model_type: str = ""
    architecture: str
    choices: dict[str, int] = Field(default_factory=dict)
    macs: Whole
    params: Whole
    network: dict[str, Any]
    """The sizes of the network, as its kind writes them (`trainonce.nn.kinds`)."""
    classes: list[str]
    """One name for each output."""
    preprocessing: Preprocessing
    fused: bool | None = None
    """Whether parallel convolutions were merged, so that its weights are not the supernet's; None for False."""
    recalibrated: JsonObject | None = None
    """`EvaluateSettings` of the version that took it out; None where the batch norms are the supernet's."""
    scores: dict[str, RecordedScore] | None = None
    """By split."""
    trained: TrainedBy | None = None
    per_class: JsonObject | None = None
    """`PerClass` of a split, and the split's name."""
    license: str | None = None
    sha256: dict[str, str] | None = None
    """Checksums of the weights and of model.py; None before it is written."""

    def __or__(self, changes: Mapping[str, Any]) -> Self:
        """The description with other values of these keys. Raises `UserError` that names one that cannot be."""
        return self.read(self.to_json() | dict(changes), where="what describes the subnet is not consistent")

    def without(self, *keys: str) -> Self:
        """The description without the values of these keys, which may be left out."""
        kept = {key: value for key, value in self.to_json().items() if key not in keys}
        return self.read(kept, where="what describes the subnet is not consistent")
