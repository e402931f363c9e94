"""int8: ONNX Runtime's static quantisation (QDQ) of the ONNX file, calibrated on the calibrate split.

Weights are quantised symmetrically for each output channel, to 7 bits: products of 8-bit weights and 8-bit activations,
added in pairs, saturate in 16 bits on processors without VNNI, which would then give other logits than those with it.
What layers stay in float32 is found as for every int8 target: `trainonce.export.sensitive`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainonce.export.description import INPUT, Run, Written
from trainonce.export.onnx import EXTRA, FILE, description_in, open_onnx, parsed, redescribed
from trainonce.export.reference import Reference
from trainonce.export.sensitive import calibration, cheapest
from trainonce.export.tools import quiet
from trainonce.extras import try_import

QUANTISED = ("Conv", "Gemm", "Relu", "Add")


def write_int8(reference: Reference, *, max_loss: float) -> Written:
    """The quantised ONNX file; `details` say what it loses on the validate split, and what each layer would.

    `max_loss` is in points of top-1. Raises `UserError` without the run's images or the extra `onnx`.
    """
    calibrate = calibration(reference)
    floating = reference.onnx
    opened = open_onnx({FILE: floating}, torch.get_num_threads(), FILE)

    def quantised(in_float32: Callable[[str], bool]) -> tuple[bytes, Run]:
        content = quantise(floating, calibrate, in_float32=in_float32)
        return content, open_onnx({FILE: content}, torch.get_num_threads(), FILE).run

    layers = list(opened.description.layers)
    content, details = cheapest(reference, opened.run, quantised, layers, max_loss=max_loss)
    return Written(files={FILE: content}, details=details)


def quantise(content: bytes, calibrate: list[Tensor], *, in_float32: Callable[[str], bool]) -> bytes:
    """An ONNX file of `to_onnx` in int8, but for the nodes whose names `in_float32` is true of.

    `calibrate` are batches of images [B, C, H, W].
    """
    with try_import("this", EXTRA, told=True), quiet():
        import onnxruntime.quantization as ort
    model = parsed(content, where=FILE)
    excluded = [node.name for node in model.graph.node if in_float32(node.name)]
    with quiet(), TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        ort.quantize_static(
            model,
            path,
            _CalibrationReader(calibrate),
            quant_format=ort.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            reduce_range=True,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            nodes_to_exclude=excluded,
            calibrate_method=ort.CalibrationMethod.MinMax,
        )
        written = path.read_bytes()
    description = description_in(parsed(content, where=FILE), FILE)
    return redescribed(written, description.model_copy(update={"precision": "int8", "layers": {}}))


class _CalibrationReader:
    """Batches as ONNX Runtime's calibration asks for them."""

    def __init__(self, batches: list[Tensor]) -> None:
        self._batches: Iterator[Tensor] = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        x_BCHW = next(self._batches, None)
        return None if x_BCHW is None else {INPUT: x_BCHW.contiguous().numpy()}
