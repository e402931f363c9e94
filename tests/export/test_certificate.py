"""The certificate: its figures are those of independent reckoning, and nothing that is wrong gets one that passes."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tests.support.changed_run import configured
from tests.support.made_up import replaced, sealed, shifted

from trainonce.cli.export import _say_certificate
from trainonce.errors import RunError, UserError
from trainonce.evaluation.evaluator import score
from trainonce.export import TARGETS, certificate, compare, exporting, reference
from trainonce.export.certificate import Certificate, ReferenceLogits, certify
from trainonce.export.compare import LogitComparison
from trainonce.export.description import Opened, Precision, Quantised, Run
from trainonce.export.exporting import check_export, export_subnet
from trainonce.export.onnx import FILE
from trainonce.export.reference import Reference, read_reference
from trainonce.pipeline.exporting import Exported
from trainonce.records import read_json
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.subnets import read_subnet, write_subnet

Export = Callable[[int], Any]


def written(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(place / "certificate.json")
    return found


def renamed(subnet: Path, place: Path, run: Path) -> Path:
    """A copy of a subnet that names its run, as `trainonce extract` writes it."""
    network, description = read_subnet(subnet)
    trained = description.to_json()["trained"] | {"run": str(run.resolve())}
    write_subnet(place, network, description | {"trained": trained})
    return place


@pytest.mark.parametrize("number", range(3))
def test_supernet_network_and_file_agree(exported: Export, home: RunDirectory, number: int) -> None:
    made = exported(number)
    certificate = made.certificate
    assert certificate.passed
    above, below = certificate.supernet_and_extracted, certificate.extracted_and_exported
    assert above.identical, "the supernet with the subnet's statistics is the subnet to the last bit"
    assert below.agrees
    assert below.images == 16 + len(home.load_data().test)
    assert 0 < below.largest_difference < 1e-4 * max(1, below.largest_logit)


def test_its_figures_are_those_of_the_files(exported: Export, home: RunDirectory) -> None:
    made = exported(1)
    said = written(made.place)
    assert said == json.loads(json.dumps(made.certificate.to_json()))
    content = (made.place / FILE).read_bytes()
    assert said["files"] == {FILE: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    data, (network, _) = home.load_data(), read_subnet(made.subnet)
    top1 = score(network, data.test, data).top1
    assert said["top1"] == {"supernet": top1, "extracted": top1, "exported": top1}
    assert said["float32_bytes"] == sum(t.nbytes for t in network.state_dict().values())
    assert said["latency_ms"]["extracted"] > 0
    assert said["latency_ms"]["exported"] > 0
    assert {"torch", "onnx", "onnxruntime", "machine"} <= set(said["provenance"])


def test_the_certificate_of_the_first_version_is_read(exported: Export) -> None:
    """It does not describe its subnet, and its comparison has ties for a ratio."""
    now = exported(1).certificate
    said = now.to_json()
    del said["description"], said["images"]["supernet"]
    for name in ("supernet_and_extracted", "extracted_and_exported"):
        del said[name]["largest_ratio"]
        said[name] |= {"near_ties": 0, "tolerance": 1e-4}
    found = Certificate.read(json.loads(json.dumps(said)), where="a test")
    assert found.description is None
    assert found.images.supernet is None
    assert found.extracted_and_exported.largest_ratio is None  # type: ignore[union-attr]
    assert (found.passed, found.verdict, found.files) == (now.passed, now.verdict, now.files)
    with pytest.raises(UserError, match=r"a test: files, model\.onnx: its 'sha256' is missing or of another kind"):
        Certificate.read(said | {"files": {FILE: {"bytes": 1}}}, where="a test")


def test_the_supernet_needs_the_statistics(home: RunDirectory) -> None:
    """Without them it computes something else: so the comparison that passes is no empty one."""
    network, description = read_subnet(home.subnets / "1")
    net, _ = home.load_supernet()
    x_BCHW = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert not torch.allclose(net(x_BCHW, net.space.parse(description.architecture)), network(x_BCHW), atol=1e-3)


class TestSupernetOnSomeImages:
    """Twelve of the test images are enough here."""

    @pytest.fixture
    def reference(self, home: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> Reference:
        monkeypatch.setattr(reference, "MOST_IMAGES", 5)
        monkeypatch.setattr(reference, "SUPERNET_IMAGES", 12)
        return read_reference(home.subnets / "1", images=4)

    @staticmethod
    def certified(given: Reference, supernet: Run | None = None) -> tuple[Certificate, int]:
        """The certificate of a file that is right, and how many images went through the supernet."""
        assert given.supernet is not None
        compute, seen = supernet or given.supernet, []

        def counted(x_BCHW: torch.Tensor) -> torch.Tensor:
            seen.append(len(x_BCHW))
            return compute(x_BCHW)

        expected = ReferenceLogits.of(dataclasses.replace(given, supernet=counted))
        opened = Opened(description=given.file, run=given.network)
        how: dict[str, Any] = {"target": "t", "precision": "float32", "files": {}, "details": Quantised()}
        return certify(expected, opened, max_loss=1, **how), sum(seen)

    def test_they_are_enough_where_it_agrees_to_the_last_bit(self, reference: Reference, home: RunDirectory) -> None:
        test = len(home.load_data().test)
        assert reference.supernet_rows.tolist() == [number * test // 12 for number in range(12)]
        found, seen = self.certified(reference)
        assert found.passed
        assert (seen, found.images.supernet, found.images.test) == (4 + 12, 12, test)
        assert found.supernet_and_extracted.images == 4 + 12  # type: ignore[union-attr]
        assert found.extracted_and_exported.images == 4 + test  # type: ignore[union-attr]
        assert found.top1["supernet"] == found.top1["extracted"] == found.top1["exported"]
        assert found.verdict.startswith("supernet and extracted network agree to the last bit on 16 images; ")

    def test_all_are_compared_where_it_does_not(self, reference: Reference, home: RunDirectory) -> None:
        test, network = len(home.load_data().test), reference.network
        found, seen = self.certified(reference, lambda x: network(x) * (1 + 1e-5))
        assert found.passed
        assert (seen, found.images.supernet) == (4 + 12 + 4 + test, test)
        assert found.supernet_and_extracted.images == 4 + test  # type: ignore[union-attr]
        assert f" on {4 + test} images; " in found.verdict

    @pytest.mark.parametrize("layer", ["stem.0", "blocks.2.depthwise.0", "final.0"])
    def test_a_wrong_channel_is_found_by_them(self, reference: Reference, layer: str) -> None:
        with torch.no_grad():
            reference.network.get_submodule(layer).weight[0] *= 1.5  # type: ignore[index,operator]
        assert reference.supernet is not None
        _, right = reference.logits(reference.supernet, rows=reference.supernet_rows)
        _, wrong = reference.logits(reference.network, rows=reference.supernet_rows)
        assert right is not None
        assert wrong is not None
        assert not torch.equal(right, wrong)
        found, _ = self.certified(reference)
        assert not found.passed
        assert "the extracted network is not the supernet's subnet: logits differ by" in found.verdict


class TestWithoutTheRun:
    def test_a_fine_tuned_subnet_is_not_the_supernets_any_more(self, home: RunDirectory, tmp_path: Path) -> None:
        network, description = read_subnet(home.subnets / "0")
        validate = {"validate": {"top1": 50.0, "loss": 1.0, "images": 30}}
        finetuned = {
            "before": validate,
            "after": validate,
            "epoch": 1,
            "settings": {"epochs": 1, "distill": False},
        }
        trained = description.to_json()["trained"] | {"run": str(home.path), "finetuned": finetuned}
        write_subnet(tmp_path / "tuned", network, description | {"trained": trained})
        reference = read_reference(tmp_path / "tuned", images=4)
        assert reference.supernet is None
        assert "fine-tuned" in reference.no_supernet
        assert reference.data is not None

    def test_it_says_not_compared(self, home: RunDirectory, tmp_path: Path) -> None:
        shutil.copytree(home.subnets / "0", tmp_path / "alone", ignore=shutil.ignore_patterns("export*"))
        expected = ReferenceLogits.of(read_reference(tmp_path / "alone", images=4))
        place, certificate = export_subnet(expected, shifted(0.0), tmp_path / "alone" / "export")
        said = written(place)
        assert certificate.passed
        assert said["images"] == {"random": 4, "test": 0, "supernet": 0}
        assert said["supernet_and_extracted"].startswith("not compared: ")
        assert all(value.startswith("not compared") for value in said["top1"].values())
        assert "not compared" in said["verdict"]

    def test_a_run_that_was_named_must_be_there(self, home: RunDirectory, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="holds no run"):
            read_reference(home.subnets / "0", run=tmp_path)

    def test_a_run_that_was_named_need_not_be_the_subnets_any_more(self, home: RunDirectory, tmp_path: Path) -> None:
        """The copy of the run has been trained on, and the subnet names where the run was before it was moved."""
        shutil.copytree(home.path, tmp_path / "run", ignore=shutil.ignore_patterns("export*"))
        net, _ = home.load_supernet()
        checkpoint.save(tmp_path / "run" / "checkpoints", 4, {"weights": net.state_dict()}, {"step": 4})
        subnet = renamed(home.subnets / "0", tmp_path / "subnet", tmp_path / "before")
        reference = read_reference(subnet, run=tmp_path / "run", images=2)
        assert reference.supernet is None
        assert "the subnet is of step 3, its weights of step 4" in reference.no_supernet
        assert reference.data is not None

    def test_the_run_that_it_names_comes_before_the_one_in_which_it_lies(
        self, home: RunDirectory, tmp_path: Path
    ) -> None:
        subnet = renamed(home.subnets / "0", tmp_path / "subnets" / "0", home.path)
        shutil.copy(home.config_file, tmp_path)
        assert read_reference(subnet, images=2).supernet is not None

    def test_a_run_that_was_moved_is_found_around_the_subnet(self, home: RunDirectory, tmp_path: Path) -> None:
        shutil.copytree(home.path, tmp_path / "run", ignore=shutil.ignore_patterns("export*"))
        subnet = renamed(home.subnets / "0", tmp_path / "run" / "subnets" / "0", tmp_path / "before")
        reference = read_reference(subnet, images=2)
        assert reference.supernet is not None
        assert reference.data is not None

    def test_a_run_that_is_gone_is_named(self, home: RunDirectory, tmp_path: Path) -> None:
        subnet = renamed(home.subnets / "0", tmp_path / "subnet", tmp_path / "before")
        assert f"{tmp_path / 'before'} holds no run" in read_reference(subnet, images=2).no_supernet

    def test_images_that_are_gone_leave_the_supernet(self, home: RunDirectory, tmp_path: Path) -> None:
        shutil.copytree(home.path, tmp_path / "run", ignore=shutil.ignore_patterns("export*"))
        config = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
        config["data"]["name_or_path"] = str(tmp_path / "gone.npz")
        configured(tmp_path / "run", config)
        reference = read_reference(tmp_path / "run" / "subnets" / "0")
        assert reference.supernet is not None
        assert reference.data is None
        assert "are not there now" in reference.no_data

    def test_a_run_trained_on_is_not_the_one(self, home: RunDirectory, tmp_path: Path) -> None:
        shutil.copytree(home.path, tmp_path / "run", ignore=shutil.ignore_patterns("export*"))
        net, _ = home.load_supernet()
        checkpoint.save(tmp_path / "run" / "checkpoints", 4, {"weights": net.state_dict()}, {"step": 4})
        reference = read_reference(tmp_path / "run" / "subnets" / "0")
        assert reference.supernet is None
        assert "the subnet is of step 3, its weights of step 4" in reference.no_supernet
        assert reference.data is not None


class TestFailures:
    def test_a_network_that_is_not_the_supernets(self, home: RunDirectory, tmp_path: Path) -> None:
        network, description = read_subnet(home.subnets / "0")
        with torch.no_grad():
            network.get_parameter("classifier.weight")[0] += 0.1
        write_subnet(tmp_path / "other", network, description)
        expected = ReferenceLogits.of(read_reference(tmp_path / "other", run=home.path, images=4))
        with pytest.raises(RunError, match="the extracted network is not the supernet's subnet: logits differ by"):
            export_subnet(expected, shifted(0.0), tmp_path / "out")

    def test_a_file_that_differs_replaces_nothing(self, exported: Export, tmp_path: Path) -> None:
        expected = exported(0).expected
        place, _ = export_subnet(expected, shifted(0.0), tmp_path)
        before = written(place)
        with pytest.raises(
            RunError, match=r"shifted: the exported file is not the extracted network: .* not to be used"
        ):
            export_subnet(expected, shifted(0.01 * expected.extracted[0].abs().max().item() + 0.01), tmp_path)
        assert written(place) == before
        assert written(tmp_path / "shifted.failed")["passed"] is False
        export_subnet(expected, shifted(0.0), tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["shifted"], "what failed before is gone"

    def test_something_else_is_not_overwritten(self, exported: Export, tmp_path: Path) -> None:
        (tmp_path / "shifted").mkdir()
        (tmp_path / "shifted" / "thesis.txt").write_text("years of work", encoding="utf-8")
        with pytest.raises(UserError, match="is there already and is not an export"):
            export_subnet(exported(0).expected, shifted(0.0), tmp_path)
        assert (tmp_path / "shifted" / "thesis.txt").exists()

    def test_a_supernet_whose_numbers_are_not_finite(self, exported: Export, tmp_path: Path) -> None:
        expected = exported(0).expected
        broken = dataclasses.replace(expected, supernet=(expected.extracted[0] / 0, expected.extracted[1]))
        with pytest.raises(RunError, match=r"the extracted network is not the supernet's subnet: .* not finite"):
            export_subnet(broken, shifted(0.0), tmp_path)

    @pytest.mark.parametrize("precision", ["float32", "int8"])
    def test_numbers_that_are_not_finite(self, exported: Export, tmp_path: Path, precision: Precision) -> None:
        with pytest.raises(RunError, match=r"the exported file is not the extracted network: .* not finite"):
            export_subnet(exported(0).expected, shifted(float("nan"), precision), tmp_path)
        assert written(tmp_path / "shifted.failed")["extracted_and_exported"]["largest_difference"] is None

    @pytest.mark.parametrize("name", ["classifier.bias", "stem.1.running_var"])
    def test_a_broken_subnet_has_nothing_to_certify(self, home: RunDirectory, tmp_path: Path, name: str) -> None:
        network, description = read_subnet(home.subnets / "0")
        with torch.no_grad():
            network.state_dict()[name][0] = float("nan")
        write_subnet(tmp_path / "broken", network, description)
        with pytest.raises(UserError, match="not finite"):
            ReferenceLogits.of(read_reference(tmp_path / "broken", run=home.path, images=2))


class TestCheck:
    @pytest.fixture
    def copy(self, exported: Export, tmp_path: Path) -> Path:
        shutil.copytree(exported(1).place, tmp_path / "onnx")
        return tmp_path

    def test_what_is_right_passes_again(self, exported: Export, copy: Path) -> None:
        _, certificate = check_export(exported(1).expected, TARGETS["onnx"], copy)
        assert certificate.passed
        assert certificate.files == exported(1).certificate.files

    @pytest.mark.parametrize("layer", ["stem", "blocks.3", "blocks.5", "final", "feature"])
    def test_one_weight_corrupted_names_its_layer(self, exported: Export, copy: Path, layer: str) -> None:
        model = onnx.load_model_from_string((copy / "onnx" / FILE).read_bytes())
        node = next(
            n for n in model.graph.node if n.op_type == "Conv" and n.name.startswith((layer + ".", layer + "/"))
        )
        weight = next(i for i in model.graph.initializer if i.name == node.input[1])
        values = numpy_helper.to_array(weight).copy()
        values.flat[np.abs(values).argmax()] += 3
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        replaced(copy / "onnx", sealed(model))
        with pytest.raises(RunError, match=rf"the first layer that differs is {layer},"):
            check_export(exported(1).expected, TARGETS["onnx"], copy)

    def test_nothing_there(self, exported: Export, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="holds no export"):
            check_export(exported(1).expected, TARGETS["onnx"], tmp_path)

    def test_the_file_of_another_subnet(self, exported: Export, copy: Path) -> None:
        """The smallest subnet takes images of 6 pixels, as the last does; the copied file takes 8."""
        differs = "is of another subnet than .*: it differs in architecture, preprocessing, network, weights_sha256"
        with pytest.raises(UserError, match=differs):
            check_export(exported(0).expected, TARGETS["onnx"], copy)
        with pytest.raises(UserError, match="it differs in architecture, network, weights_sha256"):
            check_export(exported(0).expected, TARGETS["onnx"], exported(2).place.parent)

    @pytest.mark.parametrize(
        ("change", "pattern"),
        [
            (lambda said: said["classes"].reverse(), "is of another subnet than .*: it differs in classes$"),
            (lambda said: said.update(precision="int8"), "computes in int8: that is not a file of --to onnx"),
        ],
    )
    def test_a_description_that_is_not_the_subnets(
        self, exported: Export, copy: Path, change: Callable[[dict[str, Any]], object], pattern: str
    ) -> None:
        self.changed(copy / "onnx", change)
        with pytest.raises(UserError, match=pattern):
            check_export(exported(1).expected, TARGETS["onnx"], copy)

    @pytest.mark.parametrize("layers", [{}, {"other": "logits"}])
    def test_a_file_that_names_no_layers(self, exported: Export, copy: Path, layers: dict[str, str]) -> None:
        self.changed(copy / "onnx", lambda said: said.update(layers=layers), corrupted=True)
        with pytest.raises(RunError, match="the file does not let one look inside"):
            check_export(exported(1).expected, TARGETS["onnx"], copy)

    def test_a_file_that_lacks_a_layer_that_it_names(self, exported: Export, copy: Path) -> None:
        self.changed(copy / "onnx", lambda said: said["layers"].update(stem="nothing"), corrupted=True)
        with pytest.raises(UserError, match="does not have all the layers that its description names"):
            check_export(exported(1).expected, TARGETS["onnx"], copy)

    @staticmethod
    def changed(place: Path, change: Callable[[dict[str, Any]], object], *, corrupted: bool = False) -> None:
        """Change an ONNX file's description; with `corrupted` also some weights, so that layers are asked for."""
        model = onnx.load_model_from_string((place / FILE).read_bytes())
        said = json.loads(model.metadata_props[0].value)
        change(said)
        model.metadata_props[0].value = json.dumps(said)
        if corrupted:
            weight = next(i for i in model.graph.initializer if len(i.dims) == 4)
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + 1, weight.name))
        replaced(place, sealed(model))


