"""OpenVINO's and ExecuTorch's int8, by their own interfaces: it is int8, about the same; who bears it not is found."""

import dataclasses
import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.export.test_int8 import judged_by_itself
from tests.support.damage import flips

from trainonce.errors import RunError, UserError
from trainonce.export import TARGETS, Target, executorch
from trainonce.export.certificate import Certificate, ReferenceLogits
from trainonce.export.description import Written
from trainonce.export.exporting import check_export, export_subnet
from trainonce.export.integrity import check_file
from trainonce.export.reference import Reference
from trainonce.export.sensitive import calibration
from trainonce.export.tools import layer_names, quiet

Export = Callable[[int], Any]
Made = tuple[Target, Path, Certificate, Reference]
pytestmark = pytest.mark.export
NAMES = ["openvino-int8", "executorch-int8"]
SOME = ["stem", "blocks.0", "blocks.2", "classifier"]


def reference_of(exported: Export) -> Reference:
    """The smallest subnet's, its images labelled by itself, and its graph made once."""
    made = exported(0).expected.reference
    reference = judged_by_itself(made)
    reference.__dict__.update(onnx=made.onnx, program=made.program)
    return reference


@contextmanager
def changed(network: torch.nn.Module) -> Iterator[None]:
    """Inside, a network's weights may be changed."""
    before = {name: t.clone() for name, t in network.state_dict().items()}
    try:
        with torch.no_grad():
            yield
    finally:
        network.load_state_dict(before)


