"""What the `factorial` study forces: main effects, interactions, and mitigation against selection bias."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product

import numpy as np

from trainonce.lab.statistics import Comparison, against_zero, corrected
from trainonce.lab.studies.conclusion import (
    CANNOT_TELL,
    HOLM_NOTE,
    MARGIN,
    Conclusion,
    Line,
    Study,
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

FACTORS = {"order": ("none", "shrinking"), "distillation": ("none", "teacher"), "sampler": ("uniform", "stratified")}
"""The factorial study's factors, each with its low and its high level."""
SYNONYMS = {("distillation", "no"): "none", ("distillation", "yes"): "teacher"}
"""Other names of levels."""
WORDS = {
    "order": "shrinking order instead of none",
    "distillation": "distillation instead of labels alone",
    "sampler": "stratified instead of uniform sampling",
}
ALPHA = 0.05
HURTS = "sampler hurts"
"""The verdict where the sampler's effect is the largest and stratified draws cost accuracy."""


def conclude_factorial(study: Study, results: Sequence[Line], times: Sequence[Line]) -> Conclusion:
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
    verdict = _factorial_verdict(list(contests.values()), comparisons["sampler"].difference)
    sure = comparisons[largest].verdict in ("better", "worse")
    lead = "the largest effect is" if sure else "the largest estimate is"
    return Conclusion(
        study=study["name"],
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


def factorial_effects(lines: Sequence[Line]) -> dict[str, dict[int, list[float]]]:
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


def _signs(line: Line) -> tuple[int, ...]:
    """The cell of a line: +1 for each factor at its high level, -1 at its low one, 0 where it is at neither."""
    levels = {name: str(line["factors"].get(name)) for name in FACTORS}
    values = {name: SYNONYMS.get((name, level), level) for name, level in levels.items()}
    return tuple(
        1 if values[name] == high else -1 if values[name] == low else 0 for name, (low, high) in FACTORS.items()
    )


def _effect_compared(name: str, values: Mapping[int, Sequence[float]]) -> Comparison:
    found = against_zero(values, name=name, margin=MARGIN)
    if name not in FACTORS:
        return found
    low, high = FACTORS[name]
    return replace(found, names=(f"{name} {high}", f"{name} {low}"))


def _the(name: str) -> str:
    return f"the {name}" if name in ("order", "sampler") else name


def _effect_says(found: Comparison, what: str) -> str:
    return says(
        found,
        better=f"{what} adds {{}}",
        worse=f"{what} costs {{}}",
        equivalent=f"{what} changes less than {found.margin:g} points",
        cannot_tell=f"whether {what} matters cannot be told",
    )


def _contest(sampler: Mapping[int, Sequence[float]], rival: Mapping[int, Sequence[float]], name: str) -> Comparison:
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


def _factorial_verdict(contests: Sequence[Comparison], sampler: float) -> str:
    """A sampler that matters most shows selection bias only where removing it, by the stratified one, helps."""
    if all(found.verdict == "better" for found in contests):
        return "selection bias" if sampler > 0 else HURTS
    if any(_beaten(found) for found in contests):
        return "mitigation"
    return "equivalent" if all(found.verdict == "equivalent" for found in contests) else CANNOT_TELL


def _beaten(found: Comparison) -> bool:
    """Whether the sampler's effect is the smaller one, at a third of alpha."""
    return found.verdict == "worse" and found.p_difference is not None and found.p_difference < ALPHA / 3


def _contest_says(verdict: str, contests: Mapping[str, Comparison]) -> str:
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
