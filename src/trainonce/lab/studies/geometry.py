"""The study `geometry`: does the answer of `baseline` depend on the network's geometry?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from trainonce.lab.statistics import SeedComparison, compare, corrected
from trainonce.lab.studies.comparing_arms import arms_of, medians, seconds
from trainonce.lab.studies.conclusion import (
    CANNOT_TELL,
    HOLM_NOTE,
    MARGIN,
    BySeed,
    Conclusion,
    by_seed,
    compare_lines,
    flat,
    population_lines,
    says,
    seeds_note,
    sentence_of,
    undecided,
    where,
)
from trainonce.lab.studies.design import Built, Design, at_epochs, planned_run
from trainonce.lab.studies.results import Factors, FinishedRun, RecordedStudy, StudyResult
from trainonce.lab.studies.study import Arm, StudySetup
from trainonce.recipes import RECIPES


def _build(setup: StudySetup) -> Built:
    arms, runs = [], []
    for geometry, strategy in product(("paper", "cifar"), ("ps", "rss")):
        name = f"{strategy}-{geometry}"
        arms.append(Arm(name=name, about=f"{strategy} in the {geometry} geometry"))
        recipe = at_epochs(setup, RECIPES[strategy].at_rate(setup.rates.get(strategy, 1.0)))
        factors: Factors = {"geometry": geometry, "strategy": strategy}
        runs += [planned_run(name, seed, recipe, setup.model(geometry), factors=factors) for seed in setup.seeds]
    return Built(arms=arms, runs=runs, evaluate={"buckets_m": ()})


def _conclude(study: RecordedStudy, results: Sequence[StudyResult], times: Sequence[FinishedRun]) -> Conclusion:
    """Does what holds between RSS and PS in the paper's geometry hold in the CIFAR geometry?"""
    lines = population_lines(study, results)
    names = list(dict.fromkeys(str(line.factors["geometry"]) for line in lines))
    names.sort(key=lambda name: (name != "paper", name))
    compared: dict[str, SeedComparison] = {}
    changes: dict[str, dict[int, list[float]]] = {}
    for name in names:
        rss, ps = (where(lines, geometry=name, strategy=strategy) for strategy in ("rss", "ps"))
        comparison = compare_lines(rss, ps, (f"rss in the {name} geometry", f"ps in the {name} geometry"))
        if comparison:
            compared[name] = comparison
            changes[name] = _mean_differences(by_seed(rss), by_seed(ps))
    if not compared:
        return undecided(study, "no seed has results of both rss and ps in one geometry")
    difference = _change(changes)
    family = corrected([*compared.values(), *([difference] if difference else [])])
    found = {name: _said(one, name) for name, one in zip(compared, family, strict=False)}
    change = _change_said(family[-1]) if difference else None
    verdict = _verdict([comparison.verdict for comparison in found.values()], change)
    return Conclusion(
        study=study.name,
        sentence=sentence_of(
            *(comparison.sentence for comparison in found.values()), change.sentence if change else ""
        ),
        verdict=verdict,
        comparisons=(*found.values(), *([change] if change else [])),
        tables={
            "geometries": [flat(comparison, geometry=name) for name, comparison in found.items()],
            "medians": medians(lines, arms_of(study, lines)),
            "seconds": seconds(arms_of(study, lines), times),
        },
        notes=(seeds_note(min(comparison.seeds for comparison in found.values())), HOLM_NOTE),
    )


def _mean_differences(a: BySeed, b: BySeed) -> dict[int, list[float]]:
    """One difference of means for each seed that both have: geometries share no subnets that could be paired."""
    return {s: [float(np.mean(list(a[s].values())) - np.mean(list(b[s].values())))] for s in sorted(set(a) & set(b))}


def _change(changes: Mapping[str, Mapping[int, Sequence[float]]]) -> SeedComparison | None:
    """How rss - ps differs between the first two geometries, second less first."""
    if len(changes) < 2:
        return None
    first, second = list(changes)[:2]
    seeds = sorted(set(changes[first]) & set(changes[second]))
    if not seeds:
        return None
    names = (f"rss - ps in the {second} geometry", f"rss - ps in the {first} geometry")
    return compare(*({s: changes[g][s] for s in seeds} for g in (second, first)), margin=MARGIN, names=names)


def _said(found: SeedComparison, name: str) -> SeedComparison:
    sentence = found.sentence.replace(f" in the {name} geometry", "")
    return replace(found, sentence=f"in the {name} geometry {sentence}")


def _change_said(found: SeedComparison) -> SeedComparison:
    which = found.names[0].removeprefix("rss - ps in ")
    text = says(
        found,
        better=f"{which} favours rss by {{}} more",
        worse=f"{which} favours rss by {{}} less",
        equivalent=f"the two differences are equal within {found.margin:g} points",
        cannot_tell="whether geometry changes the difference cannot be told",
    )
    return replace(found, sentence=text)


def _verdict(verdicts: Sequence[str], change: SeedComparison | None) -> str:
    """ "other order" needs opposite verdicts; one that is equivalent in one geometry alone differs in size at most."""
    found = set(verdicts)
    if change is None or CANNOT_TELL in found:
        return CANNOT_TELL
    if found >= {"better", "worse"}:
        return "other order"
    if len(found) == 1:
        return "same order"
    return "other size" if change.verdict in ("better", "worse") else CANNOT_TELL


GEOMETRY = Design(
    name="geometry",
    about="Progressive shrinking and random sampling at equal epochs, in the paper's geometry, whose last maps are "
    "tiny, and in the CIFAR geometry.",
    question="Does the answer depend on the network's geometry?",
    build=_build,
    conclude=_conclude,
    tunable=("rss", "ps"),
)
