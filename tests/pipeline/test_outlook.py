"""What is said of a training that has ended, and what its progress shows of validate."""

from pathlib import Path

import pytest
from tests.support.command_line import trainonce
from tests.support.lines import a_stretch

from trainonce import pipeline
from trainonce.cli.display import training_line
from trainonce.data import load_dataset
from trainonce.pipeline.outlook import learned, outlook
from trainonce.run.directory import RunDirectory
from trainonce.space import Architecture
from trainonce.training.settings import Progress


@pytest.mark.parametrize(
    ("train", "validate", "said"),
    [
        (60, 70, "Still rising"),
        (70, 66, "Still rising"),
        (79, 60, "Still rising"),
        (70, 49, "Overfitting"),
        (84, 80, "Still rising"),
        (89, 72, "Still rising"),
        (90, 80, "Level"),
        (90, 70, "Level"),
        (93, 90, "Still rising"),
        (95, 70, "Overfitting"),
        (98, 99, "Level"),
    ],
)
def test_the_rule_of_thumb(train: float, validate: float, said: str) -> None:
    sentence = outlook(train, validate)
    assert sentence.startswith(said)
    assert f"{train:.1f}%" in sentence
    assert f"{validate:.1f}%" in sentence


def test_one_error_in_eight_is_avoided_by_twice_the_time() -> None:
    for validate, gain in (
        (60.0, "some 5 points"),
        (88.0, "some 2 points"),
        (88.1, "about a point"),
        (94.1, "less than a point"),
    ):
        assert outlook(75.0, validate).endswith(f"Twice the time would likely give {gain} more.")


def test_what_is_learned_is_of_the_last_epoch() -> None:
    """Each stretch by its steps, those left out not counted: 90% in 20 steps, 60% in 10."""
    lines = [
        a_stretch(40, epoch=1.0, top1=10.0),
        a_stretch(60, epoch=1.5, top1=90.0),
        a_stretch(80, epoch=2.0, top1=60.0, left_out=10),
    ]
    assert learned(lines) == pytest.approx(80.0)
    assert learned(lines[:1]) == 10.0


def test_probes_are_told_as_they_are_recorded(tmp_path: Path) -> None:
    looks: list[list[float]] = []
    done = pipeline.train("digits", epochs=3, out=tmp_path / "run", on_look=lambda top1: looks.append(list(top1)))
    lines = RunDirectory(tmp_path / "run").forgetting()
    assert [top1 for look in looks for top1 in look] == [line.top1 for line in lines]
    assert done.outlook is not None
    assert f"{sum(looks[-1]) / len(looks[-1]):.1f}% on validate" in done.outlook


def test_without_probes_nothing_is_said(tmp_path: Path) -> None:
    assert pipeline.train("digits", epochs=1, probes=0, out=tmp_path / "run").outlook is None


def test_of_mixed_images_nothing_is_said(tmp_path: Path) -> None:
    """Which class such an image is of is a matter of shares."""
    path = tmp_path / "mixing.toml"
    path.write_text('[augmentation]\nalso = [{ kind = "cutmix" }]\n[[phases]]\nname = "all"\nepochs = 1\n', "utf-8")
    done = pipeline.train("digits", recipe=str(path), out=tmp_path / "run")
    assert done.finished
    assert done.outlook is None


def test_the_line_has_the_smallest_and_the_largest() -> None:
    at = Progress(
        step=1,
        steps=2,
        phase="a",
        epoch=0.5,
        lr=0.1,
        loss=1.0,
        top1=50.0,
        macs=10**6,
        arch=Architecture(()),
        seconds_left=3.0,
        left_out=0,
    )
    assert "on validate 61.2% (smallest) to 70.3% (largest)" in training_line(at, [61.2, 66.0, 70.3])
    assert "validate" not in training_line(at)


def test_another_split_seed_holds_out_other_images(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert trainonce("train", "digits", "--epochs", "1", "--split-seed", "5", "--probes", "0", "--out", out).code == 0
    run = RunDirectory(out)
    assert run.config().data.split_seed == 5
    assert run.load_data().fingerprint() == load_dataset("digits", split_seed=5).fingerprint()
    trainonce("train", "--resume", out, "--split-seed", "6").refused(
        "--split-seed cannot be given together with --resume"
    )