def test_int8_fails_where_it_loses_more_than_allowed(exported: Export, home: RunDirectory) -> None:
    """A file that never says class 1 loses the images that the network was right to say it of."""
    reference = exported(0).expected.reference
    data = home.load_data()
    relabelled = dataclasses.replace(
        data.test, labels=torch.cat([reference.network(x).argmax(1) for x in reference.inputs(data.test)])
    )
    right = dataclasses.replace(reference, data=dataclasses.replace(data, test=relabelled))
    opened = Opened(description=reference.file, run=lambda x: reference.network(x) - torch.tensor([0.0, 1e4, 0.0]))
    share = 100 * float((relabelled.labels == 1).double().mean())
    assert share > 0

    def certified(max_loss: float) -> Any:
        return certify(
            ReferenceLogits.of(right),
            opened,
            target="t",
            precision="int8",
            files={},
            details=Quantised(),
            max_loss=max_loss,
        )

    failed = certified(share - 1)
    assert not failed.passed
    assert f"int8 loses {share:.2f} points" in failed.verdict
    assert isinstance(failed.extracted_and_exported, LogitComparison)
    assert certified(share + 1).passed
    assert certified(share + 1).verdict.endswith(f"; int8 changes top-1 by -{share:.2f} points")


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_the_same_logits_for_every_image_are_no_network(exported: Export, tmp_path: Path, precision: Precision) -> None:
    """Whatever top-1 they have: of images of one class they would have all of it."""
    target = shifted(0.0, precision)
    opened = target.open
    constant = dataclasses.replace(
        target,
        open=lambda *given: dataclasses.replace(
            opened(*given), run=lambda x: torch.tensor([[0.0, 1.0, 0.0]]).repeat(len(x), 1)
        ),
    )
    with pytest.raises(RunError, match=r"the exported file .*: it gives the same answer for every image"):
        export_subnet(exported(0).expected, constant, tmp_path, max_loss=100)
    assert written(tmp_path / "shifted.failed")["extracted_and_exported"]["constant"] is True


