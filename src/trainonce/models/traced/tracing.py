"""Following a network through its operations, with `torch.export`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export

from trainonce.errors import UserError
from trainonce.nn.plain_graph import (
    DROPOUT,
    IMAGES,
    ITEM,
    NORM,
    STATISTICS,
    Argument,
    GraphSpec,
    Line,
    TensorSpec,
    is_operation,
)

CONSTANTS = "constants"
"""Where tensors are kept that a network makes in its forward pass from nothing."""


@dataclass(frozen=True)
class Trace:
    """A network as operations, its tensors, and where in the source each operation stands (by what it makes)."""

    spec: GraphSpec
    state: dict[str, Tensor]
    places: dict[str, tuple[str, str]]
    """By what an operation makes: the module that it belongs to, and the line in the source."""


def trace(model: nn.Module, example_BCHW: Tensor) -> Trace:
    """The operations of a network in evaluation mode. The network stays as it is.

    `example_BCHW` is a batch of square images; its numbers do not matter. What the operations compute is compared with
    what the network does, to the last bit, on two batches. Raises `UserError` that says what cannot be followed.
    """
    example_BCHW = _checked_example(model, example_BCHW)
    was = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        exported = _export(model, example_BCHW)
        traced = _Reader(exported).read(example_BCHW)
        _compare(model, traced, example_BCHW)
    finally:
        for module, training in was:
            module.training = training
    return traced


def _checked_example(model: nn.Module, example_BCHW: Tensor) -> Tensor:
    if example_BCHW.ndim != 4 or example_BCHW.shape[2] != example_BCHW.shape[3]:
        raise UserError(f"the example must be square images [B, C, H, W], not {tuple(example_BCHW.shape)}")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if tensor.dtype not in (torch.float32, torch.int64):
            raise UserError(f"{name} is {tensor.dtype}: networks are traced in float32 (call `model.float()` first)")
        if tensor.device.type != "cpu":
            raise UserError(f"{name} is on {tensor.device}: networks are traced on the CPU (call `model.cpu()` first)")
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if names.setdefault(id(parameter), name) != name:
            raise UserError(f"{names[id(parameter)]} and {name} are one tensor: tied weights cannot become elastic")
    if not names:
        raise UserError(f"{type(model).__name__} has no parameters: there is nothing to train")
    return torch.cat([example_BCHW, example_BCHW]) if len(example_BCHW) == 1 else example_BCHW


def _export(model: nn.Module, example_BCHW: Tensor) -> ExportedProgram:
    try:
        with torch.no_grad():
            return export(model, (example_BCHW,), dynamic_shapes=({0: Dim.AUTO},), strict=False)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, AssertionError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"torch.export cannot follow {type(model).__name__}: {first:.300}") from error


@torch.no_grad()
def _compare(model: nn.Module, traced: Trace, example_BCHW: Tensor) -> None:
    network = traced.spec.build().eval()
    network.load_state_dict(traced.state)
    more = torch.randn(3, *example_BCHW.shape[1:], generator=torch.Generator().manual_seed(0))
    for x_BCHW in (example_BCHW, more):
        logits = model(x_BCHW)
        if not isinstance(logits, Tensor):
            raise UserError(f"the network must return one tensor, logits [B, classes], not a {type(logits).__name__}")
        if not torch.equal(logits, network(x_BCHW)):
            raise UserError(
                f"{type(model).__name__} computes something else than its operations, followed one by one: it keeps "
                "something from one call to the next, draws random numbers, or depends on values of its input"
            )


class _Reader:
    """Reads an exported program."""

    def __init__(self, exported: ExportedProgram) -> None:
        self.exported = exported
        signature = exported.graph_signature
        self.own = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.lifted = dict(signature.inputs_to_lifted_tensor_constants)
        self.names: dict[fx.Node, str] = {}
        self.state: dict[str, Tensor] = {}
        self.lines: list[Line] = []
        self.places: dict[str, tuple[str, str]] = {}
        self.viewed: set[str] = set()
        self.inlined: set[fx.Node] = set()

    def read(self, example_BCHW: Tensor) -> Trace:
        nodes = list(self.exported.graph.nodes)
        for node in nodes:
            if node.op == "placeholder":
                self._input(node)
            elif node.op == "call_function":
                self._operation(node)
        logits = self._logits(nodes[-1])
        lines = _needed(self.lines, self.names[logits])
        return Trace(
            spec=GraphSpec(
                resolution=example_BCHW.shape[2],
                in_channels=example_BCHW.shape[1],
                num_classes=logits.meta["val"].shape[1],
                tensors=tuple(self._tensors(lines)),
                lines=tuple(lines),
                output=self.names[logits],
            ),
            state={name: self.state[name] for name in (tensor.name for tensor in self._tensors(lines))},
            places={line.out: self.places[line.out] for line in lines},
        )

    def _input(self, node: fx.Node) -> None:
        known, constants = self.exported.state_dict, self.exported.constants
        if node.name in self.own:
            name = self.own[node.name]
            tensor = known[name] if name in known else constants[name]
        elif node.name in self.lifted:
            constant = self.lifted[node.name]
            name, tensor = f"{CONSTANTS}.{constant.replace('.', '_')}", constants[constant]
        else:
            self.names[node] = IMAGES
            return
        self.names[node] = name
        self.state[name] = tensor.detach().clone()

    def _operation(self, node: fx.Node) -> None:
        if node in self.inlined or node.name.startswith("_assert") or not (node.users or _changes_first(node)):
            return
        if node.target is torch.ops.higher_order.wrap_with_autocast and node.args[2] is False:
            self._inside(node)
            return
        first = node.args[0] if node.args else None
        if node.target is torch.ops.aten.dropout.default and node.args[1] == 0 and isinstance(first, fx.Node):
            self.names[node] = self.names[first]
            return
        op = _name_of(node)
        if op is None:
            raise UserError(f"{_where(node)}: the operation {node.target} cannot be followed")
        args = tuple(self._argument(node, argument) for argument in node.args)
        kwargs = tuple((name, self._argument(node, value)) for name, value in node.kwargs.items())
        changed = first if _changes_first(node) else None
        if isinstance(changed, fx.Node) and (changed.op == "placeholder" or self.names[changed] in self.viewed):
            raise UserError(
                f"{_where(node)}: {node.target} changes a tensor in place that lives on: it is not followed"
            )
        name = node.name
        while name in self.places or name in self.state:  # another graph's, or a tensor's of the network itself
            name += "_again"
        self.places[name] = _module(node), _source(node)
        self.lines.append(_as_layer(_as_split(Line(name, op, args, kwargs), node), node))
        if isinstance(changed, fx.Node):
            old = self.names[changed]
            for other in [n for n, name in self.names.items() if name == old]:
                self.names[other] = name
        self.names[node] = name
        if _is_view(node):
            self.viewed |= {name, *self.lines[-1].reads}

    def _inside(self, outer: fx.Node) -> None:
        """The operations of a part that runs without autocast, as everything here does."""
        part = outer.args[4]
        assert isinstance(part, fx.Node)
        graph = self.exported.graph_module.get_submodule(str(part.target)).graph
        given = iter(outer.args[5:])
        for node in graph.nodes:
            if node.op == "placeholder":
                self.names[node] = self.names[next(given)]  # type: ignore[index]
            elif node.op == "call_function":
                self._operation(node)
            elif node.op == "output":
                made = [self.names[out] for out in node.args[0]]
        for user in outer.users:
            assert _name_of(user) == ITEM
            self.names[user] = made[user.args[1]]  # type: ignore[index]
            self.inlined.add(user)

    def _argument(self, node: fx.Node, argument: Any) -> Argument:
        if isinstance(argument, fx.Node):
            return f"%{self.names[argument]}"
        if isinstance(argument, list | tuple):
            return tuple(self._argument(node, part) for part in argument)
        if argument is None or isinstance(argument, bool | int | float | str):
            return argument
        if argument in (torch.float32, torch.int64, torch.bool, torch.contiguous_format):
            return str(argument)
        raise UserError(f"{_where(node)}: {node.target} takes {argument!r:.100}, which cannot be followed")

    def _logits(self, node: fx.Node) -> fx.Node:
        outputs = node.args[0]
        assert isinstance(outputs, tuple)
        shapes = [tuple(out.meta["val"].shape) for out in outputs if isinstance(out, fx.Node)]
        if len(outputs) != 1 or len(shapes) != 1 or len(shapes[0]) != 2:
            raise UserError(f"the network must return one tensor, logits [B, classes]; it returns {shapes}")
        assert isinstance(outputs[0], fx.Node)
        return outputs[0]

    def _tensors(self, lines: list[Line]) -> Iterator[TensorSpec]:
        """Those that lines read, in the order of the network's own state dict."""
        used = {name for line in lines for name in line.reads}
        used |= {f"{line.args[1]}.{part}" for line in lines if line.op == NORM for part in STATISTICS}
        learned = set(self.exported.graph_signature.parameters)
        for name, tensor in self.state.items():
            if name in used:
                yield TensorSpec(name, tuple(tensor.shape), name in learned, tensor.dtype == torch.int64)


