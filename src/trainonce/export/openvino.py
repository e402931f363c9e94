"""OpenVINO: from the ONNX file to model.xml and model.bin, in float32 or int8 and with dynamic batch.

int8 is that of the ONNX file: OpenVINO makes its own 8-bit operators of Q and DQ nodes when it loads the model.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from trainonce.errors import UserError
from trainonce.export.description import INPUT, KEY, OUTPUT, FileDescription, Opened, Run, Written, check_shapes
from trainonce.export.int8 import quantise
from trainonce.export.onnx import FILE as ONNX_FILE
from trainonce.export.onnx import open_onnx
from trainonce.export.reference import Reference
from trainonce.export.seal import Seal
from trainonce.export.sensitive import calibration, cheapest
from trainonce.export.tools import quiet, sentence
from trainonce.extras import try_import

XML, BIN = "model.xml", "model.bin"
EXTRA = "openvino"
SEAL = Seal(head=f"<!-- {KEY} sha256 with {BIN} ".encode(), tail=b" -->\n")
"""A remark after the model; the hash is of the model and then of the weights in the other file."""
REASON = -1
"""The line of an error that says what is wrong: OpenVINO puts the places in its source first."""


def write_openvino(content: bytes) -> Written:
    """The OpenVINO files of an ONNX file of `to_onnx`. Raises `UserError` without the extras openvino and onnx."""
    with try_import("this", EXTRA, told=True):
        import openvino
    description = open_onnx({ONNX_FILE: content}, 1, ONNX_FILE).description
    with quiet(), TemporaryDirectory() as folder:
        model = openvino.Core().read_model(content)
        model.set_rt_info(description.to_text(), [KEY])
        path = Path(folder) / XML
        openvino.save_model(model, path, compress_to_fp16=False)
        model_xml, weights = ((Path(folder) / name).read_bytes() for name in (XML, BIN))
    return Written(files={XML: SEAL.put(model_xml, weights), BIN: weights})


def write_openvino_int8(reference: Reference, *, max_loss: float) -> Written:
    """The OpenVINO files of the quantised ONNX file; `details` say what they lose on the validate split.

    `max_loss` is in points of top-1. Raises `UserError` without the run's images or the extras openvino and onnx.
    """
    calibrate = calibration(reference)
    floating = open_onnx({ONNX_FILE: reference.onnx}, torch.get_num_threads(), ONNX_FILE)

    def quantised(in_float32: Callable[[str], bool]) -> tuple[dict[str, bytes], Run]:
        files = write_openvino(quantise(reference.onnx, calibrate, in_float32=in_float32)).files
        return files, open_openvino(files, torch.get_num_threads(), XML).run

    layers = list(floating.description.layers)
    files, details = cheapest(reference, floating.run, quantised, layers, max_loss=max_loss)
    return Written(files=files, details=details)


def open_openvino(files: Mapping[str, bytes], threads: int, where: str) -> Opened:
    """OpenVINO files that trainonce wrote, ready to compute on the CPU, in float32 where they are not int8.

    Raises `UserError` for files that are damaged or foreign, and without the extra.
    """
    with try_import("this", EXTRA, told=True):
        import openvino
    core = openvino.Core()

    def read() -> Any:
        with sentence(f"{where} is not an OpenVINO model that can be read here", line=REASON):
            return core.read_model(files[XML], files[BIN])

    def compiled(model: Any) -> Any:
        # Without the hint a processor with bfloat16 arithmetic would use that.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        with sentence(f"{where} cannot be computed here", line=REASON):
            return core.compile_model(model, "CPU", settings)

    model = read()
    if not model.has_rt_info([KEY]):
        raise UserError(
            f"{where} was not written by `trainonce export`: it does not say what its images and classes are"
        )
    with sentence(f"{where}: its description is not a text", line=REASON):
        text = model.get_rt_info([KEY]).astype(str)
    description = FileDescription.from_text(text, where=where)
    _check_shapes(model, description, where)
    network = compiled(model)

    def run(x_BCHW: Tensor) -> Tensor:
        with sentence(f"{where} cannot be computed", line=REASON):
            found = network({INPUT: x_BCHW.contiguous().numpy()})[OUTPUT]
        return torch.from_numpy(found.copy())

    def layers(x_BCHW: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        inside = read()
        tensors = [description.layers[name] for name in names]
        with sentence(f"{where} does not have all the layers that its description names", line=REASON):
            inside.add_outputs([name for name in dict.fromkeys(tensors) if name != OUTPUT])
        network = compiled(inside)
        with sentence(f"{where} cannot be computed", line=REASON):
            found = network({INPUT: x_BCHW.contiguous().numpy()})
        return {name: torch.from_numpy(found[tensor].copy()) for name, tensor in zip(names, tensors, strict=True)}

    return Opened(description=description, run=run, layers=layers if description.layers else None)


def _check_shapes(model: Any, description: FileDescription, where: str) -> None:
    ends = [*model.inputs, *model.outputs]
    named = [name in end.get_names() for end, name in zip(ends, (INPUT, OUTPUT), strict=False)]
    if len(ends) != 2 or not all(named):
        raise UserError(f"{where} has other inputs and outputs than a file of `trainonce export`")
    given, returned = ([_side(d) for d in end.get_partial_shape()][1:] for end in ends)
    check_shapes(description, given, returned, where)


def _side(dimension: Any) -> int | None:
    return int(dimension.get_length()) if dimension.is_static else None
