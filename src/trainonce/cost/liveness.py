"""The activations of any network at their peak, followed through its operations one at a time."""

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from trainonce.nn.kinds import PlainSpec

UNTAGGED = ("aten::hardswish", "aten::native_batch_norm", "aten::_native_batch_norm", "aten::batch_norm")
"""Operations on each value by itself that torch does not tag as such."""


def traced_peak(spec: PlainSpec) -> int:
    """The most values that are live at once for one image, by the rules of `trainonce.cost.memory`.

    The network is run once without numbers. What works on each value by itself, batch norms among it, writes over an
    input of its output's size that nothing reads any more; views are their input.
    """
    with torch.device("meta"):
        network = spec.build().eval()
        image = torch.empty(1, spec.in_channels, spec.resolution, spec.resolution)
    with torch.no_grad():
        nodes = [n for n in make_fx(network)(image).graph.nodes if n.op in ("placeholder", "call_function")]
    own = {node: _maps_read(node) for node in nodes}
    place = {node: number for number, node in enumerate(nodes)}
    last_read = {node: max((place[user] for user in node.users if user in place), default=-1) for node in nodes}
    for node in reversed(nodes):  # a map is there as long as a view of it is read
        if _is_view(node):
            for source in own[node]:
                last_read[source] = max(last_read[source], last_read[node])
    live: dict[fx.Node, int] = {}
    peak = 0
    for now, node in enumerate(nodes):
        if _is_view(node) and own[node]:
            continue
        size = _values(node)
        dying = [_source(n) for n in own[node] if last_read[_source(n)] <= now and live.get(_source(n)) == size]
        if dying and _in_place(node):
            del live[dying[-1]]
        if own[node] or node.op == "placeholder":
            live[node] = size
        peak = max(peak, sum(live.values()))
        live = {n: values for n, values in live.items() if last_read[n] > now or n is node}
    return peak


def _maps_read(node: fx.Node) -> list[fx.Node]:
    """The inputs that follow from the image: weights do not."""
    return [n for n in node.all_input_nodes if n.op == "placeholder" or (n.op == "call_function" and _maps_read(n))]


def _source(node: fx.Node) -> fx.Node:
    """What a view is a view of."""
    while _is_view(node):
        node = node.all_input_nodes[0]
    return node


def _is_view(node: fx.Node) -> bool:
    """Whether an operation gives its first input's memory, or one of several outputs."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.op == "call_function"  # getitem
    return any(a.alias_info is not None and not a.alias_info.is_write for a in node.target._schema.arguments)


def _in_place(node: fx.Node) -> bool:
    """Whether an operation works on each value by itself."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return torch.Tag.pointwise in node.target.tags or node.target._schema.name.startswith(UNTAGGED)


def _values(node: fx.Node) -> int:
    """How many numbers the first output has."""
    made = node.meta["val"] if "val" in node.meta else node.meta["tensor_meta"]
    first = made[0] if isinstance(made, tuple | list) else made
    return int(first.shape.numel())
