"""A study's files as values: its plan, a line for each subnet scored, one for each finished run, its conclusion."""

from pydantic import Field

from trainonce.models import MobileNetV3
from trainonce.settings import JsonObject, Number, Record, Whole

Factors = dict[str, str | float | int]
"""What sets a run apart, by name."""


class StudyResult(Record):
    """A line of results.jsonl: a subnet scored in a run."""

    run: str
    arm: str
    seed: Whole
    factors: Factors
    arch: str
    macs: Number
    params: Number
    top1: Number
    """Percent of the images classified correctly."""
    loss: Number
    images: Whole
    split: str
    bucket: Number | None
    """Centre of the bucket that it lies in, in million MACs; None outside of all."""
    probe: bool
    """Whether it is a probe, and not one of the population."""


class FinishedRun(Record):
    """A line of times.jsonl: a run that is finished, and how long it took."""

    run: str
    arm: str
    seed: Whole
    factors: Factors
    train_seconds: Number
    passes: Number
    """Subnet passes over the images."""
    epochs: Number
    steps: Whole
    lr_sum: Number
    """Sum of the learning rates of its steps."""
    threads: Whole
    beside: Whole | None
    """How many runs were trained at the same time, itself among them; None where that is not known."""
    device: str


class RecordedArm(Record):
    """An arm in study.json."""

    name: str
    about: str = ""


class RecordedRecipe(Record):
    """A recipe in study.json, by name alone."""

    name: str = ""


class RecordedRun(Record):
    """A run in study.json, without how it trains."""

    name: str
    arm: str
    seed: Whole
    factors: Factors = Field(default_factory=dict)
    recipe: RecordedRecipe = RecordedRecipe()
    family: str = MobileNetV3.family
    model: JsonObject = Field(default_factory=dict)


class RecordedPlan(Record):
    """How runs are scored, in study.json."""

    split: str
    buckets_m: list[Number] = Field(default_factory=list)
    half_m: Number | None = None
    probes: list[str] = Field(default_factory=list)


class RecordedImages(Record):
    """The images in study.json."""

    name_or_path: str


class RecordedStudy(Record):
    """What study.json says of a study that may be of an earlier version."""

    data: RecordedImages | None = None
    data_fingerprint: str = ""
    provenance: JsonObject = Field(default_factory=dict)
    name: str
    design: str | None = None
    about: str = ""
    question: str = ""
    arms: list[RecordedArm]
    runs: list[RecordedRun]
    evaluate: RecordedPlan

    @property
    def built_in(self) -> str | None:
        """The study of ours that it is; its name says so where it is from before designs were recorded."""
        return self.design if "design" in self.model_fields_set else self.name


class RecordedComparison(Record):
    """A `SeedComparison` in conclusion.json: the first name's less the second's, in points."""

    names: list[str]
    seeds: Whole | None = None
    difference: Number | None
    low: Number | None
    high: Number | None
    """Student's 95% interval over seeds; None where one seed allows none."""
    sd: Number | None = None
    bootstrap_low: Number | None = None
    bootstrap_high: Number | None = None
    p_difference: Number | None = None
    p_holm: Number | None = None
    p_equivalence: Number | None = None
    margin: Number = 0.5
    seeds_needed: Number | None = None
    verdict: str
    sentence: str = ""


class RecordedConclusion(Record):
    """What conclusion.json says of a `Conclusion`; a number that does not exist is None."""

    study: str = ""
    sentence: str
    verdict: str
    comparisons: list[RecordedComparison]
    tables: dict[str, list[JsonObject]] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
