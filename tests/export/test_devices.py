"""OpenVINO and ExecuTorch, by their own interfaces."""

import html
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.damage import flips
from tests.support.made_up import replaced

from trainonce.data import DataSet
from trainonce.errors import RunError, UserError
from trainonce.export import TARGETS
from trainonce.export.certificate import ReferenceLogits
from trainonce.export.executorch import open_executorch
from trainonce.export.exporting import check_export, export_subnet
from trainonce.export.integrity import check_file
from trainonce.export.openvino import SEAL, open_openvino
from trainonce.export.reference import read_reference
from trainonce.models import ResNet, ResNetSettings
from trainonce.nn.kinds import spec_of
from trainonce.subnets import describe_subnet, read_subnet, write_subnet

Export = Callable[[int], Any]
pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def openvino_place(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openvino")
    out = tmp_path_factory.mktemp("openvino")
    place, certificate = export_subnet(exported(1).expected, TARGETS["openvino"], out)
    assert certificate.passed
    assert certificate.supernet_and_extracted.identical  # type: ignore[union-attr]
    return place


@pytest.fixture(scope="module")
def executorch_place(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("executorch")
    out = tmp_path_factory.mktemp("executorch")
    place, certificate = export_subnet(exported(0).expected, TARGETS["executorch"], out)
    assert certificate.passed
    return place


class TestOpenVino:
    def test_it_computes_the_extracted_network(self, exported: Export, openvino_place: Path) -> None:
        import openvino

        compiled = openvino.Core().compile_model(
            str(openvino_place / "model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        network, _ = read_subnet(exported(1).subnet)
        for batch in (1, 3):
            x_BCHW = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(batch))
            with torch.inference_mode():
                expected = network(x_BCHW)
            found = torch.from_numpy(compiled({"images": x_BCHW.numpy()})["logits"])
            torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)

    def test_the_description_travels_inside(self, exported: Export, openvino_place: Path) -> None:
        import openvino

        model = openvino.Core().read_model(str(openvino_place / "model.xml"))
        said = json.loads(model.get_rt_info(["trainonce"]).astype(str))
        assert said["classes"] == list(exported(1).expected.reference.file.classes)
        assert said["preprocessing"]["resolution"] == 8

    def test_a_corrupted_weight_names_its_layer(self, exported: Export, openvino_place: Path, tmp_path: Path) -> None:
        network = exported(1).expected.reference.network
        content = (openvino_place / "model.bin").read_bytes()
        weight = network.blocks[2].depthwise[0].weight
        norm = network.blocks[2].depthwise[1]
        folded = (weight * (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None, None]).detach()
        at = _find(content, folded[0])
        corrupted = content[:at] + torch.tensor([9.0]).numpy().tobytes() + content[at + 4 :]
        model = (openvino_place / "model.xml").read_bytes().partition(SEAL.head)[0]
        shutil.copytree(openvino_place, tmp_path / "openvino")
        (tmp_path / "openvino" / "model.bin").write_bytes(corrupted)
        with pytest.raises(RunError, match=r"model\.xml is damaged or was edited"):
            check_export(exported(1).expected, TARGETS["openvino"], tmp_path)
        replaced(tmp_path / "openvino", {"model.xml": SEAL.put(model, corrupted), "model.bin": corrupted})
        with pytest.raises(RunError, match=r"the first layer that differs is blocks\.2,"):
            check_export(exported(1).expected, TARGETS["openvino"], tmp_path)
        cut = model[:1000]
        replaced(tmp_path / "openvino", {"model.xml": SEAL.put(cut, content), "model.bin": content})
        with pytest.raises(UserError, match="is not an OpenVINO model"):
            check_export(exported(1).expected, TARGETS["openvino"], tmp_path)

    @pytest.mark.parametrize(
        ("change", "pattern"),
        [
            (lambda said: said["preprocessing"].update(resolution=16), "other shapes than its description says"),
            (lambda said: said.update(classes=["a", "b"]), "other shapes than its description says"),
            (lambda said: said["layers"].update(stem="nothing"), "not have all the layers that its description names"),
        ],
    )
    def test_a_description_that_does_not_fit(
        self, openvino_place: Path, change: Callable[[dict[str, Any]], object], pattern: str
    ) -> None:
        def opened_and_asked() -> dict[str, torch.Tensor]:
            opened = open_openvino(redescribed(openvino_place, change), 1, "model.xml")
            assert opened.layers is not None
            return opened.layers(torch.zeros(1, 1, 8, 8), ["stem"])

        with pytest.raises(UserError, match=pattern):
            opened_and_asked()

    def test_a_description_that_names_no_layers(self, openvino_place: Path) -> None:
        files = redescribed(openvino_place, lambda said: said.update(layers={}))
        assert open_openvino(files, 1, "model.xml").layers is None

    def test_a_description_that_is_no_text(self, openvino_place: Path) -> None:
        files = redescribed(openvino_place, lambda said: None)
        files["model.xml"] = files["model.xml"].replace(b"trainonce-export-2", b"trainonce-export-\xff")
        with pytest.raises(UserError, match=r"^model\.xml: its description is not a text"):
            open_openvino(files, 1, "model.xml")

    def test_images_of_another_size_are_a_sentence(self, openvino_place: Path) -> None:
        opened = open_openvino(redescribed(openvino_place, lambda said: None), 1, "model.xml")
        assert opened.layers is not None
        with pytest.raises(UserError, match=r"^model\.xml cannot be computed: .*incompatible"):
            opened.run(torch.zeros(1, 1, 6, 6))
        with pytest.raises(UserError, match=r"^model\.xml cannot be computed: .*incompatible"):
            opened.layers(torch.zeros(1, 1, 6, 6), ["stem"])


def redescribed(place: Path, change: Callable[[dict[str, Any]], object]) -> dict[str, bytes]:
    """The OpenVINO files there with their description changed."""
    xml = (place / "model.xml").read_text(encoding="utf-8")
    head, begin, rest = xml.rpartition('<trainonce value="')  # before it stands the ONNX file's, which OpenVINO keeps
    text, end, tail = rest.partition('" />')
    said = json.loads(html.unescape(text))
    change(said)
    content = head + begin + html.escape(json.dumps(said)) + end + tail
    return {"model.xml": content.encode(), "model.bin": (place / "model.bin").read_bytes()}


def _find(content: bytes, values: torch.Tensor) -> int:
    """Where a run of float32 values, up to rounding, begins in some bytes."""
    floats = torch.frombuffer(bytearray(content[: len(content) // 4 * 4]), dtype=torch.float32)
    wanted = values.flatten()
    windows = floats.unfold(0, len(wanted), 1)
    return 4 * int((windows - wanted).abs().amax(1).nan_to_num(1e9).argmin())


class TestExecuTorch:
    def test_it_computes_the_extracted_network(self, exported: Export, executorch_place: Path) -> None:
        from executorch.runtime import Runtime

        method = Runtime.get().load_program(executorch_place / "model.pte").load_method("forward")
        network, _ = read_subnet(exported(0).subnet)
        side = spec_of(network).resolution
        for _ in range(3):
            x_1CHW = torch.randn(1, 1, side, side)
            with torch.inference_mode():
                expected = network(x_1CHW)
            torch.testing.assert_close(method.execute([x_1CHW])[0], expected, atol=1e-4, rtol=1e-3)

    def test_the_description_lies_beside_it(self, exported: Export, executorch_place: Path) -> None:
        said = json.loads((executorch_place / "model.json").read_text(encoding="utf-8"))
        assert said["batch"] == 1
        assert said["architecture"] == exported(0).expected.reference.file.architecture

    def test_another_size_is_a_sentence(self, exported: Export, executorch_place: Path) -> None:
        """Of images, and of the description that lies beside the program."""
        files = {name: (executorch_place / name).read_bytes() for name in ("model.pte", "model.json")}
        with pytest.raises(UserError, match=r"^model\.pte cannot be computed: "):
            open_executorch(files, 1, "model.pte").run(torch.zeros(1, 1, 16, 16))
        said = json.loads(files["model.json"])
        said["preprocessing"]["resolution"] = 16
        files["model.json"] = json.dumps(said).encode()
        with pytest.raises(UserError, match=r"^model\.pte takes and gives other shapes than its description says"):
            open_executorch(files, 1, "model.pte")

    def test_damage_is_a_sentence(self, exported: Export, executorch_place: Path, tmp_path: Path) -> None:
        shutil.copytree(executorch_place, tmp_path / "executorch")
        files = {name: (executorch_place / name).read_bytes() for name in ("model.pte", "model.json")}
        cut = files["model.pte"][: len(files["model.pte"]) // 2]
        (tmp_path / "executorch" / "model.pte").write_bytes(cut)
        with pytest.raises(RunError, match=r"model\.pte is damaged or was edited"):
            check_export(exported(0).expected, TARGETS["executorch"], tmp_path)
        with pytest.raises(UserError, match="not an ExecuTorch program"):
            open_executorch({**files, "model.pte": cut}, 1, "model.pte")


@pytest.mark.parametrize("bottleneck", [False, True], ids=["basic", "bottleneck"])
@pytest.mark.parametrize("name", ["openvino", "executorch"])
def test_the_resnet_family(make_data: Callable[..., DataSet], tmp_path: Path, name: str, bottleneck: bool) -> None:
    """Its largest subnet and a random one, with statistics unlike a fresh network's."""
    pytest.importorskip(name)
    fields: dict[str, Any] = {"channels": (32, 64), "strides": (1, 2), "bottleneck": bottleneck}
    net = ResNet(ResNetSettings.for_images(image_size=8, in_channels=1, num_classes=3, **fields), seed=0).eval()
    generator = torch.Generator().manual_seed(3)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.1 * torch.rand(tensor.shape, generator=generator)
    target = TARGETS[name]
    for arch in (net.space.largest(), net.space.sample(random.Random(1))):
        subnet, plain = tmp_path / str(arch), net.extract(arch)
        write_subnet(subnet, plain, describe_subnet(net, arch, make_data()))
        expected = ReferenceLogits.of(read_reference(subnet, images=4))
        place, certificate = export_subnet(expected, target, subnet / "export")
        assert certificate.passed
        opened = target.open({file: (place / file).read_bytes() for file in target.files}, 1, name)
        x_1CHW = torch.randn(1, 1, 8, 8, generator=generator)
        with torch.inference_mode():
            logits = plain(x_1CHW)
        assert len(logits.unique()) == 3
        torch.testing.assert_close(opened.run(x_1CHW), logits, atol=1e-4 * float(logits.abs().max()), rtol=0)


@pytest.mark.parametrize("certified", [True, False])
@pytest.mark.parametrize("name", ["model.xml", "model.bin", "model.pte", "model.json"])
def test_no_flip_goes_unnoticed(request: pytest.FixtureRequest, tmp_path: Path, name: str, certified: bool) -> None:
    target = "openvino" if name in TARGETS["openvino"].files else "executorch"
    place = Path(shutil.copytree(request.getfixturevalue(f"{target}_place"), tmp_path / target))
    if not certified:
        (place / "certificate.json").unlink()
    assert {check_file(place / file).state for file in TARGETS[target].files} == {"whole"}
    content = (place / name).read_bytes()
    for damaged in (*flips(content, 300), *flips(content, 50, within=(len(content) - 110, len(content)))):
        (place / name).write_bytes(damaged)
        assert check_file(place / name).state == "damaged"
    for length in (len(content) - 1, len(content) - 80, len(content) // 2, 0):
        (place / name).write_bytes(content[:length])
        assert check_file(place / name).state == "damaged"
