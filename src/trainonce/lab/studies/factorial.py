"""The study `factorial`: does mitigating interference matter more than removing selection bias?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np

from trainonce.errors import UserError
from trainonce.lab.statistics import SeedComparison, against_zero, corrected
from trainonce.lab.studies.conclusion import (
    CANNOT_TELL,
    HOLM_NOTE,
    MARGIN,
    Conclusion,
    by_seed,
    flat,
    needed_notes,
    population_lines,
    probe_lines,
    says,
    seeds_note,
    sentence_of,
    undecided,
)
from trainonce.lab.studies.design import Built, Design, planned_run
from trainonce.lab.studies.results import Factors, FinishedRun, RecordedStudy, StudyResult
from trainonce.lab.studies.study import Arm, StudySetup
from trainonce.recipes import ONLY_LARGEST, RECIPES, Phase, Recipe

SHRINKING: tuple[tuple[str, float, dict[str, int]], ...] = (
    ("kernel", 120, {"depth": 1, "width": 1}),
    ("depth 1", 25, {"depth": 2, "width": 1}),
    ("depth 2", 120, {"width": 1}),
    ("expand 1", 25, {"width": 2}),
    ("expand 2", 120, {}),
)
"""Progressive Shrinking's order: a phase's name, its epochs, and what it keeps."""
LARGEST_EPOCHS = 180.0
NO_ORDER: tuple[tuple[str, float, dict[str, int]], ...] = tuple((name, epochs, {}) for name, epochs, _ in SHRINKING)
"""The same phases on the whole space."""

FACTORS = {"order": ("none", "shrinking"), "distillation": ("none", "teacher"), "sampler": ("uniform", "stratified")}
"""The factors, each with its low and its high level."""
WORDS = {
    "order": "shrinking order instead of none",
    "distillation": "distillation instead of labels alone",
    "sampler": "stratified instead of uniform sampling",
}
ALPHA = 0.05
HURTS = "sampler hurts"
"""The verdict where the sampler's effect is the largest and stratified draws cost accuracy."""


def _build(setup: StudySetup) -> Built:
    arms: list[Arm] = []
    recipes: dict[str, Recipe] = {}
    factors_of: dict[str, Factors] = {}
    for order, distillation, sampler in product(
        reversed(FACTORS["order"]), reversed(FACTORS["distillation"]), FACTORS["sampler"]
    ):
        levels_on = [level for level in (order, distillation, sampler) if level not in ("none", "uniform")]
        name = "+".join(levels_on) or "none"
        about = (
            f"{'Shrinking order' if order == 'shrinking' else 'No order'}, "
            f"{'with' if distillation == 'teacher' else 'without'} a teacher, {sampler} sampler"
        )
        arms.append(Arm(name=name, about=about))
        recipes[name] = factorial_recipe(setup, order=order, distillation=distillation, sampler=sampler)
        factors_of[name] = {"order": order, "distillation": distillation, "sampler": sampler}
    model = setup.model()
    runs = [
        planned_run(arm.name, seed, recipes[arm.name], model, factors=factors_of[arm.name])
        for seed, arm in product(setup.seeds, arms)
    ]
    return Built(arms=arms, runs=runs, evaluate={})


def factorial_recipe(setup: StudySetup, *, order: str, distillation: str, sampler: str) -> Recipe:
    """One cell: the largest first, then one subnet a step in five phases, each with a cosine of its own.

    Steps and the learning rate at every step are the same in every cell. With a teacher the two losses are averaged,
    so that a step is as large as with labels alone. Channels are sorted where widths begin to shrink: before each
    expand phase of the order, else before the first phase that trains the whole space.

    Raises `UserError` where the scale is so small that a phase would have no step.
    """
    base = setup.at_batch_size(RECIPES["spos"])
    later = SHRINKING if order == "shrinking" else NO_ORDER
    lengths = [LARGEST_EPOCHS, *(epochs for _, epochs, _ in later)]
    per_epoch = base.steps_per_epoch(setup.train_images)
    ends = [round(math.fsum(lengths[: i + 1]) * setup.scale * per_epoch) for i in range(len(lengths))]
    steps = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    if min(steps) < 1:
        raise UserError(f"at a scale of {setup.scale:g} a phase of the factorial has no step: take a larger --scale")
    slot = "stratified" if sampler == "stratified" else "uniform"
    averaged = {"target": "labels+teacher", "label_weight": 0.5, "teacher_weight": 0.5}
    taught: dict[str, Any] = averaged if distillation == "teacher" else {}
    lr = base.phases[0].lr
    phases = [Phase(name="largest", epochs=steps[0] / per_epoch, lr=lr, keep_largest=ONLY_LARGEST)]
    for i, ((name, _, kept), length) in enumerate(zip(later, steps[1:], strict=True)):
        phases.append(
            Phase(
                name=name,
                epochs=length / per_epoch,
                lr=lr,
                keep_largest=kept,
                subnets=(slot,),
                **taught,
                sort_channels="expand" in name if order == "shrinking" else i == 0,
            )
        )
    about = f"Order: {order}; distillation: {distillation}; sampler: {sampler}."
    return base.model_copy(update={"name": "factorial", "about": about, "phases": tuple(phases)})