@pytest.fixture(scope="module")
def made_of(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    done: dict[str, Made] = {}

    def make(name: str) -> Made:
        pytest.importorskip(name.removesuffix("-int8"))
        if name not in done:
            reference, out = reference_of(exported), tmp_path_factory.mktemp(name)
            place, certificate = export_subnet(ReferenceLogits.of(reference), TARGETS[name], out, max_loss=20)
            done[name] = TARGETS[name], place, certificate, reference
        return done[name]

    return make


def files_of(target: Target, place: Path) -> dict[str, bytes]:
    return {name: (place / name).read_bytes() for name in target.files}


@pytest.mark.parametrize("name", NAMES)
class TestBoth:
    def test_the_certificate_says_what_it_loses(self, name: str, made_of: Callable[[str], Made]) -> None:
        """Counted anew by the runtime's own interface."""
        _, place, certificate, reference = made_of(name)
        assert certificate.passed
        assert certificate.precision == "int8"
        assert certificate.supernet_and_extracted.identical  # type: ignore[union-attr]
        assert certificate.details.validate_loss is not None
        assert certificate.details.calibration_images
        assert reference.data is not None
        run = by_itself(name, place)
        best = torch.cat([run(x_BCHW).argmax(1) for x_BCHW in reference.inputs(reference.data.test)])
        right = float((best == reference.data.test.labels).double().mean())
        assert certificate.top1["exported"] == pytest.approx(100 * right)
        assert certificate.top1["extracted"] == 100

    def test_a_layer_that_does_not_bear_it_is_found(
        self, name: str, exported: Export, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One channel of the first map is a million times as large as the others, and nothing looks at it."""
        pytest.importorskip(name.removesuffix("-int8"))
        monkeypatch.setattr(executorch, "write_executorch", lambda *_: Written(files={}))  # which takes long, as does
        monkeypatch.setattr(executorch, "layer_names", lambda _: SOME)  # a look at every layer
        network: Any = exported(0).expected.reference.network
        with changed(network):
            network.stem[1].weight[0] = 1e6
            network.blocks[0].depthwise[0].weight[0] = 0
            network.blocks[0].residual = False
            details = TARGETS[name].write(judged_by_itself(exported(0).expected.reference), 5).details
        network.blocks[0].residual = network.spec.blocks[0].residual
        assert max(details.loss_by_layer.values()) > 20
        assert set(details.kept_in_float32[:2]) == {"stem", "blocks.0"}
        assert set(details.loss_by_layer) == set(SOME if name == "executorch-int8" else layer_names(network))
        assert details.validate_loss is not None
        assert details.validate_loss <= 5

    def test_a_constant_answer_does_not_pass(self, name: str, made_of: Callable[[str], Made], tmp_path: Path) -> None:
        target, _, _, reference = made_of(name)
        network: Any = reference.network
        expected = ReferenceLogits.of(reference)
        with changed(network):
            network.classifier.weight.zero_()
            if name == "executorch-int8":  # of float32, which takes half as long
                broken = executorch.write_executorch(network, reference.file)
            else:
                broken = target.write(dataclasses.replace(reference), 100)
        constant = dataclasses.replace(target, write=lambda _reference, _loss: broken)
        with pytest.raises(RunError, match="it gives the same answer for every image"):
            export_subnet(expected, constant, tmp_path, max_loss=100)

    def test_what_is_none_is_a_sentence(self, name: str, made_of: Callable[[str], Made], tmp_path: Path) -> None:
        target, place, _, reference = made_of(name)
        files = files_of(target, place)
        for file in target.files:
            with pytest.raises(UserError, match=r"^x"):
                target.open({**files, file: files[file][:100]}, 1, "x")
        with pytest.raises(UserError, match=r"^x cannot be computed: "):
            target.open(files, 1, "x").run(torch.zeros(1, 1, 16, 16))
        floating = name.removesuffix("-int8")
        shutil.copytree(place, tmp_path / floating)
        expected = ReferenceLogits.of(dataclasses.replace(reference, data=None, no_data="gone"))
        with pytest.raises(UserError, match=f"computes in int8: that is not a file of --to {floating}"):
            check_export(expected, TARGETS[floating], tmp_path)

    @pytest.mark.parametrize("certified", [True, False])
    def test_no_flip_goes_unnoticed(
        self, name: str, made_of: Callable[[str], Made], tmp_path: Path, certified: bool
    ) -> None:
        target, place, _, _ = made_of(name)
        copy = Path(shutil.copytree(place, tmp_path / name))
        if not certified:
            (copy / "certificate.json").unlink()
        for file in target.files:
            content = (copy / file).read_bytes()
            assert check_file(copy / file).state == "whole"
            for damaged in (*flips(content, 100), content[:-1], content[:-80], b""):
                (copy / file).write_bytes(damaged)
                assert check_file(copy / file).state == "damaged"
            (copy / file).write_bytes(content)

    def test_without_images_there_is_nothing_to_calibrate_with(self, name: str, exported: Export) -> None:
        reference = dataclasses.replace(exported(0).expected.reference, data=None, no_data="they are gone")
        with pytest.raises(UserError, match="int8 needs the run's images to calibrate with, and they are gone"):
            TARGETS[name].write(reference, 1)


def by_itself(name: str, place: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """The files computed without trainonce."""
    if name == "openvino-int8":
        import openvino

        how = {"INFERENCE_PRECISION_HINT": "f32"}  # else bfloat16 where the processor has it
        compiled = openvino.Core().compile_model(str(place / "model.xml"), "CPU", how)
        return lambda x_BCHW: torch.from_numpy(compiled({"images": x_BCHW.numpy()})["logits"].copy())
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(place / "model.pte")
    method = program.load_method("forward")
    return lambda x_BCHW: torch.cat([method.execute([x_1CHW])[0].clone() for x_1CHW in torch.split(x_BCHW, 1)])


def test_openvino_computes_convolutions_in_8_bits(made_of: Callable[[str], Made]) -> None:
    """As the compiled model says of itself: each convolution's kernel is one for 8-bit integers."""
    _, place, _, reference = made_of("openvino-int8")
    import openvino

    model = openvino.Core().compile_model(str(place / "model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    notes = [operator.get_rt_info() for operator in model.get_runtime_model().get_ops()]
    kernels = [n["primitiveType"].astype(str) for n in notes if n["layerType"].astype(str) == "Convolution"]
    assert len(kernels) == sum(isinstance(module, torch.nn.Conv2d) for module in reference.network.modules())
    assert all(kernel.endswith("_I8") for kernel in kernels)


def test_executorch_computes_what_was_quantised(made_of: Callable[[str], Made]) -> None:
    """The runtime's logits are those of the quantised operators, by torch; all convolutions' weights are 8 bits."""
    _, place, _, reference = made_of("executorch-int8")
    network: Any = executorch.quantise(reference.program, calibration(reference), in_float32=lambda _name: False)
    convolutions = [node for node in network.graph.nodes if "conv2d" in str(node.target)]
    assert len(convolutions) == sum(isinstance(module, torch.nn.Conv2d) for module in reference.network.modules())
    assert all("dequantize_per_channel" in str(node.args[1].target) for node in convolutions)
    x_BCHW = reference.random_BCHW
    found = by_itself("executorch-int8", place)(x_BCHW)
    with torch.no_grad():
        quantised, floating = network(x_BCHW), reference.network(x_BCHW)
    assert (found - quantised).abs().mean() < 0.25 * (found - floating).abs().mean()
    assert (place / "model.pte").stat().st_size < 0.5 * _bytes_of(reference.network)


def _bytes_of(network: torch.nn.Module) -> int:
    buffer = io.BytesIO()
    with quiet():
        torch.save(network.state_dict(), buffer)
    return len(buffer.getvalue())
