"""The recipes that come with the library, and how a person's own is read."""

import difflib
from pathlib import Path
from typing import Any, Literal

from trainonce.errors import UserError
from trainonce.recipes.augmentation import AugmentationChange, CutMix
from trainonce.recipes.recipe import Phase, Recipe
from trainonce.settings import read_toml

ONLY_LARGEST = {"kernel": 1, "depth": 1, "width": 1}
"""Keeps the largest network, at any resolution."""

ONLY_LARGEST_IMAGES = {**ONLY_LARGEST, "resolution": 1}
"""Keeps the largest network, at the largest resolution."""


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
SANDWICH: tuple[str, ...] = ("largest", "smallest", "uniform", "uniform")
RSS_EPOCHS = 590.0


def _quick(name: str, epochs: float, **fields: Any) -> Phase:
    """A stretch of `quick`: one uniform subnet a step, under one cosine over all of them."""
    return Phase(name=name, epochs=epochs, lr=0.02, cosine="recipe", label_smoothing=0.1, **fields)


def _single(
    name: str,
    about: str,
    phase: str,
    *subnets: str,
    hold: Literal["step", "epoch"] = "step",
    epochs: float = RSS_EPOCHS,
) -> Recipe:
    """One phase on labels alone, of so many epochs of one subnet a step, or as many subnet passes."""
    length = epochs / len(subnets)
    return Recipe(name=name, about=about, phases=(Phase(name=phase, epochs=length, subnets=subnets, hold=hold),))


def _sandwich(name: str, about: str, subnets: tuple[str, ...] = SANDWICH, **fields: Any) -> Recipe:
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
        about="For a person's own images and minutes: one uniform subnet a step, moved by Muon; mild crops, and CutMix "
        "by what is known; smaller images first.",
        phases=(
            _quick("early", 48, warmup_epochs=6, keep_smallest={"resolution": 1}),
            _quick("middle", 48, keep_largest={"resolution": 2}, keep_smallest={"resolution": 1}),
            _quick("late", 24),
        ),
        optimizer="muon",
        matrix_decay=0.1,
        weight_decay=2e-3,
        zero_init_residual=True,
        augmentation=AugmentationChange(crop_from="auto", flip="auto", also=(CutMix(share=0.8, once_known=0.7),)),
    ),
    Recipe(
        name="transfer",
        about="For weights that were trained before: the head, then the largest subnet, then all, taught by it.",
        phases=(
            Phase(
                name="head", epochs=2, lr=0.003, trains="head", keep_largest=ONLY_LARGEST_IMAGES, label_smoothing=0.1
            ),
            Phase(
                name="largest",
                epochs=18,
                lr=0.001,
                warmup_epochs=1,
                keep_largest=ONLY_LARGEST_IMAGES,
                label_smoothing=0.1,
            ),
            Phase(
                name="subnets",
                epochs=12,
                lr=0.001,
                warmup_epochs=1,
                subnets=("even",),
                sort_channels=True,
                sort_by="l2",
                target="labels+teacher",
                label_weight=0.5,
                teacher_weight=0.5,
            ),
        ),
        batch_size=32,
        optimizer="adamw",
        weight_decay=0.02,
        augmentation=AugmentationChange(crop_from=0.5, flip="auto"),
        finetune_share=0.4,
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
    given = {"name": path.stem, "about": f"From {path.name}.", **read_toml(path, "recipe")}
    return Recipe.parse(given, where=str(path))


def _hint(name: str) -> str:
    close = difflib.get_close_matches(name, RECIPES, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
