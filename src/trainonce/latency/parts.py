"""The parts that a plain network is made of: its blocks, and its two ends; which of them a space has.

Two networks share a part exactly when the part's every size is equal, its input map's included. A part is named by its
sizes in JSON, so that a table of parts can be read without knowing families of networks.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from trainonce.errors import UserError
from trainonce.latency.weights import Key, Kind, amounts_in, kinds_in, sizes_of
from trainonce.models import Supernet
from trainonce.nn.kinds import DEFAULT, InBlocks, PlainSpec, kind_of, written
from trainonce.nn.onnx_graph import trace
from trainonce.nn.plain_graph import GraphSpec
from trainonce.settings import JsonObject
from trainonce.space import Architecture, Choice

ENDS, BLOCK, WHOLE = "ends", "block", "whole"
"""The kinds of parts. The ends are what lies before the first block and after the last, together."""
MOST_WHOLE = 500
"""The most subnets of a space whose networks are measured whole."""
UNTIMED = {"dropout", "bn_eps"}
"""What no time follows from."""


def part_name(part: Mapping[str, Any]) -> str:
    """The name of a part with these sizes."""
    return json.dumps(dict(part), sort_keys=True)


@lru_cache(maxsize=4096)
def block_name(spec: Any, size: int) -> str:
    """The name of a block on an input map of `size` x `size`."""
    return part_name({"part": BLOCK, "size": size, **_timed(asdict(spec))})


def ends_name(spec: PlainSpec, last_size: int, last_channels: int) -> str:
    """The name of a network's ends, whose last block gives a map [last_channels, last_size, last_size]."""
    last = {"last_size": last_size, "last_channels": last_channels}
    kind = {"kind": kind_of(spec)} if kind_of(spec) != DEFAULT else {}
    sizes = {key: value for key, value in vars(spec).items() if key != "blocks"}
    return part_name({"part": ENDS, **kind, **last, **_timed(sizes)})


def _timed(fields: Mapping[str, Any]) -> JsonObject:
    return {key: value for key, value in fields.items() if key not in UNTIMED}


def part_names(spec: PlainSpec) -> list[str]:
    """The names of a network's parts: its ends, then its blocks in order, with repetitions.

    A network that is a list of operations has those of `trainonce.latency.weights`; another that is not made of blocks
    is one part.
    """
    if isinstance(spec, GraphSpec):
        return [_weight_name(key) for key in amounts_in(spec)]
    if not isinstance(spec, InBlocks):
        return [part_name({"part": WHOLE, **_timed(written(spec))})]
    *sizes, last = spec.map_sizes
    names = [block_name(block, size) for block, size in zip(spec.blocks, sizes, strict=True)]
    return [ends_name(spec, last, spec.blocks[-1].out_channels), *names]


@lru_cache(maxsize=2**16)
def _weight_name(key: Key) -> str:
    return part_name(sizes_of(key))


def amounts_of(spec: PlainSpec) -> dict[str, float]:
    """How much a network has of each of its parts, by name: how often, or as `trainonce.latency.weights` says."""
    if isinstance(spec, GraphSpec):
        return {_weight_name(key): amount for key, amount in amounts_in(spec).items()}
    return dict(Counter(part_names(spec)))


def kinds_of(spec: GraphSpec) -> dict[str, dict[Kind, float]]:
    """By the names of a network's parts what one of each is in each kind of work (`kinds_in`)."""
    return {_weight_name(key): kinds for key, kinds in kinds_in(spec).items()}


def is_timed_alone(name: str) -> bool:
    """Whether a part of that name can be timed alone."""
    return json.loads(name).get("part") in (ENDS, BLOCK, WHOLE)


def is_ends(name: str) -> bool:
    """Whether a part's name is one of ends."""
    return bool(json.loads(name).get("part") == ENDS)


