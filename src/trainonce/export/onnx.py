"""ONNX: opset 18, dynamic batch, one file that holds everything, batch norms folded into convolutions.

Built-in networks are written by `trainonce.nn.onnx_graph`, others by torch's dynamo exporter, of whose nodes the names
become those that the former gives, after the module that they come from. The rest of the exporter's notes, which hold
paths of this machine, are taken out.
"""

import ast
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from trainonce.errors import UserError
from trainonce.export.description import INPUT, KEY, OUTPUT, FileDescription, Opened, Run, check_shapes
from trainonce.export.seal import DIGITS, Seal
from trainonce.export.tools import REFUSALS, any_batch, layer_names, quiet, sentence
from trainonce.export.torch_export import program_of
from trainonce.extras import try_import
from trainonce.latency.bench import uncollected
from trainonce.nn.onnx_graph import OPSET, written_model
from trainonce.nn.plain import PlainNetwork
from trainonce.nn.plain_resnet import PlainResNet

FILE = "model.onnx"
EXTRA = "onnx"
Program = Callable[[nn.Module, FileDescription], ExportedProgram]
"""Gives a network's operations, as `program_of` does."""
BUILT_IN = (PlainNetwork, PlainResNet)
"""The networks of the built-in families; people's own are left to torch, which knows more layers."""


def _entry(key: bytes, digits: int) -> bytes:
    """How a `StringStringEntryProto` with so many ASCII digits begins, as another entry of `metadata_props`."""
    inside = bytes([0x0A, len(key)]) + key + bytes([0x12, digits])
    return bytes([0x72, len(inside) + digits]) + inside


SEAL = Seal(head=_entry(f"{KEY}_sha256".encode(), DIGITS))
"""The last entry of the metadata: fields may follow each other in any order, so it can stand at the end of the file."""


def to_onnx(network: nn.Module, description: FileDescription, program: Program = program_of) -> bytes:
    """The ONNX file of a network, whose `program` is asked for where it is not a built-in one.

    Raises `UserError` without the extra `onnx`.
    """
    with try_import("this", EXTRA, told=True):
        import onnx
    how = description.preprocessing
    shape = (1, how.channels, how.resolution, how.resolution)
    model = None
    if isinstance(network, BUILT_IN):
        model = written_model(network, shape, given=INPUT, returned=OUTPUT, batch="batch")
    if model is None:
        model = _by_torch(network, description, program)
    names = [(node.name, node.output[0]) for node in model.graph.node]
    last = {layer: tensor for layer in layer_names(network) for name, tensor in names if belongs(name, layer)}
    _describe(model, description.model_copy(update={"layers": last}))
    onnx.checker.check_model(model)
    return SEAL.put(model.SerializeToString(deterministic=True))


