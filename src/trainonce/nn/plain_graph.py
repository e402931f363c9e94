"""A network as the list of its operations.

What a subnet of a person's own network is: `config.json` lists the operations in the order in which they run, with
every number that they take, and `model.py` is written from them (`trainonce.nn.graph_source`).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainonce.nn.plain import resize

Argument = None | bool | int | float | str | tuple["Argument", ...]
"""What an operation takes. A text that begins with % names a value made earlier, or a tensor of the network."""

IMAGES = "images"
"""The name of the value that the network is given."""
NORM = "batch_norm_2d"
"""The operation that stands for a whole `nn.BatchNorm2d`: takes a map, the norm's name, its momentum and its eps."""
DROPOUT = "dropout"
"""The operation that stands for an `nn.Dropout`: takes a value and the probability."""
ITEM = "getitem"
"""The operation that takes one of several outputs: a value and its number."""
STATISTICS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""The tensors of a batch norm."""

_CONSTANTS = {str(c): c for c in (torch.float32, torch.int64, torch.bool, torch.contiguous_format)}


@dataclass(frozen=True, slots=True)
class Line:
    """One operation: `op` is a name of `torch.ops.aten` with its overload (`conv2d.default`), `NORM` or `ITEM`."""

    out: str
    op: str
    args: tuple[Argument, ...]
    kwargs: tuple[tuple[str, Argument], ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of what it reads, values and tensors, in order; of a batch norm, the map alone."""
        return tuple(names_in((self.args, tuple(value for _, value in self.kwargs))))


def names_in(argument: Argument) -> Iterable[str]:
    """The names that an argument refers to."""
    if isinstance(argument, str) and argument.startswith("%"):
        yield argument[1:]
    elif isinstance(argument, tuple):
        for part in argument:
            yield from names_in(part)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A parameter (it is learned) or a buffer, of 32-bit floats unless it holds whole numbers."""

    name: str
    shape: tuple[int, ...]
    learned: bool
    whole: bool = False

    def empty(self) -> Tensor:
        """A tensor like it, not initialised."""
        tensor = torch.empty(self.shape, dtype=torch.int64 if self.whole else torch.float32)
        return nn.Parameter(tensor) if self.learned else tensor


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """A whole network. `resolution` is the side of its square input in pixels; `output` names the logits."""

    resolution: int
    in_channels: int
    num_classes: int
    tensors: tuple[TensorSpec, ...]
    lines: tuple[Line, ...]
    output: str

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        return {
            "resolution": self.resolution,
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
            "tensors": [[t.name, list(t.shape), t.learned, t.whole] for t in self.tensors],
            "lines": [[line.out, line.op, _listed(line.args), dict(_listed(line.kwargs))] for line in self.lines],
            "output": self.output,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "GraphSpec":
        """The value that `to_json` wrote. Raises `TypeError`, `ValueError` or `KeyError` on anything else."""
        tensors = [
            TensorSpec(_name(name, first=r"\w"), _sizes(shape), bool(learned), bool(whole))
            for name, shape, learned, whole in values["tensors"]
        ]
        lines = [
            Line(
                _name(out),
                _name(op),
                tuple(map(_frozen, args)),
                tuple((_name(k), _frozen(v)) for k, v in kwargs.items()),
            )
            for out, op, args, kwargs in values["lines"]
        ]
        known = {IMAGES, *(tensor.name for tensor in tensors)}
        for line in lines:
            _operation(line.op)
            if not known.issuperset(line.reads):
                raise ValueError(f"{line.out} is made of something that is not there: {line.reads}")
            known.add(line.out)
        return cls(
            resolution=int(values["resolution"]),
            in_channels=int(values["in_channels"]),
            num_classes=int(values["num_classes"]),
            tensors=tuple(tensors),
            lines=tuple(lines),
            output=_name(values["output"]),
        )

    def __hash__(self) -> int:
        return hash((self.lines, self.tensors))

    def build(self) -> "GraphNetwork":
        """The network. Its tensors are not initialised, but for those of batch norms."""
        return GraphNetwork(self)


def _listed(argument: Argument) -> Any:
    return [_listed(part) for part in argument] if isinstance(argument, tuple) else argument


def _frozen(value: Any) -> Argument:
    if isinstance(value, list | tuple):
        return tuple(_frozen(part) for part in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"an operation cannot take {value!r:.100}")


def _name(value: Any, *, first: str = r"[A-Za-z_]") -> str:
    """A name with dots, of which no part could be anything else in Python; a module's child may be called 0."""
    if not isinstance(value, str) or not re.fullmatch(rf"{first}\w*(\.\w+)*", value, re.ASCII):
        raise ValueError(f"{value!r:.100} is not a name")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    if not all(type(size) is int and size >= 0 for size in values):
        raise ValueError(f"{values!r:.100} are no sizes")
    return tuple(values)


