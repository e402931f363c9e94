"""How a training is carried out, and what is told of it on the way."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple, final

from pydantic import Field

from trainonce.nn.precision import Precision
from trainonce.settings import Settings
from trainonce.space import Architecture


@final
class TrainSettings(Settings):
    """How a run is carried out. With one process the weights do not depend on it, up to rounding."""

    device: str = "cpu"
    """Where the network and the images live: cpu, cuda, cuda:1."""
    checkpoint_every_s: float = Field(60.0, ge=0)
    """Seconds between checkpoints; one is also written at the end and when the run is stopped."""
    log_every: int = Field(20, ge=1)
    """Steps that one line of metrics sums up."""
    sync_batch_norm: bool = False
    """Whether batch norm takes its statistics from the images of all processes, rather than each from its own."""
    precision: Precision = "float32"
    """The numbers that networks compute in. Weights, gradients and momenta are float32 with bfloat16 too."""
    cuda_graphs: bool = True
    """Whether, on a GPU, steps of a subnet that is held for an epoch are captured once and replayed, and in other steps
    the blocks, in each of their forms."""
    keep_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Shares of the steps after which the weights are kept for good, beside the checkpoints: 0.1 keeps a tenth's."""
    planned_step_s: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Seconds that a step of each phase is planned to take. Where steps take longer, some are left out, evenly over
    the rest of the run, so that it takes the time that follows from these. Empty: all steps are trained. What is left
    out then depends on the clock, and so do the weights. For one process."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training stands after a line of metrics."""

    step: int
    """Steps done."""
    steps: int
    """Steps of the whole run."""
    phase: str
    """Name of the phase."""
    epoch: float
    """Passes over the images done, counted by steps."""
    lr: float
    """Learning rate of the last step."""
    loss: float
    """Mean loss of the subnets since the line before."""
    top1: float
    """Percent of the (augmented) training images classified correctly since the line before; where some batches are
    mixed and others not, of these."""
    macs: int
    """MACs of the last subnet trained."""
    arch: Architecture
    """The last subnet trained."""
    seconds_left: float
    """Estimate from the time the subnets took so far."""
    left_out: int
    """Steps of those done that were left out for want of time."""


class EpochEnd(NamedTuple):
    """Where training stands when it hands over for a look: after the last step of an epoch, or of the run."""

    step: int
    """Steps done."""
    epoch: float
    """Whole passes over the images done, counted by steps; at the end of the run with the part that is begun."""
    last: bool
    """Whether the run is done."""
