"""Which runs are seeds of one arm, and what the arms are called."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from trainonce import pipeline
from trainonce.data import DataSource
from trainonce.data.dataset import Preparation
from trainonce.records import to_json
from trainonce.report import read_groups, times_info
from trainonce.report.figures.studies import seeds_info
from trainonce.report.loading import arms_of
from trainonce.run.directory import RunDirectory, Start
from trainonce.run.lines import SubnetScore

SOURCE = DataSource(name_or_path="cifar10")


def changed(run: RunDirectory, *, width: float | None = None, **values: Any) -> RunDirectory:
    """The run, as if it had been made with these values of its configuration."""
    config = run.config()
    values["model"] = config.model if width is None else config.model | {"width_mult": width}
    run.config_file.write_bytes(to_json(config.model_copy(update=values).model_dump(mode="json")))
    return run


def test_two_networks_with_two_seeds_each_are_two_arms_with_intervals(synthetic: Any, tmp_path: Path) -> None:
    minutes = {"a0": 10.0, "a1": 13.0, "b0": 30.0, "b1": 31.0}
    for name, taken in minutes.items():
        run = synthetic.run(tmp_path / name, seed=int(name[1]), minutes=taken)
        changed(run, width=0.5 if name[0] == "a" else 1.0)
    [group] = read_groups([tmp_path / name for name in minutes])
    assert [run.arm for run in group.runs] == ["rss (a0 …)"] * 2 + ["rss (b0 …)"] * 2
    info = times_info(group.runs)
    assert info is not None
    for arm, (one, other) in zip(info.arms, ((10, 13), (30, 31)), strict=True):
        seconds = [60.0 * one, 60.0 * other]
        interval = stats.t.interval(0.95, 1, np.mean(seconds), stats.sem(seconds))
        assert (arm.seconds.low, arm.seconds.high) == pytest.approx(interval)


def test_two_networks_with_a_seed_each_have_no_interval(synthetic: Any, tmp_path: Path) -> None:
    """Whatever the seeds are: the second network's is not another seed of the first."""
    runs = [changed(synthetic.run(tmp_path / f"{seed}", seed=seed), width=0.5 + seed / 2) for seed in (0, 1)]
    lines = {"arch": "d1", "macs": 5, "params": 7, "loss": 1.0, "images": 10, "step": 1, "split": "validate"}
    for run, top1 in zip(runs, (50.0, 60.0), strict=True):
        run.append_population(SubnetScore.read(lines | {"top1": top1}, where="a test"))
    [group] = read_groups([run.path for run in runs])
    found = seeds_info({run.arm: run.scores["validate"] for run in group.runs})
    assert [(arm.arm, arm.by_seed, arm.mean.low) for arm in found] == [
        ("rss (0)", {0: 50.0}, None),
        ("rss (1)", {1: 60.0}, None),
    ]


@given(
    made=st.lists(
        st.tuples(
            st.sampled_from(["rss", "ps"]),
            st.sampled_from([0.03, 0.06]),
            st.sampled_from([0.5, 1.0]),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=7,
    )
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_runs_are_of_one_arm_where_they_differ_by_their_seed_alone(
    synthetic: Any, tmp_path_factory: pytest.TempPathFactory, made: list[tuple[str, float, float, int]]
) -> None:
    place, runs = tmp_path_factory.mktemp("arms"), []
    for number, (recipe, scale, width, seed) in enumerate(made):
        run = synthetic.run(place / str(number), recipe=recipe, scale=scale, seed=seed)
        runs.append(changed(run, width=width))
    arms = arms_of(runs)
    for i, one in enumerate(made):
        for j, other in enumerate(made):
            repeated = made.count(one) > 1 or made.count(other) > 1
            assert (arms[i] == arms[j]) == (i == j or (one[:3] == other[:3] and not repeated))
        assert arms[i].startswith(one[0])


def test_where_images_and_first_weights_lay_does_not_matter(synthetic: Any, tmp_path: Path) -> None:
    start = Start(network="timm:x", file="/here/x", sha256="ab", trained=True, fresh_head=False)
    recipe = synthetic.run(tmp_path / "r").config().recipe
    runs = [
        changed(synthetic.run(tmp_path / "0", seed=0), start=start, data=SOURCE),
        changed(
            synthetic.run(tmp_path / "1", seed=1),
            start=start.model_copy(update={"file": "/there/x"}),
            data=SOURCE.model_copy(update={"name_or_path": "/elsewhere/cifar10", "stream": True}),
            recipe=recipe.model_copy(update={"about": "Said otherwise."}),
        ),
    ]
    assert arms_of(runs) == ["rss", "rss"]


@pytest.mark.parametrize(
    "values",
    [
        {"data": SOURCE.model_copy(update={"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)})},
        {"start": Start(network="timm:x", file="x", sha256="ab", trained=True, fresh_head=False)},
        {"family": "another"},
    ],
)
def test_what_else_the_weights_follow_from_does(synthetic: Any, tmp_path: Path, values: dict[str, Any]) -> None:
    runs = [synthetic.run(tmp_path / "0", seed=0), changed(synthetic.run(tmp_path / "1", seed=1), **values)]
    assert arms_of(runs) == ["rss (0)", "rss (1)"]


def test_how_it_was_computed_tells_runs_apart(synthetic: Any, tmp_path: Path) -> None:
    runs = [synthetic.run(tmp_path / f"{seed}", seed=seed) for seed in range(3)]
    changed(runs[1], precision="bfloat16")
    changed(runs[2], sync_batch_norm=True)
    assert len(set(arms_of(runs))) == 3


def test_runs_of_before_images_were_recorded_as_prepared_are_seeds_of_one_arm(synthetic: Any, tmp_path: Path) -> None:
    prepared = Preparation(mean=(0.5,), std=(0.2,), augmentation=())
    runs = [changed(synthetic.run(tmp_path / f"{seed}", seed=seed), preparation=None) for seed in range(3)]
    changed(runs[1], preparation=prepared)
    assert set(arms_of(runs)) == {"rss"}
    changed(runs[0], preparation=prepared)
    changed(runs[2], preparation=prepared.model_copy(update={"mean": (0.4,)}))
    assert len(set(arms_of(runs))) == 2


def test_directories_of_one_name_are_told_apart_by_their_paths(synthetic: Any, tmp_path: Path) -> None:
    runs = [synthetic.run(tmp_path / place / "run") for place in "ab"]
    assert arms_of(runs) == [f"rss ({tmp_path}/{place}/run)" for place in "ab"]


def test_a_run_that_is_named_twice_is_one(synthetic: Any, tmp_path: Path) -> None:
    run = synthetic.run(tmp_path / "run")
    lines = {"arch": "d1", "macs": 5, "params": 7, "loss": 1.0, "images": 10, "step": 1, "split": "validate"}
    run.append_population(SubnetScore.read(lines | {"top1": 50.0}, where="a test"))
    shown = pipeline.draw(run.path, str(run.path), out=tmp_path / "it.svg")
    assert [(arm.label, len(arm.lines)) for arm in shown.arms] == [("rss", 1)]
    assert "this is one training run" in pipeline.report(run.path, f"{run.path}/").page.read_text(encoding="utf-8")


def test_lengths_that_read_alike_are_told_apart(synthetic: Any, tmp_path: Path) -> None:
    runs = [synthetic.run(tmp_path / str(scale), scale=scale) for scale in (0.03, 0.0300001, 0.06)]
    assert arms_of(runs) == ["rss, 17.7 passes (0.03)", "rss, 17.7 passes (0.0300001)", "rss, 35.4 passes"]
