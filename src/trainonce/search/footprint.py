"""What a subnet's exported file takes, and its runtime plans in memory, before there is a file.

For int8 files, OpenVINO's and LiteRT for Microcontrollers that is counted operator by operator, from the parts of the
network: each is written once as it is exported. For other files, for networks that are not made of blocks and for
operators that are not written there, it is what `trainonce.cost.memory` says: the weights, and the activations that are
live at once.
"""

from dataclasses import dataclass
from functools import lru_cache

from torch import nn

from trainonce.cost.memory import BYTES_PER_VALUE, model_size, peak_memory
from trainonce.errors import UserError
from trainonce.extras import try_import
from trainonce.latency.parts import PartModule, part_modules, part_names, sized_network
from trainonce.latency.runtimes import with_random_weights
from trainonce.nn.kinds import InBlocks, PlainSpec
from trainonce.nn.onnx_graph import onnx_model
from trainonce.tflite.arena import Operators, arena_bytes, chained, operators_of
from trainonce.tflite.file import WEIGHTED
from trainonce.tflite.graph import graph_in


@dataclass(frozen=True, kw_only=True)
class FileBytes:
    """Bytes of a file beside its weights.

    The numbers were fitted together: where a block has always the same operators, theirs are partly its own.
    """

    weight: int = 1
    """A weight of a convolution or linear layer, in the numbers of the target."""
    fixed: float
    block: float
    """What the description says of a block."""
    weighted: float
    """An operator with weights."""
    other: float
    """Another operator."""
    channel: float
    """Scales, zero points and bias of a channel that is given."""

    def of(self, network: Operators, blocks: int) -> int:
        """The bytes of a network's file."""
        weighted = sum(one.kind in WEIGHTED for one in network.operators)
        others = len(network.operators) - weighted
        channels = sum(one.channels for one in network.operators)
        weights = sum(one.weights for one in network.operators)
        of_operators = self.weighted * weighted + self.other * others
        return round(self.fixed + self.block * blocks + of_operators + self.channel * channels + self.weight * weights)


FILES = {
    "onnx-int8": FileBytes(fixed=-407, block=-409, weighted=2241, other=-546, channel=17.5),
    "openvino": FileBytes(weight=4, fixed=-11928, block=-6566, weighted=11208.5, other=-2077, channel=5.1),
    "openvino-int8": FileBytes(fixed=-26608, block=-14345, weighted=31896, other=-4910, channel=16.6),
    "litert-int8": FileBytes(fixed=1813, block=90, weighted=372, other=187, channel=28.5),
    "tflite-micro": FileBytes(fixed=657, block=0, weighted=335.4, other=173.2, channel=28.1),
}
"""By target; fitted to files of random subnets (docs/ship.md says how well)."""
PLANNED = "tflite-micro"
"""The target whose memory is planned here as its runtime plans it."""


def is_counted(target: str | None, resource: str) -> bool:
    """Whether memory or size of a target are counted operator by operator."""
    return (resource == "size" and target in FILES) or (resource == "memory" and target == PLANNED)


def file_bytes(spec: PlainSpec, *, numbers: str = "float32", target: str | None = None) -> int:
    """Bytes of a network's exported file, in the numbers of the target."""
    counted = FILES.get(target or "")
    network = operators_in(spec) if counted else None
    if counted is None or network is None or not isinstance(spec, InBlocks):
        return model_size(spec, bytes_per_value=BYTES_PER_VALUE[numbers])
    return counted.of(network, len(spec.blocks))


def ram_bytes(spec: PlainSpec, *, numbers: str = "float32", target: str | None = None) -> int:
    """Bytes of memory that a network needs for one image: of `PLANNED` the arena, else activations at their peak."""
    network = operators_in(spec) if target == PLANNED else None
    return peak_memory(spec, bytes_per_value=BYTES_PER_VALUE[numbers]) if network is None else arena_bytes(network)


@lru_cache(maxsize=1024)
def operators_in(spec: PlainSpec) -> Operators | None:
    """The operators of a network as TensorFlow Lite has them; None where they cannot be told from its parts.

    Raises `UserError` without the extra onnx, by whose graphs they are told.
    """
    if not isinstance(spec, InBlocks):
        return None
    with try_import("counting what a file takes", "onnx"):
        import onnx  # noqa: F401
    names = part_names(spec)
    network = None if _PARTS.keys() >= set(names) else sized_network(spec)
    try:
        (before, after), *blocks = (_part(name, spec, network) for name in names)
    except UserError:  # an operator without a counterpart
        return None
    return chained([before, *(part for (part,) in blocks), after])


_PARTS: dict[str, list[Operators]] = {}


def _part(name: str, spec: PlainSpec, network: nn.Module | None) -> list[Operators]:
    """The operators of each module of a part, which `network` has unless it is known."""
    if name not in _PARTS:
        modules = part_modules(name, spec, network)
        _PARTS[name] = [
            _operators(module, turned=len(modules) > 1 and not place) for place, module in enumerate(modules)
        ]
    return _PARTS[name]


def _operators(module: PartModule, *, turned: bool) -> Operators:
    shape = (1, *module.shape)
    return operators_of(graph_in(onnx_model(with_random_weights(module), shape), shape, turned=turned))