def is_operation(name: str) -> bool:
    """Whether a network may hold the operation: it follows from tensors that it is given, and changes none of them."""
    try:
        _operation(name)
    except ValueError:
        return False
    return True


def _run_by_the_owner(*_: Any) -> Any:
    raise AssertionError("norms and dropout are run by who holds the tensors")


def _operation(name: str) -> Callable[..., Any]:
    """What to call for an operation of a line. Raises `ValueError` for one that a network may not hold."""
    if name in (NORM, DROPOUT):
        return _run_by_the_owner
    if name == ITEM:
        return lambda values, number: values[number]
    packet, _, overload = name.partition(".")
    found = torch._C._jit_get_schemas_for_operator(f"aten::{packet}")
    schemas = [schema for schema in found if (schema.overload_name or "default") == overload]
    if not schemas:
        raise ValueError(f"there is no operation {name!r:.100}")
    arguments = schemas[0].arguments
    changes = any(argument.alias_info is not None and argument.alias_info.is_write for argument in arguments)
    if changes or not arguments or str(arguments[0].type) not in ("Tensor", "List[Tensor]"):
        raise ValueError(f"a network may not hold the operation {name!r:.100}")
    operation: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), overload)
    return operation


class Step:
    """A line made ready to run: where its arguments come from, and which values nothing reads after it."""

    def __init__(self, line: Line, done: tuple[str, ...]) -> None:
        self.line, self.done, self.call = line, done, _operation(line.op)
        self.args = [_constant(argument) for argument in line.args]
        self.kwargs = {name: _constant(value) for name, value in line.kwargs}
        self.slots = tuple((at, a[1:]) for at, a in enumerate(line.args) if isinstance(a, str) and a.startswith("%"))
        inside = [at for at, a in enumerate(line.args) if isinstance(a, tuple) and any(True for _ in names_in(a))]
        self.values_inside = tuple(inside)

    def __call__(
        self,
        values: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        layer: Callable[[Line, Tensor], Tensor],
        *,
        training: bool,
    ) -> Any:
        """What the line makes of values and tensors; see `Program`."""
        line = self.line
        if line.op in (NORM, DROPOUT):
            return layer(line, values[line.reads[0]])

        def given(argument: Argument) -> Any:
            if isinstance(argument, tuple):
                return [given(part) for part in argument]
            if isinstance(argument, str) and argument.startswith("%"):
                name = argument[1:]
                return values[name] if name in values else tensors[name]
            return _constant(argument)

        args = self.args.copy()
        for at, name in self.slots:
            args[at] = values[name] if name in values else tensors[name]
        for at in self.values_inside:
            args[at] = given(line.args[at])
        if training and line.op in TRAINING_AT:
            args[TRAINING_AT[line.op]] = True
        return self.call(*args, **self.kwargs)


def _constant(argument: Argument) -> Any:
    if isinstance(argument, tuple):
        return [_constant(part) for part in argument]
    return _CONSTANTS.get(argument, argument) if isinstance(argument, str) else argument


TRAINING_AT = {"batch_norm.default": 5}
"""Operations that do something else in training, and which of their arguments says so."""
DROPOUTS = "dropouts_"
"""Where a network keeps its dropout layers, by what they make."""


