"""Timing small calls: interleaved, warmed up, medians; and a process held to a few cores meanwhile."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

Clock = Callable[[], float]
"""Gives a moment in seconds."""


def time_ms(
    calls: Sequence[Callable[[], object]],
    *,
    rounds: int,
    repeats: int = 3,
    warm_up: int = 2,
    clock: Clock = time.perf_counter,
) -> list[float]:
    """The median milliseconds of each call, over rounds in which every call has its turn.

    Slow changes of the machine hit all calls alike, since they take turns; each round begins with another one. In
    its turn a call runs once untimed, which brings its weights back into the caches, and then `repeats` times in a
    row, of which the fastest counts: the others were disturbed. `warm_up` rounds before do not count. Rubbish is not
    collected meanwhile.
    """
    assert rounds >= 1
    assert repeats >= 1
    took: list[list[float]] = [[] for _ in calls]
    with _no_collection():
        for turn in range(-warm_up, rounds):
            for place in range(len(calls)):
                index = (place + turn) % len(calls)
                call = calls[index]
                call()
                fastest = min(_seconds(call, clock) for _ in range(repeats))
                if turn >= 0:
                    took[index].append(1e3 * fastest)
    return [statistics.median(times) for times in took]


def _seconds(call: Callable[[], object], clock: Clock) -> float:
    began = clock()
    call()
    return clock() - began


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Inside, torch has `threads` threads, and this thread and those it starts stay on as many cores.

    They are the last of those allowed, since interrupts tend to land on the first. Where the system has no such
    thing, or there are not more cores than threads, threads go where they like.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(allowed) > threads:
        os.sched_setaffinity(0, allowed[-threads:])
    try:
        yield
    finally:
        if len(allowed) > threads:
            os.sched_setaffinity(0, allowed)
        torch.set_num_threads(before)
