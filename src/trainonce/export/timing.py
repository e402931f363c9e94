"""Timing calls side by side."""

import statistics
import time
from collections.abc import Callable, Sequence


def time_ms(calls: Sequence[Callable[[], object]], *, rounds: int) -> list[float]:
    """The median milliseconds of each call, over rounds in which every call has its turn after two to warm up."""
    took: list[list[float]] = [[] for _ in calls]
    for turn in range(-2, rounds):
        for index, call in enumerate(calls):
            began = time.perf_counter()
            call()
            if turn >= 0:
                took[index].append(1000 * (time.perf_counter() - began))
    return [statistics.median(times) for times in took]
