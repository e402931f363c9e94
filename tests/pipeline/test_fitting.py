"""Fitting devices in a given time: what is handed over keeps its budget and scores as said; a stopped fit goes on."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.command_line import trainonce
from tests.support.fitting import RECIPE, budgets, planned_alike, settings_of
from tests.support.own_images import few_digits
from tests.support.own_networks import Residual

from trainonce.cli.results import fitted_table
from trainonce.data import DataSet, load_dataset
from trainonce.errors import UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, score
from trainonce.evaluation.population import draw_candidates, drawn_over
from trainonce.export.reference import read_reference
from trainonce.files import write_atomic
from trainonce.models import MobileNetV3
from trainonce.models.traced import elastic
from trainonce.pipeline import fitting
from trainonce.pipeline.fitted import FitRecord, FitSettings, Fitted, name_of, sharing, smaller_ones_as_good
from trainonce.pipeline.fitting import (
    CALIBRATION_IMAGES,
    Watch,
    fit_supernet,
    refuse_small_budgets,
)
from trainonce.pipeline.fitting_images import fit
from trainonce.pipeline.outlook import learned
from trainonce.pipeline.verifying import verify
from trainonce.recipes import ONLY_LARGEST, RECIPES, Phase, Recipe
from trainonce.records import read_json, to_json
from trainonce.run.directory import RunDirectory, Start
from trainonce.subnets import read_subnet
from trainonce.subnets.finetune import FinetunePace

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]


pace = pytest.fixture(autouse=True, scope="module")(planned_alike)


@pytest.fixture(scope="module")
def make_known(make_data: MakeData) -> MakeData:
    """Validate has the images of training, which larger networks learn better: devices get different networks."""

    def make(**fields: Any) -> DataSet:
        data = make_data(**fields)
        return replace(data, validate=data.train)

    return make


def finished(
    make_net: MakeNet, make_data: MakeData, run: RunDirectory, watch: Watch | None = None
) -> list[Fitted] | None:
    net = make_net()
    return fit_supernet(net, RECIPE, make_data(), run, settings_of(net), watch)


@pytest.fixture(scope="module")
def whole(
    make_net: MakeNet, make_known: MakeData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunDirectory, list[Fitted]]:
    """A fit that nobody stopped, and its run, which no test changes."""
    run = RunDirectory(tmp_path_factory.mktemp("whole") / "run")
    fitted = finished(make_net, make_known, run)
    assert fitted is not None
    small, large = fitted
    assert sharing(fitted) == [[small], [large]]
    return run, fitted


def test_a_small_device_gets_a_network_for_smaller_images(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path
) -> None:
    """By `quick`, which begins with them; what it makes of the images of the data set is what was said."""
    net, data, run = make_net(resolutions=(6, 8)), make_data(), RunDirectory(tmp_path / "run")
    fitted = fit_supernet(net, RECIPES["quick"].with_batch_size(8), data, run, settings_of(net))
    assert fitted is not None
    assert fitted[0].resolution == net.space.parse(fitted[0].arch)["resolution"] == 6
    for one in fitted:
        network, _ = read_subnet(run.subnets / one.name)
        assert score(network, data.test, data) == one.test
    assert {line.phase for line in run.metrics()} == {phase.name for phase in RECIPES["quick"].phases}


def test_every_device_gets_a_network_that_is_what_is_said(
    make_net: MakeNet, make_known: MakeData, whole: tuple[RunDirectory, list[Fitted]]
) -> None:
    (run, fitted), data, net = whole, make_known(), make_net()
    assert [one.max_macs for one in fitted] == list(budgets(net))
    assert fitted[0].arch == str(net.space.smallest())
    for one in fitted:
        assert one.macs <= one.max_macs
        assert one.macs == net.cost_of(net.space.parse(one.arch)).macs
        assert one.resolution == 8
        network, described = read_subnet(run.subnets / one.name)
        description = described.to_json()
        assert description["architecture"] == one.arch
        assert score(network, data.validate, data) == one.after
        assert score(network, data.test, data) == one.test
        assert description["scores"] == {"validate": vars(one.after), "test": vars(one.test)}
        if one.finetuned_epochs:
            assert one.after.loss < one.before.loss
            assert description["trained"]["finetuned"]["epoch"] == one.finetuned_epochs <= 4
        else:
            assert one.after == one.before
    unchecked = {str(finding.path.name) for finding in verify(run.path) if finding.state != "whole"}
    assert unchecked == {"README.md"}, "model cards have no sums"


@pytest.mark.parametrize("better", [True, False])
def test_what_was_finetuned_is_handed_over_where_it_is_better(
    better: bool, make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever top-1 says."""
    monkeypatch.setattr("trainonce.subnets.finetune.Finetuned.better", better)
    said: list[str] = []
    fitted = finished(make_net, make_data, RunDirectory(tmp_path / "run"), Watch(stage=said.append))
    assert fitted is not None
    assert sum("handed over as it was" in sentence for sentence in said) == (0 if better else len(sharing(fitted)))
    assert all((one.finetuned_epochs > 0) == better for one in fitted)
    assert all((one.after == one.before) != better for one in fitted)


