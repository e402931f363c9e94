"""`trainonce ship`: each device's file is within its limits and certified; what is done is not done again."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.command_line import trainonce
from tests.support.latency_tables import table_with
from tests.support.plain_target import PLAIN

from trainonce.cli import display, results
from trainonce.data import load_dataset
from trainonce.errors import NotFiniteError, RunError, UserError
from trainonce.export import TARGETS, certificate, extras
from trainonce.export.certificate import Certificate
from trainonce.export.predict import open_classifier
from trainonce.latency import LatencyTable
from trainonce.latency.parts import representatives
from trainonce.latency.runtimes import TARGETS_OF
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.nn.kinds import spec_of
from trainonce.pipeline import export, extract, search, shipping, verify
from trainonce.pipeline.devices import Device
from trainonce.pipeline.searching import Amount
from trainonce.pipeline.shipped import FILE, Shipped, ShipRecord
from trainonce.pipeline.shipping import Shipment, ship
from trainonce.recipes import RECIPES
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.subnets import read_subnet
from trainonce.subnets.finetune import Finetuned
from trainonce.training.loop import train_supernet

HERE = ("--compute", "cpu", "--workers", "1")


@pytest.fixture(scope="module", autouse=True)
def plain_target() -> Iterator[None]:
    """Beside the targets there is one that takes no time, and files are timed for a moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TARGETS, "plain", PLAIN)
        patch.setattr(certificate, "LATENCY_S", 0.1)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunDirectory(tmp_path_factory.mktemp("ship") / "run")
    settings = MobileNetV3Settings.for_images(image_size=8, in_channels=1, num_classes=10, width_mult=0.25)
    recipe = RECIPES["spos"].with_batch_size(256).scaled(1 / RECIPES["spos"].epochs)
    train_supernet(MobileNetV3(settings), recipe, load_dataset("digits"), run)
    return run.path


@pytest.fixture(scope="module")
def devices() -> list[Device]:
    return [
        Device(name="board", target="plain", max_flash="2MB", max_ram="20KB"),
        Device(name="desk", target="plain", max_macs="0.6M", finetune_epochs=1),
    ]


@pytest.fixture(scope="module")
def shipped(trained: Path, devices: list[Device]) -> Shipment:
    return ship(trained, devices, scores=2, images=4, calibration_images=20, compute="cpu", workers=1)