def _conclude(study: RecordedStudy, results: Sequence[StudyResult], times: Sequence[FinishedRun]) -> Conclusion:
    """Which of order, distillation and sampler matters most, and does mitigation matter less than selection bias?

    The effects are the contrasts of a 2x2x2 design: the mean of the four cells where the product of the factors' signs
    is plus, less the mean of the other four; the six are corrected together. To say that mitigation matters less, the
    sampler's effect must be larger than the order's, than distillation's and than both together (so no correction is
    due), and an improvement: a sampler that costs accuracy removes no bias that mattered. To say that mitigation
    matters more, one of the three must be larger than the sampler's at a third of alpha (Bonferroni).
    """
    effects = factorial_effects(population_lines(study, results) or probe_lines(study, results))
    if not effects:
        return undecided(study, "no seed has results in all eight cells")
    family = corrected([_effect_compared(name, values) for name, values in effects.items()])
    comparisons = {
        name: replace(found, sentence=_effect_says(found, WORDS.get(name, f"the interaction {name}")))
        for name, found in zip(effects, family, strict=True)
    }
    largest = max(FACTORS, key=lambda name: abs(comparisons[name].difference))
    both = {s: (np.array(v) + effects["distillation"][s]).tolist() for s, v in effects["order"].items()}
    rivals = {"order": effects["order"], "distillation": effects["distillation"], "both mitigations": both}
    contests = {name: _contest(effects["sampler"], values, name) for name, values in rivals.items()}
    verdict = _verdict(list(contests.values()), comparisons["sampler"].difference)
    sure = comparisons[largest].verdict in ("better", "worse")
    lead = "the largest effect is" if sure else "the largest estimate is"
    return Conclusion(
        study=study.name,
        sentence=sentence_of(
            f"{lead} that of {_the(largest)}: {comparisons[largest].sentence}", _contest_says(verdict, contests)
        ),
        verdict=verdict,
        comparisons=(*comparisons.values(), *contests.values()),
        tables={
            "effects": [flat(found, effect=name) for name, found in comparisons.items()],
            "contests": [flat(found, against=name) for name, found in contests.items()],
        },
        notes=(
            seeds_note(len(both)),
            *needed_notes(comparisons[largest]),
            HOLM_NOTE,
            "Sizes of effects are compared with the signs of their means; the three-factor interaction is left out.",
        ),
    )


def factorial_effects(lines: Sequence[StudyResult]) -> dict[str, dict[int, list[float]]]:
    """The main effects and two-way interactions by name and seed, one number for each subnet that all cells scored.

    A seed whose cells share no subnet has one number, from the cells' means. Seeds without all eight cells are left
    out; the dict is empty where none is left.
    """
    signs_8F = np.array(list(product((-1, 1), repeat=len(FACTORS))))
    cells = [by_seed(line for line in lines if _signs(line) == tuple(signs)) for signs in signs_8F.tolist()]
    names = list(FACTORS)
    contrasts = {name: signs_8F[:, i] for i, name in enumerate(names)}
    contrasts |= {f"{a} x {b}": contrasts[a] * contrasts[b] for a, b in combinations(names, 2)}
    effects: dict[str, dict[int, list[float]]] = {}
    for seed in sorted(set.intersection(*(set(cell) for cell in cells))):
        common = sorted(set.intersection(*(set(cell[seed]) for cell in cells)))
        rows = [[c[seed][arch] for arch in common] or [float(np.mean(list(c[seed].values())))] for c in cells]
        for name, contrast in contrasts.items():
            effects.setdefault(name, {})[seed] = (contrast @ np.array(rows) / 4).tolist()
    return effects