def test_the_one_chosen_is_the_best_of_those_drawn_for_it(
    make_net: MakeNet, whole: tuple[RunDirectory, list[Fitted]]
) -> None:
    (run, fitted), cost = whole, make_net().cost
    drawn = draw_candidates(cost, [one.max_macs for one in fitted], fitting.CANDIDATES, seed=3)
    loss = {line.arch: line.loss for line in run.population()}
    assert set(loss) == {str(arch) for archs in drawn for arch in archs}
    for one, archs in zip(fitted, drawn, strict=True):
        assert one.candidates == len(archs)
        assert min(loss[str(arch)] for arch in archs) == pytest.approx(one.before.loss, rel=1e-4)


@pytest.mark.parametrize(("left", "scored"), [(0.0, 2), (200.0, 3)])
def test_without_time_one_of_each_size_of_images_is_scored(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: float, scored: int
) -> None:
    monkeypatch.setattr(fitting._Fit, "left", lambda _self: left)
    net, run = make_net(resolutions=(6, 8)), RunDirectory(tmp_path / "run")
    macs = float(net.cost_of(net.space.largest()).macs)
    fitted = fit_supernet(net, RECIPE, make_data(), run, FitSettings(minutes=8 / 60, max_macs=(macs,), seed=3))
    assert fitted is not None
    assert [one.candidates for one in fitted] == [scored]
    archs = [net.space.parse(line.arch) for line in run.population()]
    assert len(archs) == scored
    assert {arch["resolution"] for arch in archs} == {6, 8}
    assert {str(part.largest()) for part in net.space.by_image_size()} <= set(map(str, archs))


