"""A training that has a time to keep leaves out steps where the machine is slower than planned."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainonce.data import DataSet
from trainonce.models import MobileNetV3
from trainonce.recipes import Phase, PhaseSteps, Recipe, phase_at, timetable
from trainonce.run.directory import RunDirectory
from trainonce.training.clock import TOLERATED, Clock
from trainonce.training.loop import train_supernet
from trainonce.training.settings import EpochEnd, Progress, TrainSettings

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
STRETCH = 20
ONE = timetable(Recipe(name="one", about="", phases=(Phase(name="a", epochs=10),)), 200)
TWO = timetable(Recipe(name="two", about="", phases=(Phase(name="a", epochs=4), Phase(name="b", epochs=6))), 200)


def simulated(
    table: tuple[PhaseSteps, ...], step_s: tuple[float, ...], takes: Callable[[int], float]
) -> tuple[float, list[int]]:
    """The seconds that a training takes whose step number s takes `takes(s)`, and which steps are trained."""
    clock = Clock(table, step_s, step=0, seconds=0.0)
    step, seconds, trained, since = 0, 0.0, list[int](), 0
    while step < table[-1].end:
        entry = phase_at(table, step)
        trained.append(step)
        seconds += takes(step)
        step, since = step + 1, since + 1
        if since == STRETCH or step == entry.end:
            since = 0
            if step < table[-1].end:
                step += clock.leave_out(step, seconds)
    return seconds, trained


def test_as_planned_all_are_trained() -> None:
    for takes in (0.015, 0.05):
        assert len(simulated(ONE, (0.05,), lambda _, takes=takes: takes)[1]) == 2000  # type: ignore[misc]
    both = simulated(TWO, (0.01, 0.2), lambda step: 0.01 if step < 800 else 0.2)[1]
    assert len(both) == 2000, "phases whose steps take longer than others do not count as slow"


@pytest.mark.parametrize(
    ("takes", "share"),
    [(lambda _: 0.1, 0.5), (lambda step: 0.05 if step < 1000 else 0.15, 2 / 3), (lambda _: 0.2, 0.25)],
    ids=["twice as slow", "thrice as slow from the middle on", "four times as slow"],
)
def test_a_slower_machine_takes_no_longer(takes: Callable[[int], float], share: float) -> None:
    seconds, trained = simulated(ONE, (0.05,), takes)
    assert seconds <= 100 * (1 + TOLERATED) + 0.2
    assert len(trained) == pytest.approx(share * 2000, rel=0.1)
    assert trained[-1] == 1999


def test_what_is_left_out_lies_evenly() -> None:
    _, trained = simulated(ONE, (0.05,), lambda _: 0.1)
    quarters = [sum(500 * q <= step < 500 * (q + 1) for step in trained) for q in range(4)]
    assert max(quarters[1:]) - min(quarters[1:]) <= STRETCH
    gaps = [b - a for a, b in pairwise(trained)]
    assert max(gaps) <= 3 * STRETCH


@given(
    paces=st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=50),
    planned=st.tuples(st.floats(1e-3, 1.0), st.floats(1e-3, 1.0)),
)
def test_whatever_it_takes(paces: list[float], planned: tuple[float, float]) -> None:
    """Each phase begins at its first step and ends with its last one, and steps come in order."""
    _, trained = simulated(TWO, planned, lambda step: paces[step % len(paces)])
    assert trained == sorted(set(trained))
    assert {0, 799, 800, 1999} <= set(trained)


# In a training

RECIPE = Recipe(name="r", about="", phases=(Phase(name="a", epochs=12), Phase(name="b", epochs=13)), batch_size=8)


def trained(
    net: MobileNetV3, data: DataSet, run: RunDirectory, step_s: float | None, stop_at: int = 0
) -> tuple[bool, list[EpochEnd]]:
    """25 epochs of four steps, and the ends of epochs."""
    ends: list[EpochEnd] = []
    steps = 0

    def should_stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == stop_at

    settings = TrainSettings(log_every=2, planned_step_s=() if step_s is None else (step_s, step_s), keep_at=(0.5,))
    resume = run.config_file.exists()
    done = train_supernet(
        *(net, RECIPE, data, run), settings=settings, on_epoch=ends.append, should_stop=should_stop, resume=resume
    )
    return done, ends


def test_with_time_enough_it_is_the_same_training(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    nets, data = (make_net(), make_net()), make_data()
    for net, step_s in zip(nets, (None, 60.0), strict=True):
        assert trained(net, data, RunDirectory(tmp_path / str(step_s)), step_s)[0]
    assert all(map(torch.equal, *(net.state_dict().values() for net in nets)))
    assert RunDirectory(tmp_path / "60.0").metrics()[-1].left_out == 0


def test_without_time_steps_are_left_out_and_counted(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    stopped, first_ends = trained(make_net(), make_data(), run, 1e-6, stop_at=9)
    assert not stopped
    done, ends = trained(make_net(), make_data(), run, 1e-6)
    assert done
    lines = run.metrics()
    assert lines[-1].step == 100
    assert 40 <= lines[-1].left_out <= 95
    count = 100 - lines[-1].left_out
    assert lines[-1].passes == count / 4
    assert run.exposure().steps == count
    assert len(list(run.kept.iterdir())) == 1
    epochs = [end.step // 4 for end in first_ends + ends]
    assert epochs == sorted(set(epochs))
    assert ends[-1].last
    assert all(end.epoch == end.step // 4 for end in first_ends + ends), "whole epochs, also where steps are left out"
    steps = [line.step for line in lines]
    assert steps == sorted(set(steps))
    assert 48 in steps, "the first phase ends with its last step"


def test_where_steps_are_left_out_a_resumed_run_goes_on_with_the_images_that_were_next(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which steps are left out follows here from the step alone, so that nothing else can differ."""

    class Regular(Clock):
        def leave_out(self, step: int, seconds: float) -> int:
            return int(step % 12 in (4, 7))

    monkeypatch.setattr("trainonce.training.loop.Clock", Regular)
    nets, data, runs = (make_net(), make_net()), make_data(), [RunDirectory(tmp_path / name) for name in ("1", "2")]
    assert trained(nets[0], data, runs[0], 1.0)[0]
    assert not trained(nets[1], data, runs[1], 1.0, stop_at=31)[0]
    assert trained(nets[1], data, runs[1], 1.0)[0]
    assert runs[0].metrics()[-1].left_out == runs[1].metrics()[-1].left_out > 10
    assert all(map(torch.equal, *(net.state_dict().values() for net in nets)))


@pytest.mark.parametrize(("step_s", "left"), [((100.0, 300.0), [0.0, 30.0, 12.0, 0.0]), ((), [0.0, 10.0, 20 / 3, 0.0])])
def test_the_time_left_counts_steps_as_they_were_planned(
    make_net: MakeNet,
    make_data: MakeData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step_s: tuple[float, ...],
    left: list[float],
) -> None:
    """Four steps, after each of which ten seconds pass: the last two are planned to take three times as long."""
    now, seen = [0.0], list[float]()

    def on_progress(at: Progress) -> None:
        seen.append(at.seconds_left)
        now[0] += 10

    monkeypatch.setattr("trainonce.training.loop.time.monotonic", lambda: now[0])
    recipe = Recipe(name="r", about="", phases=(Phase(name="a", epochs=0.5), Phase(name="b", epochs=0.5)), batch_size=8)
    settings = TrainSettings(log_every=1, planned_step_s=step_s)
    train_supernet(
        *(make_net(), recipe, make_data(), RunDirectory(tmp_path / "run")), settings=settings, on_progress=on_progress
    )
    assert seen == pytest.approx(left)
