"""Trainings that begin with a network of one's own, a file of its weights, or another run."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.conftest import MakeData
from tests.support.own_networks import Residual
from tests.support.training import differing, state_of
from typer.testing import CliRunner

from trainonce.cli.app import app
from trainonce.cli.display import say_start
from trainonce.data import from_arrays, load_dataset
from trainonce.data.load import load_source
from trainonce.errors import UserError
from trainonce.evaluation.population import draw_population
from trainonce.models.weights import file_sha256
from trainonce.pipeline import evaluate, fit, search, train
from trainonce.pipeline.beginning import Beginning, begin, default_recipe, supernet_for
from trainonce.pipeline.fitted import fit_recorded
from trainonce.pipeline.fitting_images import FitPlan
from trainonce.records import read_json
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory, Start

OWN = "tests.support.own_networks:Residual"
MEAN, STD = (0.25,), (0.5,)


def configured() -> Residual:
    """A network that says what it was trained with, as timm's do."""
    network = Residual()
    network.pretrained_cfg = {"input_size": (1, 16, 16), "mean": MEAN, "std": STD, "interpolation": "bicubic"}  # type: ignore[assignment]
    return network


CONFIGURED = "tests.pipeline.test_beginning:configured"


def begun(data: Any = "digits", **asked: Any) -> Beginning:
    return begin(load_dataset, data, **asked)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    torch.manual_seed(7)
    save_file(Residual().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A small run of ten classes."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    train("digits", recipe="spos", epochs=1, geometry="tiny", width=0.25, train_images=200, out=path, probes=0)
    return RunDirectory(path)


def test_weights_of_a_file_are_the_largest_subnets(weights: Path) -> None:
    own = Residual()
    own.load_state_dict(load_file(weights))
    there = begun(model=OWN, weights=str(weights))
    x_BCHW = torch.randn(2, 1, 8, 8)
    assert torch.equal(there.net.eval()(x_BCHW, there.net.space.largest()), own.eval()(x_BCHW))
    assert there.start is not None
    assert there.start.trained
    assert (there.start.network, there.start.file) == (OWN, str(weights.resolve()))
    assert (there.start.sha256, there.start.fresh_head) == (file_sha256(weights), False)


def test_images_are_resized_as_the_network_says(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 23, 29), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "ab"[number % 2] / f"{number}.png")
    for stream in (False, True):
        data = begin(partial(load_dataset, grey=True, stream=stream), tmp_path, model=CONFIGURED).data
        assert data.source.interpolation == "bicubic"
        splits = (data.train, data.calibrate, data.validate, data.test)
        found = {one.numpy().tobytes() for split in splits for one in split.batch(torch.arange(len(split)))[1]}
        squares = (Image.fromarray(picture[:, 3:26]) for picture in pixels)
        assert found == {np.asarray(one.resize((16, 16), Image.Resampling.BICUBIC)).tobytes() for one in squares}


def test_images_are_of_the_largest_resolution_that_is_asked_for() -> None:
    there = begun(model=OWN, resolutions=(6, 10))
    assert there.data.image_size == 10
    assert there.net.space["resolution"].values == (6, 10)
    assert begun(model=OWN, image_size=8, resolutions=(6,)).net.space["resolution"].values == (6, 8)


def test_smaller_images_are_choices_unless_one_size_is_asked_for() -> None:
    assert begun(model=OWN, image_size=64).net.space["resolution"].values == (32, 64)
    assert "resolution" not in {
        choice.role for choice in begun(model=OWN, image_size=64, resolutions=(64,)).net.space.choices
    }


def test_what_is_drawn_follows_from_the_recipe(run: RunDirectory, weights: Path, tmp_path: Path) -> None:
    """A run that ends with even subnets is evaluated and searched by such; asked for others, it gives them."""
    transferred = tmp_path / "transferred"
    train("digits", model=OWN, weights=weights, epochs=1, train_images=200, out=transferred, probes=0)
    assert evaluate(run.path, per_bucket=2, dry_run=True).plan.over == "choices"
    plan = evaluate(transferred, per_bucket=2, dry_run=True).plan
    space = plan.run.load_supernet()[0]
    assert plan.over == "even"
    assert plan.population == draw_population(space.cost, plan.buckets, 2, seed=0, over="even")
    assert evaluate(transferred, per_bucket=2, over="subnets", dry_run=True).plan.over == "subnets"
    for path, even in ((run.path, False), (transferred, True)):
        search(path, scores=2, predictor=False, control=False, calibration_images=20)
        assert read_json(RunDirectory(path).front_file)["settings"]["even"] is even


def test_fit_takes_the_sizes_of_images(tmp_path: Path) -> None:
    plans: list[FitPlan] = []

    def stop(plan: FitPlan) -> None:
        plans.append(plan)
        raise UserError("seen")

    for sizes in (None, (48, 64)):
        with pytest.raises(UserError, match="seen"):
            fit("digits", 1, model=OWN, image_size=64, resolutions=sizes, max_macs=(9e3,), out=tmp_path, on_plan=stop)
    assert [plan.net.space["resolution"].values for plan in plans] == [(32, 64), (48, 64)]


