"""The study `dose`: does sharing weights with more subnets cost a subnet accuracy?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TypeAlias

import numpy as np

from trainonce.lab.statistics import SeedComparison, against_zero, compare, corrected, over_seeds
from trainonce.lab.studies.conclusion import (
    CANNOT_TELL,
    HOLM_NOTE,
    MARGIN,
    Conclusion,
    Row,
    interval_columns,
    needed_notes,
    probe_lines,
    says,
    seeds_note,
    sentence_of,
    undecided,
)
from trainonce.lab.studies.design import Built, Design, at_epochs, cycle_recipe, planned_run
from trainonce.lab.studies.results import Factors, FinishedRun, RecordedStudy, StudyResult
from trainonce.lab.studies.study import Arm, StudySetup
from trainonce.recipes import RECIPES
from trainonce.space import Architecture, derived_rng

Subnets: TypeAlias = int | str
"""How many subnets share the weights: a number, `ALL`, or `DOUBLE_TURNS`."""
ALL = "all"
DOSES: tuple[Subnets, ...] = (1, 16, ALL)
PROBES = 2
DOUBLE_TURNS = "double turns"
"""The dose of a probe alone that has the turns of the others too."""
ALONE_AS_LONG = "the probe alone for as many steps in all"


def dose_pool(setup: StudySetup, probe: str, count: int, seed: int) -> tuple[str, ...]:
    """`count` distinct random subnets other than the probe; the first n of a larger pool are the pool of n."""
    rng = derived_rng(seed, "dose", probe)
    space = setup.net.space
    pool: dict[Architecture, None] = {}
    while len(pool) < count:
        arch = space.sample(rng)
        if str(arch) != probe:
            pool[arch] = None
    return tuple(map(str, pool))


def dose_cycle(setup: StudySetup, probe: str, dose: Subnets, seed: int) -> tuple[str, ...]:
    """Whose turn it is: the probe's in even turns, another's in odd ones; with a dose of 1 the probe's alone."""
    if dose == 1:
        return (probe,)
    others = ("uniform",) if dose == ALL else dose_pool(setup, probe, int(dose) - 1, seed)
    return tuple(entry for other in others for entry in (probe, other))


def _build(setup: StudySetup) -> Built:
    turns = setup.steps(at_epochs(setup, RECIPES["spos"]))
    probes, buckets = setup.probes(PROBES, 1)
    alone = (f"k-{DOSES[0]}", DOSES[0], turns, "The probe alone")
    double = (f"k-{DOSES[0]}-double", DOSES[0], 2 * turns, "The probe alone, with the turns of the others too")
    shared = [(f"k-{dose}", dose, 2 * turns, _about(dose)) for dose in DOSES[1:]]
    runs = []
    for seed, (number, probe), (name, dose, steps, _) in product(
        setup.seeds, enumerate(probes), [alone, double, *shared]
    ):
        recipe = cycle_recipe(name, dose_cycle(setup, probe, dose, seed), steps, setup)
        factors: Factors = {"dose": dose, "probe": number, "turns": "double" if name == double[0] else "own"}
        model, part = setup.model(), f"-p{number}"
        runs.append(planned_run(name, seed, recipe, model, part=part, factors=factors, probes=(probe,)))
    arms = [Arm(name=name, about=about) for name, _, _, about in [alone, double, *shared]]
    return Built(arms=arms, runs=runs, evaluate={"per_bucket": 0, "probes": probes, **buckets})


def _about(dose: Subnets) -> str:
    return f"The probe and {'all subnets' if dose == ALL else f'{int(dose) - 1} other'}, in turn"


def _conclude(study: RecordedStudy, results: Sequence[StudyResult], times: Sequence[FinishedRun]) -> Conclusion:
    """Does a probe's top-1 fall, rise, or stay when more subnets share its weights, its own exposure held constant?

    A line is fitted to top-1 against log2 K for each seed and probe. What is compared is what the line changes from the
    smallest to the largest K, in points, so that the margin means the same as elsewhere.
    """
    doses = _doses(probe_lines(study, results))
    slopes = {key: _slope(found) for key, found in doses.items() if len(_numbers(found)) > 1}
    comparisons = _comparisons(doses, slopes)
    if not comparisons:
        return undecided(study, "no probe has results at two doses for the same seed")
    verdict = _verdict({found.verdict for found in comparisons if found.names[1] != ALONE_AS_LONG})
    return Conclusion(
        study=study.name,
        sentence=sentence_of(f"{_LEADS[verdict]}: {comparisons[0].sentence}", *(c.sentence for c in comparisons[1:])),
        verdict=verdict,
        comparisons=comparisons,
        tables={
            "doses": _rows(doses),
            "slopes": [
                {"seed": seed, "probe": probe, "points_per_doubling": slope}
                for (seed, probe), slope in sorted(slopes.items())
            ],
        },
        notes=(
            seeds_note(comparisons[0].seeds),
            *needed_notes(comparisons[0]),
            HOLM_NOTE,
            "Steps of others may both train a probe's weights and spoil them: where its top-1 stays, they may cancel.",
        ),
    )