def test_float16_may_be_less_exact_and_is_judged_by_top1_too(exported: Export, tmp_path: Path) -> None:
    expected = exported(0).expected
    _, certificate = export_subnet(expected, shifted(0.9 * compare.FLOAT16_TOLERANCE, "float16"), tmp_path)
    assert certificate.tolerance == compare.FLOAT16_TOLERANCE
    assert certificate.verdict.endswith("; float16 changes top-1 by +0.00 points")
    with pytest.raises(RunError, match="shifted: the exported file is not the extracted network: logits differ by"):
        export_subnet(expected, shifted(10.0, "float16"), tmp_path)
    reference = dataclasses.replace(expected.reference, data=None, no_data="they are gone")
    _, certificate = export_subnet(ReferenceLogits.of(reference), shifted(0.01, "float16"), tmp_path)
    assert certificate.passed


def test_int8_is_not_certified_without_images(exported: Export, tmp_path: Path) -> None:
    """There is nothing else to hold its logits against; the certificate that is there stays."""
    target, expected = shifted(0.5, "int8"), exported(0).expected
    _, made = export_subnet(expected, target, tmp_path)
    before = written(tmp_path / "shifted")
    assert made.passed
    reference = dataclasses.replace(expected.reference, data=None, no_data="they are gone")
    with pytest.raises(RunError, match="what int8 loses of top-1 is not compared: they are gone"):
        check_export(ReferenceLogits.of(reference), target, tmp_path)
    assert written(tmp_path / "shifted") == before


