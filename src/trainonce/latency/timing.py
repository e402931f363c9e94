"""Timing small calls: interleaved, warmed up, medians; and a process held to a few cores meanwhile."""

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

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

    In its turn a call runs once untimed, which brings its weights back into the caches, and then `repeats` times, of
    which the fastest counts: the others were disturbed. Calls take turns so that slow changes of the machine hit them
    all alike, and what a round was slower than the others as a whole is taken out before the median. `warm_up` rounds
    before do not count. Rubbish is not collected meanwhile.
    """
    assert rounds >= 1
    assert repeats >= 1
    if not calls:
        return []
    took = np.zeros((rounds, len(calls)))
    with _no_collection():
        for turn in range(-warm_up, rounds):
            for place in range(len(calls)):
                index = (place + turn) % len(calls)  # each round begins with another one
                calls[index]()
                fastest = min(_seconds(calls[index], clock) for _ in range(repeats))
                if turn >= 0:
                    took[turn, index] = 1e3 * fastest
    return [float(ms) for ms in _without_rounds(took)]


def _without_rounds(took: NDArray[np.float64]) -> NDArray[np.float64]:
    """The medians of the columns, each row divided before by how much slower it was than the others.

    A row's slowness is the median of its ratios to the columns' medians; three passes, as in Tukey's median polish.
    """
    took = np.maximum(took, 1e-9)  # a clock may be too coarse for a call
    middle = np.median(took, axis=0)
    for _ in range(3):
        slowness = np.median(took / middle, axis=1, keepdims=True)
        middle = np.median(took / slowness, axis=0)
    return middle


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
