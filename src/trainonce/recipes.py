"""Training strategies as values: a recipe is a tuple of phases, and one loop trains them all.

A phase says which part of the space is trained, which subnets a step draws, what they are to reproduce,
how long, and at which learning rate. Nothing here draws or trains: `trainonce.sampling` draws the
subnets and `trainonce.training.loop` holds the loop.

A person's own recipe is a `Recipe(...)` in Python or the same fields in a TOML file (`load_recipe`).
"""

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, final

from pydantic import BeforeValidator, Field, model_validator

from trainonce.errors import UserError
from trainonce.names import FileName
from trainonce.settings import Settings
from trainonce.space import OTHER_NAMES, ROLES, SearchSpace

Slot = Literal["uniform", "largest", "smallest", "alternate", "stratified", "fair", "best_up", "worst_up", "cycle"]
"""How one subnet of a step is drawn, from the phase's part of the space:

uniform     each existing choice uniformly
largest     every choice at its largest; smallest likewise
alternate   the smallest in even turns and the largest in odd ones
stratified  so that MACs are uniform over the range
fair        jointly with the step's other fair slots: each choice's values in a fresh random order, one a slot
best_up     of three subnets near the MACs of a uniform one, the one with the lowest loss on this batch;
worst_up    likewise the one with the highest (AttentiveNAS, arXiv 2011.09011, section 3.2)
cycle       the next of the phase's `cycle`, over and over
"""


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

LONGEST_EPOCHS = 1e6
"""The most passes over the images that a phase may take."""

CYCLED: tuple[Slot, ...] = ("uniform", "stratified")
"""Slots that can stand in a cycle, beside architectures (of which `largest` and `smallest` are two)."""


