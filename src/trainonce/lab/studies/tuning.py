"""The study `tuning`: which learning rate suits which strategy."""

from collections.abc import Sequence
from itertools import product

import numpy as np

from trainonce.lab.studies.comparing_arms import arms_of, seconds
from trainonce.lab.studies.conclusion import (
    Conclusion,
    Row,
    by_seed,
    population_lines,
    sentence_of,
    undecided,
    where,
)
from trainonce.lab.studies.design import Built, Design, at_epochs, planned_run
from trainonce.lab.studies.results import Factors, FinishedRun, RecordedStudy, StudyResult
from trainonce.lab.studies.study import Arm, StudySetup
from trainonce.recipes import RECIPES

TUNED = ("rss", "ps", "ps-ofa")
TUNING_RATES = (0.01, 0.03, 0.08)
"""Highest learning rates, for 64 images, that `tuning` tries with every recipe: the paper's, OFA's, and one between."""


def _build(setup: StudySetup) -> Built:
    arms, runs = [], []
    for name, rate in product(TUNED, TUNING_RATES):
        recipe = RECIPES[name]
        arm = f"{name}@{rate:g}"
        arms.append(Arm(name=arm, about=f"{name}, its highest learning rate {rate:g}"))
        at_rate = at_epochs(setup, recipe.at_rate(rate / recipe.phases[0].lr))
        factors: Factors = {"strategy": name, "rate": rate}
        runs += [planned_run(arm, seed, at_rate, setup.model(), factors=factors) for seed in setup.seeds]
    return Built(arms=arms, runs=runs, evaluate={"split": "validate"})


def _conclude(study: RecordedStudy, results: Sequence[StudyResult], times: Sequence[FinishedRun]) -> Conclusion:
    """Which learning rate is best for each strategy: the highest mean over seeds of a seed's mean.

    A choice, not a test: there is no p value. A best rate at the end of the grid is said to be there, and where rates
    have no results, not yet or since their loss was not finite, of how many it is the best.
    """
    lines = population_lines(study, results)
    rows: list[Row] = []
    for strategy, rate in dict.fromkeys((x.factors["strategy"], x.factors["rate"]) for x in lines):
        groups = [list(found.values()) for found in by_seed(where(lines, strategy=strategy, rate=rate)).values()]
        mean = float(np.mean([np.mean(group) for group in groups]))
        rows.append({"strategy": strategy, "rate": rate, "top1": mean, "seeds": len(groups)})
    if not rows:
        return undecided(study, "no run has results yet")
    grid = dict.fromkeys((run.factors["strategy"], run.factors["rate"]) for run in study.runs)
    planned = [strategy for strategy, _ in grid]
    clauses, best = [], []
    for strategy in dict.fromkeys(planned):
        own = [row for row in rows if row["strategy"] == strategy]
        if not own:
            clauses.append(f"{strategy} has no results")
            continue
        top = max(own, key=lambda row: row["top1"])
        of = f", of {len(own)} of {planned.count(strategy)} rates" if len(own) < planned.count(strategy) else ""
        rates = [row["rate"] for row in own]
        edge = ", the largest tried" if top["rate"] == max(rates) else ""
        edge = ", the smallest tried" if top["rate"] == min(rates) else edge
        clauses.append(f"{strategy} is best at a rate of {top['rate']:g}{of}{edge} ({top['top1']:.1f})")
        best.append(f"{strategy} {top['rate']:g}{of}")
    return Conclusion(
        study=study.name,
        sentence=sentence_of(*clauses),
        verdict=", ".join(best),
        tables={"rates": rows, "seconds": seconds(arms_of(study, lines), times)},
        notes=("Rates are chosen by the mean over subnets and seeds; nothing is tested.",),
    )


TUNING = Design(
    name="tuning",
    about="Each strategy at each of a grid of learning rates, the same for all, on the validate split.",
    question="Which learning rate suits which strategy?",
    build=_build,
    conclude=_conclude,
)