def covering(net: Supernet) -> Iterator[Architecture]:
    """Architectures that together have every part of the space.

    A term of the cost says which choices a part follows from; for each combination of their values there is one
    architecture, the largest that has them.
    """
    seen = set()
    for term in net.cost.terms:
        choices = [net.space[name] for name in term.choices]
        for values in itertools.product(*(choice.values for choice in choices)):
            wanted = {choice.name: value for choice, value in zip(choices, values, strict=True)}

            def pick(choice: Choice, allowed: tuple[int, ...], wanted: dict[str, int] = wanted) -> int:
                value = wanted.get(choice.name, allowed[-1])
                return value if value in allowed else allowed[-1]

            arch = net.space.build(pick)
            if arch not in seen:
                seen.add(arch)
                yield arch


def representatives(net: Supernet) -> dict[str, PlainSpec]:
    """Every part that a subnet of the space can have, each with one network that has it, and the most of it.

    Raises `UserError` where networks are not made of blocks, so that each is a part, and there are too many of them.
    """
    found: dict[str, PlainSpec] = {}
    if isinstance(net.describe(net.space.largest()), GraphSpec):
        largest = (net.describe(arch) for arch in _largest_at_each_resolution(net))
        return {name: spec for spec in largest for name in part_names(spec)}
    in_blocks = isinstance(net.describe(net.space.smallest()), InBlocks)
    if not in_blocks and net.space.count() > MOST_WHOLE:
        raise UserError(
            f"networks of {net.family} are not made of blocks, so each of {net.space.count():.3g} would have to be "
            f"measured: there is a latency table for at most {MOST_WHOLE}. See docs/family.md"
        )
    for arch in covering(net) if in_blocks else net.space.architectures():
        spec = net.describe(arch)
        for name in part_names(spec):
            found.setdefault(name, spec)
    return found


def _largest_at_each_resolution(net: Supernet) -> Iterator[Architecture]:
    for side in net.settings.resolutions:
        yield net.space.build(lambda choice, allowed: side if choice.name == "resolution" else allowed[-1])  # noqa: B023


def sized_network(spec: PlainSpec) -> nn.Module:
    """A network of these sizes in evaluation mode, on torch's meta device: it has no weights."""
    with torch.device("meta"):
        return spec.build().eval()


class PartModule(nn.Module):
    """A module by itself, with the shape [C, H, W] of what it gets."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.module, self.shape = module, shape

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """What the module gives."""
        out: Tensor = self.module(x_BCHW)
        return out


def part_modules(name: str, spec: PlainSpec, network: nn.Module | None = None) -> list[PartModule]:
    """The modules, without weights, that a part of a network with these sizes consists of.

    They are of `network`, or of a new one: `sized_network(spec)`.
    """
    part, network = json.loads(name), sized_network(spec) if network is None else network
    image = (spec.in_channels, spec.resolution, spec.resolution)
    if part["part"] == WHOLE:
        return [PartModule(network, image)]
    if part["part"] == BLOCK:
        block = network.get_submodule(f"blocks.{part_names(spec).index(name) - 1}")
        return [PartModule(block, (part["in_channels"], part["size"], part["size"]))]
    nodes = list(trace(network, leaf=_is_block).graph.nodes)
    blocks = [i for i, node in enumerate(nodes) if node.op == "call_module" and _is_block(str(node.target))]
    before = _cut(network, nodes[0], nodes[1 : blocks[0]])
    after = _cut(network, nodes[blocks[-1]], nodes[blocks[-1] + 1 : -1])
    return [PartModule(before, image), PartModule(after, (part["last_channels"], part["last_size"], part["last_size"]))]


def _is_block(target: str) -> bool:
    return target.startswith("blocks.") and target.count(".") == 1


def _cut(network: nn.Module, entry: fx.Node, nodes: list[fx.Node]) -> fx.GraphModule:
    """The operations `nodes` as a module of its own, whose input stands for what `entry` gives."""
    graph = fx.Graph()
    copies = {entry: graph.placeholder("x")}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[nodes[-1]])
    return fx.GraphModule(network, graph)
