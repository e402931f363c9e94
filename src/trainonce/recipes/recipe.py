"""What a recipe is: phases, and what they share.

A phase says which part of the space is trained, which subnets a step draws, what they are to reproduce,
how long, and at which learning rate.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar, final

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from trainonce.errors import UserError
from trainonce.names import FileName, is_import_name
from trainonce.recipes.augmentation import AugmentationChange, Own
from trainonce.recipes.slots import SlotName
from trainonce.settings import Settings
from trainonce.space import OTHER_NAMES, ROLES, SearchSpace


def _in_roles(given: Any) -> Any:
    """A table of roles, names or patterns, in which other names of roles are roles."""
    if not isinstance(given, Mapping):
        return given
    return {
        OTHER_NAMES.get(name, name): OTHER_NAMES.get(value, value) if isinstance(value, str) else value
        for name, value in given.items()
    }


T = TypeVar("T")
ByRole = Annotated[dict[str, T], BeforeValidator(_in_roles)]


def _known_distillation(name: str) -> str:
    if name not in DISTILLATIONS and not is_import_name(name):
        raise ValueError(f"must be one of {', '.join(DISTILLATIONS)}, or your own loss as package.module:name")
    return name


DISTILLATIONS = ("soft", "kl", "alpha")
"""The losses against a teacher by name (`trainonce.training.losses`)."""
DistillationName = Annotated[str, AfterValidator(_known_distillation)]

LONGEST_EPOCHS = 1e6
"""The most passes over the images that a phase may take."""


@final
class Phase(Settings):
    """One stretch of training."""

    name: str
    """Shown while training and recorded."""
    epochs: float = Field(gt=0, le=LONGEST_EPOCHS)
    """Passes over the training images by steps; each step trains every subnet in `subnets`."""
    lr: float = Field(0.01, gt=0)
    """The highest learning rate of the phase, for the recipe's batch size."""
    trains: Literal["all", "head"] = "all"
    """Which weights are trained: all, or the head alone (the last layer, which has the classes), as where a network
    that was trained before is given new classes."""
    backbone_lr: float = Field(1.0, gt=0, le=1)
    """What the learning rate is multiplied by for all weights but the head's."""
    schedule: Literal["cosine", "one-cycle", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up: down to 0 along half a cosine, or not at all. In "one-cycle" it
    also rises along half a cosine, from a 25th of `lr`, over the warm-up or, without one, three tenths of the phase
    (Smith 2019, arXiv 1708.07120, as torch's OneCycleLR has it; momentum stays)."""
    warmup_epochs: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Over how many epochs at the phase's beginning the learning rate rises to `lr`."""
    cosine: Literal["phase", "recipe", "cumulative"] = "phase"
    """Where the cosine starts and ends: over this phase; over the whole recipe, after its first phase's warm-up
    if that has this cosine, too; or, as in the paper's released code, started with the recipe and ended with this
    phase, so that later phases begin far down the curve."""
    keep_largest: ByRole[Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Trains only the part of the space where choices of these roles ("kernel", "depth", "width", "resolution"), names
    or patterns have their n largest values. Roles that a family lacks are passed over."""
    keep_smallest: ByRole[Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """The same with the n smallest values, of those that `restrict` and `keep_largest` leave."""
    restrict: ByRole[tuple[int, ...]] = Field(default_factory=dict)
    """Trains only the part of the space where choices of these roles, names or patterns have these values."""
    couple: ByRole[str] = Field(default_factory=dict)
    """Fixes choices by the ones they depend on, the i-th value by the i-th: {"width": "depth"}."""
    subnets: tuple[SlotName, ...] = ("uniform",)
    """How each subnet of a step is drawn: names of `SLOTS`, or your own slot as `package.module:name`. Their gradients
    are summed before the one optimizer step."""
    cycle: tuple[str, ...] = ()
    """What "cycle" in `subnets` goes round: architectures in their text form, "largest", "smallest", "uniform" or
    "stratified". Turn i of the phase takes entry i; several such slots of a step take as many entries."""
    hold: Literal["step", "epoch"] = "step"
    """How long a draw is kept: for a step, or for `hold_epochs`."""
    hold_epochs: float = Field(1.0, gt=0, allow_inf_nan=False)
    """How long a draw is kept where `hold` is "epoch", in epochs; at least a step. A recipe that is scaled scales it
    too, so that it trains as many different subnets at any length."""
    target: Literal["labels", "labels+teacher", "largest"] = "labels"
    """What is learned: the labels; the labels plus a frozen teacher's output; or, by every subnet but the
    first (which must be the largest and learns the labels), that one's output on the same batch."""
    distillation: DistillationName = "soft"
    """The loss against a teacher: soft cross-entropy, Kullback-Leibler divergence (the same gradient), AlphaNet's
    adaptive alpha-divergence (arXiv 2102.07954), or your own function of the logits [B, classes] of student and teacher
    as `package.module:name`."""
    label_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    """What the loss against the labels is multiplied by where the target is "labels+teacher"."""
    teacher_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    """What the loss against the teacher is multiplied by there. Weights that sum to one leave the size of a step as
    labels alone have it."""
    teacher: Literal["largest", "untrained"] = "largest"
    """The frozen teacher of "labels+teacher": the largest subnet as it stands when the first phase with this teacher
    begins, or, as the paper's released code has it, a network of random weights in training mode."""
    teacher_statistics: Literal["running", "batch"] = "running"
    """What the trained teacher's batch norms normalise by: running statistics, or, as in OFA's code, the batch. It
    has no dropout either way."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing of losses against labels."""
    dropout_largest_only: bool = False
    """Whether dropout acts on the largest subnet only (BigNAS, arXiv 2003.11142)."""
    ramp_epochs: float = Field(0.0, ge=0, le=LONGEST_EPOCHS)
    """Over how many epochs the weight of the losses after the first rises from 0 to 1 (DepS)."""
    sort_channels: bool = False
    """Whether channels are sorted by importance before the phase, inside the widths trained so far."""
    sort_by: Literal["l1", "l2", "taylor"] = "l1"
    """What a weight counts then: its magnitude, its square, or the magnitude of itself times its gradient in the
    largest subnet on the calibrate split (Molchanov 2019, arXiv 1906.10771, without its gates)."""
    clip_value: float | None = Field(None, gt=0)
    """Largest absolute value of a gradient's element; None does not clip."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.subnets:
            raise ValueError("a step must train at least one subnet")
        if self.target == "largest" and (self.subnets[0] != "largest" or len(self.subnets) < 2):
            raise ValueError("target 'largest' needs 'largest' as the first of at least two subnets")
        if ("cycle" in self.subnets) != bool(self.cycle):
            raise ValueError("'cycle' in `subnets` and the key `cycle`, which says what it goes round, go together")
        if self.ramp_epochs and self.target != "largest":
            raise ValueError("ramp_epochs goes with target 'largest'")
        if self.cosine != "phase" and self.schedule != "cosine":
            raise ValueError("`cosine` says where the schedule 'cosine' starts and ends: no other goes with it")
        if self.warmup_epochs and self.cosine == "cumulative":
            raise ValueError("warmup_epochs goes with a cosine over the phase or the recipe")
        if self.warmup_epochs >= self.epochs:
            raise ValueError("warmup_epochs must be fewer than the phase's epochs")
        if self.label_weight + self.teacher_weight == 0:
            raise ValueError("label_weight and teacher_weight cannot both be 0")
        if self.trains == "head" and (self.backbone_lr != 1 or self.sort_channels):
            raise ValueError("where the head alone is trained, neither backbone_lr nor sort_channels says anything")
        return self

    def passed_over(self, space: SearchSpace) -> tuple[str, ...]:
        """The roles that the phase names and `space` lacks: the phase does without them."""
        parts = (self.keep_largest, self.keep_smallest, self.restrict, self.couple, self.couple.values())
        asked = dict.fromkeys(name for part in parts for name in part)
        return tuple(name for name in asked if name in ROLES and not space.matching(name))

    def subspace(self, space: SearchSpace) -> SearchSpace:
        """The part of `space` that the phase trains. Raises `UserError` for a name that matches nothing."""
        for child, parent in self.couple.items():
            space = space.couple(child, parent)
        return space.restrict(self.restrict).keep_largest(self.keep_largest).keep_smallest(self.keep_smallest)


@final
class Recipe(Settings):
    """A training strategy: phases, and what they share: the optimizer, and how images are varied."""

    name: FileName
    """What the recipe is called in tables and figures."""
    about: str
    """What it does and where it comes from, in a sentence."""
    phases: tuple[Phase, ...] = Field(min_length=1)
    """The phases, in order. The optimizer's state and the average of the weights start anew with each."""
    batch_size: int = Field(64, ge=2)
    """Images in a step. The learning rates are meant for it."""
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    """What makes steps of gradients: SGD with Nesterov momentum, AdamW (Loshchilov 2019, arXiv 1711.05101), or Muon
    (Jordan 2024; arXiv 2502.16982): orthogonal steps for convolutions with a short side of 2 to 128, but depthwise
    ones, and SGD for all else."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Nesterov momentum of "sgd" and "muon"."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """How much "adamw" keeps, in a step, of its means of the gradients and of their squares."""
    weight_decay: float = Field(3e-5, ge=0)
    """Weight decay; none on batch norm and biases. "adamw" takes the rate times this off a weight in a step, apart from
    the gradient, and wants far larger values (0.01 to 0.1); SGD, that of "muon" too, adds it to the gradient."""
    matrix_decay: float = Field(0.1, ge=0)
    """Weight decay of the matrices of "muon": the rate times this is taken off a weight in a step."""
    ema: float = Field(0.0, ge=0, lt=1)
    """How much the moving average of the weights keeps of itself in a step; 0 for none. The average, not the weights
    that steps train, is what the run ends with, what looks along the way see and what later stages load. Step n of a
    phase, from 1, keeps at most (1 + n) / (10 + n), so that a short phase forgets its beginning too."""
    class_balance: float = Field(0.0, ge=0, le=1)
    """How far rare classes make up for their number in losses against labels: 0 for not at all, every image counts the
    same; 1 for wholly, every class does. An image counts (images of its class) ** -class_balance, 1 on average."""
    augmentation: AugmentationChange | None = None
    """What is varied otherwise than the data set says; None for nothing."""
    idle_weights: Literal["move", "rest"] = "move"
    """What happens to blocks that a step leaves out: "move" lets momentum and decay act on them, as they do on
    unused slices of a used layer and did on everything in the torch of the paper; "rest" leaves them alone, and
    "adamw" then corrects a block's means by the steps that trained it. The matrices of "muon" rest in any case."""
    zero_init_residual: bool = False
    """Whether the last batch-norm scale of residual blocks starts at zero (BigNAS)."""
    finetune_share: float = Field(0.2, ge=0, le=0.9)
    """How much of the time that `fit` has for training, choosing and fine-tuning is for fine-tuning the devices'
    subnets one by one; 0 for not doing it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.phases[0].target == "labels+teacher" and self.phases[0].teacher == "largest":
            raise ValueError("the first phase cannot learn from the largest subnet: no phase before has trained it")
        if any(phase.cosine == "recipe" and phase.warmup_epochs for phase in self.phases[1:]):
            raise ValueError("of a cosine over the recipe the warm-up comes first: no later phase has one")
        return self

    @property
    def epochs(self) -> float:
        """Passes over the training images, counted by steps."""
        return math.fsum(phase.epochs for phase in self.phases)

    @property
    def passes(self) -> float:
        """Passes over the training images, counted by subnets trained: the cost of the recipe."""
        return math.fsum(phase.epochs * len(phase.subnets) for phase in self.phases)

    @property
    def finetuned_by(self) -> Literal["sgd", "adamw"]:
        """The optimizer that fine-tunes one of its subnets."""
        return "adamw" if self.optimizer == "adamw" else "sgd"

    def own_code(self) -> dict[str, str]:
        """What is imported for it, `package.module:name`, and what each of these is."""
        slots = {name: "slot" for phase in self.phases for name in phase.subnets}
        losses = {phase.distillation: "loss" for phase in self.phases}
        also = self.augmentation.also if self.augmentation is not None else ()
        functions = {one.function: "function" for one in also if isinstance(one, Own)}
        return {name: what for name, what in (slots | losses | functions).items() if is_import_name(name)}

    def images_per_step(self, images: int) -> int:
        """How many of `images` training images a step takes: the batch size, or all where there are fewer."""
        return min(self.batch_size, images)

    def steps_per_epoch(self, images: int) -> int:
        """Steps of a pass over `images` training images; a ragged last batch is left out of it."""
        return images // self.images_per_step(images)

    def scaled(self, factor: float) -> "Recipe":
        """The recipe with every length multiplied by `factor`, holds and warm-ups too; its proportions stay.

        Raises `UserError` for a factor that leaves a phase no length, or gives more than `LONGEST_EPOCHS`.
        """
        epochs = [phase.epochs * factor for phase in self.phases]
        if not all(0 < length <= LONGEST_EPOCHS for length in epochs):
            raise UserError(
                f"a phase's length must be over 0 and at most {LONGEST_EPOCHS:,.0f} epochs: the recipe cannot be "
                f"{factor:.3g} times as long"
            )
        lengths = ("epochs", "warmup_epochs", "hold_epochs", "ramp_epochs")
        phases = tuple(
            phase.model_copy(update={name: getattr(phase, name) * factor for name in lengths}) for phase in self.phases
        )
        return self.model_copy(update={"phases": phases})

    def at_rate(self, factor: float) -> "Recipe":
        """The recipe with every learning rate multiplied by `factor`, over 0."""
        phases = tuple(phase.model_copy(update={"lr": phase.lr * factor}) for phase in self.phases)
        return self.model_copy(update={"phases": phases})

    def with_batch_size(self, batch_size: int) -> "Recipe":
        """The recipe at another batch size, its learning rates scaled in proportion (Goyal 2017, arXiv 1706.02677).

        Those of "adamw" and "muon" are scaled by the square root of the proportion (Malladi 2022, arXiv 2205.10782).
        Raises `UserError` for a batch size below 2, which batch norm cannot do.
        """
        if batch_size < 2:
            raise UserError(f"the batch size must be at least 2, not {batch_size}")
        ratio = batch_size / self.batch_size
        factor = ratio if self.optimizer == "sgd" else math.sqrt(ratio)
        return self.at_rate(factor).model_copy(update={"batch_size": batch_size})
