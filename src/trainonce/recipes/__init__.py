"""Training strategies as values: a recipe is a tuple of phases, and one loop trains them all.

What a phase trains and how its subnets are drawn (`slots`), the learning rate of a step (`schedule`), how images are
varied (`augmentation`), and the recipes that come with the library (`published`). Nothing here draws or trains:
`trainonce.sampling` draws the subnets, `trainonce.data.augment` varies images, `trainonce.training.loop` trains.
A person's own recipe is a `Recipe(...)` in Python or the same fields in a TOML file (`load_recipe`).
"""

from trainonce.recipes.augmentation import (
    MIXES,
    VARIATIONS,
    Augmentation,
    AugmentationChange,
    Colour,
    Crop,
    CutMix,
    Erase,
    Flip,
    Mixup,
    Own,
    TrivialAugment,
    Variation,
    follows_known,
    hides_known,
    mixes,
)
from trainonce.recipes.published import ONLY_LARGEST, RECIPES, load_recipe
from trainonce.recipes.recipe import DISTILLATIONS, LONGEST_EPOCHS, DistillationName, Phase, Recipe
from trainonce.recipes.schedule import (
    PhaseSteps,
    Reached,
    largest_alone,
    phase_at,
    phases_of_largest,
    reached,
    timetable,
)
from trainonce.recipes.slots import CANDIDATES, CYCLED, SLOTS, Draw, Slot, SlotName, slot_named

__all__ = [
    "CANDIDATES",
    "CYCLED",
    "DISTILLATIONS",
    "LONGEST_EPOCHS",
    "MIXES",
    "ONLY_LARGEST",
    "RECIPES",
    "SLOTS",
    "VARIATIONS",
    "Augmentation",
    "AugmentationChange",
    "Colour",
    "Crop",
    "CutMix",
    "DistillationName",
    "Draw",
    "Erase",
    "Flip",
    "Mixup",
    "Own",
    "Phase",
    "PhaseSteps",
    "Reached",
    "Recipe",
    "Slot",
    "SlotName",
    "TrivialAugment",
    "Variation",
    "follows_known",
    "hides_known",
    "largest_alone",
    "load_recipe",
    "mixes",
    "phase_at",
    "phases_of_largest",
    "reached",
    "slot_named",
    "timetable",
]
