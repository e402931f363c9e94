"""ExecuTorch: a .pte program for batches of one, lowered to XNNPACK where that can compute it.

A program's memory is planned when it is made, for one size of input: hence one image a call. The format has no place
for notes, so the description lies beside it. int8 is by XNNPACK's own quantiser, as ExecuTorch's manual has it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from trainonce.errors import UserError
from trainonce.export import sidecar
from trainonce.export.description import FileDescription, Opened, Run, Written, check_shapes
from trainonce.export.reference import Reference
from trainonce.export.sensitive import calibration, cheapest
from trainonce.export.tools import layer_names, quiet, sentence
from trainonce.extras import try_import

FILE, SIDECAR = "model.pte", sidecar.FILE
EXTRA = "executorch"


def write_executorch(network: nn.Module, description: FileDescription) -> Written:
    """The program of a network in evaluation mode, and its description. Raises `UserError` without the extra."""
    with try_import("this", EXTRA, told=True), quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    how = description.preprocessing
    example_BCHW = torch.zeros(1, how.channels, how.resolution, how.resolution)
    with quiet(), torch.no_grad():
        exported = torch.export.export(network, (example_BCHW,))
        lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        program = bytes(lowered.to_executorch().buffer)
    described = description.model_copy(update={"batch": 1})
    return Written(files={FILE: program, SIDECAR: sidecar.beside(program, described)})


def write_executorch_int8(reference: Reference, *, max_loss: float) -> Written:
    """The program in int8; `details` say what it loses on the validate split, as torch computes its operators.

    Lowering takes many times as long as quantising, so only what the search ends with is lowered. `max_loss` is in
    points of top-1. Raises `UserError` without the run's images or the extra.
    """
    calibrate = calibration(reference)

    def quantised(in_float32: Callable[[str], bool]) -> tuple[nn.Module, Run]:
        network = quantise(reference.program, calibrate, in_float32=in_float32)
        return network, torch.no_grad()(network)

    layers = layer_names(reference.network)
    network, details = cheapest(reference, reference.network, quantised, layers, max_loss=max_loss)
    written = write_executorch(network, reference.file.model_copy(update={"precision": "int8"}))
    return dataclasses.replace(written, details=details)


def quantise(program: ExportedProgram, calibrate: list[Tensor], *, in_float32: Callable[[str], bool]) -> nn.Module:
    """A program in int8, but for its operators of modules that `in_float32` is true of.

    Weights have 8 bits for each output channel; maps one scale and zero point, from batches [B, C, H, W].
    """
    with try_import("this", EXTRA, told=True), quiet():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    def chosen(node: Any) -> bool:
        """Weights go with the operator that reads them, about which the quantiser asks too."""
        return node.op == "get_attr" or not in_float32(_name_of(node))

    how = get_symmetric_quantization_config(is_per_channel=True)
    quantiser = XNNPACKQuantizer().set_global(how).set_filter_function(chosen)
    with quiet(), torch.no_grad():
        observed = prepare_pt2e(program.module(), quantiser)
        for x_BCHW in calibrate:
            observed(x_BCHW)
        quantised: nn.Module = convert_pt2e(observed)
    return quantised


def _name_of(node: Any) -> str:
    """The module that an operator is part of, and its own name, written as the nodes of an ONNX file are."""
    scopes = [scope for scope, _ in node.meta.get("nn_module_stack", {}).values() if scope]
    return f"{scopes[-1] if scopes else 'network'}/{node.name}"


def open_executorch(files: Mapping[str, bytes], threads: int, where: str) -> Opened:
    """A program that trainonce wrote, ready to compute. How many threads it uses is its own affair.

    Raises `UserError` for a program or description that is damaged, and without the extra.
    """
    with try_import("this", EXTRA, told=True), quiet():
        from executorch.runtime import Runtime, Verification
    with sentence(f"{where} is not an ExecuTorch program that can be computed here"):
        description = FileDescription.from_text(files[SIDECAR].decode(), where=where)
        program = Runtime.get().load_program(files[FILE], verification=Verification.InternalConsistency)
        method = program.load_method("forward")
        if method is None:
            raise UserError(f"{where} has no method 'forward'")
        given, returned = method.metadata.input_tensor_meta(0).sizes(), method.metadata.output_tensor_meta(0).sizes()
    check_shapes(description, given[1:], returned[1:], where)

    def run(x_BCHW: Tensor) -> Tensor:
        forward = program.load_method("forward")  # loaded once; asked for here since the program's memory must live on
        assert forward is not None
        with sentence(f"{where} cannot be computed"):
            return torch.cat([forward.execute([x_1CHW.contiguous()])[0].clone() for x_1CHW in torch.split(x_BCHW, 1)])

    return Opened(description=description, run=run)
