"""int8: smaller, about the same, and where it is not the layer that does not bear it is found and left in float32."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from trainonce.data import DataSet, Split
from trainonce.errors import UserError
from trainonce.export import TARGETS
from trainonce.export.certificate import ReferenceLogits
from trainonce.export.exporting import export_subnet
from trainonce.export.int8 import write_int8
from trainonce.export.onnx import FILE
from trainonce.export.reference import Reference
from trainonce.export.tools import layer_names

Export = Callable[[int], Any]


def judged_by_itself(reference: Reference) -> Reference:
    """The reference with images labelled as its network classifies them: its top-1 is 100."""

    @torch.no_grad()
    def relabelled(split: Split) -> Split:
        best = torch.cat([reference.network(x_BCHW).argmax(1) for x_BCHW in reference.inputs(split)])
        return dataclasses.replace(split, labels=best)

    data = reference.data
    assert isinstance(data, DataSet)
    labelled = dataclasses.replace(data, validate=relabelled(data.validate), test=relabelled(data.test))
    return dataclasses.replace(reference, data=labelled)


@pytest.fixture(scope="module")
def export(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Reference]:
    made = exported(0).expected.reference
    reference = judged_by_itself(made)
    reference.__dict__["onnx"] = made.onnx  # made once
    out = tmp_path_factory.mktemp("int8")
    return *export_subnet(ReferenceLogits.of(reference), TARGETS["onnx-int8"], out, max_loss=100), reference


def test_it_is_smaller_and_its_weights_are_integers(export: tuple[Path, Any, Reference], exported: Export) -> None:
    place, _, _ = export
    content = (place / FILE).read_bytes()
    assert len(content) < 0.6 * len(exported(0).expected.reference.onnx)
    weights = [i for i in onnx.load_model_from_string(content).graph.initializer if len(i.dims) == 4]
    assert len(weights) > 20
    assert all(i.data_type == onnx.TensorProto.INT8 for i in weights)
    largest = max(int(abs(numpy_helper.to_array(i).astype(int)).max()) for i in weights)
    assert largest <= 64, "seven bits, so that no processor saturates"


def test_the_certificate_says_what_it_loses(export: tuple[Path, Any, Reference]) -> None:
    """Scored anew through ONNX Runtime's own interface."""
    place, certificate, reference = export
    session = onnxruntime.InferenceSession(str(place / FILE), providers=["CPUExecutionProvider"])
    assert reference.data is not None
    found = [
        session.run(None, {"images": x_BCHW.numpy()})[0].argmax(1) for x_BCHW in reference.inputs(reference.data.test)
    ]
    right = torch.cat([torch.from_numpy(best) for best in found]) == reference.data.test.labels
    assert certificate.top1["exported"] == pytest.approx(100 * float(right.double().mean()))
    assert certificate.top1["extracted"] == 100
    assert certificate.precision == "int8"
    details = certificate.details
    assert details.validate_loss == pytest.approx(details.validate_top1_float32 - details.validate_top1_int8)


def test_a_layer_that_does_not_bear_it_is_found(exported: Export) -> None:
    """One channel of the first map is a million times as large as the others, and nothing looks at it.

    In float32 that changes nothing; eight bits for the whole map leave nothing of the other channels. It is the stem
    that writes that map and the first block that reads it, so these two cost most and stay in float32.
    """
    made = exported(0).expected.reference
    network = made.network
    before = {name: t.clone() for name, t in network.state_dict().items()}
    try:
        with torch.no_grad():
            network.stem[1].weight[0] = 1e6
            network.blocks[0].depthwise[0].weight[0] = 0
            if network.blocks[0].residual:
                network.blocks[0].residual = False
        reference = judged_by_itself(dataclasses.replace(made))
        details = write_int8(reference, max_loss=5).details
    finally:
        network.load_state_dict(before)
        network.blocks[0].residual = network.spec.blocks[0].residual
    assert max(details.loss_by_layer.values()) > 20
    assert list(details.loss_by_layer)[:2] == details.kept_in_float32[:2]
    assert set(details.kept_in_float32[:2]) == {"stem", "blocks.0"}
    assert set(details.loss_by_layer) == set(layer_names(network))
    assert details.validate_top1_float32 is not None
    assert details.validate_top1_int8 is not None
    assert details.validate_loss == details.validate_top1_float32 - details.validate_top1_int8 <= 5


def test_without_images_there_is_nothing_to_calibrate_with(exported: Export) -> None:
    reference = dataclasses.replace(exported(0).expected.reference, data=None, no_data="they are gone")
    with pytest.raises(UserError, match="int8 needs the run's images to calibrate with, and they are gone"):
        write_int8(reference, max_loss=1)
