"""What interference.json holds, as values: checked once, where they are made or read.

Matrices are [P][P] between P probes, rows whose loss it is. None stands where there is no number that a record holds.
"""

from typing import Self

from pydantic import Field, model_validator

from trainonce.settings import Number, Record, Whole

Values = list[Number | None]
Matrix = list[Values]


class GradientMeasures(Record):
    """How the probes' gradients agree (`GradientAgreement`), with standard errors over batches."""

    agreement: Matrix = Field(default_factory=list)
    agreement_error: Matrix = Field(default_factory=list)
    mean: Number | None = None
    """Over pairs of different probes."""
    mean_error: Number | None = None
    control: Values = Field(default_factory=list)
    """[P] each probe against itself on other images, not corrected for noise."""
    control_error: Values = Field(default_factory=list)
    conflict: Matrix = Field(default_factory=list)
    conflict_error: Matrix = Field(default_factory=list)
    layers: dict[str, Matrix] = Field(default_factory=dict)
    """The agreement on each part of the network."""
    layers_error: dict[str, Matrix] = Field(default_factory=dict)


class TransferMeasures(Record):
    """What a step for one probe does to the loss of another (`LossTransfer`), with standard errors over batches."""

    lr: Number | None = None
    """Length of the steps."""
    z: Matrix = Field(default_factory=list)
    z_error: Matrix = Field(default_factory=list)
    r: Matrix = Field(default_factory=list)
    r_error: Matrix = Field(default_factory=list)
    mean_r: Number | None = None
    """Over pairs of different probes."""
    mean_r_error: Number | None = None
    harmful: list[list[bool]] = Field(default_factory=list)
    """Which pairs are harmed beyond noise."""
    helpful: list[list[bool]] = Field(default_factory=list)


class ShiftMeasures(Record):
    """How far the statistics that two probes give the same batch norms lie apart."""

    layers: dict[str, Matrix] = Field(default_factory=dict)
    mean: Matrix = Field(default_factory=list)


class StatisticsMeasures(Record):
    """[P] top-1 in percent with the supernet's own statistics, and recalibrated."""

    top1_supernet: list[Number] = Field(default_factory=list)
    top1_recalibrated: list[Number] = Field(default_factory=list)


class Interference(Record):
    """What the subnets of a supernet do to each other at one step, in the order of the keys of interference.json.

    What an earlier version did not measure is empty, or None.
    """

    step: Whole | None = None
    """The training step of the weights."""
    probes: list[str] = Field(default_factory=list)
    """Their architectures."""
    macs: list[Number] = Field(default_factory=list)
    labels: list[str] = Field(default_factory=list)
    """What each is called on a terminal."""
    seed: int | None = None
    batches: Whole | None = None
    batch_size: Whole | None = None
    gradient: GradientMeasures = Field(default_factory=GradientMeasures)
    transfer: TransferMeasures = Field(default_factory=TransferMeasures)
    bn_shift: ShiftMeasures = Field(default_factory=ShiftMeasures)
    statistics: StatisticsMeasures = Field(default_factory=StatisticsMeasures)
    along: list["Interference"] = Field(default_factory=list)
    """The same at earlier steps, whose weights were kept."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        count = len(self.probes)
        if not 0 < count == len(self.macs):
            raise ValueError("its 'probes' and 'macs' are missing or do not go together")
        for part, measures in self:
            for name, values in measures if isinstance(measures, Record) else ():
                if name in measures.model_fields_set and isinstance(values, list) and not _are_of(values, count):
                    raise ValueError(f"its {part}.{name} is not of {count} probes")
        return self


def _are_of(values: list[object], count: int) -> bool:
    """Whether these are as many values, or rows of as many."""
    return len(values) == count and all(len(row) == count for row in values if isinstance(row, list))
