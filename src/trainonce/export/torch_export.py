"""torch.export: a .pt2 program that torch runs without this package, with dynamic batch.

`torch.export.load` falls back to unpickling where a file's tensors are not plain ones, so a .pt2 from elsewhere can run
code. trainonce therefore never loads one from disk: it checks the bytes that it has just made, while they are in
memory, and later only compares their hash.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from trainonce.export.description import KEY, FileDescription, Opened, Written
from trainonce.export.first_difference import layer_outputs
from trainonce.export.seal import DIGITS, Seal
from trainonce.export.tools import any_batch, quiet, sentence
from trainonce.files import ZIP_ERRORS
from trainonce.latency.bench import uncollected

FILE = "model.pt2"
NOTE = f"{KEY}.json"
"""Where the description lies among the archive's extra files."""
SEAL = Seal(head=f"{KEY} sha256 ".encode())
"""The archive's comment, which is the end of a zip file; its length, before it, is covered."""


def program_of(network: nn.Module, description: FileDescription) -> ExportedProgram:
    """A network in evaluation mode as its operations, for any batch."""
    how = description.preprocessing
    example_BCHW = torch.zeros(2, how.channels, how.resolution, how.resolution)
    with quiet(), uncollected(), torch.no_grad():  # millions of objects, and nearly all are still needed
        program = torch.export.export(network, (example_BCHW,), dynamic_shapes=any_batch())
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def write_torch_export(program: ExportedProgram, description: FileDescription) -> Written:
    """The file of a network's program."""
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files={NOTE: description.to_text()})
    return Written(files={FILE: sealed_archive(buffer.getvalue())})


def sealed_archive(archive: bytes) -> bytes:
    """A zip archive without a comment, sealed by one."""
    assert archive.endswith(b"\0\0")
    length = len(SEAL.head) + DIGITS
    return SEAL.put(archive[:-2] + length.to_bytes(2, "little"))


def is_whole(content: bytes) -> bool | None:
    """Whether a .pt2 is as it was sealed; None for one without a seal of which the archive's own sums hold."""
    held = SEAL.holds(content)
    if held is not None:
        return held
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return None if archive.testzip() is None else False
    except ZIP_ERRORS:
        return False


def description_in(files: Mapping[str, bytes], where: str) -> FileDescription:
    """The description in a .pt2, of which nothing else is read. Raises `UserError` for a damaged or foreign file."""
    unreadable = f"{where} does not hold a description that can be read"
    with sentence(unreadable, ZIP_ERRORS), zipfile.ZipFile(io.BytesIO(files[FILE])) as archive:
        names = (name for name in archive.namelist() if name.endswith(f"/extra/{NOTE}"))
        text = archive.read(next(names, NOTE)).decode()
    return FileDescription.from_text(text, where=where)


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
