"""int8: ONNX Runtime's static quantisation (QDQ) of the ONNX file, calibrated on the calibrate split.

Weights are quantised symmetrically for each output channel, to 7 bits: products of 8-bit weights and 8-bit activations,
added in pairs, saturate in 16 bits on processors without VNNI, which would then give other logits than those with it.
Where more than the allowed top-1 is lost on the validate split, each layer is quantised by itself, which says what it
costs, and those that cost most stay in float32 until the loss is small enough.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainonce.data import Split
from trainonce.errors import UserError
from trainonce.export.description import INPUT, KEY, FileDescription, Opened, Quantised, Run, Written
from trainonce.export.onnx import EXTRA, FILE, belongs, open_onnx, parsed, redescribed
from trainonce.export.reference import Reference
from trainonce.export.tools import quiet
from trainonce.extras import try_import

CALIBRATION_IMAGES = 512
CALIBRATION_BATCH = 64
VALIDATE_IMAGES = 2000
"""How many images of the validate split the choice of float32 layers is made on."""
QUANTISED = ("Conv", "Gemm", "Relu", "Add")


def write_int8(reference: Reference, *, max_loss: float) -> Written:
    """The quantised ONNX file; `details` say what it loses on the validate split, and what each layer would.

    `max_loss` is in points of top-1. Raises `UserError` without the run's images or the extra `onnx`.
    """
    if reference.data is None:
        raise UserError(f"int8 needs the run's images to calibrate with, and {reference.no_data}")
    floating = reference.onnx
    validate = reference.data.validate.drawn(VALIDATE_IMAGES, seed=0)
    calibrate = list(_inputs(reference, reference.data.calibrate.drawn(CALIBRATION_IMAGES, seed=0)))
    float_top1 = _top1(reference, open_onnx({FILE: floating}, torch.get_num_threads(), FILE), validate)

    def quantised(in_float32: Callable[[str], bool]) -> tuple[bytes, float]:
        content = quantise(floating, calibrate, in_float32=in_float32)
        return content, _top1(reference, open_onnx({FILE: content}, torch.get_num_threads(), FILE), validate)

    content, top1 = quantised(lambda _node: False)
    kept: list[str] = []
    loss_by_layer: dict[str, float] = {}
    if float_top1 - top1 > max_loss:
        lost = {
            layer: float_top1 - quantised(lambda node, layer=layer: not belongs(node, layer))[1]  # type: ignore[misc]
            for layer in open_onnx({FILE: floating}, 1, FILE).description.layers
        }
        ranked = sorted(lost, key=lambda layer: -lost[layer])
        loss_by_layer = {layer: lost[layer] for layer in ranked}
        while ranked and float_top1 - top1 > max_loss:
            kept.append(ranked.pop(0))
            content, top1 = quantised(lambda node: any(belongs(node, layer) for layer in kept))
    details = Quantised(
        calibration_images=min(CALIBRATION_IMAGES, len(reference.data.calibrate)),
        validate_images=len(validate),
        validate_top1_float32=float_top1,
        validate_top1_int8=top1,
        validate_loss=float_top1 - top1,
        kept_in_float32=kept,
        loss_by_layer=loss_by_layer,
    )
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
    text = next(entry.value for entry in parsed(content, where=FILE).metadata_props if entry.key == KEY)
    description = FileDescription.from_text(text, where=FILE)
    return redescribed(written, description.model_copy(update={"precision": "int8", "layers": {}}))


class _CalibrationReader:
    """Batches as ONNX Runtime's calibration asks for them."""

    def __init__(self, batches: list[Tensor]) -> None:
        self._batches: Iterator[Tensor] = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        x_BCHW = next(self._batches, None)
        return None if x_BCHW is None else {INPUT: x_BCHW.contiguous().numpy()}


def _inputs(reference: Reference, split: Split) -> Iterator[Tensor]:
    for x_BCHW in reference.inputs(split):
        yield from torch.split(x_BCHW, CALIBRATION_BATCH)


def _top1(reference: Reference, opened: Opened, split: Split) -> float:
    run: Run = opened.run
    best_N = torch.cat([run(x_BCHW).argmax(1) for x_BCHW in reference.inputs(split)])
    return 100 * int((best_N == split.labels.cpu()).sum()) / len(split)
