"""Timing against a clock that is known."""

import gc
import os
from collections.abc import Callable, Sequence

import pytest
import torch

from trainonce.latency.bench import pinned, time_and_drift, time_ms, was_quiet
from trainonce.latency.runtimes import torch_threads


class Clock:
    """A clock that only calls move: each by its cost in seconds, times how slow the machine is at the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now


def test_each_call_takes_what_it_takes_and_they_take_turns() -> None:
    clock = Clock()

    def cost(name: str, seconds: float) -> None:
        clock.now += seconds
        clock.calls.append(name)

    times = time_ms([lambda: cost("a", 0.001), lambda: cost("b", 0.25)], rounds=3, repeats=2, warm_up=1, clock=clock)
    assert times == pytest.approx([1.0, 250.0])
    assert "".join(clock.calls) == "bbbaaa" + "aaabbb" + "bbbaaa" + "aaabbb"  # one untimed and two timed, in turns


def test_nothing_to_time() -> None:
    assert time_ms([], rounds=3) == []


def test_a_disturbed_call_does_not_count() -> None:
    clock, hits = Clock(), iter(range(10_000))

    def cost() -> None:
        clock.now += 1.0 if next(hits) % 4 == 2 else 0.002  # one of the three timed calls of each turn is interrupted

    assert time_ms([cost], rounds=5, clock=clock) == pytest.approx([2.0])


def test_a_machine_that_slows_down_hits_all_alike() -> None:
    """Half of the rounds are four times as slow: the ratio of the calls stays what it is."""
    clock = Clock()

    def cost(seconds: float) -> None:
        clock.now += seconds * (4 if clock.now > 1.0 else 1)

    first, second = time_ms([lambda: cost(0.010), lambda: cost(0.013)], rounds=11, clock=clock)
    assert second / first == pytest.approx(1.3)


def test_a_clock_too_coarse_gives_no_nonsense() -> None:
    assert time_ms([lambda: None], rounds=3, clock=lambda: 0.0) == pytest.approx([0.0], abs=1e-8)


def test_rubbish_is_not_collected_meanwhile_and_is_after() -> None:
    seen = []
    time_ms([lambda: seen.append(gc.isenabled())], rounds=1)
    assert set(seen) == {False}
    assert gc.isenabled()


def test_torch_gets_its_threads_back() -> None:
    threads = torch.get_num_threads()
    with torch_threads(threads + 1):
        assert torch.get_num_threads() == threads + 1
    assert torch.get_num_threads() == threads


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not hold threads to cores")
def test_pinned_holds_this_thread_to_the_last_cores() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1):
        assert os.sched_getaffinity(0) == {max(before)}
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ZeroDivisionError), pinned(1):
        _ = 1 / 0
    assert os.sched_getaffinity(0) == before
    with pinned(len(before) + 1):
        assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(("slower", "quiet"), [(1.0, True), (1.05, True), (1.5, False)])
def test_that_other_work_ran_beside_is_known_and_taken_out(slower: float, quiet: bool) -> None:
    """Of five measurements the last is slower as a whole, which is the machine's pace and no call's."""
    clock = Clock()

    def cost(seconds: float) -> None:
        clock.now += seconds
        clock.calls.append("")

    def timer(calls: Sequence[Callable[[], object]], *, rounds: int, warm_up: int) -> list[float]:
        factor = slower if len(clock.calls) >= 4 * (2 * 4 * 10) + 2 * 2 * 4 else 1.0
        return [factor * ms for ms in time_ms(calls, rounds=rounds, warm_up=warm_up, clock=clock)]

    times, drift = time_and_drift([lambda: cost(0.002), lambda: cost(0.004)], rounds=50, timer=timer)
    assert times == pytest.approx([2.0, 4.0])
    assert drift == pytest.approx([slower, 1.0])
    assert was_quiet(drift) is quiet
