"""ncnn: model.ncnn.param and model.ncnn.bin for one image a call, made of the ONNX file by pnnx, ncnn's own converter.

A .param is lines of text, of which ncnn reads as many as there are layers: the description and the hash stand after
them.
"""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainonce.errors import UserError
from trainonce.export.description import INPUT, KEY, OUTPUT, FileDescription, Opened, Precision, Written
from trainonce.export.onnx import FILE as ONNX_FILE
from trainonce.export.onnx import open_onnx
from trainonce.export.seal import Seal
from trainonce.export.tools import hushed, sentence
from trainonce.extras import try_import

PARAM, BIN = "model.ncnn.param", "model.ncnn.bin"
EXTRA = "ncnn"
SEAL = Seal(head=f"# {KEY} sha256 with {BIN} ".encode(), tail=b"\n")
"""The last line; the hash is of what is before it and then of the weights in the other file."""
NOTE = f"# {KEY} "
"""How the line of the description begins."""
NAMES = {"in0": INPUT, "out0": OUTPUT}
"""What pnnx calls the images and the logits, and what every file here does."""


def write_ncnn(content: bytes, *, precision: Precision = "float32") -> Written:
    """The ncnn files of an ONNX file of `to_onnx`, with weights in float32 or float16.

    Raises `UserError` without the extras ncnn and onnx, and for a network that pnnx cannot write.
    """
    with try_import("this", EXTRA, told=True):
        import pnnx
    description = open_onnx({ONNX_FILE: content}, 1, ONNX_FILE).description
    how = description.preprocessing
    with TemporaryDirectory() as folder:
        (Path(folder) / ONNX_FILE).write_bytes(content)
        shape = f"inputshape=[1,{how.channels},{how.resolution},{how.resolution}]"
        done = subprocess.run(
            [pnnx.EXEC_PATH, ONNX_FILE, shape, f"fp16={int(precision == 'float16')}"],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        try:
            param, weights = ((Path(folder) / name).read_bytes() for name in (PARAM, BIN))
        except FileNotFoundError as error:
            why = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
            raise UserError(f"pnnx writes no ncnn files of this network: {why}") from error
    lines = [" ".join(NAMES.get(word, word) for word in line.split(" ")) for line in param.decode().splitlines()]
    described = description.model_copy(update={"precision": precision, "batch": 1, "layers": {}})
    text = "\n".join([*lines, NOTE + described.to_text(), ""])
    return Written(files={PARAM: SEAL.put(text.encode(), weights), BIN: weights})


def open_ncnn(files: Mapping[str, bytes], threads: int, where: str) -> Opened:
    """ncnn files that trainonce wrote, ready to compute on the CPU, in float32 unless their weights are float16.

    ncnn itself does not look whether files are whole: those whose hash does not hold are refused before it sees them.
    Raises `UserError` for files that are damaged or foreign, and without the extra.
    """
    with try_import("this", EXTRA, told=True):
        import ncnn
    if SEAL.holds(files[PARAM], files[BIN]) is not True:
        raise UserError(f"{where} is damaged or was not written by `trainonce export`: it has no hash that holds")
    with sentence(f"{where} is not an ncnn file that can be computed here", (ValueError, StopIteration)):
        lines = files[PARAM].decode().splitlines()
        text = next(line for line in lines if line.startswith(NOTE) and not line.startswith(SEAL.head.decode()))
    description = FileDescription.from_text(text.removeprefix(NOTE), where=where)
    net = _net(ncnn, files, threads, where, in_half=description.precision == "float16")
    how = description.preprocessing
    shape = (how.channels, how.resolution, how.resolution)

    def run(x_BCHW: Tensor) -> Tensor:
        if tuple(x_BCHW.shape[1:]) != shape:
            raise UserError(f"{where} cannot be computed: it takes images of {shape}, not of {tuple(x_BCHW.shape[1:])}")
        return torch.stack([_logits(ncnn, net, x_CHW, where) for x_CHW in x_BCHW.contiguous()])

    if run(torch.zeros(1, *shape)).shape != (1, len(description.classes)):
        raise UserError(f"{where} takes and gives other shapes than its description says")
    return Opened(description=description, run=run)


def _net(ncnn: Any, files: Mapping[str, bytes], threads: int, where: str, *, in_half: bool) -> Any:
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_bf16_packed = net.opt.use_bf16_storage = False
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = in_half
    with TemporaryDirectory() as folder, hushed():
        paths = [Path(folder) / name for name in (PARAM, BIN)]
        for path in paths:
            path.write_bytes(files[path.name])
        state = net.load_param(str(paths[0])) or net.load_model(str(paths[1]))
    if state or (net.input_names(), net.output_names()) != ([INPUT], [OUTPUT]):
        raise UserError(
            f"{where} is not an ncnn file that can be computed here: it has a layer that ncnn does not know"
        )
    return net


def _logits(ncnn: Any, net: Any, x_CHW: Tensor, where: str) -> Tensor:
    extractor = net.create_extractor()
    extractor.input(INPUT, ncnn.Mat(x_CHW.numpy()))
    state, found = extractor.extract(OUTPUT)
    if state:
        raise UserError(f"{where} cannot be computed: ncnn ends with {state}")
    return torch.from_numpy(np.array(found))