@final
class Phase(Settings):
    """One stretch of training."""

    name: str
    """Shown while training and recorded."""
    epochs: float = Field(gt=0, le=LONGEST_EPOCHS)
    """Passes over the training images by steps; each step trains every subnet in `subnets`."""
    lr: float = Field(0.01, gt=0)
    """Learning rate at the top of the phase's cosine, for the recipe's batch size."""
    warmup_epochs: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Over how many epochs at the phase's beginning the learning rate rises from 0 to `lr`; the cosine follows."""
    cosine: Literal["phase", "recipe", "cumulative"] = "phase"
    """Where the cosine starts and ends: over this phase; over the whole recipe; or, as in the paper's released
    code, started with the recipe and ended with this phase, so that later phases begin far down the curve."""
    keep_largest: ByRole[Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Trains only the part of the space where choices of these roles ("kernel", "depth", "width", "resolution"), names
    or patterns have their n largest values. Roles that a family lacks are passed over."""
    restrict: ByRole[tuple[int, ...]] = Field(default_factory=dict)
    """Trains only the part of the space where choices of these roles, names or patterns have these values."""
    couple: ByRole[str] = Field(default_factory=dict)
    """Fixes choices by the ones they depend on, the i-th value by the i-th: {"width": "depth"}."""
    subnets: tuple[Slot, ...] = ("uniform",)
    """How each subnet of a step is drawn. Their gradients are summed before the one optimizer step."""
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
    distillation: Literal["soft", "kl", "alpha"] = "soft"
    """The loss against a teacher: soft cross-entropy, Kullback-Leibler divergence (the same gradient), or
    AlphaNet's adaptive alpha-divergence (arXiv 2102.07954)."""
    label_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    """What the loss against the labels is multiplied by where the target is "labels+teacher"."""
    teacher_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    """What the loss against the teacher is multiplied by there. Weights that sum to one leave the size of a step as
    labels alone have it."""
    teacher: Literal["largest", "untrained"] = "largest"
    """The frozen teacher of "labels+teacher": the largest subnet as it stands when the first phase ends, or,
    as the paper's released code has it, a network of random weights in training mode."""
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
        if self.warmup_epochs and self.cosine != "phase":
            raise ValueError("warmup_epochs goes with a cosine over the phase")
        if self.warmup_epochs >= self.epochs:
            raise ValueError("warmup_epochs must be fewer than the phase's epochs")
        if self.label_weight + self.teacher_weight == 0:
            raise ValueError("label_weight and teacher_weight cannot both be 0")
        return self

    def passed_over(self, space: SearchSpace) -> tuple[str, ...]:
        """The roles that the phase names and `space` lacks: the phase does without them."""
        asked = dict.fromkeys((*self.keep_largest, *self.restrict, *self.couple, *self.couple.values()))
        return tuple(name for name in asked if name in ROLES and not space.matching(name))

    def subspace(self, space: SearchSpace) -> SearchSpace:
        """The part of `space` that the phase trains. Raises `UserError` for a name that matches nothing."""
        for child, parent in self.couple.items():
            space = space.couple(child, parent)
        return space.restrict(self.restrict).keep_largest(self.keep_largest)


@final
class AugmentationChange(Settings):
    """What a recipe varies otherwise than its data set does, in training and recalibrating; None leaves it as it is."""

    crop_from: float | None = Field(None, gt=0, le=1)
    """The smallest share of an image's area that a random crop may have; 1 does not crop."""
    flip: bool | Literal["auto"] | None = None
    """Whether half of the images are mirrored left to right. "auto" leaves it to the data set, but never mirrors where
    every class is named by a single letter or a number: a mirrored one is another, or none."""
    erase: float | None = Field(None, ge=0, le=1)
    """The share of the images in which a random box is erased (Zhong 2020, arXiv 1708.04896)."""


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
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """What makes steps of gradients: SGD with Nesterov momentum, or AdamW (Loshchilov 2019, arXiv 1711.05101)."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Nesterov momentum of "sgd"."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """How much "adamw" keeps, in a step, of its means of the gradients and of their squares."""
    weight_decay: float = Field(3e-5, ge=0)
    """Weight decay; none on batch norm and biases. "adamw" takes the rate times this off a weight in a step, apart from
    the gradient, and wants far larger values (0.01 to 0.1)."""
    ema: float = Field(0.0, ge=0, lt=1)
    """How much the moving average of the weights keeps of itself in a step; 0 for none. The average, not the weights
    that steps train, is what the run ends with, what looks along the way see and what later stages load. Step n of a
    phase, from 1, keeps at most (1 + n) / (10 + n), so that a short phase forgets its beginning too."""
    augmentation: AugmentationChange | None = None
    """What is varied otherwise than the data set says; None for nothing."""
    idle_weights: Literal["move", "rest"] = "move"
    """What happens to blocks that a step leaves out: "move" lets momentum and decay act on them, as they do on
    unused slices of a used layer and did on everything in the torch of the paper; "rest" leaves them alone, and
    "adamw" then corrects a block's means by the steps that trained it."""
    zero_init_residual: bool = False
    """Whether the last batch-norm scale of residual blocks starts at zero (BigNAS)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.phases[0].target == "labels+teacher" and self.phases[0].teacher == "largest":
            raise ValueError("the first phase cannot learn from the largest subnet as the first phase left it")
        return self

    @property
    def epochs(self) -> float:
        """Passes over the training images, counted by steps."""
        return math.fsum(phase.epochs for phase in self.phases)

    @property
    def passes(self) -> float:
        """Passes over the training images, counted by subnets trained: the cost of the recipe."""
        return math.fsum(phase.epochs * len(phase.subnets) for phase in self.phases)

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

        Those of "adamw" are scaled by the square root of the proportion (Malladi 2022, arXiv 2205.10782).
        Raises `UserError` for a batch size below 2, which batch norm cannot do.
        """
        if batch_size < 2:
            raise UserError(f"the batch size must be at least 2, not {batch_size}")
        ratio = batch_size / self.batch_size
        factor = ratio if self.optimizer == "sgd" else math.sqrt(ratio)
        return self.at_rate(factor).model_copy(update={"batch_size": batch_size})


@dataclass(frozen=True, kw_only=True)
class PhaseSteps:
    """Where a phase lies in the run's steps, and its learning rate at each."""

    index: int
    phase: Phase
    start: int
    steps: int
    warmup_steps: int
    hold_steps: float
    cosine_start: int
    cosine_steps: int

    @property
    def end(self) -> int:
        """The first step after the phase."""
        return self.start + self.steps

    @property
    def turns(self) -> int:
        """How often the phase draws subnets."""
        return self.turn(self.end - 1) + 1

    def turn(self, step: int) -> int:
        """Which draw of the phase, from 0, is trained at a step of the run that lies in this phase."""
        return int((step - self.start) // self.hold_steps)

    def lr(self, step: int) -> float:
        """The learning rate of a step of the run that lies in this phase."""
        in_phase = step - self.start
        if in_phase < self.warmup_steps:
            return self.phase.lr * (in_phase + 1) / self.warmup_steps
        progress = (step - self.cosine_start) / self.cosine_steps
        return self.phase.lr * 0.5 * (1 + math.cos(math.pi * progress))


def timetable(recipe: Recipe, steps_per_epoch: int) -> tuple[PhaseSteps, ...]:
    """The phases laid out in steps, at least one each."""
    lengths = [max(1, round(phase.epochs * steps_per_epoch)) for phase in recipe.phases]
    table = []
    for index, (phase, steps) in enumerate(zip(recipe.phases, lengths, strict=True)):
        start = sum(lengths[:index])
        warmup = min(round(phase.warmup_epochs * steps_per_epoch), steps - 1)
        cosine_start, cosine_end = {
            "phase": (start + warmup, start + steps),
            "recipe": (0, sum(lengths)),
            "cumulative": (0, start + steps),
        }[phase.cosine]
        table.append(
            PhaseSteps(
                index=index,
                phase=phase,
                start=start,
                steps=steps,
                warmup_steps=warmup,
                hold_steps=max(1.0, phase.hold_epochs * steps_per_epoch) if phase.hold == "epoch" else 1.0,
                cosine_start=cosine_start,
                cosine_steps=cosine_end - cosine_start,
            )
        )
    return tuple(table)


ONLY_LARGEST = {"kernel": 1, "depth": 1, "width": 1}
"""Keeps the largest network, at any resolution."""


def _progressive_shrinking(
    *, largest: float, kernel: float, first: float, second: float, warmup: float = 0.0, **fields: Any
) -> tuple[Phase, ...]:
    """Progressive Shrinking's six phases at these learning rates, at the lengths of arXiv 2204.09210's code.

    `first` and `second` are the rates of the first and second depth and expand phases; `warmup` is the epochs of
    warm-up in the phases of 120 epochs; `fields` are those that all phases share.
    """

    def phase(name: str, epochs: float, lr: float, subnets: int, kept: dict[str, int], **more: Any) -> Phase:
        taught = {"target": "labels+teacher", "subnets": ("uniform",) * subnets}
        return Phase(name=name, epochs=epochs, lr=lr, keep_largest=kept, **{**taught, **fields, **more})

    sort = {"sort_channels": fields.get("teacher") != "untrained"}
    later = {"warmup_epochs": warmup}
    return (
        Phase(
            name="largest",
            epochs=180,
            lr=largest,
            cosine=fields.get("cosine", "phase"),
            label_smoothing=fields.get("label_smoothing", 0.0),
            keep_largest=ONLY_LARGEST,
        ),
        phase("kernel", 120, kernel, 1, {"depth": 1, "width": 1}, **later),
        phase("depth 1", 25, first, 2, {"depth": 2, "width": 1}),
        phase("depth 2", 120, second, 2, {"width": 1}, **later),
        phase("expand 1", 25, first, 4, {"width": 2}, **sort),
        phase("expand 2", 120, second, 4, {}, **sort, **later),
    )


PAPERS_RATES = {"largest": 0.01, "kernel": 0.01 / 2.7, "first": 0.01 / 32.5, "second": 0.01 / 10.8}
"""Of Progressive Shrinking in arXiv 2204.09210's code: OFA's divided by about 8.1."""
SANDWICH: tuple[Slot, ...] = ("largest", "smallest", "uniform", "uniform")
RSS_EPOCHS = 590.0


def _single(
    name: str,
    about: str,
    phase: str,
    *subnets: Slot,
    hold: Literal["step", "epoch"] = "step",
    epochs: float = RSS_EPOCHS,
) -> Recipe:
    """One phase on labels alone, of so many epochs of one subnet a step, or as many subnet passes."""
    length = epochs / len(subnets)
    return Recipe(name=name, about=about, phases=(Phase(name=phase, epochs=length, subnets=subnets, hold=hold),))


def _sandwich(name: str, about: str, subnets: tuple[Slot, ...] = SANDWICH, **fields: Any) -> Recipe:
    """One phase of in-place distillation from the largest, as long as RSS in subnet passes."""
    phase = Phase(
        name="sandwich",
        epochs=RSS_EPOCHS / len(subnets),
        subnets=subnets,
        target="largest",
        label_smoothing=0.1,
        dropout_largest_only=True,
        clip_value=1.0,
        **{"distillation": "kl", **fields},
    )
    return Recipe(name=name, about=about, phases=(phase,), zero_init_residual=True)


_RECIPES = (
    _single("largest", "The largest subnet alone: an ordinary network.", "largest", "largest"),
    _single(
        "rss",
        "Random Subnet Sampling: one uniform subnet, held for an epoch (Shipard 2022, arXiv 2204.09210).",
        "random",
        "uniform",
        hold="epoch",
    ),
    _single("rss-short", "RSS in 180 epochs.", "random", "uniform", hold="epoch", epochs=180),
    _single("spos", "One uniform subnet, new each step (Guo 2020, arXiv 1904.00420).", "random", "uniform"),
    Recipe(
        name="ps",
        about="Progressive Shrinking (Cai 2020, arXiv 1908.09791) at the rates of arXiv 2204.09210's code, repaired: "
        "cosines restart, the teacher is trained, channels are sorted.",
        phases=_progressive_shrinking(**PAPERS_RATES),
    ),
    Recipe(
        name="ps-ofa",
        about="Progressive Shrinking at OFA's own rates, with its label smoothing, warm-up and teacher (Cai 2020, "
        "arXiv 1908.09791), at arXiv 2204.09210's lengths.",
        phases=_progressive_shrinking(
            largest=2.6 / 32,  # section 4.1: 2.6 for 2,048 images
            kernel=3e-2,
            first=2.5e-3,
            second=7.5e-3,
            warmup=5,
            label_smoothing=0.1,
            teacher_statistics="batch",
        ),
    ),
    Recipe(
        name="ps-released",
        about="Progressive Shrinking as the code released with arXiv 2204.09210 behaves: one cosine that never "
        "restarts, an untrained teacher, no sorting.",
        phases=_progressive_shrinking(**PAPERS_RATES, cosine="cumulative", teacher="untrained"),
    ),
    _single(
        "anchor",
        "The smallest and the largest subnet on alternating epochs (Shipard 2022).",
        "anchor",
        "alternate",
        hold="epoch",
    ),
    _sandwich("sandwich", "Sandwich rule with in-place distillation (BigNAS, Yu 2020, arXiv 2003.11142)."),
    _sandwich(
        "attentive",
        "Sandwich whose random subnets are the best of three near the size of a uniform one (AttentiveNAS, Wang 2021, "
        "arXiv 2011.09011).",
        ("largest", "smallest", "best_up", "best_up"),
    ),
    _sandwich(
        "alphanet",
        "Sandwich with the adaptive alpha-divergence (AlphaNet, Wang 2021, arXiv 2102.07954).",
        distillation="alpha",
    ),
    Recipe(
        name="compofa",
        about="Expand ratios coupled to depths, then four subnets a step (CompOFA, Sahni 2021, arXiv 2104.12642).",
        phases=(
            Phase(
                name="largest",
                epochs=180,
                keep_largest=ONLY_LARGEST,
            ),
            *(
                Phase(
                    name=name,
                    epochs=epochs,
                    lr=0.01 / divisor,
                    couple={"width": "depth"},
                    subnets=("uniform",) * 4,
                    target="labels+teacher",
                    sort_channels=name == "coupled 1",
                )
                for name, epochs, divisor in (("coupled 1", 25, 32.5), ("coupled 2", 120, 10.8))
            ),
        ),
    ),
    Recipe(
        name="deps",
        about="The largest subnet for half the time, then the sandwich with a ramp, at rate 0.1 (DepS, Khare 2024).",
        phases=(
            Phase(name="largest", epochs=118, lr=0.1, cosine="recipe", keep_largest=ONLY_LARGEST),
            Phase(
                name="shrink",
                epochs=118,
                lr=0.1,
                cosine="recipe",
                subnets=SANDWICH,
                target="largest",
                ramp_epochs=5,
                sort_channels=True,
            ),
        ),
    ),
    Recipe(
        name="quick",
        about="For a person's own images and minutes: one uniform subnet a step, small batches, high rate, mild crops.",
        phases=(
            Phase(
                name="random",
                epochs=120,
                lr=0.03,
                warmup_epochs=6,
                label_smoothing=0.1,
            ),
        ),
        batch_size=32,
        weight_decay=1e-4,
        zero_init_residual=True,
        augmentation=AugmentationChange(crop_from=0.5, flip="auto"),
    ),
    _single(
        "fair",
        "Three subnets a step that together train every choice once (FairNAS, Chu 2021, arXiv 1907.01845).",
        "fair",
        "fair",
        "fair",
        "fair",
    ),
    _single(
        "stratified",
        "One subnet a step, drawn so that MACs are uniform (idea of ShiftNAS, 2023).",
        "stratified",
        "stratified",
    ),
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}
"""Every recipe by name. Those without a published length for images of this size have RSS's 590 subnet passes."""


def load_recipe(name_or_path: str | Path) -> Recipe:
    """The recipe of that name, or the one in a TOML file.

    Raises `UserError` that names the valid recipes, or the file and key that are wrong.
    """
    name_or_path = str(name_or_path)
    if name_or_path in RECIPES:
        return RECIPES[name_or_path]
    if not name_or_path.endswith(".toml"):
        raise UserError(
            f"unknown recipe {name_or_path!r}{_hint(name_or_path)}; the recipes are {', '.join(RECIPES)}"
            ", or name a .toml file"
        )
    path = Path(name_or_path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a TOML file: {error}") from error
    return Recipe.parse({"name": path.stem, "about": f"From {path.name}.", **values}, where=str(path))


def _hint(name: str) -> str:
    close = difflib.get_close_matches(name, RECIPES, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def phase_at(table: tuple[PhaseSteps, ...], step: int) -> PhaseSteps:
    """The entry in whose steps `step` lies."""
    return next(entry for entry in table if step < entry.end)
