"""ExecuTorch: a .pte program for batches of one, lowered to XNNPACK where that can compute it.

A program's memory is planned when it is made, for one size of input: hence one image a call. The format has no place
for notes, so the description lies beside it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainonce.errors import UserError
from trainonce.export import sidecar
from trainonce.export.description import FileDescription, Opened, Written, check_shapes
from trainonce.export.tools import quiet, sentence
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