def _signs(line: StudyResult) -> tuple[int, ...]:
    """The cell of a line: +1 for each factor at its high level, -1 at its low one, 0 where it is at neither."""
    values = {name: line.factors[name] for name in FACTORS}
    return tuple(
        1 if values[name] == high else -1 if values[name] == low else 0 for name, (low, high) in FACTORS.items()
    )


def _effect_compared(name: str, values: Mapping[int, Sequence[float]]) -> SeedComparison:
    found = against_zero(values, name=name, margin=MARGIN)
    if name not in FACTORS:
        return found
    low, high = FACTORS[name]
    return replace(found, names=(f"{name} {high}", f"{name} {low}"))


def _the(name: str) -> str:
    return f"the {name}" if name in ("order", "sampler") else name


def _effect_says(found: SeedComparison, what: str) -> str:
    return says(
        found,
        better=f"{what} adds {{}}",
        worse=f"{what} costs {{}}",
        equivalent=f"{what} changes less than {found.margin:g} points",
        cannot_tell=f"whether {what} matters cannot be told",
    )


def _contest(sampler: Mapping[int, Sequence[float]], rival: Mapping[int, Sequence[float]], name: str) -> SeedComparison:
    """The size of the sampler's effect less that of a rival's, both with the sign of their mean over seeds."""
    sign_a, sign_b = (np.sign(np.mean([np.mean(v) for v in found.values()])) or 1 for found in (sampler, rival))
    differences = {s: (sign_a * np.array(v) - sign_b * np.array(rival[s])).tolist() for s, v in sampler.items()}
    found = against_zero(differences, name="size", margin=MARGIN)
    found = replace(found, names=("size of the sampler's effect", f"size of the effect of {_the(name)}"))
    text = says(
        found,
        better=f"the sampler matters {{}} more than {_the(name)}",
        worse=f"the sampler matters {{}} less than {_the(name)}",
        equivalent=f"the sampler and {_the(name)} matter alike within {found.margin:g} points",
        cannot_tell=f"whether the sampler or {_the(name)} matters more cannot be told",
    )
    return replace(found, sentence=text)


def _verdict(contests: Sequence[SeedComparison], sampler: float) -> str:
    """A sampler that matters most shows selection bias only where removing it, by the stratified one, helps."""
    if all(found.verdict == "better" for found in contests):
        return "selection bias" if sampler > 0 else HURTS
    if any(_beaten(found) for found in contests):
        return "mitigation"
    return "equivalent" if all(found.verdict == "equivalent" for found in contests) else CANNOT_TELL


def _beaten(found: SeedComparison) -> bool:
    """Whether the sampler's effect is the smaller one, at a third of alpha."""
    return found.verdict == "worse" and found.p_difference is not None and found.p_difference < ALPHA / 3


def _contest_says(verdict: str, contests: Mapping[str, SeedComparison]) -> str:
    if verdict == CANNOT_TELL:
        return "cannot tell whether mitigation matters less than selection bias"
    if verdict == "equivalent":
        return f"mitigation matters as much as selection bias, within {MARGIN:g} points"
    if verdict in ("selection bias", HURTS):
        nearest = min(contests.values(), key=lambda found: found.difference)
        helps, hurts = "mitigation matters less than selection bias", "the sampler matters more, and it hurts"
        return f"{hurts if verdict == HURTS else helps}: {nearest.sentence}"
    winner = min(filter(_beaten, contests.values()), key=lambda found: found.difference)
    return f"mitigation matters more than selection bias: {winner.sentence}"


FACTORIAL = Design(
    name="factorial",
    about="Shrinking order, distillation and MACs-stratified sampling, each with and without, in all eight "
    "combinations, at equal passes and the same learning rate and size of gradient at every step.",
    question="Does mitigating interference matter more than removing selection bias?",
    build=_build,
    conclude=_conclude,
)
