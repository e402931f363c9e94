"""Search for the subnets that fit a device: constrained, multi-objective, on true scores that are each made once.

problem = Problem(cost=net.cost, limits=(Limit(resource=macs, most=10e6),), minimised=(macs,))
found = search(problem, recorded, true_scores, SearchSettings(scores=100))
result = search_result(problem, recorded, found)   # the search's front beside random search's
"""

from trainonce.search.algorithm import SearchScores, SearchSettings, search
from trainonce.search.problem import Problem, feasible_subnet
from trainonce.search.resources import Limit, Resource, quantity, resource_named
from trainonce.search.result import SearchResult, search_result
from trainonce.search.score_cache import ScoreCache, SearchStart, SearchStopped, start_of

__all__ = [
    "Limit",
    "Problem",
    "Resource",
    "ScoreCache",
    "SearchResult",
    "SearchScores",
    "SearchSettings",
    "SearchStart",
    "SearchStopped",
    "feasible_subnet",
    "quantity",
    "resource_named",
    "search",
    "search_result",
    "start_of",
]
