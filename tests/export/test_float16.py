"""ONNX in float16: half as large, about the same, and refused where a map does not fit into float16."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

from trainonce.errors import RunError
from trainonce.export import TARGETS
from trainonce.export.certificate import Certificate, ReferenceLogits
from trainonce.export.compare import FLOAT16_TOLERANCE
from trainonce.export.exporting import export_subnet
from trainonce.export.onnx import FILE

Export = Callable[[int], Any]


@pytest.fixture(scope="module")
def made(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Certificate]:
    out = tmp_path_factory.mktemp("float16")
    return export_subnet(exported(0).expected, TARGETS["onnx-fp16"], out, max_loss=100)


def test_it_is_half_as_large_and_float16_inside(made: tuple[Path, Certificate], exported: Export) -> None:
    content = (made[0] / FILE).read_bytes()
    assert len(content) < 0.6 * len(exported(0).expected.reference.onnx)
    graph = onnx.load_model_from_string(content).graph
    weights = [value for value in graph.initializer if len(value.dims) == 4]
    assert len(weights) > 20
    assert {value.data_type for value in weights} == {onnx.TensorProto.FLOAT16}
    ends = (*graph.input, *graph.output)
    assert {value.type.tensor_type.elem_type for value in ends} == {onnx.TensorProto.FLOAT}


def test_it_computes_about_the_same(made: tuple[Path, Certificate], exported: Export) -> None:
    place, certificate = made
    reference = exported(0).expected.reference
    session = onnxruntime.InferenceSession(str(place / FILE), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"images": reference.random_BCHW.numpy()})[0])
    with torch.inference_mode():
        expected = reference.network(reference.random_BCHW)
    assert not torch.equal(found, expected)
    allowed = FLOAT16_TOLERANCE * float(expected.abs().max().clamp(min=1))
    torch.testing.assert_close(found, expected, atol=allowed, rtol=0)
    assert certificate.passed
    assert (certificate.precision, certificate.tolerance) == ("float16", FLOAT16_TOLERANCE)


def test_maps_beyond_float16_do_not_pass(exported: Export, tmp_path: Path) -> None:
    """One map a million times as large as it was; what comes after it would make it small again."""
    before = exported(0).expected.reference
    network = before.network
    weights = {name: t.clone() for name, t in network.state_dict().items()}
    try:
        with torch.no_grad():
            network.stem[1].weight.mul_(1e6)
            network.stem[1].bias.mul_(1e6)
            network.blocks[0].depthwise[0].weight.mul_(1e-6)
        reference = dataclasses.replace(before, supernet=None, no_supernet="it was changed")
        with pytest.raises(RunError, match=r"the exported file is not the extracted network: .* not finite"):
            export_subnet(ReferenceLogits.of(reference), TARGETS["onnx-fp16"], tmp_path, max_loss=100)
    finally:
        network.load_state_dict(weights)
