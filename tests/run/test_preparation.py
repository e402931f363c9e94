"""Images of a run that are given normalised or varied otherwise are refused, wherever they would be used."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.own_images import make

from trainonce import pipeline
from trainonce.data import load_dataset
from trainonce.errors import UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.models import MobileNetV3
from trainonce.recipes import AugmentationChange, Colour, Crop, Flip, Own, Phase, Recipe
from trainonce.records import to_json
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.training.loop import train_supernet

MakeNet = Callable[..., MobileNetV3]
PHASE = Phase(name="all", epochs=2, subnets=("largest",))
PLAIN = Recipe(name="plain", about="A test.", phases=(PHASE,), batch_size=16)
VARYING = PLAIN.model_copy(update={"augmentation": AugmentationChange(crop_from=0.9, flip=True, alone=True)})
OTHER: list[tuple[dict[str, Any], str]] = [
    ({"mean": (0.9,)}, r"their mean is 0\.9 and was 0\.0"),
    ({"std": (0.05,)}, r"their std is 0\.05 and was 1\.0"),
    ({"augmentation": ()}, "their augmentation is none and was crops from"),
]


@pytest.fixture(scope="module")
def run(make_net: MakeNet, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Stopped in the middle."""
    run, steps = RunDirectory(tmp_path_factory.mktemp("runs") / "run"), list[int]()

    def third() -> bool:
        steps.append(0)
        return len(steps) == 3

    assert not train_supernet(make_net(), PLAIN, make(), run, should_stop=third)
    return run


def forgotten(run: RunDirectory) -> None:
    """The run as an earlier version wrote it, which recorded no preparation."""
    config = json.loads(run.config_file.read_bytes())
    del config["preparation"], config["sum"]
    run.config_file.write_bytes(to_json(config))
    found = checkpoint.load_latest(run.checkpoints)
    assert found is not None
    del found.state["identity"]["preparation"]
    checkpoint.save(run.checkpoints, found.step, found.tensors, found.state)


def test_it_is_recorded(run: RunDirectory) -> None:
    data, recorded = make(), json.loads(run.config_file.read_bytes())["preparation"]
    assert (recorded["mean"], recorded["std"]) == ([0.0], [1.0])
    assert [one["kind"] for one in recorded["augmentation"]] == [one.kind for one in data.augmentation] != []


@pytest.mark.parametrize(("other", "says"), OTHER)
def test_other_ones_are_refused(run: RunDirectory, make_net: MakeNet, other: dict[str, Any], says: str) -> None:
    """To go on training, and to evaluate: the scores would be others, as batch norms are recalibrated on the images."""
    data, otherwise, settings = make(), replace(make(), **other), EvaluateSettings(calibration_images=40)
    net, arch = run.load_supernet()[0], make_net().space.smallest()
    losses = [Evaluator(one, "validate", settings)(net, arch).loss for one in (data, otherwise)]
    assert losses[0] != losses[1]
    assert run.load_data(moved_to=data).preparation == data.preparation
    sentence = rf"the data set given is not normalised and varied as .*: {says}.*; give them as they were"
    for work in (
        lambda: run.load_data(moved_to=otherwise),
        lambda: pipeline.train(otherwise, resume=run.path, device="cpu"),
        lambda: pipeline.evaluate(run.path, data=otherwise, per_bucket=1, device="cpu"),
        lambda: pipeline.extract(run.path, "smallest", data=otherwise, device="cpu"),
    ):
        with pytest.raises(UserError, match=sentence):
            work()
    with pytest.raises(UserError, match="its preparation differs from the one given"):
        train_supernet(run.build_supernet(), PLAIN, otherwise, run, resume=True)


def test_what_the_recipe_varies_is_what_counts(make_net: MakeNet, tmp_path: Path) -> None:
    """What it leaves out may be another; and images that are varied already are those of the run."""
    run = RunDirectory(tmp_path / "run")
    train_supernet(make_net(), VARYING, make(), run)
    config = run.config()
    assert config.preparation is not None
    assert config.preparation.augmentation == (Crop(scale=(0.9, 1.0)), Flip())
    for data in (make(), replace(make(), augmentation=(Colour(brightness=0.1),)), run.load_data(moved_to=make())):
        assert run.load_data(moved_to=data).augmentation == config.preparation.augmentation
        assert train_supernet(run.build_supernet(), VARYING, data, run, resume=True)
    with pytest.raises(UserError, match="their std"):
        run.load_data(moved_to=replace(make(), std=(2.0,)))


def test_settings_that_words_leave_out_are_told() -> None:
    one, other = (
        replace(make(), augmentation=(Own(function="mine.images:same", settings={"n": n}),)).preparation for n in (1, 2)
    )
    assert "'n': 2" in one.difference(other)
    assert one.difference(one) == ""


def test_runs_of_earlier_versions_take_what_they_took(make_net: MakeNet, tmp_path: Path) -> None:
    """They are evaluated and go on; what is recorded since then is held against what comes later."""
    run, asked = RunDirectory(tmp_path / "run"), list[int]()

    def stop() -> bool:
        asked.append(0)
        return len(asked) in (2, 4)

    assert not train_supernet(make_net(), PLAIN, make(), run, should_stop=stop)
    forgotten(run)
    config = run.config()
    assert config.preparation is None
    assert "preparation" not in config.identity()
    assert run.load_supernet()[1] == 2
    assert run.load_data(moved_to=replace(make(), mean=(0.9,))).mean == (0.9,)
    assert not train_supernet(run.build_supernet(), PLAIN, make(), run, resume=True, should_stop=stop)
    assert run.load_supernet()[1] == 4
    with pytest.raises(UserError, match=r"step-000004 is of another run: its preparation differs"):
        train_supernet(run.build_supernet(), PLAIN, replace(make(), mean=(0.9,)), run, resume=True)
    assert train_supernet(run.build_supernet(), PLAIN, make(), run, resume=True)


def test_a_function_that_gives_them_otherwise_now(
    make_net: MakeNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, name, otherwise = RunDirectory(tmp_path / "run"), "tests.support.own_images:make", replace(make(), mean=(0.5,))
    train_supernet(make_net(), PLAIN, load_dataset(name), run)
    assert run.load_data().mean == (0.0,)
    monkeypatch.setattr("tests.support.own_images.make", lambda: otherwise)
    with pytest.raises(UserError, match=rf"{name} is not normalised and varied as .* mean is 0\.5 and was 0\.0"):
        run.load_data()
