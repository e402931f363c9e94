"""The source of a network that is a list of operations, for a person to read: layers by name, then a forward pass."""

from trainonce.nn.plain_graph import (
    DROPOUT,
    DROPOUTS,
    IMAGES,
    ITEM,
    NORM,
    STATISTICS,
    TRAINING_AT,
    Argument,
    GraphSpec,
    Line,
)

_HEAD = '''"""A network with every size fixed, as it was taken out: torch, nothing else.

    from model import load
    network = load(".")           # in evaluation mode, on the CPU
    logits = network(images)      # float32 [B, {channels}, {side}, {side}], normalised as config.json says
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

aten = torch.ops.aten


class Network(nn.Module):
    """Images [B, {channels}, {side}, {side}] to logits [B, {classes}]."""

    def __init__(self) -> None:
        super().__init__()
{layers}

    def put(self, name: str, what: nn.Module | Tensor) -> None:
        """Put a layer, parameter or buffer under a dotted name."""
        *path, last = name.split(".")
        parent: nn.Module = self
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        if isinstance(what, nn.Module):
            parent.add_module(last, what)
        elif isinstance(what, nn.Parameter):
            parent.register_parameter(last, what)
        else:
            parent.register_buffer(last, what)

    def layer(self, name: str) -> Any:
        return self.get_submodule(name)

    def tensor(self, name: str) -> Tensor:
        path, _, last = name.rpartition(".")
        found: Tensor = getattr(self.get_submodule(path), last)
        return found

    def forward(self, {images}: Tensor) -> Tensor:
        if {images}.shape[-2:] != ({side}, {side}):
            {images} = nn.functional.interpolate({images}, size=({side}, {side}), mode="bilinear", antialias=True)
{lines}
        return {output}
'''

LOAD = '''
def load(directory: str | Path) -> nn.Module:
    """The network of a directory, in evaluation mode, on the CPU. Raises `ValueError` where it holds something else."""
    return load_as(lambda sizes: SimpleNamespace(build=Network), directory)
'''
"""The end of the file: how a directory is read with `load_as`."""


def network_source(spec: GraphSpec) -> str:
    """The module of a network: a class `Network` that takes nothing, whose state dict has the spec's names."""
    writer = _Writer(spec)
    lines = [f"{line.out} = {writer.expression(line)}" for line in spec.lines]
    layers = [f"self.put({name!r}, {made})" for name, made in writer.layers().items()]
    indent = " " * 8
    return _HEAD.format(
        channels=spec.in_channels,
        side=spec.resolution,
        classes=spec.num_classes,
        layers="\n".join(indent + layer for layer in layers),
        images=IMAGES,
        lines="\n".join(indent + line for line in lines),
        output=spec.output,
    )


class _Writer:
    """Writes layers and operations, each operation by the layer that it is where there is one."""

    def __init__(self, spec: GraphSpec) -> None:
        self.spec = spec
        self.shapes = {tensor.name: tensor.shape for tensor in spec.tensors}
        readers = [name for line in spec.lines for name in line.reads]
        self.own = {name for name in self.shapes if readers.count(name) == 1}
        made = {line.out: self._layer(line) for line in spec.lines}
        self.layer_of = {out: layer for out, layer in made.items() if layer is not None}

    def layers(self) -> dict[str, str]:
        """How each layer is made, then each tensor that is in none, by name."""
        made = dict(self.layer_of.values())
        inside = {f"{name}.{part}" for name in made for part in STATISTICS}
        for tensor in self.spec.tensors:
            if tensor.name not in inside:
                empty = f"torch.empty({tensor.shape!r}{', dtype=torch.int64' if tensor.whole else ''})"
                made[tensor.name] = f"nn.Parameter({empty})" if tensor.learned else empty
        return made

    def expression(self, line: Line) -> str:
        """What a line computes."""
        if line.out in self.layer_of:
            return f"self.layer({self.layer_of[line.out][0]!r})({self._written(line.args[0])})"
        if line.op == ITEM:
            return f"{self._written(line.args[0])}[{line.args[1]}]"
        args = [self._written(argument) for argument in line.args]
        if line.op in TRAINING_AT:
            args[TRAINING_AT[line.op]] = "self.training"
        args += [f"{name}={self._written(value)}" for name, value in line.kwargs]
        return f"aten.{line.op}({', '.join(args)})"

    def _written(self, argument: Argument) -> str:
        if isinstance(argument, tuple):
            return f"[{', '.join(map(self._written, argument))}]"
        if isinstance(argument, str) and argument.startswith("%"):
            return f"self.tensor({argument[1:]!r})" if argument[1:] in self.shapes else argument[1:]
        if isinstance(argument, str) and argument.startswith("torch."):
            return argument
        return repr(argument)

    def _layer(self, line: Line) -> tuple[str, str] | None:
        """The name of the layer that a line is, and how it is made; None where it is none of its own."""
        if line.op == NORM:
            _, name, momentum, eps = line.args
            channels, affine = self.shapes[f"{name}.running_mean"][0], f"{name}.weight" in self.shapes
            return str(name), f"nn.BatchNorm2d({channels}, eps={eps}, momentum={momentum}, affine={affine})"
        if line.op == DROPOUT:
            return f"{DROPOUTS}.{line.out}", f"nn.Dropout({line.args[1]})"
        if line.op not in ("conv2d.default", "linear.default"):
            return None
        weight = str(line.args[1])[1:]
        name, bias = weight.removesuffix(".weight"), line.args[2] if len(line.args) > 2 else None
        if weight not in self.own or name == weight or bias not in (None, f"%{name}.bias"):
            return None
        if f"{name}.bias" in self.shapes and bias is None:
            return None
        shape, has_bias = self.shapes[weight], bias is not None
        if line.op == "linear.default":
            return name, f"nn.Linear({shape[1]}, {shape[0]}, bias={has_bias})"
        usual: tuple[Argument, ...] = ((1, 1), (0, 0), (1, 1), 1)
        stride, padding, dilation, groups = line.args[3:7] + usual[len(line.args[3:7]) :]
        assert isinstance(groups, int)
        numbers = f"{shape[1] * groups}, {shape[0]}, {shape[2:]}"
        rest = f"stride={stride}, padding={padding}, dilation={dilation}, groups={groups}, bias={has_bias}"
        return name, f"nn.Conv2d({numbers}, {rest})"