def test_a_fit_that_goes_on_with_less_time_chooses_among_all_that_was_scored(
    make_net: MakeNet,
    make_known: MakeData,
    whole: tuple[RunDirectory, list[Fitted]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, seen = RunDirectory(tmp_path / "run"), list[object]()
    watch = Watch(finetuning=seen.append, should_stop=lambda: bool(seen))
    assert finished(make_net, make_known, run, watch) is None
    scored = run.population()
    monkeypatch.setattr(fitting._Fit, "left", lambda _self: 0.0)
    fitted = finished(make_net, make_known, run)
    assert fitted is not None
    assert run.population() == scored
    for one, other in zip(fitted, whole[1], strict=True):
        assert (one.arch, one.candidates, one.before) == (other.arch, other.candidates, other.before)
    assert fitted[1].finetuned_epochs == 0


def test_a_part_of_an_epoch_is_better_than_none(
    make_net: MakeNet, make_known: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 200 s the larger device, which is the last, has all that is left: half of an epoch of 400 steps."""
    monkeypatch.setattr(fitting, "finetuning_pace", lambda *_: FinetunePace(step=1.0, scoring=0.0, per_epoch=400))
    net, said = make_net(), list[str]()
    fitted = fit_supernet(
        *(net, RECIPE, make_known(), RunDirectory(tmp_path / "run"), settings_of(net)), Watch(stage=said.append)
    )
    assert fitted is not None
    assert [sentence.split()[-2] for sentence in said if sentence.startswith("Fine-tuning")][-1] == "0.5"
    monkeypatch.setattr(fitting, "finetuning_pace", lambda *_: FinetunePace(step=1e6, scoring=0.0, per_epoch=4))
    late = finished(make_net, make_known, RunDirectory(tmp_path / "late"), Watch(stage=said.append))
    assert late is not None
    assert all(f"No time is left to fine-tune the subnet for {one.name}" in said for one in late)
    assert not any(one.finetuned_epochs for one in late)


def test_a_devices_directory_is_named_in_plain_decimals() -> None:
    assert [name_of(1e6 * limit) for limit in (5, 0.8, 0.00004, 12_345, 20_000)] == [
        "5M",
        "0.8M",
        "0.00004M",
        "12345M",
        "20000M",
    ]


def test_devices_for_which_one_network_is_the_best_share_it_and_its_time(
    make_net: MakeNet, make_known: MakeData, tmp_path: Path
) -> None:
    """It is fine-tuned once, in the shares of both, whichever device is between them: of 200 s, epochs take 50."""
    net, data, run = make_net(), make_known(), RunDirectory(tmp_path / "run")
    low, high = budgets(net)
    said: list[str] = []
    settings = FitSettings(minutes=8 / 60, max_macs=(low, high, 1.001 * low), seed=3)
    fitted = fit_supernet(net, RECIPE, data, run, settings, Watch(stage=said.append))
    assert fitted is not None
    first, other, again = fitted
    assert sharing(fitted) == [[first, again], [other]]
    assert first.arch == str(net.space.smallest())
    assert again == first.model_copy(update={"max_macs": again.max_macs, "name": again.name})
    assert again.name != first.name
    network, described = read_subnet(run.subnets / again.name)
    assert score(network, data.test, data) == first.test
    assert described == read_subnet(run.subnets / first.name)[1]
    weights = [net.cost_of(net.space.parse(one.arch)).macs ** 0.5 for one in (first, other)]
    epochs = [int(4 * 2 * weights[0] / (2 * weights[0] + weights[1])), 4]
    tuning = [sentence for sentence in said if sentence.startswith("Fine-tuning")]
    assert [int(sentence.split()[-2]) for sentence in tuning] == epochs


def test_the_largest_is_taken_as_it_was_where_sharing_its_weights_spoiled_it(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path
) -> None:
    net, data, run = make_net(), make_data(), RunDirectory(tmp_path / "run")
    alone = Phase(name="alone", epochs=20, lr=1e-6, keep_largest=ONLY_LARGEST)  # so it stays at its first weights
    spoiling = Phase(name="spoiling", epochs=2, lr=0.3, schedule="constant")
    recipe = Recipe(name="spoils", about="", phases=(alone, spoiling), batch_size=8)
    said: list[str] = []
    fitted = fit_supernet(net, recipe, data, run, settings_of(net), Watch(stage=said.append))
    assert fitted is not None
    smallest, largest = fitted
    assert (smallest.before_subnets, largest.before_subnets) == (False, True)
    assert any("before others shared its weights" in sentence for sentence in said)
    assert (largest.arch, largest.finetuned_epochs) == (str(net.space.largest()), 0)
    [step] = run.kept_steps()
    assert step == round(run.metrics()[-1].step * 20 / 22)
    evaluator = Evaluator(data, "validate", EvaluateSettings(calibration_images=CALIBRATION_IMAGES, seed=3))
    before, arch = run.load_kept(step).eval(), net.space.largest()
    kept, spoiled = evaluator.score(before.extract(arch)).loss, evaluator(net, arch).loss
    assert largest.before.loss == pytest.approx(kept, rel=1e-4)
    assert kept < evaluator(before, arch).loss, "its own statistics are better, and stay"
    assert kept < spoiled
    assert read_subnet(run.subnets / largest.name)[1].recalibrated is None
    reference = read_reference(run.subnets / largest.name, images=4)
    assert reference.supernet is not None, reference.no_supernet
    network, _ = read_subnet(run.subnets / largest.name)
    with torch.no_grad():
        assert torch.equal(reference.supernet(reference.random_BCHW), network(reference.random_BCHW))


def test_what_is_scored_is_drawn_as_the_recipe_ends(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    net, space = make_net(), make_net().space
    for slot, over in (("even", "even"), ("uniform", "choices")):
        run = RunDirectory(tmp_path / slot)
        recipe = RECIPE.model_copy(update={"phases": (RECIPE.phases[0].model_copy(update={"subnets": (slot,)}),)})
        assert drawn_over(recipe) == over
        limits = (0.75 * net.cost_of(space.largest()).macs,)
        settings = FitSettings(minutes=8 / 60, max_macs=limits, seed=3)
        assert fit_supernet(make_net(), recipe, make_data(), run, settings) is not None
        [drawn] = draw_candidates(net.cost, limits, 3, seed=3, over=over)
        assert {line.arch for line in run.population()} == {str(arch) for arch in drawn}


def test_where_every_device_takes_the_largest_no_other_is_trained(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path
) -> None:
    net, run = make_net(), RunDirectory(tmp_path / "run")
    alone = Phase(name="alone", epochs=4, lr=0.02, keep_largest=ONLY_LARGEST)
    recipe = Recipe(name="both", about="", phases=(alone, Phase(name="others", epochs=1)), batch_size=8)
    largest = net.space.largest()
    macs = net.cost_of(largest).macs
    fitted = fit_supernet(net, recipe, make_data(), run, FitSettings(minutes=8 / 60, max_macs=(macs, 3.0 * macs)))
    assert fitted is not None
    assert [phase.name for phase in run.checked_config().recipe.phases] == ["alone"]
    assert {line.macs for line in run.metrics()} == {macs}
    assert {one.arch for one in fitted} == {line.arch for line in run.population()} == {str(largest)}
    assert not any(one.before_subnets for one in fitted)
    assert {read_subnet(run.subnets / one.name)[1].recalibrated for one in fitted} == {None}, "its own are better here"


def test_a_head_trained_alone_is_no_whole_network(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    net, run = make_net(), RunDirectory(tmp_path / "run")
    head = Phase(name="head", epochs=1, trains="head", keep_largest=ONLY_LARGEST)
    recipe = Recipe(name="both", about="", phases=(head, Phase(name="others", epochs=1)), batch_size=8)
    macs = float(net.cost_of(net.space.largest()).macs)
    assert fit_supernet(net, recipe, make_data(), run, FitSettings(minutes=8 / 60, max_macs=(macs,))) is not None
    assert [phase.name for phase in run.checked_config().recipe.phases] == ["head", "others"]


def test_the_table_tells_of_fine_tuning_where_a_network_is_not_as_it_came(
    whole: tuple[RunDirectory, list[Fitted]],
) -> None:
    one = whole[1][0]
    came = one.model_copy(update={"finetuned_epochs": 0, "after": one.before})
    validate, test = f"{one.before.top1:.2f}%", f"{one.test.top1:.2f}%"
    for other, cells in (
        (came.model_copy(update={"finetuned_epochs": 2}), ["from supernet", "fine-tuned"]),
        (came.model_copy(update={"before_subnets": True}), ["from supernet", "fine-tuned"]),
        (came, ["validate"]),
    ):
        columns = fitted_table([came, other]).columns
        assert [column.header for column in columns[4:-2]] == cells
        assert [next(iter(column.cells)) for column in (columns[4], columns[-2])] == [validate, test]


def test_smaller_networks_that_are_as_good_are_named(whole: tuple[RunDirectory, list[Fitted]]) -> None:
    def having(macs: int, top1: float) -> Fitted:
        first = whole[1][0]
        return first.model_copy(update={"macs": macs, "after": replace(first.after, top1=top1)})

    a, b, c, d = having(4, 70.0), having(2, 70.0), having(3, 71.0), having(5, 72.0)
    assert smaller_ones_as_good([a, b, c, d]) == [(a, c)]
    assert smaller_ones_as_good([b, a]) == [(a, b)]
    assert smaller_ones_as_good([b, c, d]) == smaller_ones_as_good([d]) == []


def test_a_folder_that_is_streamed_is_fitted_as_one_in_memory(
    make_net: MakeNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same networks, with the same time for each stage; what they are chosen by is decoded once."""
    monkeypatch.setattr(fitting._Fit, "_in_time", lambda _self, drawn, _evaluator: list(dict.fromkeys(chain(*drawn))))
    monkeypatch.setattr(fitting, "finetuning_pace", lambda *_: SimpleNamespace(epochs_within=lambda _seconds: 2.0))
    rng = np.random.default_rng(0)
    for number, name in enumerate(("dark", "middle", "bright")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(0, 40, (8, 8), dtype=np.uint8) + 90 * number
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / name / f"{i}.png")
    fitted = []
    for stream in (False, True):
        data = load_dataset(str(tmp_path / "images"), image_size=8, grey=True, stream=stream, workers=0)
        assert data.validate.streamed == stream
        assert not fitting._few_to_choose_by(data).validate.streamed
        net, run = make_net(), RunDirectory(tmp_path / f"run-{stream}")
        fitted.append(fit_supernet(net, RECIPE, data, run, settings_of(net)))
    assert fitted[0] is not None
    assert fitted[0] == fitted[1]


def test_no_more_images_choose_than_the_baseline_is_scored_on(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same ones; all test images are scored on."""
    monkeypatch.setattr(fitting, "SCORED_IMAGES", 5)
    monkeypatch.setattr("trainonce.data.baseline.SCORED_IMAGES", 5)
    net, data, run = make_net(), make_data(), RunDirectory(tmp_path / "run")
    fitted = fit_supernet(net, RECIPE, data, run, settings_of(net))
    assert fitted is not None
    few = data.validate.drawn(5, seed=0)
    for one in fitted:
        network, _ = read_subnet(run.subnets / one.name)
        assert score(network, few, data) == one.after
        assert (one.before.images, one.test.images) == (5, len(data.test))
    assert {line.images for line in run.population()} == {5}


@pytest.mark.parametrize("stage", ["training", "choosing", "finetuning"])
def test_a_stopped_fit_goes_on_as_if_it_had_not_been(
    make_net: MakeNet, make_known: MakeData, whole: tuple[RunDirectory, list[Fitted]], tmp_path: Path, stage: str
) -> None:
    run, seen = RunDirectory(tmp_path / "run"), list[object]()
    watch = Watch(**{stage: lambda *at: seen.append(at), "should_stop": lambda: bool(seen)})  # type: ignore[arg-type]
    assert finished(make_net, make_known, run, watch) is None
    before = FitRecord.parse(read_json(run.fit_file), where="it")
    assert before.trained == (stage != "training")
    said: list[str] = []
    again = finished(make_net, make_known, run, Watch(stage=said.append))
    assert again is not None
    assert again == whole[1]
    done = f"{len(before.devices)} of {len(again)} devices are done"
    assert re.fullmatch(rf"Going on: of {before.settings.minutes:g} minutes [\d.]+ are left, and {done}", said[0])
    after = FitRecord.parse(read_json(run.fit_file), where="it")
    assert after.seconds > before.seconds
    assert list(after.devices) == again
    assert finished(make_net, make_known, run) == again, "nothing is left to do"


def test_what_cannot_be_is_refused(
    make_net: MakeNet,
    make_data: MakeData,
    make_known: MakeData,
    whole: tuple[RunDirectory, list[Fitted]],
    tmp_path: Path,
) -> None:
    net, data, run = make_net(), make_data(), RunDirectory(tmp_path / "run")
    least = net.cost_of(net.space.smallest()).macs
    with pytest.raises(UserError, match=rf"no subnet fits 0\.001 million MACs: the smallest has {least / 1e6:.3f}"):
        fit_supernet(net, RECIPE, data, run, FitSettings(minutes=1, max_macs=(1e3, 1e6)))
    with pytest.raises(UserError, match=r"make all of them smaller with --width or --image-size$"):
        refuse_small_budgets(net, (1e3,))
    for stages, ways in ((False, "--stages or --image-size"), (True, "--image-size")):
        own = elastic(Residual(), torch.zeros(1, 1, 8, 8), stages=stages)
        with pytest.raises(UserError, match=f"smaller with {ways}, or begin without a network of your own"):
            refuse_small_budgets(own, (1,))
    assert not run.path.exists()
    shutil.copytree(whole[0].path, run.path)
    other = settings_of(net).model_copy(update={"minutes": 5.0})
    with pytest.raises(UserError, match=r"begun with --minutes 0\.\d+, not "):
        fit_supernet(make_net(), RECIPE, data, run, other)
    half = RECIPE.model_copy(update={"class_balance": 0.5})
    faster = RECIPE.model_copy(update={"momentum": 0.8})
    for recipe, began in (
        (RECIPES["rss"], r"by the recipe spos, not rss: ask for the same, or name another directory with --out$"),
        (half, r"with --class-balance 0, not 0\.5: "),
        (faster, r"by another recipe of the name spos: "),
    ):
        with pytest.raises(UserError, match=f" was begun {began}"):
            fit_supernet(make_net(), recipe, make_known(), run, settings_of(net))
    started = Start(network="timm:resnet18", trained=True, fresh_head=True)
    for another, start in ((make_net(seed=1), started), (make_net(kernel_sizes=(3, 7)), None)):
        with pytest.raises(UserError, match=" was begun with another network, or other weights to begin with: "):
            fit_supernet(another, RECIPE, make_known(), run, settings_of(net), start=start)
    record = FitRecord.parse(read_json(run.fit_file), where="it")
    rough = record.settings.model_copy(update={"max_macs": tuple(one + 1e-9 for one in record.settings.max_macs)})
    write_atomic(run.fit_file, to_json(record.model_copy(update={"settings": rough}).model_dump(mode="json")))
    reworded = RECIPE.model_copy(update={"about": "In other words."})
    assert fit_supernet(make_net(), reworded, make_known(), run, settings_of(net)) == whole[1]
    run.fit_file.unlink()
    with pytest.raises(UserError, match="a run that `trainonce fit` did not make"):
        finished(make_net, make_data, run)
    with pytest.raises(UserError, match="must differ"):
        FitSettings.parse({"minutes": 1, "max_macs": [1e6, 1e6]}, where="here")


def test_a_fit_goes_on_with_images_as_they_were(
    make_net: MakeNet, make_known: MakeData, whole: tuple[RunDirectory, list[Fitted]]
) -> None:
    with pytest.raises(
        UserError, match=r"begun with images that were normalised or varied otherwise .their mean is 0\.9 and was 0\.4"
    ):
        finished(make_net, lambda: make_known(mean=(0.9,)), whole[0])


def test_from_the_command_line(tmp_path: Path) -> None:
    small = ("--width", "0.25", "--device", "cpu", "--recipe", "spos", "--max-macs", "0.4", "--max-macs", "9")
    few = str(few_digits(tmp_path))
    asked = ("fit", few, "--minutes", "0.0667", *small, "--out", tmp_path / "run")
    result = trainonce(*asked)
    assert result.code == 0, result.err
    assert "30 validate and 45 test images" in result.out
    assert re.search(r"No subnet has more than [\d.]+ M MACs, so 9M cannot be used up", " ".join(result.err.split()))
    rows = [line.split() for line in result.out.splitlines() if line.startswith(("0.4M ", "9M "))]
    assert [row[0] for row in rows] == ["0.4M", "9M"]
    told = json.loads(trainonce(*asked, "--json").out)
    for row, device in zip(rows, told["devices"], strict=True):
        assert row[1] == f"{device['macs'] / 1e6:.3f}"
        assert row[3] == str(device["resolution"])
        assert row[-4] == f"{device['test']['top1']:.2f}%"
        assert device["test"]["images"] == 45
    how = {"width": 0.25, "device": "cpu", "recipe": "spos", "max_macs": (0.4, 9)}
    again = fit(few, 0.0667, out=tmp_path / "run", **how)  # type: ignore[arg-type]
    assert again.finished
    for one, device in zip(again.devices, told["devices"], strict=True):
        assert device.pop("interval") == list(one.test.interval())
        assert device == one.model_dump(mode="json")
    assert told["classes"] == list("0123456789")
    before = sum(device["before"]["top1"] for device in told["devices"]) / 2
    assert told["outlook"] == again.outlook
    varied = learned(RunDirectory(tmp_path / "run").metrics())
    assert re.fullmatch(rf"\S.*: subnets classify {varied:.1f}%.* {before:.1f}% on validate.*", told["outlook"])
    assert told["outlook"] in " ".join(result.out.split())
    shown = [line.split() for line in result.out.splitlines() if line[:2] in {f"{number} " for number in range(10)}]
    assert len(shown) == 10
    for number, row in enumerate(shown):
        assert row[2:] == [f"{device['per_class']['recall'][number]:.1f}%" for device in told["devices"]]
    kilo = ("--max-macs", "400k", "--max-macs", "9M")
    assert json.loads(trainonce(*asked[:-6], *kilo, *asked[-2:], "--json").out)["devices"][0]["max_macs"] == 4e5
    trainonce(*asked, "--max-macs", "9Mb").refused("--max-macs takes a positive number, perhaps with a unit")
    trainonce("fit", few, "--minutes", "0.001", *small, "--out", tmp_path / "short").refused("give at least")
    trainonce("fit", tmp_path / "none", "--minutes", "1").refused("none")
