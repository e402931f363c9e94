"""How one subnet of a training step is drawn, as values: a phase names a slot for each subnet that its steps train."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, final

from pydantic import AfterValidator

from trainonce.errors import UserError
from trainonce.names import import_named, is_import_name
from trainonce.space import Architecture, SearchSpace

CANDIDATES = 3
"""How many subnets a slot of the best or the worst chooses from (AttentiveNAS, arXiv 2011.09011, section 4)."""


class Draw(Protocol):
    """What a slot draws from, anew in every turn: a step, or as long as the phase holds a draw."""

    space: SearchSpace
    """The part of the space that the phase trains."""
    rng: random.Random
    """The turn's generator, which all its slots draw from in their order."""
    turn: int
    """How many turns of the phase there were before."""

    def stratified(self) -> Architecture:
        """One subnet so that MACs are uniform over the range (`MacsSampler.stratified`)."""

    def near_uniform(self, count: int) -> list[Architecture]:
        """So many subnets near the MACs of a uniform one."""

    def fair(self) -> Architecture:
        """The next of subnets that are drawn jointly for the turn: each choice's values in a fresh random order."""

    def cycled(self) -> Architecture:
        """The next of the phase's `cycle`."""


@final
@dataclass(frozen=True, kw_only=True)
class Slot:
    """How one subnet of a step is drawn. A person's own is a module's attribute, named as `package.module:name`."""

    about: str
    """In a sentence."""
    draw: Callable[[Draw], list[Architecture]]
    """The candidates for the slot in a turn: `candidates` of them."""
    candidates: int = 1
    """How many subnets are tried on the batch, without gradients, before one of them is trained; 1 tries none."""
    keeps: Literal["lowest", "highest"] = "lowest"
    """Which of several candidates is trained: the one of the lowest or of the highest loss on the batch."""
    by_macs: bool = False
    """Whether it draws by MACs (`Draw.stratified`, `Draw.near_uniform`), which needs a table made beforehand."""
    always: Literal["largest", "smallest"] | None = None
    """Which subnet it is in every turn; None where it varies."""


SLOTS: dict[str, Slot] = {
    "uniform": Slot(about="Each existing choice uniformly.", draw=lambda draw: [draw.space.sample(draw.rng)]),
    "even": Slot(
        about="All choices of a role at about the same share of their values.",
        draw=lambda draw: [draw.space.sample_even(draw.rng)],
    ),
    "largest": Slot(about="Every choice at its largest.", draw=lambda draw: [draw.space.largest()], always="largest"),
    "smallest": Slot(
        about="Every choice at its smallest.", draw=lambda draw: [draw.space.smallest()], always="smallest"
    ),
    "alternate": Slot(
        about="The smallest in even turns and the largest in odd ones.",
        draw=lambda draw: [draw.space.largest() if draw.turn % 2 else draw.space.smallest()],
    ),
    "stratified": Slot(
        about="So that MACs are uniform over the range.", draw=lambda draw: [draw.stratified()], by_macs=True
    ),
    "fair": Slot(
        about="Jointly with the step's other fair slots: each choice's values in a fresh random order, one a slot.",
        draw=lambda draw: [draw.fair()],
    ),
    "best_up": Slot(
        about="Of three subnets near the MACs of a uniform one, the one with the lowest loss on this batch "
        "(AttentiveNAS, arXiv 2011.09011, section 3.2).",
        draw=lambda draw: draw.near_uniform(CANDIDATES),
        candidates=CANDIDATES,
        by_macs=True,
    ),
    "worst_up": Slot(
        about="Of three subnets near the MACs of a uniform one, the one with the highest loss on this batch (there).",
        draw=lambda draw: draw.near_uniform(CANDIDATES),
        candidates=CANDIDATES,
        keeps="highest",
        by_macs=True,
    ),
    "cycle": Slot(about="The next of the phase's `cycle`, over and over.", draw=lambda draw: [draw.cycled()]),
}
"""Every slot of the library by name."""


def _known(name: str) -> str:
    if name not in SLOTS and not is_import_name(name):
        raise ValueError(f"must be one of {', '.join(SLOTS)}, or your own slot as package.module:name")
    return name


SlotName = Annotated[str, AfterValidator(_known)]
"""The name of a slot in `SLOTS`, or of a person's own as `package.module:name`, which is imported where it is used."""


def slot_named(name: str) -> Slot:
    """The slot of a name. Raises `UserError` where a person's own cannot be imported, or is no `Slot`."""
    if name in SLOTS:
        return SLOTS[name]
    found = import_named(name, "slot", SLOTS)
    if not isinstance(found, Slot):
        raise UserError(f"{name} is not a Slot (trainonce.recipes.Slot)")
    return found


CYCLED = ("uniform", "stratified")
"""Slots that can stand in a cycle, beside architectures (of which `largest` and `smallest` are two)."""