def test_another_number_of_classes_gets_a_fresh_head(weights: Path, make_data: MakeData) -> None:
    there, whole = begun(make_data(), model=OWN, weights=weights), begun(model=OWN, weights=weights)
    assert there.net.settings.num_classes == 3
    assert there.start is not None
    assert there.start.fresh_head
    head = there.net.head()
    ours, theirs = there.net.state_dict(), whole.net.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == sorted(head, reverse=True)


def test_images_are_as_the_network_wants_them() -> None:
    there = begun(model=CONFIGURED)
    assert (there.data.image_size, there.data.mean, there.data.std) == (16, MEAN, STD)
    again = load_source(there.data.source)
    assert (again.image_size, again.mean, again.std) == (16, MEAN, STD)
    assert again.source.interpolation == "bicubic"
    assert begun(model=CONFIGURED, image_size=8).data.image_size == 8
    assert (
        load_dataset("digits").source.identity().keys()
        == {"mean", "std", "interpolation"} ^ there.data.source.identity().keys()
    )


def test_images_made_in_python_stay_as_they_are(make_data: MakeData) -> None:
    data = make_data()
    assert begun(data, model=CONFIGURED).data is data


def test_what_of_it_is_elastic() -> None:
    names = {choice.name for choice in begun(model=OWN).net.space.choices}
    assert {choice.name for choice in begun(model=OWN, stages=True).net.space.choices} == names | {"stem.width"}
    assert "blocks.depth" in names
    assert {choice.name for choice in begun(model=OWN, rigid=["*.width"]).net.space.choices} == {"blocks.depth"}


def test_the_command_says_what_is_elastic_and_what_stays(tmp_path: Path) -> None:
    asked = ["train", "digits", "--model", OWN, "--dry-run", "--epochs", "1", "--out", str(tmp_path / "run")]
    said = CliRunner().invoke(app, asked)
    assert said.exit_code == 0, said.output
    assert "blocks_0.conv1.width  8 16 24 32" in said.stderr
    assert "widths of stages are not asked for" in said.stderr
    assert "head" in said.stderr
    assert not (tmp_path / "run").exists()


def test_ones_own_images_are_not_trained_as_published(weights: Path, tmp_path: Path) -> None:
    """A folder's images get what suits minutes; a data set known by name what was published; trained weights theirs."""
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(20):
            pixels = torch.randint(
                0, 256, (24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number)
            )
            Image.fromarray(pixels.numpy()).save(tmp_path / "pets" / name / f"{number}.png")
    pets, digits = begun(tmp_path / "pets"), begun()
    light = supernet_for(pets.data, geometry="light")
    assert pets.net.settings == light.settings != supernet_for(pets.data).settings
    assert begun(tmp_path / "pets", geometry="paper").net.settings == supernet_for(pets.data, geometry="paper").settings
    assert digits.net.settings == supernet_for(digits.data).settings
    trained = begun(model=OWN, weights=str(weights))
    assert trained.start is not None
    random = replace(trained, start=trained.start.model_copy(update={"trained": False}))  # as timm:NAME alone has it
    asked = (pets, digits, random, trained)
    assert [default_recipe(one) for one in asked] == ["quick", "rss", "quick", "transfer"]
    assert [default_recipe(one, for_published="quick") for one in asked] == ["quick", "quick", "quick", "transfer"]


def test_what_weights_it_begins_with_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    start = Start(network="timm:resnet18", trained=False, fresh_head=True)
    say_start(start)
    assert capsys.readouterr().err == "timm:resnet18 begins with random weights: --from FILE gives it trained ones\n"
    say_start(start.model_copy(update={"trained": True}))
    new = ", but for the classifier, which is new: the number of classes is another"
    assert capsys.readouterr().err == f"timm:resnet18 begins with its own weights{new}\n"
    say_start(Start(network="resnet", file="/w.safetensors", trained=True, fresh_head=False))
    assert capsys.readouterr().err == "resnet begins with the weights of /w.safetensors\n"
    say_start(None)
    assert not capsys.readouterr().err


def test_another_run_is_trained_further(run: RunDirectory) -> None:
    there, (old, step) = begun(weights=run.path), run.load_supernet()
    assert not differing(state_of(there.net), state_of(old))
    assert there.start is not None
    assert there.start.file == str(checkpoint.path_of(run.checkpoints, step).resolve() / "weights.safetensors")
    assert there.start.sha256 == file_sha256(there.start.file)
    assert not there.start.fresh_head


