"""The run directory: what is written is read back; damage and foreign files are a sentence."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.lines import a_score, a_stretch

from trainonce.data import DataSet, load_dataset
from trainonce.data.baseline import Baseline
from trainonce.errors import RunError, UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.lab.measures.forgetting import Prober
from trainonce.models import MobileNetV3
from trainonce.recipes import RECIPES, AugmentationChange, Crop, Erase, Flip, Phase, Recipe
from trainonce.records import read_json, to_json, write_lines
from trainonce.run import checkpoint
from trainonce.run.directory import RunConfig, RunDirectory, provenance
from trainonce.training.loop import train_supernet

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
RECORDED = Path(__file__).parents[2] / "docs" / "results"
JUNK: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, make_net: MakeNet, make_data: MakeData) -> Iterator[RunDirectory]:
    """A run with a checkpoint of step 3 whose weights are those of seed 4."""
    directory, data, net = RunDirectory(tmp_path_factory.mktemp("run")), make_data(), make_net(seed=4)
    config = RunConfig(
        seed=4,
        data=data.source,
        data_fingerprint=data.fingerprint(),
        family=net.family,
        model=net.settings.model_dump(mode="json"),
        recipe=RECIPES["ps"].scaled(0.01),
        provenance=provenance("cpu"),
    )
    directory.create(config)
    checkpoint.save(directory.checkpoints, 3, {"weights": make_net(seed=9).state_dict()}, {"step": 3})
    yield directory
    assert directory.config() == config


def paths_in(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where every value in a JSON value is."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_in(inner, (*path, key))


def with_value(value: Any, path: tuple[str | int, ...], new: object) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = with_value(value[path[0]], path[1:], new)
    return copy


class TestConfig:
    def test_the_supernet_and_its_weights_come_back(self, run: RunDirectory, make_net: MakeNet) -> None:
        fresh = run.build_supernet().state_dict()
        assert all(torch.equal(fresh[k], v) for k, v in make_net(seed=4).state_dict().items())
        net, step = run.load_supernet()
        assert (step, net.training) == (3, False)
        found = net.state_dict()
        assert all(torch.equal(found[k], v) for k, v in make_net(seed=9).state_dict().items())

    def test_provenance_is_no_part_of_the_identity(self, run: RunDirectory) -> None:
        config = run.config()
        other = config.model_copy(update={"provenance": {"command": "other"}})
        assert other != config
        assert other.identity() == config.identity()
        assert config.model_copy(update={"seed": 5}).identity() != config.identity()

    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"holds no run \(it is no directory\)"):
            RunDirectory(tmp_path / "nothing").config()
        with pytest.raises(UserError, match=r"holds no run \(there is no run.json in it\)"):
            RunDirectory(tmp_path).config()

    def test_steps_that_were_left_out_were_not_trained(self, run: RunDirectory, tmp_path: Path) -> None:
        """Of ten steps an epoch, four epochs: of the first 20 steps five, of all 40 ten."""
        here, recipe = RunDirectory(tmp_path), RECIPES["spos"].scaled(4 / RECIPES["spos"].epochs).with_batch_size(8)
        here.create(run.config().model_copy(update={"recipe": recipe}))
        for line in (a_stretch(step=20, left_out=5), a_stretch(step=40, left_out=10)):
            here.append_metrics(line)
        assert here.reached(10, 80) == (1, 1, False), "before the first stretch is recorded"
        assert here.reached(20, 80) == (1.5, 1.5, False)
        assert here.reached(40, 80) == (3, 3, True)

    def test_a_run_is_not_written_over(self, run: RunDirectory) -> None:
        before = run.config_file.read_bytes()
        with pytest.raises(UserError, match="already holds a run; continue it with --resume"):
            run.create(run.config())
        assert run.config_file.read_bytes() == before

    def test_no_checkpoint_yet(self, run: RunDirectory, tmp_path: Path) -> None:
        RunDirectory(tmp_path).create(run.config())
        with pytest.raises(UserError, match="has no trained weights yet: train it first"):
            RunDirectory(tmp_path).load_supernet()

    @pytest.mark.parametrize("missing", ["weights", "one tensor", "shape"])
    def test_a_checkpoint_of_another_network(
        self, run: RunDirectory, tmp_path: Path, make_net: MakeNet, missing: str
    ) -> None:
        other = RunDirectory(tmp_path)
        other.create(run.config())
        weights = dict(make_net(num_classes=4).state_dict() if missing == "shape" else make_net().state_dict())
        if missing == "one tensor":
            del weights["classifier.weight"]
        groups = {"other": weights} if missing == "weights" else {"weights": weights}
        checkpoint.save(other.checkpoints, 1, groups, {"step": 1})
        with pytest.raises(UserError, match=r"step-000001 is of another network: [\w.]+ is "):
            other.load_supernet()

    def test_other_images_are_refused(
        self, run: RunDirectory, tmp_path: Path, make_data: MakeData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("trainonce.run.directory.load_source", lambda _source, **_: make_data(seed=1))
        with pytest.raises(UserError, match="holds other images than those"):
            run.load_data()

    @pytest.mark.filterwarnings("ignore::trainonce.records.UncheckedWarning")
    @settings(max_examples=300, deadline=None)
    @given(data=st.data())
    def test_fuzz_of_the_bytes(
        self, run: RunDirectory, damaged: Callable[[bytes], st.SearchStrategy[bytes]], data: st.DataObject
    ) -> None:
        good = run.config_file.read_bytes()
        self.write_and_read(run, good, data.draw(damaged(good)))

    @pytest.mark.filterwarnings("ignore::trainonce.records.UncheckedWarning")
    @settings(max_examples=300, deadline=None)
    @given(data=st.data())
    def test_fuzz_of_the_values(self, run: RunDirectory, data: st.DataObject) -> None:
        """Without a sum, which would refuse all of them."""
        good = run.config_file.read_bytes()
        value = {key: inner for key, inner in json.loads(good).items() if key != "sum"}
        place = data.draw(st.sampled_from(list(paths_in(value))))
        changed = with_value(value, place, data.draw(JUNK))
        self.write_and_read(run, good, json.dumps(changed).encode())

    @staticmethod
    def write_and_read(run: RunDirectory, good: bytes, changed: bytes) -> None:
        run.config_file.write_bytes(changed)
        try:
            config = run.config()
        except UserError:
            return
        finally:
            run.config_file.write_bytes(good)
        # What is accepted is what plain json reads.
        value = json.loads(changed)
        assert set(value) <= {*RunConfig.model_fields, "sum"}
        assert repr((config.model, config.provenance)) == repr((value["model"], value.get("provenance", {})))
        assert (config.family, config.data_fingerprint) == (value["family"], value["data_fingerprint"])

    @settings(max_examples=30, deadline=None)
    @given(data=st.data())
    def test_fuzz_of_the_network(self, run: RunDirectory, data: st.DataObject) -> None:
        good = run.config_file.read_bytes()
        value = json.loads(good)
        part = {k: value[k] for k in ("seed", "family", "model")}
        place = data.draw(st.sampled_from([p for p in paths_in(part) if p]))
        small = st.integers(-3, 12) | st.floats(0, 2) | st.sampled_from([None, "a", [], [1], True])
        run.config_file.write_bytes(to_json(value | with_value(part, place, data.draw(small))))
        try:
            net, _ = run.load_supernet()
        except UserError:
            return
        finally:
            run.config_file.write_bytes(good)
        assert {k: v.shape for k, v in net.state_dict().items()} == {
            k: v.shape for k, v in run.build_supernet().state_dict().items()
        }


class TestAnotherConfig:
    """A run.json that is not what the weights were trained with is refused wherever weights are loaded."""

    @pytest.mark.parametrize(
        ("place", "value", "key"),
        [(("model", "kernel_sizes"), [3], "model"), (("seed",), 5, "seed"), (("data_fingerprint",), "0", "data")],
    )
    def test_it_is_refused(
        self, run: RunDirectory, tmp_path: Path, place: tuple[str, ...], value: object, key: str
    ) -> None:
        copy = RunDirectory(shutil.copytree(run.path, tmp_path / "run"))
        state = {"step": 4, "identity": run.config().identity()}
        checkpoint.save(copy.checkpoints, 4, checkpoint.load(copy.checkpoints / "step-000003").tensors, state)
        assert copy.load_supernet()[1] == 4
        copy.config_file.write_bytes(to_json(with_value(json.loads(run.config_file.read_bytes()), place, value)))
        for work in (copy.load_supernet, copy.checked_config):
            with pytest.raises(UserError, match=rf"run\.json is not what .*step-000004.* its {key}.* differs"):
                work()

    def test_the_state_is_taken_from_the_newest_that_is_whole(self, run: RunDirectory, tmp_path: Path) -> None:
        for step in (1, 2):
            checkpoint.save(tmp_path, step, {"weights": {}}, {"step": step})
        (tmp_path / "step-000002" / "state.json").write_text('{"step": 3}')
        assert checkpoint.newest_state(tmp_path) == (tmp_path / "step-000001" / "state.json", {"step": 1})
        assert checkpoint.newest_state(tmp_path / "nothing") is None


class TestRecords:
    def test_metrics_after_a_step_are_dropped(self, tmp_path: Path) -> None:
        run = RunDirectory(tmp_path)
        run.drop_after(3)
        assert not run.metrics_file.exists()
        for step in (2, 4, 6):
            run.append_metrics(a_stretch(step))
        run.drop_after(4)
        assert run.metrics() == [a_stretch(2), a_stretch(4)]

    @pytest.mark.parametrize("line", [{}, {"step": "3"}, {"step": None}])
    def test_a_foreign_line_is_named(self, tmp_path: Path, line: dict[str, Any]) -> None:
        run = RunDirectory(tmp_path)
        write_lines(run.metrics_file, [a_stretch(1).to_json(), line])
        with pytest.raises(UserError, match=r"metrics.jsonl, line 2: its 'step' is missing or of another kind"):
            run.drop_after(1)
        write_lines(run.population_file, [line])
        with pytest.raises(UserError, match=r"population.jsonl, line 1: its 'arch' is missing or of another kind"):
            run.population()

    def test_a_baseline_comes_back_whoever_wrote_more_into_it_and_a_wrong_one_is_named(self, tmp_path: Path) -> None:
        run = RunDirectory(tmp_path)
        found = Baseline(features="pixels", top1=50.5, images=9, train_images=20, seconds=0.5)
        run.write_baseline(found)
        assert run.baseline() == found
        values = read_json(run.baseline_file)
        run.baseline_file.write_bytes(to_json(values | {"of_a_later_version": 1}))
        assert run.baseline() == found
        run.baseline_file.write_bytes(to_json(values | {"images": 0}))
        with pytest.raises(UserError, match=r"baseline.json: its 'images' is missing or of another kind"):
            run.baseline()

    def test_the_disk_refusing_is_a_run_error(self, tmp_path: Path) -> None:
        run = RunDirectory(tmp_path)
        run.metrics_file.mkdir()
        run.population_file.mkdir()
        with pytest.raises(RunError, match=r"cannot write .*metrics.jsonl: Is a directory"):
            run.append_metrics(a_stretch(1))
        with pytest.raises(RunError, match=r"cannot write .*population.jsonl: Is a directory"):
            run.append_population(a_score())


HOLD_LOCK = """
import fcntl, sys
file = open(sys.argv[1] + "/.lock", "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_another_process_keeps_this_one_out_until_it_ends(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match="another process is working in"), run.lock():
            pass
        other.kill()
        other.wait()
        with run.lock():
            pass


def test_a_directory_stays_locked_until_the_outermost_lets_go(tmp_path: Path) -> None:
    run, other = RunDirectory(tmp_path), RunDirectory(tmp_path)
    with run.lock():
        with run.lock():
            pass
        with pytest.raises(UserError, match="another process is working in"), other.lock():
            pass
    with other.lock(), pytest.raises(UserError, match="another process is working in"), run.lock():
        pass


def test_images_that_were_moved(tmp_path: Path) -> None:
    """A run remembers where its images were; when they have moved it says so and takes the new place."""
    numbers = np.random.default_rng(0)
    images, labels = numbers.integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "old.npz", train_images=images, train_labels=labels)
    data = load_dataset(str(tmp_path / "old.npz"))
    run = RunDirectory(tmp_path / "run")
    run.create(
        RunConfig(
            data=data.source,
            data_fingerprint=data.fingerprint(),
            family="mobilenet_v3",
            model={"num_classes": 3},
            recipe=RECIPES["rss"],
        )
    )
    (tmp_path / "old.npz").rename(tmp_path / "new.npz")
    with pytest.raises(UserError, match=r"were at .*old\.npz and are not there now; say where they are: --data PATH"):
        run.load_data()
    assert run.load_data(moved_to=str(tmp_path / "new.npz")).fingerprint() == data.fingerprint()


