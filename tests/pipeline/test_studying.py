"""Studies of images that Python code made: by one worker, in this process; refused where others would load them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.own_images import images, make

from trainonce import pipeline
from trainonce.data import DataSet, from_arrays, load_dataset
from trainonce.errors import UserError
from trainonce.lab.studies.run_study import StudyDirectory, StudyRunner, run_study
from trainonce.lab.studies.study import Study
from trainonce.records import read_json, to_json

STUDY = """
name = "mini"
question = "Does it run?"
seeds = [0, 1]
[[arms]]
name = "a"
recipe = "spos"
epochs = 1
model = { width_mult = 0.25, depths = [1] }
[evaluate]
per_bucket = 0
probes = ["smallest", "largest"]
calibration_images = 50
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mini.toml").write_text(STUDY)
    return tmp_path / "mini.toml"


def scores(out: Path) -> list[tuple[Any, ...]]:
    return [(line.run, line.arch, line.top1, line.loss) for line in StudyDirectory(out).results()]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What workers have loaded."""
    found: list[Any] = []
    monkeypatch.setattr("trainonce.lab.studies.run_study.load_source", lambda source, **_: found.append(source))
    return found


@pytest.mark.parametrize("workers", [1, None])
def test_images_made_in_python_give_what_a_file_of_them_gives(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int | None
) -> None:
    """By one worker, also where nobody says how many: the other threads are then its own."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    pixels, labels = images()
    np.savez(tmp_path / "images.npz", train_images=pixels, train_labels=labels)
    expected = pipeline.study(file, tmp_path / "images.npz", out=tmp_path / "of-file", device="cpu", workers=1)
    done = pipeline.study(file, from_arrays(pixels, labels), out=tmp_path / "study", device="cpu", workers=workers)
    assert (expected.finished, done.finished, done.plan.workers) == (True, True, 1)
    assert len(scores(tmp_path / "study")) == 4
    assert scores(tmp_path / "study") == scores(tmp_path / "of-file")


def test_one_worker_reads_no_images_again(file: Path, tmp_path: Path, loads: list[Any]) -> None:
    assert pipeline.study(file, "digits", out=tmp_path / "study", device="cpu", workers=1).finished
    assert loads == []


@pytest.mark.parametrize("how", [{"workers": 2}, {"cluster": "ray"}, {"cluster": "ray", "workers": 1}])
def test_several_workers_cannot_load_them(file: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    """It is said before anything is timed or written."""
    estimated: list[float] = []
    with pytest.raises(UserError, match="made in Python, where workers cannot load them: study them with one worker"):
        pipeline.study(
            *(file, make()),
            out=tmp_path / "study",
            device="cpu",
            on_estimate=lambda _plan, seconds: estimated.append(seconds),
            **how,
        )
    assert estimated == []
    assert not (tmp_path / "study").exists()


def test_a_function_is_named_for_several_workers(file: Path, tmp_path: Path) -> None:
    named = load_dataset("tests.support.own_images:make")
    planned = pipeline.study(file, named, out=tmp_path / "study", device="cpu", workers=2, dry_run=True)
    assert planned.plan.workers == 2


def planned(file: Path, out: Path, data: DataSet) -> Study:
    return pipeline.study(file, data, out=out, device="cpu", workers=1, dry_run=True).plan.study


def test_a_worker_refuses_images_prepared_otherwise(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digits whose normalisation was changed in Python are not what it loads by their name."""
    data = replace(load_dataset("digits"), mean=(0.5,))
    given: list[StudyRunner] = []
    monkeypatch.setattr("trainonce.lab.studies.run_study.fan_out", lambda runner, *_, **__: given.append(runner))
    study, directory = planned(file, tmp_path / "study", data), StudyDirectory(tmp_path / "study")
    for one in (data, load_dataset("digits")):
        run_study(study, directory, one, workers=2)
    assert [runner.data for runner in given] == [None, None], "nothing large travels"
    with pytest.raises(
        UserError, match=r"digits gives images normalised .* otherwise here .* mean is 0\.0 and was 0\.5"
    ):
        given[0]()
    assert callable(given[1]())


CHANGES: list[tuple[Callable[[DataSet], DataSet], str]] = [
    (lambda data: replace(data, std=(0.5,)), r"normalised or varied otherwise: their std is 0\.5 and was 1\.0"),
    (lambda data: replace(data, augmentation=()), "their augmentation is none and was crops"),
]


@pytest.mark.parametrize(("change", "says"), CHANGES)
def test_a_study_of_images_prepared_otherwise_is_another(
    file: Path, tmp_path: Path, change: Callable[[DataSet], DataSet], says: str
) -> None:
    """Unless it is of an earlier version, which did not record it."""
    data, directory = make(), StudyDirectory(tmp_path / "study")
    study = planned(file, directory.path, data)
    directory.claim(study, data, provenance={})
    directory.claim(study, data, provenance={})
    with pytest.raises(UserError, match=f"is of another study: its images were {says}|{says}"):
        directory.claim(study, change(data), provenance={})
    recorded = read_json(directory.study_file)
    del recorded["preparation"]
    directory.study_file.write_bytes(to_json(recorded))
    directory.claim(study, change(data), provenance={})
