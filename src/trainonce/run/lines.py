"""The lines of a run's files as values: scores of subnets, stretches of training, looks at probes."""

from typing import Annotated

from pydantic import Field

from trainonce.settings import JsonObject, Number, Record, Whole


class SubnetScore(Record):
    """A line of population.jsonl or of search.jsonl: a subnet scored with the weights of a step."""

    arch: str
    id: str = ""
    """Short name of the architecture; earlier versions did not write it."""
    macs: Number
    params: Number
    top1: Number
    """Percent of the images classified correctly."""
    loss: Number
    """Mean cross-entropy."""
    images: Whole
    step: Whole
    """The training step of the weights."""
    split: str
    """Whose images."""
    calibration: JsonObject | None = None
    """`EvaluateSettings` without the batch of scoring; earlier versions did not write it."""
    search: str | None = None
    """In search.jsonl: the search that asked for the score, by what it follows from."""
    knew: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)] | None = None
    """In search.jsonl: lines of population.jsonl and of search.jsonl that there were when that search began."""


class MetricsLine(Record):
    """A line of metrics.jsonl: a stretch of training."""

    step: Whole
    """Steps done."""
    phase: str
    epoch: Number
    """Passes over the images done, counted by steps."""
    lr: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Learning rate of the last step: as a recipe has it, however large."""
    loss: Number
    """Mean loss of the subnets since the line before."""
    top1: Number
    """Percent of the (augmented) training images classified correctly since the line before; where some batches are
    mixed and others not, of these."""
    macs: Number
    """MACs of the last subnet trained."""
    arch: str
    """The last subnet trained."""
    passes: Number
    """Subnet passes over the images done."""
    seconds: Number | None = None
    """Seconds of training so far; earlier versions did not write them."""
    left_out: Whole = 0
    """Steps of those done that were left out for want of time."""


class ForgettingLine(Record):
    """A line of forgetting.jsonl: a look at a probe after an epoch."""

    step: Whole
    epoch: Number
    probe: str
    """Its architecture."""
    macs: Number
    top1: Number
    loss: Number
    images: Whole
