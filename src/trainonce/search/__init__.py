"""Search for the subnets that fit a device: constrained, multi-objective, on true scores that are each made once.

problem = Problem(cost=net.cost, limits=(Limit(measure=macs, most=10e6),), minimised=(macs,))
found = search(problem, recorded, true_scores, SearchSettings(scores=100))
result = search_result(problem, recorded, found)   # the search's front beside random search's
"""

from trainonce.search.algorithm import SearchScores, SearchSettings, search
from trainonce.search.measures import Limit, Measure, measure_named, quantity
from trainonce.search.problem import Problem, feasible_subnet
from trainonce.search.result import SearchResult, search_result
from trainonce.search.score_cache import ScoreCache, SearchStart, SearchStopped, start_of

__all__ = [
    "Limit",
    "Measure",
    "Problem",
    "ScoreCache",
    "SearchResult",
    "SearchScores",
    "SearchSettings",
    "SearchStart",
    "SearchStopped",
    "feasible_subnet",
    "measure_named",
    "quantity",
    "search",
    "search_result",
    "start_of",
]