class Program:
    """The operations of a network, run one after the other on tensors that its owner holds."""

    def __init__(self, spec: GraphSpec) -> None:
        last = {name: number for number, line in enumerate(spec.lines) for name in line.reads}
        made = {IMAGES, *(line.out for line in spec.lines)} - {spec.output}
        done: list[list[str]] = [[] for _ in spec.lines]
        for name in made & set(last):
            done[last[name]].append(name)
        self.output = spec.output
        self.steps = [Step(line, tuple(names)) for line, names in zip(spec.lines, done, strict=True)]

    def __call__(
        self,
        x_BCHW: Tensor,
        tensors: Mapping[str, Tensor],
        layer: Callable[[Line, Tensor], Tensor],
        *,
        training: bool,
        seen: Callable[[Line, Any], None] | None = None,
    ) -> Tensor:
        """Images [B, C, H, W] to logits. `layer` runs norms and dropout; `seen` is shown what each line makes."""
        values: dict[str, Any] = {IMAGES: x_BCHW}
        for step in self.steps:
            line = step.line
            values[line.out] = out = step(values, tensors, layer, training=training)
            if seen is not None:
                seen(line, out)
            for name in step.done:
                del values[name]
        logits: Tensor = values[self.output]
        return logits


class GraphNetwork(nn.Module):
    """Images [B, C, H, W] to logits [B, classes]. Its state dict has the names of the network that was traced."""

    def __init__(self, spec: GraphSpec) -> None:
        super().__init__()
        self.spec = spec
        self.program = Program(spec)
        self.faster: Program | None = None
        """What runs it instead while its norms are in the mode of the whole."""
        shapes = {tensor.name: tensor.shape for tensor in spec.tensors}
        for line in spec.lines:
            if line.op == NORM:
                _, name, momentum, eps = line.args
                channels = shapes[f"{name}.running_mean"][0]
                affine = f"{name}.weight" in shapes
                layer = nn.BatchNorm2d(channels, eps, momentum, affine=affine)  # type: ignore[arg-type]
                place(self, str(name), layer)
            elif line.op == DROPOUT:
                place(self, f"{DROPOUTS}.{line.out}", nn.Dropout(line.args[1]))  # type: ignore[arg-type]
        inside = {f"{line.args[1]}.{part}" for line in spec.lines if line.op == NORM for part in STATISTICS}
        for tensor in spec.tensors:
            if tensor.name not in inside:
                place(self, tensor.name, tensor.empty())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, classes]."""
        return self.run(resize(x_BCHW, self.spec.resolution))

    def run(self, x_BCHW: Tensor, seen: Callable[[Line, Any], None] | None = None) -> Tensor:
        """Images of the network's resolution to logits; `seen` is shown what each line makes."""
        tensors = dict(self.named_parameters()) | dict(self.named_buffers())
        faster = None if self.faster is None or self._calibrating() else self.faster
        return (faster or self.program)(x_BCHW, tensors, self._layer, training=self.training, seen=seen)

    def _calibrating(self) -> bool:
        """Whether its norms are in another mode than the whole: in evaluation mode, normalising by the batch."""
        return any(isinstance(m, nn.BatchNorm2d) and m.training != self.training for m in self.modules())

    def _layer(self, line: Line, x: Tensor) -> Tensor:
        made: Tensor = self.get_submodule(str(line.args[1]) if line.op == NORM else f"{DROPOUTS}.{line.out}")(x)
        return made


def place(network: nn.Module, name: str, what: nn.Module | Tensor) -> None:
    """Put a module, parameter or buffer under a dotted name, inside modules made for its parts."""
    *path, last = name.split(".")
    for part in path:
        if part not in network._modules:
            network.add_module(part, nn.Module())
        network = network.get_submodule(part)
    if isinstance(what, nn.Module):
        network.add_module(last, what)
    elif isinstance(what, nn.Parameter):
        network.register_parameter(last, what)
    else:
        network.register_buffer(last, what)