def test_another_run_for_other_classes_and_sizes(run: RunDirectory, make_data: MakeData, tmp_path: Path) -> None:
    there, (old, _) = begun(make_data(), weights=run.path), run.load_supernet()
    assert there.start is not None
    assert there.start.fresh_head
    assert there.net.settings.num_classes == 3
    larger = begun(weights=run.path, image_size=16)
    assert larger.net.settings.resolutions == (16,)
    assert not differing(state_of(larger.net), state_of(old))
    sizes = begun(weights=run.path, resolutions=(6, 8))
    assert "resolution" in {choice.name for choice in sizes.net.space.choices}
    train("digits", weights=run.path, resolutions=(4, 6, 8), epochs=0.01, probes=0, out=tmp_path / "sizes")
    assert begun(weights=tmp_path / "sizes", image_size=32).net.settings.resolutions == (16, 24, 32)
    assert begun(weights=tmp_path / "sizes", image_size=24).net.settings.resolutions == (18, 24)
    x_BCHW = torch.randn(2, 1, 8, 8)
    assert torch.equal(sizes.net.eval()(x_BCHW, sizes.net.space.largest()), old(x_BCHW, old.space.largest()))


def test_a_run_says_where_it_began_and_goes_on(weights: Path, tmp_path: Path) -> None:
    """The default recipe is `transfer`; a run that is stopped needs neither the file nor the function."""
    asked: dict[str, Any] = {"model": OWN, "weights": weights, "train_images": 64, "epochs": 1, "probes": 0}
    whole = train("digits", **asked, out=tmp_path / "whole")
    assert whole.plan.recipe.name == "transfer"
    assert RunDirectory(tmp_path / "whole").config().start == whole.plan.start
    stopped = train("digits", **asked, out=tmp_path / "cut", should_stop=lambda: True)
    assert not stopped.finished
    moved = tmp_path / "cut" / "run.json"
    assert str(weights) in moved.read_text()
    finished = train(resume=tmp_path / "cut", probes=0)
    assert finished.finished
    assert not differing(state_of(finished.plan.net), state_of(whole.plan.net))
    steps = [RunDirectory(tmp_path / name).load_supernet()[1] for name in ("whole", "cut")]
    assert steps[0] == steps[1] > 0


def test_fit_begins_with_it(weights: Path, tmp_path: Path) -> None:
    done = fit("digits", 0.2, model=OWN, weights=weights, train_images=64, out=tmp_path / "fit")
    assert done.finished
    assert done.seconds == fit_recorded(RunDirectory(tmp_path / "fit")).seconds
    config = RunDirectory(tmp_path / "fit").config()
    assert config.start is not None
    assert (config.start.network, config.recipe.name) == (OWN, "transfer")
    largest = done.plan.net.cost_of(done.plan.net.space.largest()).macs
    assert [one.macs <= share * largest for one, share in zip(done.devices, (0.25, 0.5, 1), strict=True)] == [True] * 3


def test_a_traced_run_keeps_its_size(weights: Path, tmp_path: Path) -> None:
    train("digits", model=OWN, weights=weights, train_images=64, epochs=0.1, probes=0, out=tmp_path / "run")
    assert begun(weights=tmp_path / "run").net.settings.resolutions == (8,)
    with pytest.raises(UserError, match="traced at 8 pixels"):
        begun(weights=tmp_path / "run", image_size=16)


def test_sizes_of_another_run_are_checked(run: RunDirectory) -> None:
    with pytest.raises(UserError, match="resolutions must be distinct, rising"):
        begun(weights=run.path, resolutions=(8, 6))


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"weights": "w.pt"}, "say with --model which network"),
        ({"weights": "nowhere"}, "nowhere holds no run"),
        ({"model": OWN, "weights": "nowhere.pt"}, "nowhere.pt is not a file"),
        ({"model": OWN, "family": "resnet"}, "--family is of a new network"),
        ({"model": OWN, "width": 2.0}, "--width is of a new network"),
        ({"model": OWN, "image_size": 8, "resolutions": (6, 9)}, "must be from 1 to the 8 pixels of the images"),
        ({"stages": True}, "they go with --model"),
        ({"rigid": ["a*"]}, "they go with --model"),
        ({"model": "resnet18"}, "unknown network 'resnet18'"),
        ({"model": "tests.support.own_networks:Nothing"}, "cannot be imported"),
        ({"model": "math:pi"}, "gives no torch.nn.Module"),
        ({"model": "builtins:dict"}, "gives no torch.nn.Module but a dict"),
        ({"model": OWN, "rigid": ["*"]}, "nothing"),
    ],
)
def test_what_cannot_be(asked: dict[str, Any], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.pt").touch()
    with pytest.raises(UserError, match=match):
        begun(**asked)


def test_a_file_here_that_python_does_not_look_for_is_told_from_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mynets.py").touch()
    with pytest.raises(UserError, match=r"No module named 'mynets'; .* put PYTHONPATH=\. before the command"):
        begun(model="mynets:Net")


def test_weights_of_another_network(weights: Path, run: RunDirectory) -> None:
    with pytest.raises(UserError, match=r"is not a tests\.support\.own_networks:Chain: it lacks"):
        begun(model="tests.support.own_networks:Chain", weights=weights)
    images = torch.zeros(60, 3, 8, 8, dtype=torch.uint8)
    colour = from_arrays(images.numpy(), [number % 2 for number in range(60)])
    with pytest.raises(UserError, match=r"have 3 channels, but .* is for 1$"):
        begun(colour, weights=run.path)
    with pytest.raises(UserError, match=r"is for images of 1 channel, but those of images have 3$"):
        begun(colour, model=CONFIGURED)