def _by_torch(network: nn.Module, description: FileDescription, program: Program) -> Any:
    """The `onnx.ModelProto` that torch's exporter makes of a network's program."""
    with try_import("this", EXTRA, told=True):
        import onnxscript  # noqa: F401 - the exporter needs it, and says so less clearly
    operations = program(network, description)
    with quiet(), uncollected(), torch.no_grad():  # millions of objects, and nearly all are still needed
        made = torch.onnx.export(
            operations,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=any_batch(),
            verbose=False,
        )
    assert made is not None
    model = made.model_proto
    modules = {name for name, _ in network.named_modules() if name}
    for number, node in enumerate(model.graph.node):
        notes = {note.key: note.value for note in node.metadata_props}
        scopes = [s for s in ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]")) if s in modules]
        node.name = f"{scopes[-1] if scopes else 'network'}/{node.op_type}_{number}"
        del node.metadata_props[:]
        node.doc_string = ""
    graph = model.graph
    for noted in (model, graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del noted.metadata_props[:]
        noted.doc_string = ""
    return model


def belongs(node_name: str, layer: str) -> bool:
    """Whether the node is part of the layer of that name, by its own name in a file of `to_onnx`."""
    return node_name.startswith((f"{layer}.", f"{layer}/"))


def _describe(model: Any, description: FileDescription) -> None:
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, description.to_text()


def redescribed(content: bytes, description: FileDescription) -> bytes:
    """The same ONNX file with another description, sealed."""
    model = parsed(content, where=FILE)
    _describe(model, description)
    return SEAL.put(model.SerializeToString(deterministic=True))


def parsed(content: bytes, *, where: str) -> Any:
    """The `onnx.ModelProto` in some bytes. Raises `UserError` where they are none, or without the extra."""
    with try_import("this", EXTRA, told=True):
        import onnx
        from google.protobuf.message import DecodeError
    try:
        return onnx.load_model_from_string(content)
    except DecodeError as error:
        raise UserError(f"{where} is not a whole ONNX file: {error}") from error


def description_in(model: Any, where: str) -> FileDescription:
    """What an ONNX file that was parsed says of itself. Raises `UserError` where it says nothing, or what is wrong."""
    found = {entry.key: entry.value for entry in model.metadata_props}
    return _description(found, where)


def _description(found: Mapping[str, str], where: str) -> FileDescription:
    if KEY not in found:
        raise UserError(
            f"{where} was not written by `trainonce export`: it does not say what its images and classes are"
        )
    return FileDescription.from_text(found[KEY], where=where)


def open_onnx(files: Mapping[str, bytes], threads: int, where: str) -> Opened:
    """An ONNX file that trainonce wrote, ready to compute on the CPU by ONNX Runtime.

    Raises `UserError` for a file that is damaged or foreign, and without the extra `onnx`.
    """
    content = files[FILE]
    session = _session(content, threads, where)
    with sentence(f"{where}: its metadata are not texts"):
        found = session.get_modelmeta().custom_metadata_map
    description = _description(found, where)
    _check_shapes(session, description, where)

    def layers(x_BCHW: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        import onnx

        model = parsed(content, where=where)
        tensors = [description.layers[name] for name in names]
        made = {tensor for node in model.graph.node for tensor in node.output}
        if not made.issuperset(tensors):
            raise UserError(f"{where} does not have all the layers that its description names")
        there = {output.name for output in model.graph.output}
        model.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in dict.fromkeys(tensors) if name not in there
        )
        inside = _session(model.SerializeToString(), threads, where)
        with sentence(f"{where} cannot be computed", _refusals()):
            values = inside.run(tensors, {INPUT: x_BCHW.contiguous().numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    return Opened(description=description, run=_runner(session, where), layers=layers if description.layers else None)


def tensor_ranges(content: bytes, names: Collection[str], batches: Iterable[Tensor]) -> dict[str, tuple[float, float]]:
    """The smallest and the largest value that tensors in an ONNX file take over batches of images [B, C, H, W].

    Names that are not in the file are left out.
    """
    with try_import("this", EXTRA, told=True):
        import onnx
    model = parsed(content, where=FILE)
    made = [tensor for node in model.graph.node for tensor in node.output if tensor in names]
    there = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in there)
    session = _session(model.SerializeToString(), torch.get_num_threads(), FILE)
    found: dict[str, tuple[float, float]] = {}
    for x_BCHW in batches:
        given = x_BCHW.contiguous().numpy()
        for name, value in zip((INPUT, *made), (given, *session.run(made, {INPUT: given})), strict=True):
            low, high = found.get(name, (float("inf"), -float("inf")))
            found[name] = min(low, float(value.min())), max(high, float(value.max()))
    return found


def _runner(session: Any, where: str) -> Run:
    refusals = _refusals()

    def run(x_BCHW: Tensor) -> Tensor:
        with sentence(f"{where} cannot be computed", refusals):
            return torch.from_numpy(session.run([OUTPUT], {INPUT: x_BCHW.contiguous().numpy()})[0])

    return run


def _session(content: bytes, threads: int, where: str) -> Any:
    with try_import("this", EXTRA, told=True):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is wrong is raised as well
    if not content:
        raise UserError(f"{where} is empty")
    with sentence(f"{where} is not an ONNX file that can be computed here", _refusals()):
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _refusals() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        *(state.Fail, state.InvalidArgument, state.NoSuchFile, state.NoModel, state.EngineError, state.EPFail),
        *(state.RuntimeException, state.InvalidProtobuf, state.NotImplemented, state.InvalidGraph),
        *REFUSALS,
    )


def _check_shapes(session: Any, description: FileDescription, where: str) -> None:
    given = [(value.name, value.type) for value in (*session.get_inputs(), *session.get_outputs())]
    if given != [(INPUT, "tensor(float)"), (OUTPUT, "tensor(float)")]:
        raise UserError(f"{where} has other inputs and outputs than a file of `trainonce export`")
    check_shapes(description, session.get_inputs()[0].shape[1:], session.get_outputs()[0].shape[1:], where)