def _comparisons(
    doses: Mapping[tuple[int, str], Mapping[Subnets, float]], slopes: Mapping[tuple[int, str], float]
) -> tuple[SeedComparison, ...]:
    """What the fitted line changes from the smallest to the largest K, and all subnets against the smallest K."""
    numbers = sorted({k for found in doses.values() for k in _numbers(found)})
    found = []
    least = numbers[0] if numbers else 1
    few = f"{least} subnet{'s' * (least > 1)}"
    if slopes:
        span = math.log2(numbers[-1] / least)
        changes = _grouped({key: slope * span for key, slope in slopes.items()})
        found.append(
            replace(against_zero(changes, name="change", margin=MARGIN), names=(f"{numbers[-1]} subnets", few))
        )
    for other, name in ((least, few), (DOUBLE_TURNS, ALONE_AS_LONG)):
        both = {key: (at[ALL], at[other]) for key, at in doses.items() if ALL in at and other in at}
        if both:
            left, right = (_grouped({key: pair[i] for key, pair in both.items()}) for i in (0, 1))
            found.append(compare(left, right, margin=MARGIN, names=("all subnets", name)))
    leads = ("along the fitted line ", "", "") if slopes else ("", "")
    return tuple(replace(c, sentence=_says(c, lead)) for c, lead in zip(corrected(found), leads, strict=False))


_LEADS = {
    "falling": "sharing weights with more subnets costs accuracy (net interference)",
    "rising": "sharing weights with more subnets adds accuracy (net transfer)",
    "flat": "sharing weights with more subnets makes no difference, or harm and transfer cancel",
    CANNOT_TELL: "cannot tell whether sharing weights with more subnets matters",
}


def _says(found: SeedComparison, lead: str) -> str:
    way = f"from {found.names[1]} to {found.names[0]}"
    return lead + says(
        found,
        better=f"a probe's top-1 rises by {{}} {way}",
        worse=f"a probe's top-1 falls by {{}} {way}",
        equivalent=f"a probe's top-1 stays within {found.margin:g} points {way}",
        cannot_tell=f"whether a probe's top-1 changes {way} cannot be told",
    )


def _verdict(verdicts: set[str]) -> str:
    if verdicts == {"equivalent"}:
        return "flat"
    if "worse" in verdicts and "better" not in verdicts:
        return "falling"
    return "rising" if "better" in verdicts and "worse" not in verdicts else CANNOT_TELL


def subnets_of(factors: Factors) -> Subnets:
    """How many subnets share the weights in a run of this study, by its factors."""
    if factors.get("turns") == "double":
        return DOUBLE_TURNS
    return ALL if factors["dose"] == ALL else int(factors["dose"])


def _doses(lines: Sequence[StudyResult]) -> dict[tuple[int, str], dict[Subnets, float]]:
    """Top-1 by (seed, probe) and number of subnets."""
    found: dict[tuple[int, str], dict[Subnets, float]] = {}
    for line in lines:
        found.setdefault((line.seed, line.arch), {})[subnets_of(line.factors)] = line.top1
    return found


def _numbers(found: Mapping[Subnets, float]) -> list[int]:
    return sorted(k for k in found if isinstance(k, int))


def _slope(found: Mapping[Subnets, float]) -> float:
    """Points per doubling: the least-squares line through top-1 against log2 of the number of subnets."""
    numbers = _numbers(found)
    return float(np.polyfit(np.log2(numbers), [found[k] for k in numbers], 1)[0])


def _grouped(values: Mapping[tuple[int, str], float]) -> dict[int, list[float]]:
    """By seed, the probes in one order."""
    groups: dict[int, list[float]] = {}
    for (seed, _), value in sorted(values.items()):
        groups.setdefault(seed, []).append(value)
    return groups


def _rows(doses: Mapping[tuple[int, str], Mapping[Subnets, float]]) -> list[Row]:
    """Mean top-1 at each dose over all probes, and of each probe, with intervals over seeds."""
    rows = []
    kinds = sorted({k for found in doses.values() for k in found}, key=lambda k: (isinstance(k, str), k))
    for probe in ["all probes", *sorted({probe for _, probe in doses})]:
        for dose in kinds:
            values = {k: v[dose] for k, v in doses.items() if dose in v and probe in ("all probes", k[1])}
            if values:
                groups = _grouped(values)
                interval = over_seeds(list(groups.values()))
                row = {"probe": probe, "subnets": dose, "top1": interval.estimate, **interval_columns(interval)}
                rows.append(row | {"seeds": len(groups)})
    return rows


DOSE = Design(
    name="dose",
    about="A probe shares its weights with ever more other subnets. Its own turns, and their learning rates, are "
    "the same in every run; one control gives it the turns of the others too.",
    question="Does sharing weights with more subnets cost a subnet accuracy?",
    build=_build,
    conclude=_conclude,
    own_buckets=True,
)