@pytest.mark.parametrize(("once_s", "rounds"), [(0.0001, 50), (0.005, 25), (3.0, 10)])
def test_slow_networks_are_timed_in_fewer_rounds(once_s: float, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "LATENCY_ROUNDS", 50)
    assert certificate._rounds(once_s) == rounds


def test_times_beside_other_work_are_said_to_be_so(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In certificate.json and on the terminal; those of a quiet machine are shown as they are."""
    for drift, quiet in (([1.25, 0.9], False), ([1.02, 0.98], True)):
        monkeypatch.setattr(certificate, "time_and_drift", lambda *_, drift=drift, **__: ([3.0, 2.0], drift))
        place, made = export_subnet(exported(0).expected, TARGETS["onnx"], tmp_path)
        said = written(place)["latency_ms"]
        assert (said["drift"], said["quiet"], said["exported"]) == (drift, quiet, 2.0)
        _say_certificate(Exported(target=TARGETS["onnx"], place=place, certificate=made))
        shown = " ".join(capsys.readouterr().out.split())
        busy = (
            "pace went from 0.90 to 1.25 times its usual time meanwhile: it was not quiet, so these times are not to be"
        )
        assert (busy in shown) is not quiet


def test_how_long_a_slow_file_takes_is_said_before(
    exported: Export, home: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one image, for all of them; of a quick one nothing is said."""
    images = 16 + len(home.load_data().test)
    for ms, said in ((59_500 / images, ""), (60_500 / images, ": about 1 min"), (6e5 / images, ": about 10 min")):
        monkeypatch.setattr(exporting, "time_ms", lambda *_, ms=ms, **__: [ms])
        parts: list[str] = []
        export_subnet(exported(0).expected, TARGETS["onnx"], tmp_path, on_part=parts.append)
        assert parts[-1].endswith(f"images, and timing it{said}")
