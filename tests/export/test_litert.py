"""LiteRT files, by LiteRT's own interpreter; what is written of a network, and what is refused."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.export.conftest import of_a_resnet
from tests.export.test_int8 import judged_by_itself
from tests.support.damage import flips
from torch import Tensor, nn

from trainonce.data import DataSet
from trainonce.errors import RunError, UserError
from trainonce.export import TARGETS, litert
from trainonce.export.certificate import ReferenceLogits
from trainonce.export.description import FileDescription
from trainonce.export.exporting import check_export, export_subnet
from trainonce.export.first_difference import first_difference
from trainonce.export.integrity import check_file
from trainonce.export.litert import FILE, SEAL, open_litert, write_litert
from trainonce.export.onnx import to_onnx
from trainonce.export.tflite import graph_of, ranges_of
from trainonce.subnets import read_subnet
from trainonce.tflite.file import FileTensor, in_float32
from trainonce.tflite.int8 import in_int8, scale_and_zero_point, weights

Export = Callable[[int], Any]


class Odd(nn.Module):
    """What TensorFlow Lite says otherwise than torch: paddings, pools, groups, rows of maps, constants."""

    def __init__(self) -> None:
        super().__init__()
        self.even = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.gaps = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.groups = nn.Conv2d(8, 8, (1, 3), padding=(0, 1), groups=2, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.twice = nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.hidden = nn.Linear(32 * 2 * 2, 12)
        self.classifier = nn.Linear(12, 3)
        with torch.no_grad():
            self.norm.weight.uniform_(0.5, 2)
            self.norm.bias.uniform_(-1, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = torch.relu(self.even(x_BCHW))
        x = torch.cat([nn.functional.silu(self.gaps(x)), self.groups(x).clamp(-0.5, 0.75)], 1)
        x = nn.functional.max_pool2d(self.norm(x) / 3 - 0.25, 3, stride=1, padding=1)
        x = nn.functional.avg_pool2d(nn.functional.leaky_relu(self.twice(x), 0.1), 2)
        x = nn.functional.hardsigmoid(x) * nn.functional.hardswish(x)
        return self.classifier(torch.tanh(self.hidden(x.flatten(1))))  # type: ignore[no-any-return]


class Fire(nn.Module):
    """As SqueezeNet is: pools that round up, here with every remainder, and a mean instead of a linear layer."""

    def __init__(self, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.pool = nn.MaxPool2d(kernel, stride, padding, ceil_mode=True)
        self.narrow = nn.Conv2d(6, 4, 1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.classifier = nn.Conv2d(8, 3, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.narrow(self.pool(self.stem(x_BCHW) - 2))  # below 0: of zeros around it the largest would be seen
        x = torch.cat([torch.relu(self.left(x)), self.right(x)], 1)
        return self.classifier(x).mean((2, 3))  # type: ignore[no-any-return]


class Shuffled(nn.Module):
    """As ShuffleNetV2 is: some channels go on as they are, others through a layer, and all are reordered."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.stem = nn.Conv2d(1, 12, 3, stride=2, padding=1)
        self.branch = nn.Conv2d(7, 7, 3, padding=1)
        self.after = nn.Conv2d(12, 6, (1, 3), groups=3)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        some, others = torch.split(torch.relu(self.stem(x_BCHW)), [5, 7], 1)
        x = torch.cat([some, torch.relu(self.branch(others))], 1)
        x = x.view(-1, self.groups, 12 // self.groups, 4, 4).transpose(1, 2).reshape(-1, 12, 4, 4)
        return self.classifier(self.after(x).mean((2, 3)))  # type: ignore[no-any-return]


class Means(nn.Module):
    """Pools of means that round up."""

    def __init__(self, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 2)  # maps of 7 x 7
        self.pool = nn.AvgPool2d(kernel, stride, padding, ceil_mode=True, count_include_pad=padding == 0)
        self.classifier = nn.Conv2d(6, 3, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.classifier(self.pool(self.stem(x_BCHW) - 2)).mean((2, 3))  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def runtime(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("export"):
        pytest.importorskip("ai_edge_litert")


def onnx_of(network: nn.Module, exported: Export) -> tuple[bytes, FileDescription]:
    """A network of 8 x 8 images as an ONNX file."""
    description = exported(1).expected.reference.file
    return to_onnx(network, description), description


@pytest.fixture(scope="module")
def place(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, certificate = export_subnet(exported(1).expected, TARGETS["litert"], tmp_path_factory.mktemp("litert"))
    assert certificate.passed
    assert certificate.supernet_and_extracted.identical  # type: ignore[union-attr]
    return place


def outputs(content: bytes, x_BCHW: Tensor) -> Tensor:
    """What LiteRT gives for images, one after the other."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (given,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (given["name"], returned["name"]) == ("images", "logits")
    found = []
    for x_1CHW in torch.split(x_BCHW, 1):
        interpreter.set_tensor(given["index"], x_1CHW.numpy())
        interpreter.invoke()
        found.append(torch.from_numpy(interpreter.get_tensor(returned["index"])))
    return torch.cat(found)


@pytest.mark.export
class TestFile:
    def test_it_computes_the_extracted_network(self, exported: Export, place: Path) -> None:
        network, _ = read_subnet(exported(1).subnet)
        x_BCHW = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        with torch.inference_mode():
            expected = network(x_BCHW)
        found = outputs((place / FILE).read_bytes(), x_BCHW)
        torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)

    def test_images_at_once_get_what_each_gets_alone(self, exported: Export, place: Path) -> None:
        """To the last bit; files of earlier versions, whose shapes are of one image, take them one by one."""
        content = (place / FILE).read_bytes()
        reference = exported(1).expected.reference
        x_BCHW, features = reference.random_BCHW[:9], reference.network.classifier.in_features
        later, earlier = (np.array([size, features], np.int32).tobytes() for size in (-1, 1))
        assert content.count(later) == 1
        alone = outputs(content, x_BCHW)
        for file in (content, content.replace(later, earlier)):
            opened = open_litert({FILE: file}, 1, FILE)
            torch.testing.assert_close(opened.run(x_BCHW), alone, rtol=0, atol=0)
            torch.testing.assert_close(opened.run(x_BCHW[:1]), alone[:1], rtol=0, atol=0)

    def test_contents_begin_where_processors_can_read_them(self, place: Path) -> None:
        from ai_edge_litert import schema_py_generated as schema

        content = (place / FILE).read_bytes()
        model = schema.Model.GetRootAs(content, 0)
        starts = [
            np.frombuffer(content, np.uint8).ctypes.data - model.Buffers(number).DataAsNumpy().ctypes.data
            for number in range(model.BuffersLength())
            if not model.Buffers(number).DataIsNone()
        ]
        assert len(starts) > 50
        assert {start % 16 for start in starts} == {0}

    def test_the_description_travels_inside(self, exported: Export, place: Path) -> None:
        from ai_edge_litert import schema_py_generated as schema

        model = schema.Model.GetRootAs((place / FILE).read_bytes(), 0)
        note = model.Metadata(0)
        assert note.Name() == b"trainonce"
        said = json.loads(bytes(model.Buffers(note.Buffer()).DataAsNumpy()))
        assert said["classes"] == list(exported(1).expected.reference.file.classes)
        assert said["batch"] == 1

    def test_a_corrupted_weight_names_its_layer(self, exported: Export, place: Path) -> None:
        made = exported(1).expected.reference
        graph, description = graph_of(made.onnx)
        at = next(n for n in graph.nodes if n.kind == "DEPTHWISE_CONV_2D" and n.name.startswith("blocks.2"))
        graph.constants[at.inputs[1]] = graph.constants[at.inputs[1]] + np.float32(3)
        corrupted = litert.litert_file(in_float32(graph), graph, description, "float32")
        found = first_difference(made.network, open_litert({FILE: corrupted}, 1, FILE), made.random_BCHW[:2])
        assert found is not None
        assert found.layer == "blocks.2"

    def test_what_is_none_is_a_sentence(self, exported: Export, place: Path, tmp_path: Path) -> None:
        content = (place / FILE).read_bytes()
        for other in (b"", b"hello, this is none", content[:100], content[: len(content) // 2]):
            with pytest.raises(UserError, match=r"^x is not a LiteRT file"):
                open_litert({FILE: other}, 1, "x")
        body = content[: -len(SEAL.head) - 64]
        foreign = body.replace(b"trainonce\0", b"elsewhere\0")
        with pytest.raises(UserError, match=r"^x was not written by `trainonce export`"):
            open_litert({FILE: foreign}, 1, "x")
        with pytest.raises(UserError, match=r"^x: its description is not JSON"):
            open_litert({FILE: body.replace(b'{"format"', b'{{format"')}, 1, "x")
        with pytest.raises(UserError, match=r"^x takes and gives other shapes than its description says"):
            open_litert({FILE: body.replace(b'"resolution": 8', b'"resolution": 9')}, 1, "x")
        with pytest.raises(UserError, match=r"^x cannot be computed: .*[Dd]imension"):
            open_litert({FILE: content}, 1, "x").run(torch.zeros(1, 1, 6, 6))
        shutil.copytree(place, tmp_path / "litert")
        (tmp_path / "litert" / FILE).write_bytes(content[:-1])
        with pytest.raises(RunError, match=r"model\.tflite is damaged or was edited"):
            check_export(exported(1).expected, TARGETS["litert"], tmp_path)

    @pytest.mark.parametrize("certified", [True, False])
    def test_no_flip_goes_unnoticed(self, place: Path, tmp_path: Path, certified: bool) -> None:
        copy = Path(shutil.copytree(place, tmp_path / "litert"))
        if not certified:
            (copy / "certificate.json").unlink()
        content = (copy / FILE).read_bytes()
        assert check_file(copy / FILE).state == "whole"
        ends = flips(content, 50, within=(len(content) - 110, len(content)))
        for damaged in (*flips(content, 200), *ends, content[:-1], content[:-80], b""):
            (copy / FILE).write_bytes(damaged)
            assert check_file(copy / FILE).state == "damaged"

    def test_another_precision_is_not_taken_for_it(self, exported: Export, place: Path, tmp_path: Path) -> None:
        shutil.copytree(place, tmp_path / "litert-fp16")
        with pytest.raises(UserError, match="computes in float32: that is not a file of --to litert-fp16"):
            check_export(exported(1).expected, TARGETS["litert-fp16"], tmp_path)

    def test_what_torch_says_otherwise(self, exported: Export) -> None:
        torch.manual_seed(0)
        network = Odd().eval()
        content, description = onnx_of(network, exported)
        reference = dataclasses.replace(exported(1).expected.reference, network=network, file=description)
        reference.__dict__["onnx"] = content
        x_BCHW = torch.randn(4, 1, 8, 8)
        with torch.inference_mode():
            expected = network(x_BCHW)
        files = write_litert(reference).files
        found = outputs(files[FILE], x_BCHW)
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(open_litert(files, 1, FILE).run(x_BCHW), found, rtol=0, atol=0)
        quantised = TARGETS["litert-int8"].write(reference, 100).files
        low = open_litert(quantised, 1, "x").run(x_BCHW)
        assert float((low - expected).abs().max()) < 0.1 * float(expected.abs().max())

    @pytest.mark.parametrize(
        "network",
        [
            *(partial(Fire, *of) for of in ((3, 2, 0), (3, 3, 0), (2, 3, 0), (3, 2, 1), (3, 4, 1), (2, 2, 0))),
            *(partial(Means, *of) for of in ((2, 2, 0), (3, 2, 0), (3, 2, 1))),
            *(partial(Shuffled, groups) for groups in (2, 3)),
        ],
    )
    def test_what_other_networks_have(self, exported: Export, network: Callable[[], nn.Module]) -> None:
        """Pools that round up, and channels that are reordered: in float32 as torch computes it, in int8 about so."""
        torch.manual_seed(0)
        made = network().eval()
        content, description = onnx_of(made, exported)
        reference = dataclasses.replace(exported(1).expected.reference, network=made, file=description)
        reference.__dict__["onnx"] = content
        x_BCHW = next(reference.inputs(reference.data.test))
        with torch.inference_mode():
            expected = made(x_BCHW)
        files = write_litert(reference).files
        for found in (outputs(files[FILE], x_BCHW), open_litert(files, 1, FILE).run(x_BCHW)):
            torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
        low = open_litert(TARGETS["litert-int8"].write(reference, 100).files, 1, "x").run(x_BCHW)
        assert float((low - expected).abs().max()) < 0.1 * float(expected.abs().max())

    def test_the_resnet_family(self, make_data: Callable[..., DataSet], tmp_path: Path) -> None:
        _, certificate = export_subnet(of_a_resnet(make_data(), tmp_path / "subnet"), TARGETS["litert"], tmp_path)
        assert certificate.passed


@pytest.mark.export
class TestSmaller:
    def test_half(self, exported: Export, place: Path, tmp_path: Path) -> None:
        half, certificate = export_subnet(exported(1).expected, TARGETS["litert-fp16"], tmp_path, max_loss=100)
        assert certificate.passed
        assert certificate.precision == "float16"
        assert certificate.tolerance == 0.02
        assert certificate.extracted_and_exported.largest_difference > 0  # type: ignore[union-attr,operator]
        assert (half / FILE).stat().st_size < 0.7 * (place / FILE).stat().st_size

    def test_int8_is_about_the_same(self, exported: Export, tmp_path: Path) -> None:
        """Its top-1 by LiteRT itself is that of the certificate, which is of images labelled by the network."""
        made = exported(0).expected.reference
        reference = judged_by_itself(made)
        reference.__dict__["onnx"] = made.onnx
        place, certificate = export_subnet(ReferenceLogits.of(reference), TARGETS["litert-int8"], tmp_path, max_loss=20)
        assert certificate.passed
        assert reference.data is not None
        content = (place / FILE).read_bytes()
        best = torch.cat([outputs(content, x_BCHW).argmax(1) for x_BCHW in reference.inputs(reference.data.test)])
        right = float((best == reference.data.test.labels).double().mean())
        assert certificate.top1["exported"] == pytest.approx(100 * right)
        assert certificate.details.calibration_images
        from ai_edge_litert.interpreter import Interpreter

        tensors = Interpreter(model_content=content).get_tensor_details()
        filters = [t for t in tensors if len(t["shape"]) == 4 and t["quantization_parameters"]["scales"].size > 1]
        assert len(filters) > 20
        assert all((t["quantization_parameters"]["zero_points"] == 0).all() for t in filters)

    @pytest.mark.parametrize("kept", ["stem", "blocks", "classifier", ""])
    def test_what_stays_in_float32_is_converted_on_both_sides(self, exported: Export, kept: str) -> None:
        """Any part of the network can: its numbers come near those of float32."""
        made = exported(0).expected.reference
        graph, description = graph_of(made.onnx)
        with torch.inference_mode():
            x_BCHW = next(made.inputs(made.data.test))
            expected = made.network(x_BCHW)
        ranges = ranges_of(graph, made.onnx, [x_BCHW])
        content = litert.litert_file(
            in_int8(graph, ranges, in_float=lambda name: name.startswith(kept)), graph, description, "int8"
        )
        found = outputs(content, x_BCHW)
        within = 2e-5 if not kept else 0.2  # a kernel of another width sums otherwise: 2.2e-6 on a CPU with AVX-512
        assert float((found - expected).abs().max()) <= within * float(expected.abs().max().clamp(min=1))

    @pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D", "HARD_SWISH", "ADD", "MUL", "MEAN"])
    def test_a_map_of_zeros_alone_can_be_computed(self, exported: Export, kind: str) -> None:
        """One that was zero on every calibration image; LiteRT refused the file, whose scale there was tiny."""
        made = exported(1).expected.reference
        graph, description = graph_of(made.onnx)
        ranges = ranges_of(graph, made.onnx, [made.random_BCHW])
        zeros = next(node.output for node in graph.nodes if node.kind == kind)
        file = in_int8(graph, ranges | {zeros: (0.0, 0.0)}, in_float=lambda _: False)
        found = outputs(litert.litert_file(file, graph, description, "int8"), made.random_BCHW)
        assert found.isfinite().all()


class TestWithoutTheRuntime:
    def test_an_operator_that_is_not_written_is_named(self, exported: Export) -> None:
        class Sine(nn.Module):
            def forward(self, x_BCHW: Tensor) -> Tensor:
                return torch.sin(x_BCHW).mean((2, 3)).expand(-1, 3)

        content, _ = onnx_of(Sine().eval(), exported)
        with pytest.raises(UserError, match=r"^no TensorFlow Lite file can be written: network/Sin_0 needs what Sin"):
            graph_of(content)

    @pytest.mark.parametrize(
        ("between", "why"),
        [
            (lambda x: torch.relu(x).transpose(1, 2), "Relu of channels in groups"),
            (lambda x: x.transpose(3, 4), "axes in another order"),
            (lambda x: x.transpose(1, 2).transpose(1, 2), "channels in groups other than reordered"),
        ],
    )
    def test_channels_in_groups_that_are_not_reordered(
        self, exported: Export, between: Callable[[Tensor], Tensor], why: str
    ) -> None:
        class Grouped(nn.Module):
            def forward(self, x_BCHW: Tensor) -> Tensor:
                x = torch.cat([x_BCHW, x_BCHW, x_BCHW, x_BCHW], 1)
                return between(x.view(-1, 2, 2, 8, 8)).reshape(-1, 4, 64, 1).mean((2, 3))[:, :3]

        content, _ = onnx_of(Grouped().eval(), exported)
        with pytest.raises(UserError, match=f"needs {why}"):
            graph_of(content)

    def test_means_over_windows_that_begin_elsewhere(self, exported: Export) -> None:
        """TensorFlow Lite puts one pixel before and one behind, where torch has both behind."""
        content, _ = onnx_of(Means(3, 3, 0).eval(), exported)
        with pytest.raises(UserError, match="needs a mean over windows that end beyond a map of this size"):
            graph_of(content)

    def test_shapes_are_those_of_onnx(self, exported: Export) -> None:
        """Every tensor that both have is as large, its channels last."""
        made = exported(1).expected.reference
        graph, _ = graph_of(made.onnx)
        opened = TARGETS["onnx"].open({"model.onnx": made.onnx}, 1, "x")
        assert opened.layers is not None
        maps = opened.layers(made.random_BCHW[:1], list(graph.layers))
        assert len(maps) > 5
        for layer, found in maps.items():
            shape = graph.shapes[graph.layers[layer]]
            assert shape == tuple(found.permute(0, 2, 3, 1).shape if found.ndim == 4 else found.shape)

    @pytest.mark.parametrize("range_", [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)])
    def test_zero_is_a_number_of_int8(self, range_: tuple[float, float]) -> None:
        scale, zero = scale_and_zero_point([range_])
        assert -128 <= zero <= 127
        assert scale * (127 - zero) >= range_[1] - 0.5 * scale
        assert scale * (-128 - zero) <= range_[0] + 0.5 * scale

    def test_weights_are_near_and_biases_fit(self) -> None:
        """Of a channel without weights too, whose bias would else need a scale beyond 32 bits."""
        filters = np.zeros((3, 1, 1, 4), np.float32)
        filters[0], filters[1] = [[[1.0, -0.5, 0.25, 0.0]]], 1e-9
        bias = np.array([0.125, 3.0, -7.0], np.float32)
        numbers, sums = weights(
            FileTensor(shape=filters.shape, value=filters), FileTensor(shape=(3,), value=bias), axis=0, of_input=0.01
        )
        assert numbers.value is not None
        assert numbers.scales is not None
        assert sums.value is not None
        assert sums.scales is not None
        np.testing.assert_allclose(numbers.value[0] * numbers.scales[0], filters[0], atol=0.5 / 127)
        np.testing.assert_allclose(sums.value * sums.scales, bias, atol=0.5 * 0.01 / 127)
        np.testing.assert_allclose(sums.scales, numbers.scales * 0.01)

    def test_a_bare_file_is_unknown(self, tmp_path: Path) -> None:
        (tmp_path / FILE).write_bytes(b"\x1c\0\0\0TFL3 and nothing of ours")
        assert check_file(tmp_path / FILE).state == "damaged"