class TestShip:
    def test_each_file_is_within_the_limits_and_certified(self, trained: Path, shipped: Shipment) -> None:
        assert [one.name for one in shipped.done] == ["board", "desk"]
        assert shipped.finished
        board, desk = shipped.done
        file = shipped.out / board.file
        assert file == trained / "ship" / "board" / "export" / "plain" / "model.bin"
        assert board.file_bytes == file.stat().st_size <= 2_000_000
        assert board.ram_bytes <= 20_000
        assert desk.macs <= 600_000
        for one in shipped.done:
            certified = Certificate.read_file(shipped.out / one.certificate)
            assert certified.passed
            assert one.test_top1 == certified.top1["exported"]
            assert one.test_images == 359
            assert one.test_interval[0] < one.test_top1 < one.test_interval[1]
            assert certified.architecture == one.arch == read_subnet(shipped.out / one.subnet)[1].architecture

    def test_where_it_is_asked_for_the_network_is_finetuned(self, shipped: Shipment) -> None:
        board, desk = (read_subnet(shipped.out / one.subnet)[1].trained for one in shipped.done)
        assert board is not None
        assert desk is not None
        assert board.finetuned is None
        assert desk.finetuned is not None
        assert desk.finetuned.after["validate"] == shipped.done[1].validate_score

    @pytest.mark.parametrize("diverges", [False, True])
    def test_what_did_not_get_better_by_finetuning_stays_as_it_was(
        self, trained: Path, devices: list[Device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, diverges: bool
    ) -> None:
        def diverging(*_: object, **__: object) -> None:
            raise NotFiniteError("by step 1 the loss is nan")

        if diverges:
            monkeypatch.setattr(shipping, "finetune", diverging)
        monkeypatch.setattr(Finetuned, "better", property(lambda _: False))
        [desk] = ship(trained, devices[1:], out=tmp_path / "out", scores=0, images=4, compute="cpu", workers=1).done
        network, description = read_subnet(tmp_path / "out" / desk.subnet)
        before, _ = read_subnet(RunDirectory(trained).subnets / "desk-untuned")
        assert description.trained is not None
        assert description.trained.finetuned is None
        assert description.scores is not None
        assert description.scores["validate"] == desk.validate_score
        for (name, ours), theirs in zip(network.state_dict().items(), before.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), name

    def test_what_is_written_is_what_came_back(self, trained: Path, shipped: Shipment) -> None:
        record = ShipRecord.read_file(shipped.out / FILE)
        assert tuple(record.shipped) == shipped.done
        assert record.failed == {}
        assert {finding.state for finding in verify(trained)} <= {"whole", "unchecked"}

    def test_each_gets_the_best_of_all_that_is_scored(
        self, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also what was scored for a later device: all searches come before any network is taken out."""
        run = Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("ship", "subnets")))
        small = Device(name="small", target="plain", max_macs="1M")
        large = Device(name="large", target="plain", max_macs="2M")
        calls: list[str] = []

        def noted(stage: Any, what: str) -> Any:
            def call(*given: Any, **how: Any) -> Any:
                calls.append(f"{what} {how['max_macs']}")
                return stage(*given, **how)

            return call

        monkeypatch.setattr(shipping, "search", noted(search, "search"))
        monkeypatch.setattr(shipping, "extract", noted(extract, "extract"))
        found = ship(run, [large, small], scores=2, images=1, calibration_images=20, compute="cpu", workers=1)
        assert calls == ["search 2M", "search 1M", "extract 2M", "extract 1M"]
        best = [str(extract(run, max_macs=f"{most}M", out=tmp_path / f"best{most}").arch) for most in (2, 1)]
        assert [one.arch for one in found.done] == best, "of all that is scored by now"

    def test_what_is_done_is_not_done_again(
        self, trained: Path, shipped: Shipment, monkeypatch: pytest.MonkeyPatch, devices: list[Device]
    ) -> None:
        monkeypatch.setattr(shipping, "export", lambda *_, **__: pytest.fail("exported again"))
        monkeypatch.setattr(shipping, "search", lambda *_, **__: pytest.fail("searched again"))
        again = ship(trained, devices[::-1], scores=2, images=4, calibration_images=20, compute="cpu", workers=1)
        assert again.done == shipped.done[::-1]
        alike: dict[str, Any] = {"scores": 2, "images": 4, "calibration_images": 20, "compute": "cpu"}
        assert ship(trained, devices, **alike, dry_run=True).seconds == 0

    @pytest.mark.parametrize("other", [{"images": 5}, {"calibration_images": 30}, {"seed": 1}, {"scores": 3}])
    def test_by_other_options_it_is_not_done(
        self, trained: Path, shipped: Shipment, devices: list[Device], other: dict[str, int]
    ) -> None:
        alike: dict[str, Any] = {"scores": 2, "images": 4, "calibration_images": 20, "compute": "cpu"}
        assert ship(trained, devices, **alike | other, dry_run=True).seconds > 0

    def test_another_runs_network_is_not_taken_for_this_ones(self, trained: Path, tmp_path: Path) -> None:
        """Two runs that differ in their weights alone, into one directory."""
        other = shutil.copytree(trained, tmp_path / "other", ignore=shutil.ignore_patterns("ship", "subnets"))
        run = RunDirectory(other)
        net, step = run.load_supernet()
        found = checkpoint.load_latest(run.checkpoints)
        assert found is not None
        weights = {name: tensor + 1e-3 for name, tensor in net.state_dict().items() if tensor.is_floating_point()}
        groups = {name: group | {n: weights[n] for n in group if n in weights} for name, group in found.tensors.items()}
        checkpoint.save(run.checkpoints, step, groups, found.state)
        desk = Device(name="desk", target="plain", max_macs="0.6M")
        options: dict[str, Any] = {"scores": 1, "images": 1, "calibration_images": 20, "compute": "cpu", "workers": 1}
        networks = []
        for place in (trained, Path(other)):
            ship(place, [desk], **options, out=tmp_path / "out")
            network, described = read_subnet(tmp_path / "out" / "desk")
            assert described.trained is not None
            assert described.trained.run == str(place.resolve())
            networks.append((described.architecture, network.state_dict()))
        assert ship(other, [desk], **options, out=tmp_path / "out", dry_run=True).seconds == 0
        (before, old), (after, new) = networks
        assert before != after or any(not torch.equal(old[name], new[name]) for name in old)

    def test_a_damaged_file_is_made_again(
        self, trained: Path, shipped: Shipment, tmp_path: Path, devices: list[Device]
    ) -> None:
        run = Path(shutil.copytree(trained, tmp_path / "run"))
        file = run / "ship" / shipped.done[0].file
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + b"x")
        stages: list[str] = []
        again = ship(
            *(run, devices[:1]),
            scores=2,
            images=4,
            calibration_images=20,
            compute="cpu",
            workers=1,
            on_stage=lambda _, text: stages.append(text),
        )
        assert file.read_bytes() == whole
        assert again.done[0].arch == shipped.done[0].arch
        assert [text.split()[0] for text in stages] == ["searching,", "taking", "computing", "plain:", "plain:"]


class TestFailure:
    def test_the_others_go_on(self, trained: Path, shipped: Shipment, tmp_path: Path, devices: list[Device]) -> None:
        (tmp_path / "pea.toml").write_text('target = "onnx"\nmax_ram = "1KB"\n')
        (tmp_path / "desk.toml").write_text('target = "plain"\nmax_macs = "0.6M"\nfinetune_epochs = 1\n')
        options = ("--scores", "2", "--images", "4", "--calibration-images", "20", "--json", *HERE)
        said = trainonce("ship", trained, "--device", tmp_path / "pea.toml", tmp_path / "desk.toml", *options)
        said.refused("1 of 2 devices failed", code=1)
        found = json.loads(said.out)
        assert [one["device"]["name"] for one in found["shipped"]] == ["desk"]
        smallest = (
            r"no subnet of this supernet has at most 0\.001 MB peak memory; the smallest has 0\.\d+ MB peak memory"
        )
        assert found["failed"].keys() == {"pea"}
        assert pytest.approx(1) == len(
            [line for line in said.err.splitlines() if line.startswith("pea failed: no subnet")]
        )
        with pytest.raises(UserError, match=smallest):
            ship(trained, [tmp_path / "pea.toml"])

    def test_a_file_that_is_larger_than_predicted(
        self,
        trained: Path,
        shipped: Shipment,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        devices: list[Device],
    ) -> None:
        """A subnet is looked for that is smaller by as much, twice."""
        budgets: list[str] = []
        sizes = iter([800_000, 620_000, 600_000, 800_000, 700_000, 620_000])

        def made(_work: object, _device: Device, most: Mapping[str, Amount], _began: float) -> Shipped:
            budgets.append(str(most["size"]))
            return shipped.done[0].model_copy(update={"file_bytes": next(sizes), "predicted_bytes": 590_000})

        monkeypatch.setattr(shipping._Work, "_find", lambda *_: None)
        monkeypatch.setattr(shipping._Work, "_made", made)
        board = devices[0].model_copy(update={"max_flash": "600KB"})
        found = ship(trained, [board], scores=3, out=tmp_path / "out").done[0]
        assert found.file_bytes == 600_000
        assert budgets == ["600KB", "438075B", "565258B"], "0.99 * 600 * 590 / 800, or 620"
        with pytest.raises(
            RunError, match="its file has 620,000 bytes where 590,000 were predicted, and 600,000 may be"
        ):
            ship(trained, [board], scores=4, out=tmp_path / "out")

    def test_a_failure_is_recorded_until_the_device_is_tried_again(
        self, trained: Path, shipped: Shipment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of devices tried together and of one tried alone."""
        failing = {"one", "two"}

        def exported(place: Path, *given: Any, **how: Any) -> Any:
            if place.name in failing:
                raise RunError(f"no room for {place.name}")
            return export(place, *given, **how)

        def tried(*names: str) -> tuple[set[str], dict[str, str]]:
            devices = [Device(name=name, target="plain", max_macs="1M") for name in names]
            with nullcontext() if len(names) > 1 or not failing & {*names} else pytest.raises(RunError):
                ship(trained, devices, out=tmp_path / "out", scores=0, images=1, compute="cpu")
            found = ShipRecord.read_file(tmp_path / "out" / FILE)
            return {one.name for one in found.shipped}, found.failed

        monkeypatch.setattr(shipping, "export", exported)
        one, two = {"one": "no room for one"}, {"two": "no room for two"}
        assert tried("one", "three") == ({"three"}, one)
        assert tried("two") == ({"three"}, one | two)
        assert tried("four") == ({"three", "four"}, one | two)
        failing.remove("one")
        assert tried("four", "one") == ({"three", "four", "one"}, two)

    def test_a_dry_run_counts_the_devices_asked_for(self, trained: Path, tmp_path: Path) -> None:
        (tmp_path / "pea.toml").write_text('target = "onnx"\nmax_ram = "1KB"\n')
        (tmp_path / "desk.toml").write_text('target = "plain"\n')
        files = (tmp_path / "pea.toml", tmp_path / "desk.toml")
        said = trainonce("ship", trained, *files, "--scores", "2", "--dry-run", *HERE)
        said.refused("1 of 2 devices failed", code=1)

    def test_bad_input_is_a_sentence(self, trained: Path, tmp_path: Path, devices: list[Device]) -> None:
        trainonce("ship", trained).refused("name a device")
        trainonce("ship", trained, tmp_path / "gone.toml").refused("cannot read the device")
        trainonce("ship", trained, "phone", "phone").refused("two devices are called phone")
        trainonce("ship", trained, "fridge").refused("no device 'fridge'")
        trainonce("ship", tmp_path, "phone").refused("holds no run")
        (tmp_path / "slow.toml").write_text('target = "onnx"\nmax_latency = "3ms"\n')
        trainonce("ship", trained, tmp_path / "slow.toml").refused(
            "makes one; another is named with latency in its file"
        )
        run = Path(shutil.copytree(trained, tmp_path / "run"))
        (run / "latency").mkdir()
        for name in ("phone", "laptop"):
            (run / "latency" / f"{name}.json").write_text("{}")
        which = "/run/latency has laptop, phone: say which with latency in its file"
        trainonce("ship", run, tmp_path / "slow.toml").refused(which)

    def test_a_missing_extra_is_said_before_any_work(self, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "openvino" else name)
        trainonce("ship", trained, "server").refused(r"openvino needs an extra: pip install 'trainonce\[openvino\]'")

    def test_a_run_whose_images_are_gone(self, trained: Path, tmp_path: Path) -> None:
        said = trainonce("ship", trained, "desktop", "--data", tmp_path / "nowhere.npz")
        said.refused("nowhere.npz")


@pytest.mark.parametrize(("batch", "runtime", "used"), [(1, "torch", True), (8, "torch", False), (1, "ncnn", False)])
def test_the_only_table_counts_where_it_is_of_one_image_and_the_targets_runtime(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, runtime: str, used: bool
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("ship", "subnets")))
    net = RunDirectory(run).load_supernet()[0]
    monkeypatch.setitem(TARGETS_OF, "torch", (*TARGETS_OF["torch"], "plain"))
    (run / "latency").mkdir()
    table = table_with(dict.fromkeys(representatives(net), 2.0))
    table.model_copy(update={"batch": batch, "runtime": runtime}).write(run / "latency" / "only.json")
    options: dict[str, Any] = {"scores": 1, "images": 1, "calibration_images": 20, "compute": "cpu", "workers": 1}
    [made] = ship(run, [Device(name="desk", target="plain")], **options).done
    assert (made.latency_table is not None, made.quiet is None) == (used, used)
    if used:
        assert made.latency_ms == LatencyTable.read(run / "latency" / "only.json").predict_ms(
            spec_of(read_subnet(run / "ship" / "desk")[0])
        )
    limited = Device(name="fast", target="plain", max_latency="1s")
    with nullcontext() if batch == 1 else pytest.raises(UserError, match="is of 8 images in a call"):
        ship(run, [limited], **options, dry_run=True)


def test_stopped_it_goes_on(trained: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    said = ship(
        trained,
        [Device(name="one", target="plain"), Device(name="two", target="plain", max_macs="0.5M")],
        scores=0,
        images=1,
        compute="cpu",
        out=tmp_path / "out",
        on_stage=lambda _, text: stages.append(text),
        should_stop=lambda: len(stages) == 4,
    )
    assert not said.finished
    assert [one.name for one in said.done] == ["one"]
    assert [one.name for one in ShipRecord.read_file(tmp_path / "out" / "ship.json").shipped] == ["one"]


def test_the_table_is_not_broken(shipped: Shipment, capsys: pytest.CaptureFixture[str]) -> None:
    display.print_wide(results.shipped_table(shipped.done, {"pea": "too small"}))
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["device", "target", "M", "MACs"]
    assert [row.split()[0] for row in rows] == ["board", "desk", "pea"]
    assert [row.split()[-1] for row in rows] == ["passed", "passed", "failed"]


def test_times_beside_other_work_are_said_to_be_so(shipped: Shipment) -> None:
    board, desk = shipped.done
    assert board.quiet is Certificate.read_file(shipped.out / board.certificate).latency_ms.quiet
    for quiet, said in ((False, "not to be quoted: board"), (True, "")):
        found = [board.model_copy(update={"quiet": quiet}), desk.model_copy(update={"quiet": True})]
        sentences = [sentence for sentence in results.shipped_sentences(found) if "Other work" in sentence]
        assert [sentence.partition("ms are ")[2].rstrip(".") for sentence in sentences] == [said] * (not quiet)


def test_what_a_runtime_plans_has_the_last_word(shipped: Shipment) -> None:
    """A microcontroller's arena is beyond the limit, where following the network said less."""
    board = Device(name="board", target="plain", max_flash="2MB", max_ram="20KB")
    made = shipped.done[0].model_copy(update={"ram_bytes": 40_000, "predicted_ram_bytes": 16_000})
    (beyond,) = shipping._beyond(board, made)
    assert beyond.sentence == "its runtime plans 40,000 bytes where 16,000 were predicted, and 20,000 may be"
    assert beyond.resource == "memory"
    assert beyond.instead == pytest.approx(0.99 * 8_000), "less by as much"


def test_every_target_says_what_extras_it_needs() -> None:
    assert {target.name for target in TARGETS.values() if not target.extras} <= {"torch", "plain"}
    assert {extra for target in TARGETS.values() for extra in target.extras} == set(extras.MODULES)


@pytest.mark.long
def test_a_file_in_int8_is_within_the_limits(trained: Path, tmp_path: Path) -> None:
    """Memory and size are counted in its numbers; the file is the one that the command names."""
    limits = 'max_flash = "400KB"\nmax_ram = "5KB"\nmax_loss = 100\n'
    (tmp_path / "chip.toml").write_text(f'target = "onnx-int8"\n{limits}')
    said = trainonce(
        "ship", trained, tmp_path / "chip.toml", "--scores", "2", "--images", "4", "--calibration-images", "20", *HERE
    )
    assert said.code == 0, said.err
    file = trained / "ship" / "chip" / "export" / "onnx-int8" / "model.onnx"
    assert file.stat().st_size <= 400_000
    assert open_classifier(file).classes == tuple(map(str, range(10)))
    assert str(Path(trained, "ship", "ship.json")) in said.out