def test_a_recipes_augmentation_is_that_of_every_stage(make_net: MakeNet, tmp_path: Path) -> None:
    """Training, looks while training and whatever loads the run's images afterwards vary them alike."""
    data = load_dataset("digits", train_images=64)
    phase = Phase(name="all", epochs=0.25, subnets=("largest",))
    plain = Recipe(name="plain", about="A test.", phases=(phase,), batch_size=8)
    asking = plain.model_copy(update={"augmentation": AugmentationChange(crop_from=0.9, flip=True, erase=0.5)})
    expected = (Crop(scale=(0.9, 1.0)), Flip(), Erase(share=0.5))
    by_hand = replace(data, augmentation=expected)
    nets = [make_net(num_classes=10) for _ in range(3)]
    runs = [RunDirectory(tmp_path / name) for name in ("asking", "by-hand", "plain")]
    for net, run, recipe, images in zip(nets, runs, (asking, plain, plain), (data, by_hand, data), strict=True):
        train_supernet(net, recipe, images, run)
    states = [net.state_dict() for net in nets]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert not all(torch.equal(tensor, states[2][name]) for name, tensor in states[0].items())

    loaded = runs[0].load_data()
    assert loaded.augmentation == expected
    assert runs[2].load_data().augmentation == data.augmentation
    prober = Prober(nets[0], asking, data, runs[0], probes=(nets[0].space.smallest(),))
    assert prober.evaluator.data.augmentation == expected
    settings = EvaluateSettings(calibration_images=20)
    for found, right in zip(
        Evaluator(loaded, "validate", settings).calibration_batches,
        Evaluator(by_hand, "validate", settings).calibration_batches,
        strict=True,
    ):
        assert torch.equal(found, right)


def test_recorded_runs_of_before_optimizers_could_be_chosen() -> None:
    """What they do not say is what was done then."""
    paths = [path for path in RECORDED.glob("*/runs/*/run.json") if b'"optimizer"' not in path.read_bytes()]
    assert len(paths) >= 100
    for path in paths[::20]:
        config = json.loads(path.read_text(encoding="utf-8"))
        written, recipe = config["recipe"], RunConfig.parse(config, where=str(path)).recipe
        assert (recipe.optimizer, recipe.ema, recipe.augmentation) == ("sgd", 0.0, None)
        assert {key: recipe.model_dump(mode="json")[key] for key in written if key != "phases"} == {
            key: value for key, value in written.items() if key != "phases"
        }
