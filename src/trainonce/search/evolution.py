"""NSGA-II (Deb et al. 2002) over genomes, by Optuna, which is asked for subnets and told their values.

Every choice of the space is always suggested, so that any two genomes cross gene by gene; a genome is then projected
to the architecture that it means. A limit is a constraint: a violation of 0 or less keeps it, and of subnets that do
not keep the limits the one that is beyond them least is the better one (section VI). Top-1 is asked only for subnets
that keep them.
"""

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from trainonce.extras import try_import
from trainonce.search.genome import decode, encode
from trainonce.search.problem import Problem
from trainonce.space import Architecture

TopOf = Callable[[Sequence[Architecture]], Mapping[Architecture, float]]
"""Gives top-1, in percent, of distinct subnets; where one is left out, it cannot be had any more."""


def require_optuna() -> None:
    """Raises `UserError` that names the extra where Optuna is not installed."""
    with try_import("a search", "search"):
        import optuna  # noqa: F401


def evolve(
    problem: Problem,
    first: Sequence[Architecture],
    top1_of: TopOf,
    *,
    generations: int,
    seed: int,
    should_end: Callable[[], bool] = lambda: False,
) -> dict[Architecture, float]:
    """Evolve a population that begins as `first`, and gives all feasible subnets seen with their top-1.

    The population stays as large as `first`, of at least two. Ends after the generations, when `should_end` says so
    between two of them, or with a generation in which top-1 could not be had any more. Follows from the arguments.
    """
    require_optuna()
    import optuna

    space, rng = problem.cost.space, random.Random(seed)
    seen: dict[Architecture, float] = {}
    with _quiet():
        study = optuna.create_study(
            directions=["minimize"] * (1 + len(problem.minimised)),
            sampler=optuna.samplers.NSGAIISampler(population_size=len(first), seed=seed % 2**32),
        )
        for arch in first:
            study.enqueue_trial(encode(space, arch, rng))
        for _ in range(generations):
            if should_end():
                break
            trials = [study.ask() for _ in first]
            archs = []
            for trial in trials:
                genes = {c.name: trial.suggest_int(c.name, 0, len(c.values) - 1) for c in space.choices}
                archs.append(decode(space, genes))
            wanted = [arch for arch in dict.fromkeys(archs) if problem.feasible(arch) and arch not in seen]
            seen |= top1_of(wanted)
            for trial, arch in zip(trials, archs, strict=True):
                for limit in problem.limits:
                    trial.set_constraint(limit.resource.name, limit.violation(arch))
                if arch in seen:
                    study.tell(trial, problem.objectives(arch, seen[arch]))
                elif not problem.feasible(arch):
                    study.tell(trial, problem.objectives(arch, 0.0))  # only its violation counts
                else:
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
            if not seen.keys() >= set(wanted):
                break
    return seen


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, Optuna does not say that it makes a study."""
    logger = logging.getLogger("optuna")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
