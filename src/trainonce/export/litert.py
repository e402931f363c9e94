"""LiteRT (formerly TensorFlow Lite): a .tflite file for one image a call, in float32, float16 or int8.

The file is written here, from the operators of the ONNX file: the converters from PyTorch and from ONNX that are
published want TensorFlow, JAX or versions of libraries that trainonce cannot share. LiteRT itself computes it.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainonce.errors import UserError
from trainonce.export.description import KEY, FileDescription, Opened, Run, Written, check_shapes
from trainonce.export.onnx import FILE as ONNX_FILE
from trainonce.export.onnx import open_onnx
from trainonce.export.reference import Reference
from trainonce.export.seal import Seal
from trainonce.export.sensitive import calibration, cheapest
from trainonce.export.tflite import graph_of, ranges_of
from trainonce.export.tools import REFUSALS, hushed, sentence
from trainonce.extras import try_import
from trainonce.tflite.file import IDENTIFIER, FileGraph, in_float16, in_float32, to_tflite
from trainonce.tflite.graph import Graph
from trainonce.tflite.int8 import in_int8

FILE = "model.tflite"
EXTRA = "litert"
SEAL = Seal(head=f"{KEY} sha256 ".encode())
"""After the FlatBuffer, which says itself where its parts are."""
UNREADABLE: tuple[type[Exception], ...] = (*REFUSALS, struct.error, IndexError, KeyError)
"""What reading a FlatBuffer that is none raises."""


def write_litert(reference: Reference) -> Written:
    """The file in float32. Raises `UserError` without the extras litert and onnx, and for what cannot be written."""
    graph, description = graph_of(reference.onnx)
    return Written(files={FILE: litert_file(in_float32(graph), graph, description, "float32")})


def write_litert_fp16(reference: Reference) -> Written:
    """The file with weights in float16."""
    graph, description = graph_of(reference.onnx)
    return Written(files={FILE: litert_file(in_float16(graph), graph, description, "float16")})


def write_litert_int8(reference: Reference, *, max_loss: float) -> Written:
    """The file in int8, images and logits in float32; `details` say what it loses on the validate split.

    `max_loss` is in points of top-1. Raises `UserError` without the run's images too.
    """
    calibrate = calibration(reference)
    graph, description = graph_of(reference.onnx)
    ranges = ranges_of(graph, reference.onnx, calibrate)

    def quantised(in_float: Callable[[str], bool]) -> tuple[bytes, Run]:
        content = litert_file(in_int8(graph, ranges, in_float=in_float), graph, description, "int8")
        return content, open_litert({FILE: content}, torch.get_num_threads(), FILE).run

    floating = open_onnx({ONNX_FILE: reference.onnx}, torch.get_num_threads(), ONNX_FILE).run
    layers = list(description.layers)
    content, details = cheapest(reference, floating, quantised, layers, max_loss=max_loss)
    return Written(files={FILE: content}, details=details)


def litert_file(made: FileGraph, graph: Graph, description: FileDescription, precision: str) -> bytes:
    """The file of operators that were made of `graph`, with the description. Raises `UserError` without the extra."""
    with try_import("this", EXTRA, told=True):
        import flatbuffers  # noqa: F401 - `to_tflite` needs it
        from ai_edge_litert import schema_py_generated as schema
    layers = graph.layers if precision == "float32" else {}
    how = {"precision": precision, "batch": 1, "layers": layers}
    described = description.model_copy(update=how)
    return SEAL.put(to_tflite(made, schema, {KEY: described.to_text().encode()}))


def open_litert(files: Mapping[str, bytes], threads: int, where: str) -> Opened:
    """A .tflite file that trainonce wrote, ready to compute with LiteRT on the CPU.

    Raises `UserError` for a file that is damaged or foreign, and without the extra.
    """
    content = files[FILE]
    with try_import("this", EXTRA, told=True):
        from ai_edge_litert import schema_py_generated as schema
    interpreters = _Interpreters(content, threads, where)
    with sentence(f"{where} holds no description that can be read", UNREADABLE):
        text = note_in(content, schema)
    if text is None:
        raise UserError(
            f"{where} was not written by `trainonce export`: it does not say what its images and classes are"
        )
    description = FileDescription.from_text(text, where=where)
    given, returned = interpreters.one.get_input_details(), interpreters.one.get_output_details()
    if len(given) != 1 or len(returned) != 1 or {end["dtype"] for end in (*given, *returned)} != {np.float32}:
        raise UserError(f"{where} has other inputs and outputs than a file of `trainonce export`")
    check_shapes(description, given[0]["shape"].tolist()[1:], returned[0]["shape"].tolist()[1:], where)

    def run(x_BCHW: Tensor) -> Tensor:
        return interpreters.outputs(x_BCHW)[0]

    def layers(x_BCHW: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        with sentence(f"{where} does not have all the layers that its description names", UNREADABLE):
            more = with_outputs(content, schema, [description.layers[name] for name in names])
        maps = dict(zip(names, _Interpreters(more, threads, where).outputs(x_BCHW)[1:], strict=True))
        return {name: t.permute(0, 3, 1, 2) if t.ndim == 4 else t for name, t in maps.items()}

    return Opened(description=description, run=run, layers=layers if description.layers else None)


class _Interpreters:
    """A file's interpreters: for one image, and of each other number that comes for all at once, where that can be.

    Their logits are the same, and large networks take half as long an image. Files of earlier versions take one.
    """

    def __init__(self, content: bytes, threads: int, where: str) -> None:
        self.content, self.threads, self.where = content, threads, where
        self.one = _interpreter(content, threads, where)
        self.others: dict[int, Any] = {1: self.one}

    def _of(self, images: int) -> Any:
        if images not in self.others:
            try:
                self.others[images] = _interpreter(self.content, self.threads, self.where, images)
            except UserError:
                self.others[images] = self.one
        return self.others[images]

    def outputs(self, x_BCHW: Tensor) -> list[Tensor]:
        """What the file gives for images [B, C, H, W]: its outputs, [B, …] each."""
        interpreter = self._of(len(x_BCHW))
        (given,), returned = interpreter.get_input_details(), interpreter.get_output_details()
        found: list[list[Tensor]] = [[] for _ in returned]
        with sentence(f"{self.where} cannot be computed"):
            for images in torch.split(x_BCHW.contiguous(), int(given["shape"][0])):
                interpreter.set_tensor(given["index"], images.numpy())
                interpreter.invoke()
                for parts, end in zip(found, returned, strict=True):
                    parts.append(torch.from_numpy(interpreter.get_tensor(end["index"])))
        return [torch.cat(parts) for parts in found]


def _interpreter(content: bytes, threads: int, where: str, images: int = 1) -> Any:
    with try_import("this", EXTRA, told=True):
        from ai_edge_litert.interpreter import Interpreter
    if content[4:8] != IDENTIFIER:
        raise UserError(f"{where} is not a LiteRT file")
    with sentence(f"{where} is not a LiteRT file that can be computed here"), hushed():
        interpreter = Interpreter(model_content=content, num_threads=threads)
        if images > 1:
            (given,) = interpreter.get_input_details()
            interpreter.resize_tensor_input(given["index"], [images, *given["shape"][1:]])
        interpreter.allocate_tensors()
    return interpreter


def note_in(content: bytes, schema: Any) -> str | None:
    """The description in a .tflite file; None where there is none. Raises `UNREADABLE`."""
    model = schema.Model.GetRootAs(content, 0)
    for number in range(model.MetadataLength()):
        note = model.Metadata(number)
        if note.Name() == KEY.encode():
            return bytes(model.Buffers(note.Buffer()).DataAsNumpy()).decode()
    return None


def with_outputs(content: bytes, schema: Any, tensors: Sequence[str]) -> bytes:
    """A .tflite file that gives more of its tensors, after the logits. Raises `UNREADABLE` where one is not there."""
    import flatbuffers

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    (subgraph,) = model.subgraphs
    places = {tensor.name.decode(): place for place, tensor in enumerate(subgraph.tensors)}
    subgraph.outputs = [*subgraph.outputs, *(places[name] for name in tensors)]
    builder = flatbuffers.Builder(2 * len(content))
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())
