"""Search for the subnets that fit a device: constrained, multi-objective, on true scores that are each made once.

problem = Problem(cost=net.cost, limits=(Limit(measure=macs, most=10e6),), minimised=(macs,))
found = search(problem, recorded, true_scores, SearchSettings(scores=100))
outcome = outcome_of(problem, recorded, found)   # the search's front beside random search's
"""

from trainonce.search.algorithm import Evaluated, SearchSettings, search
from trainonce.search.measures import Limit, Measure, measure_named, quantity
from trainonce.search.outcome import Outcome, outcome_of
from trainonce.search.problem import Problem, feasible_subnet
from trainonce.search.score_cache import ScoreCache, SearchStart, SearchStopped, start_of

__all__ = [
    "Evaluated",
    "Limit",
    "Measure",
    "Outcome",
    "Problem",
    "ScoreCache",
    "SearchSettings",
    "SearchStart",
    "SearchStopped",
    "feasible_subnet",
    "measure_named",
    "outcome_of",
    "quantity",
    "search",
    "start_of",
]
