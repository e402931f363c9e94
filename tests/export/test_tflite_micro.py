"""TFLite Micro files, by the interpreter that comes with its kernels."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.export.test_int8 import judged_by_itself
from tests.support.damage import flips

from trainonce.errors import RunError, UserError
from trainonce.export import TARGETS, sidecar
from trainonce.export.certificate import Certificate, ReferenceLogits
from trainonce.export.exporting import check_export, export_subnet
from trainonce.export.integrity import check_file
from trainonce.export.tflite_micro import FILE, SIDECAR, open_tflite_micro
from trainonce.export.tools import printed

Export = Callable[[int], Any]


@pytest.fixture(autouse=True)
def runtime(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("export"):
        pytest.importorskip("tflite_micro")


@pytest.fixture(scope="module")
def made(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Certificate, ReferenceLogits]:
    """An export, judged by images that are labelled as the network classifies them."""
    reference = judged_by_itself(exported(0).expected.reference)
    reference.__dict__["onnx"] = exported(0).expected.reference.onnx
    expected = ReferenceLogits.of(reference)
    out = tmp_path_factory.mktemp("micro")
    place, certificate = export_subnet(expected, TARGETS["tflite-micro"], out, max_loss=20)
    return place, certificate, expected


def interpreter_of(content: bytes, arena: int) -> Any:
    from tflite_micro.python.tflite_micro import runtime

    return runtime.Interpreter.from_bytes(content, arena_size=arena)


@pytest.mark.export
class TestFile:
    def test_its_answers_are_those_of_the_certificate(self, made: tuple[Path, Certificate, ReferenceLogits]) -> None:
        place, certificate, expected = made
        interpreter = interpreter_of((place / FILE).read_bytes(), 10_000_000)
        how = interpreter.get_input_details(0)["quantization_parameters"]
        reference = expected.reference
        assert reference.data is not None
        right = []
        for x_BCHW, labels in zip(
            reference.inputs(reference.data.test), torch.split(reference.data.test.labels, 200), strict=True
        ):
            for x_CHW, label in zip(x_BCHW, labels, strict=True):
                numbers = np.clip(np.round(x_CHW.numpy() / how["scales"][0]) + how["zero_points"][0], -128, 127)
                interpreter.set_input(numbers[None].astype(np.int8), 0)
                interpreter.invoke()
                right.append(interpreter.get_output(0).argmax() == int(label))
        assert certificate.passed
        assert certificate.top1["exported"] == pytest.approx(100 * np.mean(right))
        assert 100 * np.mean(right) >= 80

    def test_the_arena_is_what_the_runtime_takes(self, made: tuple[Path, Certificate, ReferenceLogits]) -> None:
        """With as much it runs (the records of what it allocates come on top), with half of it not."""
        place, certificate, _ = made
        content, arena = (place / FILE).read_bytes(), certificate.details.arena_bytes
        assert arena is not None
        interpreter_of(content, arena + 4096)
        with pytest.raises(RuntimeError):
            interpreter_of(content, arena // 2)

    def test_it_says_what_a_microcontroller_must_have(self, made: tuple[Path, Certificate, ReferenceLogits]) -> None:
        from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

        place, certificate, _ = made
        content, details = (place / FILE).read_bytes(), certificate.details
        model = schema.Model.GetRootAs(content, 0)
        names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
        kinds = {names[model.OperatorCodes(number).BuiltinCode()] for number in range(model.OperatorCodesLength())}
        assert set(details.operators) == kinds
        assert sum(details.operators.values()) == model.Subgraphs(0).OperatorsLength()
        assert details.flash_bytes == len(content)
        types = {model.Subgraphs(0).Tensors(n).Type() for n in range(model.Subgraphs(0).TensorsLength())}
        assert types == {schema.TensorType.INT8, schema.TensorType.INT32}

    def test_what_is_none_is_a_sentence(self, made: tuple[Path, Certificate, ReferenceLogits], tmp_path: Path) -> None:
        place, _, expected = made
        files = {name: (place / name).read_bytes() for name in (FILE, SIDECAR)}
        for name in files:
            with pytest.raises(UserError, match=r"^x is damaged or was not written by `trainonce export`"):
                open_tflite_micro({**files, name: files[name][:-9]}, 1, "x")
        said = json.loads(files[SIDECAR])
        said["preprocessing"]["resolution"] = 16
        body = json.dumps({key: value for key, value in said.items() if key != sidecar.LAST_KEY})[:-1].encode()
        other = {**files, SIDECAR: sidecar.SEAL.put(body, files[FILE])}
        with pytest.raises(UserError, match=r"^x takes and gives other shapes than its description says"):
            open_tflite_micro(other, 1, "x")
        with pytest.raises(UserError, match=r"^x cannot be computed: "):
            open_tflite_micro(files, 1, "x").run(torch.zeros(1, 1, 9, 9))
        shutil.copytree(place, tmp_path / "tflite-micro")
        (tmp_path / "tflite-micro" / FILE).write_bytes(files[FILE][:-4])
        with pytest.raises(RunError, match=r"model\.tflite is damaged or was edited"):
            check_export(expected, TARGETS["tflite-micro"], tmp_path)

    def test_a_check_keeps_what_was_measured(
        self, made: tuple[Path, Certificate, ReferenceLogits], tmp_path: Path
    ) -> None:
        place, certificate, expected = made
        shutil.copytree(place, tmp_path / "tflite-micro")
        _, again = check_export(expected, TARGETS["tflite-micro"], tmp_path, max_loss=20)
        assert again.details == certificate.details

    @pytest.mark.parametrize("certified", [True, False])
    @pytest.mark.parametrize("name", [FILE, SIDECAR])
    def test_no_flip_goes_unnoticed(
        self, made: tuple[Path, Certificate, ReferenceLogits], tmp_path: Path, name: str, certified: bool
    ) -> None:
        copy = Path(shutil.copytree(made[0], tmp_path / "tflite-micro"))
        if not certified:
            (copy / "certificate.json").unlink()
        assert {check_file(copy / file).state for file in (FILE, SIDECAR)} == {"whole"}
        content = (copy / name).read_bytes()
        for damaged in (*flips(content, 150), content[:-1], content[:-80], b""):
            (copy / name).write_bytes(damaged)
            assert check_file(copy / name).state == "damaged"

    def test_a_network_that_says_next_to_nothing_is_refused(self, exported: Export, tmp_path: Path) -> None:
        """As an untrained one: what its images change is lost in eight bits, and the runtime says nothing of it."""
        before = exported(0).expected.reference
        network = before.network
        weight = network.classifier.weight.clone()
        try:
            with torch.no_grad():
                network.classifier.weight.mul_(1e-6)
            reference = judged_by_itself(dataclasses.replace(before, supernet=None, no_supernet="it was changed"))
            expected = ReferenceLogits.of(reference)
            with pytest.raises(RunError, match="it gives the same answer for every image"):
                export_subnet(expected, TARGETS["tflite-micro"], tmp_path, max_loss=100)
        finally:
            with torch.no_grad():
                network.classifier.weight.copy_(weight)


def test_what_a_library_prints_is_caught(capfd: pytest.CaptureFixture[str]) -> None:
    import os

    assert printed(lambda: os.write(2, b"Arena allocation total 5 bytes\n")) == "Arena allocation total 5 bytes\n"
    os.write(1, b"shown again")
    assert capfd.readouterr() == ("shown again", "")
