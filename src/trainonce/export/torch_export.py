"""torch.export: a .pt2 program that torch runs without this package, with dynamic batch.

`torch.export.load` falls back to unpickling where a file's tensors are not plain ones, so a .pt2 from elsewhere can run
code. trainonce therefore never loads one from disk: it checks the bytes that it has just made, while they are in
memory, and later only compares their hash.
"""

import io
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trainonce.export.description import KEY, FileDescription, Opened, Written
from trainonce.export.first_difference import layer_outputs
from trainonce.export.tools import quiet

FILE = "model.pt2"
NOTE = f"{KEY}.json"
"""Where the description lies among the archive's extra files."""


def write_torch_export(network: nn.Module, description: FileDescription) -> Written:
    """The program of a network in evaluation mode."""
    how = description.preprocessing
    example_BCHW = torch.zeros(2, how.channels, how.resolution, how.resolution)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    buffer = io.BytesIO()
    with quiet(), torch.no_grad():
        exported = torch.export.export(network, (example_BCHW,), dynamic_shapes=shapes)
        for node in exported.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        torch.export.save(exported, buffer, extra_files={NOTE: description.to_text()})
    return Written(files={FILE: buffer.getvalue()})


def open_torch_export(files: Mapping[str, bytes], threads: int, where: str) -> Opened:
    """The program in bytes that this process has just made, ready to compute. Never give it others: it may unpickle."""
    notes = {NOTE: ""}
    with quiet():
        program = torch.export.load(io.BytesIO(files[FILE]), extra_files=notes)
        network = torch.export.unflatten(program)
    description = FileDescription.from_text(str(notes[NOTE]), where=where)

    @torch.inference_mode()
    def run(x_BCHW: Tensor) -> Tensor:
        logits: Tensor = network(x_BCHW)
        return logits

    def layers(x_BCHW: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        return layer_outputs(network, names, x_BCHW)

    return Opened(description=description, run=run, layers=layers)
