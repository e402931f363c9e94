"""Kinds of plain networks: what the library asks of one, and how it is written down, read back and put on disk.

A kind is a frozen value with every size of a network, `PlainSpec`, in a module of its own that needs torch alone. That
module travels as `model.py` in the directory of each subnet, so that the subnet loads without trainonce.
"""

import ast
import inspect
from collections.abc import Mapping
from functools import singledispatch
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

from torch import nn

from trainonce.errors import UserError
from trainonce.names import import_named
from trainonce.nn import loading
from trainonce.nn.graph_source import LOAD, network_source
from trainonce.nn.plain import NetworkSpec
from trainonce.nn.plain_graph import GraphSpec
from trainonce.nn.plain_resnet import ResNetSpec


@runtime_checkable
class PlainSpec(Protocol):
    """A plain network with every size fixed: a frozen value, equal where the networks are."""

    @property
    def resolution(self) -> int:
        """The side of its square input in pixels."""

    @property
    def in_channels(self) -> int:
        """Channels of its input."""

    @property
    def num_classes(self) -> int:
        """Logits that it gives."""

    def __hash__(self) -> int:
        """The same for equal specs, as frozen dataclasses have it."""

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The value that `to_json` wrote. Raises `TypeError`, `ValueError` or `KeyError` on anything else."""

    def build(self) -> nn.Module:
        """The network: images [B, C, H, W] to logits [B, classes]. Its attribute `spec` is this value."""


@runtime_checkable
class InBlocks(Protocol):
    """A spec of a network that is a stem, blocks one after the other (`network.blocks`), and a head."""

    @property
    def blocks(self) -> tuple[Any, ...]:
        """The sizes of each block: dataclasses."""

    @property
    def map_sizes(self) -> tuple[int, ...]:
        """The sides of the maps that enter each block, and of the one that leaves the last."""


KINDS: dict[str, type[PlainSpec]] = {"mbconv": NetworkSpec, "resnet": ResNetSpec, "graph": GraphSpec}
"""The kinds that are built in. Another is named by where it is defined, `package.module:Class`."""
DEFAULT = "mbconv"
"""The kind of networks that are written down without one."""


def spec_of(network: nn.Module) -> PlainSpec:
    """What a plain network was built from."""
    spec = network.spec
    assert isinstance(spec, PlainSpec), type(network)
    return spec


def kind_of(spec: PlainSpec) -> str:
    """The name of a spec's kind."""
    built_in = [name for name, kind in KINDS.items() if type(spec) is kind]
    return built_in[0] if built_in else f"{type(spec).__module__}:{type(spec).__qualname__}"


def written(spec: PlainSpec) -> dict[str, Any]:
    """A spec as JSON values, its kind among them."""
    kind = kind_of(spec)
    return spec.to_json() if kind == DEFAULT else {"kind": kind, **spec.to_json()}


def read_spec(values: Mapping[str, Any], *, beside: str | Path) -> PlainSpec:
    """The spec that `written` wrote into a file in the directory `beside`, whose own code is never imported.

    Raises `UserError` for a kind that is not here, and what `from_json` raises.
    """
    fields = dict(values)
    kind = fields.pop("kind", DEFAULT)
    if not isinstance(kind, str):
        raise ValueError(f"its network's kind is {kind!r:.100}")
    if kind in KINDS:
        return KINDS[kind].from_json(fields)
    found: Any = import_named(kind, "kind of network", KINDS, beside=beside)
    if not {"build", "from_json"} <= set(dir(found)):
        raise UserError(f"{kind} is not a kind of network: see trainonce.nn.kinds.PlainSpec")
    spec: PlainSpec = found.from_json(fields)
    return spec


def source_of(spec: PlainSpec) -> bytes:
    """A Python file that stands alone: the network, and `load(directory)`."""
    network, load = module_of(spec)
    reading = Path(loading.__file__).read_text(encoding="utf-8")
    first = ast.parse(reading).body[0]  # its docstring
    assert first.end_lineno is not None
    reading = "\n".join(reading.splitlines()[first.end_lineno :])
    return f"{network}\n\n# Reading a directory\n{reading}\n\n{load}".encode()


@singledispatch
def module_of(spec: PlainSpec) -> tuple[str, str]:
    """The source of a module with a plain network, and that of its `load`: in general the module of the spec's kind."""
    kind = type(spec)
    return Path(inspect.getfile(kind)).read_text(encoding="utf-8"), _LOAD.format(kind=kind.__qualname__)


@module_of.register
def _of_graph(spec: GraphSpec) -> tuple[str, str]:
    return network_source(spec), LOAD


_LOAD = '''
def load(directory: str | Path) -> nn.Module:
    """The network of a directory, in evaluation mode, on the CPU. Raises `ValueError` where it holds something else."""
    return load_as({kind}.from_json, directory)
'''
