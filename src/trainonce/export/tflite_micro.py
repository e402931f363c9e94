"""LiteRT for Microcontrollers (TFLite Micro): a .tflite file in 8-bit integers, images and logits too.

The same operators as LiteRT's, computed by the kernels that a microcontroller has where none are written for it.
Nothing travels inside that a microcontroller does not need: tensors have no names, and the description lies beside the
file.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainonce.errors import UserError
from trainonce.export import sidecar
from trainonce.export.description import FileDescription, Opened, Run, Written, check_shapes
from trainonce.export.onnx import FILE as ONNX_FILE
from trainonce.export.onnx import open_onnx
from trainonce.export.reference import Reference
from trainonce.export.sensitive import calibration, cheapest
from trainonce.export.tflite import graph_of, ranges_of
from trainonce.export.tools import hushed, printed, sentence
from trainonce.extras import try_import
from trainonce.tflite.file import FileGraph, to_tflite
from trainonce.tflite.int8 import LARGEST, SMALLEST, in_int8

FILE, SIDECAR = "model.tflite", sidecar.FILE
EXTRA = "tflite-micro"
SMALLEST_ARENA, LARGEST_ARENA = 2**20, 2**30
"""Bytes for an interpreter here, whose arena is then measured."""
ARENA = re.compile(r"Arena allocation total (\d+) bytes")
VALIDATE_IMAGES = 500
"""How many images of the validate split the choice of float32 layers is made on: these kernels are slow on purpose."""


def write_tflite_micro(reference: Reference, *, max_loss: float) -> Written:
    """The file, and its description. `details` say what it loses on the validate split, its arena and its operators.

    `max_loss` is in points of top-1. Raises `UserError` without the run's images or the extras tflite-micro and onnx.
    """
    calibrate = calibration(reference)
    graph, description = graph_of(reference.onnx)
    ranges = ranges_of(graph, reference.onnx, calibrate)
    described = description.model_copy(update={"precision": "int8", "batch": 1, "layers": {}})

    def quantised(in_float: Callable[[str], bool]) -> tuple[tuple[FileGraph, dict[str, bytes]], Run]:
        made = in_int8(graph, ranges, in_float=in_float, ends="INT8")
        with try_import("this", EXTRA, told=True):
            from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema
        content = to_tflite(made, schema, named=False)
        files = {FILE: content, SIDECAR: sidecar.beside(content, described)}
        return (made, files), open_tflite_micro(files, 1, FILE).run

    floating = open_onnx({ONNX_FILE: reference.onnx}, torch.get_num_threads(), ONNX_FILE).run
    layers = list(description.layers)
    (made, files), details = cheapest(reference, floating, quantised, layers, max_loss=max_loss, images=VALIDATE_IMAGES)
    kinds = [node.kind for node in made.nodes]
    measured = {
        "arena_bytes": arena_of(files[FILE]),
        "flash_bytes": len(files[FILE]),
        "operators": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
    }
    return Written(files=files, details=details.model_copy(update=measured))


def open_tflite_micro(files: Mapping[str, bytes], threads: int, where: str) -> Opened:
    """A file that trainonce wrote, ready to compute with TFLite Micro, by one thread.

    The runtime does not look whether a file is whole: one whose hash does not hold is refused before it sees it. Raises
    `UserError` for a file or description that is damaged or foreign, and without the extra.
    """
    if sidecar.SEAL.holds(files[SIDECAR], files[FILE]) is not True:
        raise UserError(f"{where} is damaged or was not written by `trainonce export`: it has no hash that holds")
    with sentence(f"{where}: its description is not a text"):
        text = files[SIDECAR].decode()
    description = FileDescription.from_text(text, where=where)
    interpreter = _interpreter(files[FILE], where)
    given, returned = interpreter.get_input_details(0), interpreter.get_output_details(0)
    if {given["dtype"], returned["dtype"]} != {np.int8}:
        raise UserError(f"{where} has other inputs and outputs than a file of `trainonce export`")
    check_shapes(description, list(given["shape"])[1:], list(returned["shape"])[1:], where)
    (scale, zero), (scale_out, zero_out) = _numbers(given), _numbers(returned)

    def run(x_BCHW: Tensor) -> Tensor:
        images = np.clip(np.round(x_BCHW.contiguous().numpy() / scale) + zero, SMALLEST, LARGEST).astype(np.int8)
        found = []
        with sentence(f"{where} cannot be computed"):
            for image in images:
                interpreter.set_input(image[None], 0)
                interpreter.invoke()
                found.append(scale_out * (interpreter.get_output(0).astype(np.float32) - zero_out))
        return torch.from_numpy(np.concatenate(found).astype(np.float32))

    return Opened(description=description, run=run)


def arena_of(content: bytes) -> int:
    """How many bytes of memory TFLite Micro plans for a file's maps and its own records, on this machine.

    A microcontroller of 32 bits needs a little less: the records hold addresses.
    """
    interpreter = _interpreter(content, FILE)
    (shape,) = {tuple(interpreter.get_input_details(0)["shape"])}
    interpreter.set_input(np.zeros(shape, np.int8), 0)
    with hushed():
        interpreter.invoke()
    found = ARENA.search(printed(interpreter.print_allocations))
    assert found is not None
    return int(found[1])


def _interpreter(content: bytes, where: str) -> Any:
    with try_import("this", EXTRA, told=True):
        from tflite_micro.python.tflite_micro import runtime
    size = SMALLEST_ARENA
    while True:
        try:
            with hushed():
                return runtime.Interpreter.from_bytes(content, arena_size=size)
        except RuntimeError as error:  # which does not say whether it is for want of memory
            if size >= LARGEST_ARENA:
                raise UserError(f"{where} is not a file that TFLite Micro can compute here: {error}") from error
            size *= 8


def _numbers(end: Mapping[str, Any]) -> tuple[float, int]:
    how = end["quantization_parameters"]
    return float(how["scales"][0]), int(how["zero_points"][0])
