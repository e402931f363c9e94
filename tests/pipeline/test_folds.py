"""Cross-validation: each fold is a fit of its own, and what is said over folds is of all the images, each once."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import recall_score
from tests.support.command_line import trainonce
from tests.support.own_images import few_digits
from tests.support.pace import an_epoch_a_second

from trainonce.data import load_dataset
from trainonce.errors import UserError
from trainonce.pipeline import evaluate_subnet, fit, fitting, train
from trainonce.pipeline.folds import corrected_interval
from trainonce.run.directory import RunDirectory
from trainonce.subnets.finetune import FinetunePace

SMALL = ("--width", "0.25", "--device", "cpu", "--recipe", "spos", "--max-macs", "0.4", "--max-macs", "9")
ASKED = ("--minutes", "0.1334", *SMALL, "--folds", "2")
IMAGES = 300


@pytest.fixture(autouse=True, scope="module")
def pace() -> Iterator[None]:
    """The clock stands still where plans are made."""
    with pytest.MonkeyPatch.context() as patch:
        an_epoch_a_second(patch)
        patch.setattr(fitting, "finetuning_pace", lambda *_: FinetunePace(step=9.0, scoring=0.0, per_epoch=1))
        patch.setattr(fitting._Fit, "left", lambda _self: 2.0)
        patch.setattr(fitting, "CANDIDATES", 2)
        yield


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> str:
    """So many of the digits."""
    return str(few_digits(tmp_path_factory.mktemp("few"), IMAGES))


@pytest.fixture(scope="module")
def told(few: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object], str]:
    """Two folds of the digits: where they are, what is told as JSON, and what a person reads."""
    place = tmp_path_factory.mktemp("folds") / "digits"
    first = trainonce("fit", few, *ASKED, "--out", place)
    assert first.code == 0, first.err
    again = trainonce("fit", few, *ASKED, "--out", place, "--json")
    assert "Training:" not in again.err, "nothing is done again"
    return place, json.loads(again.out), first.out


def test_each_fold_is_tested_on_what_it_was_not_trained_on(told: tuple[Path, dict[str, object], str]) -> None:
    place, said, _ = told
    assert said["folds"] == 2
    configs = [RunDirectory(place / f"fold-{number}").config() for number in (1, 2)]
    assert [config.data.fold for config in configs] == [(1, 2), (2, 2)]
    assert configs[0].data_fingerprint != configs[1].data_fingerprint
    for device in said["devices"]:  # type: ignore[attr-defined]
        confusion = np.zeros((10, 10), int)
        for number, top1 in enumerate(device["top1"], 1):
            run = place / f"fold-{number}"
            one = evaluate_subnet(run / "subnets" / f"{device['max_macs'] / 1e6:g}M", split="test", device="cpu")
            assert one.score.top1 == pytest.approx(top1)
            confusion += np.array(one.per_class.confusion)
        assert confusion.sum() == device["images"] == IMAGES
        is_, taken_for = (np.repeat(index, confusion.ravel()) for index in np.indices((10, 10)).reshape(2, -1))
        assert device["recall"] == pytest.approx(100 * recall_score(is_, taken_for, average=None))
        assert device["mean"] == pytest.approx(np.mean(device["top1"]))
    assert json.loads((place / "folds.json").read_text())["devices"] == said["devices"]


def test_what_a_person_reads(told: tuple[Path, dict[str, object], str]) -> None:
    _, said, out = told
    rows = [line.split() for line in out.splitlines() if line.startswith(("0.4M ", "9M "))]
    for row, device in zip(rows, said["devices"], strict=True):  # type: ignore[call-overload]
        assert row[1:] == [
            f"{device['mean']:.2f}%",
            *(f"{device['low']:.1f}", "to", f"{device['high']:.1f}"),
            *(f"{min(device['top1']):.2f}%", f"{max(device['top1']):.2f}%"),
        ]
    assert f"each of {IMAGES} images was tested once" in out
    assert "rough with so few folds" in out


def test_what_cannot_be_is_refused(few: str, told: tuple[Path, dict[str, object], str], tmp_path: Path) -> None:
    place, again = told[0], ("fit", few, *ASKED)
    trainonce(*again[:-1], "3", "--out", place).refused("fold 1 of 3, .* with --minutes 0.0667, not with")
    trainonce(*again, "--split-seed", "4", "--out", place).refused("begun with other images, or other ones held out")
    trainonce(*again[:-2], "--out", place / "fold-1").refused("with --minutes 0.0667, not with --minutes 0.1334")
    trainonce(*again, "--out", place / "fold-1").refused("holds other runs than 2 folds")
    trainonce("fit", few, "--minutes", "0.01", *SMALL, "--folds", "5", "--out", tmp_path / "a").refused(
        r"fold 1 of 5, which has 0.002 of the 0.01 minutes \(those that follow are a fold's\): .* give at least"
    )
    with pytest.raises(UserError, match="the images of a DataSet are made already"):
        fit(load_dataset("digits"), 1, folds=2, out=tmp_path / "b")
    with pytest.raises(UserError, match="2 folds or more, not 1"):
        fit("digits", 1, folds=1, out=tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_a_fold_that_is_stopped_goes_on(few: str, tmp_path: Path) -> None:
    seen: list[object] = []
    how = {"width": 0.25, "device": "cpu", "recipe": "spos", "max_macs": (0.4,), "folds": 2, "out": tmp_path / "it"}
    watch = fitting.Watch(training=lambda at: seen.append(at), should_stop=lambda: bool(seen))
    stopped = fit(few, 0.1334, **how, watch=watch)  # type: ignore[arg-type]
    assert (stopped.finished, stopped.folds, stopped.over_folds, stopped.devices) == (False, (), (), ())
    assert not (tmp_path / "it" / "folds.json").exists()
    done = fit(few, 0.1334, **how)  # type: ignore[arg-type]
    assert done.finished
    assert [len(fold.devices) for fold in done.folds] == [1, 1]


def test_a_fold_can_be_trained_alone(tmp_path: Path) -> None:
    asked = ("train", "digits", "--fold", "2/5", "--epochs", "1", "--width", "0.25", "--probes", "0", "--device", "cpu")
    assert trainonce(*asked, "--out", tmp_path / "run").code == 0
    run = RunDirectory(tmp_path / "run")
    assert run.config().data.identity()["fold"] == [2, 5]
    assert len(run.load_data().test) == pytest.approx(1797 / 5, abs=1)
    assert run.load_data().fingerprint() == load_dataset("digits", fold=(2, 5)).fingerprint()
    trainonce(*asked[:2], "--fold", "6/5", *asked[4:], "--out", tmp_path / "no").refused("6 of 5 is none of them")
    trainonce(*asked[:2], "--fold", "2", *asked[4:], "--out", tmp_path / "no").refused("such as 2/5; not '2'")
    trainonce("train", "--resume", run.path, "--fold", "1/5").refused("--fold cannot be given together with --resume")
    with pytest.raises(UserError, match="--fold cannot be given together with --resume"):
        train(resume=run.path, fold=(1, 5))
    assert train(resume=run.path, device="cpu").finished


@given(top1=st.lists(st.floats(40, 60), min_size=2, max_size=10))
def test_the_interval_is_students_with_the_variance_of_overlapping_trainings(top1: list[float]) -> None:
    """Nadeau and Bengio's (1/J + n2/n1) s², with J folds and n2/n1 = 1/(J - 1)."""
    folds = len(top1)
    factor = 1 / folds + (1 / folds) / (1 - 1 / folds)
    scale = np.sqrt(factor * np.var(top1, ddof=1))
    low, high = stats.t.interval(0.95, folds - 1, loc=np.mean(top1), scale=max(scale, 1e-300))
    assert corrected_interval(top1) == pytest.approx((max(0, low), min(100, high)))