def _needed(lines: list[Line], output: str) -> list[Line]:
    """The lines that the output follows from."""
    wanted, kept = {output}, []
    for line in reversed(lines):
        if line.out in wanted:
            wanted |= set(line.reads)
            kept.append(line)
    return kept[::-1]


def _name_of(node: fx.Node) -> str | None:
    """The operation's name in lines: one that works in place becomes the one that does not."""
    if getattr(node.target, "__name__", None) == "getitem":  # operator.getitem
        return ITEM
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return None
    packet, _, overload = str(node.target).removeprefix("aten.").partition(".")
    name = f"{packet.removesuffix('_')}.{overload}" if _changes_first(node) else f"{packet}.{overload}"
    return name if is_operation(name) else None


def _changes_first(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.arguments:
        return False
    first = node.target._schema.arguments[0].alias_info
    return first is not None and first.is_write


def _is_view(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return True  # one of several outputs
    return any(a.alias_info is not None and not a.alias_info.is_write for a in node.target._schema.arguments)


def _as_split(line: Line, node: fx.Node) -> Line:
    """`chunk` and `split` by their pieces' sizes, which can then differ."""
    if line.op not in ("chunk.default", "split.Tensor"):
        return line
    dim = line.args[2] if len(line.args) > 2 else dict(line.kwargs).get("dim", 0)
    assert isinstance(dim, int)
    sizes = tuple(int(part.shape[dim]) for part in node.meta["val"])
    return Line(line.out, "split_with_sizes.default", (line.args[0], sizes, dim))


def _as_layer(line: Line, node: fx.Node) -> Line:
    """A batch norm over maps whose tensors are those of a module is that module's; dropout is a layer too."""
    if line.op == "dropout.default":
        return Line(line.out, DROPOUT, line.args[:2])
    if line.op != "batch_norm.default":
        return line
    x, weight, bias, mean, var, _, momentum, eps, *_ = line.args
    source = node.args[0]
    assert isinstance(source, fx.Node)
    prefix = str(mean)[1:].removesuffix(".running_mean")
    affine = (f"%{prefix}.weight", f"%{prefix}.bias")
    statistics = (f"%{prefix}.running_mean", f"%{prefix}.running_var")
    maps = source.meta["val"].ndim == 4
    if maps and (mean, var) == statistics and (weight, bias) in (affine, (None, None)):
        return Line(line.out, NORM, (x, prefix, momentum, eps))
    return line


def _where(node: fx.Node) -> str:
    """Where an operation stands, for a sentence."""
    return ", ".join(part for part in (_module(node), _source(node)) if part) or "the forward pass"


def _module(node: fx.Node) -> str:
    """The module that an operation belongs to; "" for the network's own forward pass."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _source(node: fx.Node) -> str:
    """The line of the source that calls it, outside of torch where there is one: folder, file and number."""
    frames = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    frames = [frame for frame in frames if frame.startswith("File")]
    own = [frame for frame in frames if "/torch/nn/" not in frame] or frames
    if not own:
        return ""
    _, path, rest = own[-1].split('"')
    return f"{'/'.join(path.split('/')[-2:])}:{rest.split()[2].rstrip(',')}"
