"""The ONNX file: the same network by another library's reckoning, whole, described, and refused where it is damaged."""

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn

from trainonce.errors import UserError
from trainonce.export.first_difference import first_difference
from trainonce.export.onnx import FILE, open_onnx, to_onnx
from trainonce.export.reference import images_a_call
from trainonce.export.tools import layer_names
from trainonce.latency.bench import uncollected
from trainonce.nn.kinds import spec_of
from trainonce.subnets import read_subnet

Export = Callable[[int], Any]


def content_of(exported: Export, number: int = 0) -> bytes:
    content: bytes = (exported(number).place / FILE).read_bytes()
    return content


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_runtime_computes_the_extracted_network(exported: Export, number: int, batch: int) -> None:
    """Through ONNX Runtime's own interface, on images of the subnet's resolution."""
    network, _ = read_subnet(exported(number).subnet)
    side = spec_of(network).resolution
    x_BCHW = torch.randn(batch, 1, side, side, generator=torch.Generator().manual_seed(batch))
    session = onnxruntime.InferenceSession(str(exported(number).place / FILE), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["logits"], {"images": x_BCHW.numpy()})[0])
    with torch.inference_mode():
        expected = network(x_BCHW)
    assert found.shape == (batch, 3)
    assert expected.abs().max() > 1e-2, "else being close would mean nothing"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(found.argmax(1), expected.argmax(1))


def test_the_file_is_whole_and_tells_nothing_of_this_machine(exported: Export) -> None:
    content = content_of(exported)
    model = onnx.load_model_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert all(i.data_location != onnx.TensorProto.EXTERNAL for i in model.graph.initializer)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param, "the batch has a name, not a number"
    assert str(Path(__file__).parent.parent.parent).encode() not in content
    assert b"site-packages" not in content


def test_what_a_person_needs_travels_inside(exported: Export) -> None:
    subnet = exported(2).subnet
    description = read_subnet(subnet)[1].to_json()
    model = onnx.load_model_from_string(content_of(exported, 2))
    said = json.loads({entry.key: entry.value for entry in model.metadata_props}["trainonce"])
    assert said["architecture"] == description["architecture"]
    assert said["classes"] == description["classes"]
    assert said["network"] == description["network"]
    for name in ("resolution", "channels", "layout", "mean", "std"):
        assert said["preprocessing"][name] == description["preprocessing"][name]
    assert said["preprocessing"]["resolution"] == 6


def test_every_layer_has_its_tensor_in_the_file(exported: Export) -> None:
    """Layer by layer the file gives what torch's modules give."""
    network, _ = read_subnet(exported(1).subnet)
    opened = open_onnx({FILE: content_of(exported, 1)}, 1, FILE)
    assert list(opened.description.layers) == layer_names(network)
    x_BCHW = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert first_difference(network, opened, x_BCHW) is None
    for layer in layer_names(network):
        other, _ = read_subnet(exported(1).subnet)
        with torch.no_grad():
            next(other.get_submodule(layer).parameters()).add_(1)  # all of it: a single weight may meet zeros alone
        found = first_difference(other, opened, x_BCHW)
        assert found is not None, layer
        assert found.layer == layer


class TestRefusals:
    def test_another_onnx_file(self) -> None:
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [value])
        graph.output[0].name = "y"
        foreign = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        with pytest.raises(UserError, match=r"was not written by `trainonce export`"):
            open_onnx({FILE: foreign.SerializeToString()}, 1, "foreign.onnx")

    @pytest.mark.parametrize(
        ("change", "pattern"),
        [
            (lambda said: said["preprocessing"].update(std=[0.0]), "std must be positive"),
            (lambda said: said["preprocessing"].update(channels=3), "mean and std need 3 numbers"),
            (lambda said: said["preprocessing"].update(resolution=16), "other shapes than its description says"),
            (lambda said: said.pop("classes"), "'classes' is missing"),
            (lambda said: said.update(classes=["a", "b"]), "other shapes than its description says"),
            (lambda said: said.update(format="other"), "format"),
            (lambda said: said.update(more=1), "unknown key 'more'"),
        ],
    )
    def test_a_description_that_does_not_fit(
        self, exported: Export, change: Callable[[dict[str, Any]], object], pattern: str
    ) -> None:
        model = onnx.load_model_from_string(content_of(exported))
        said = json.loads(model.metadata_props[0].value)
        change(said)
        model.metadata_props[0].value = json.dumps(said)
        with pytest.raises(UserError, match=pattern):
            open_onnx({FILE: model.SerializeToString()}, 1, FILE)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(share=st.floats(0, 1, exclude_max=True))
    def test_a_truncated_file(self, exported: Export, share: float) -> None:
        content = content_of(exported)
        with pytest.raises(UserError, match=r"^cut\.onnx "):
            open_onnx({FILE: content[: int(share * len(content))]}, 1, "cut.onnx")

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(noise=st.binary(max_size=200))
    def test_noise(self, exported: Export, noise: bytes) -> None:
        with pytest.raises(UserError, match=r"^noise\.onnx "):
            open_onnx({FILE: noise}, 1, "noise.onnx")

    @pytest.mark.parametrize("module", ["onnx", "onnxscript"])
    def test_writing_without_the_extra(self, exported: Export, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
        """A network of a person's own needs onnxscript too."""
        reference = exported(0).expected.reference
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=r"pip install 'trainonce\[onnx\]'"):
            to_onnx(nn.Sequential(reference.network), reference.file)

    def test_reading_without_the_extra(self, exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
        content = content_of(exported)
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(UserError, match=r"pip install 'trainonce\[onnx\]'"):
            open_onnx({FILE: content}, 1, FILE)


@pytest.mark.parametrize(("resolution", "images"), [(8, 128), (32, 128), (64, 64), (224, 5), (4096, 1)])
def test_few_large_images_are_compared_at_once(resolution: int, images: int) -> None:
    assert images_a_call(resolution) == images


def test_rubbish_is_collected_again_after_a_refusal() -> None:
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="no trace"), uncollected():
        raise ValueError("no trace")
    assert gc.isenabled()
