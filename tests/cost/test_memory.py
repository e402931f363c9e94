"""Peak memory against a simulation of its own over the traced network, and by hand; size against the file."""

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.small_resnet_plain import SmallSpec
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from trainonce.cost.liveness import traced_peak
from trainonce.cost.macs import counted_cost
from trainonce.cost.memory import model_size, peak_memory, peak_values
from trainonce.data import load_dataset
from trainonce.models import MobileNetV3
from trainonce.models.mbconv_cost import network_cost
from trainonce.nn.plain import BlockSpec, NetworkSpec, PlainNetwork, resize
from trainonce.space import derived_rng
from trainonce.subnets import describe_subnet, write_subnet

MakeNet = Callable[..., MobileNetV3]
SAME_PLACE = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Dropout)
"""Layers that write over their input, which nothing else reads, or do nothing."""


def overwritten(node: fx.Node, layers: dict[str, nn.Module], last_read: dict[fx.Node, int], now: int) -> fx.Node | None:
    """The input whose memory this operation's output takes over."""
    inputs = node.all_input_nodes
    shared = (node.op == "call_module" and isinstance(layers[str(node.target)], SAME_PLACE)) or (
        node.target in (F.relu, F.hardswish, F.hardsigmoid, F.dropout, resize, "flatten")
    )
    if shared:
        assert len(inputs[0].users) == 1
        return inputs[0]
    if node.target in (operator.add, operator.mul):
        shape = node.meta["tensor_meta"].shape
        dying = [n for n in inputs if last_read[n] == now and n.meta["tensor_meta"].shape == shape]
        return dying[-1]
    return None


def simulated_peak(spec: NetworkSpec) -> int:
    """Values live at once, followed through the network's operations one at a time, by who still reads what."""
    with torch.device("meta"):
        network = PlainNetwork(spec).eval()
    tracer = fx.Tracer(autowrap_functions=(resize,))
    traced = fx.GraphModule(network, tracer.trace(network))
    image = torch.zeros(1, spec.in_channels, spec.resolution, spec.resolution, device="meta")
    ShapeProp(traced).propagate(image)
    layers = dict(traced.named_modules())
    nodes = list(traced.graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    last_read = {node: max((place[user] for user in node.users), default=place[node]) for node in nodes}
    live: dict[fx.Node, int] = {}
    peak = 0
    for now, node in enumerate(nodes[:-1]):
        taken = overwritten(node, layers, last_read, now) if node.op != "placeholder" else None
        live[node] = node.meta["tensor_meta"].shape.numel() if taken is None else live.pop(taken)
        peak = max(peak, sum(live.values()))
        for dead in [n for n in live if last_read[n] <= now and n is not node]:
            del live[dead]
    return peak


@st.composite
def specs(draw: st.DrawFn) -> NetworkSpec:
    """Networks of one to four blocks of any kind."""
    small = st.integers(1, 24)
    at = stem = draw(small)
    blocks = []
    for _ in range(draw(st.integers(1, 4))):
        expand = draw(st.booleans())
        out = at if draw(st.booleans()) else draw(small)
        block = BlockSpec(
            in_channels=at,
            mid_channels=draw(small) if expand else at,
            out_channels=out,
            kernel_size=draw(st.sampled_from([1, 3, 5, 7])),
            stride=draw(st.integers(1, 2)),
            se_channels=draw(st.sampled_from([0, 1, 8])),
            activation=draw(st.sampled_from(["relu", "h_swish"])),
            expand=expand,
        )
        blocks.append(block)
        at = out
    return NetworkSpec(
        resolution=draw(st.integers(1, 12)),
        in_channels=draw(st.integers(1, 3)),
        stem_channels=stem,
        stem_stride=draw(st.integers(1, 2)),
        blocks=tuple(blocks),
        final_channels=draw(small),
        feature_channels=draw(small),
        num_classes=draw(small),
        dropout=0.0,
    )


@settings(max_examples=40, deadline=None)
@given(spec=specs())
def test_the_peak_is_that_of_the_simulated_network(spec: NetworkSpec) -> None:
    assert peak_memory(spec) == 4 * simulated_peak(spec)


@settings(max_examples=20, deadline=None)
@given(spec=specs())
def test_the_general_way_counts_what_the_closed_forms_do(spec: NetworkSpec) -> None:
    assert traced_peak(spec) == peak_values(spec)
    assert counted_cost(spec) == network_cost(spec)


def test_the_general_way_takes_no_longer_than_a_network_is_long() -> None:
    """Forty residual blocks one after the other: there are 2^40 ways through them."""
    one, forty = (
        SmallSpec(resolution=8, in_channels=1, channels=16, widths=(32,) * blocks, num_classes=3) for blocks in (1, 40)
    )
    assert traced_peak(forty) == traced_peak(one)


def test_the_general_way_by_hand() -> None:
    """The residual block holds its input, 16 values of 4 x 4, beside its two maps of 32 inside."""
    spec = SmallSpec(resolution=8, in_channels=1, channels=16, widths=(32,), num_classes=3)
    assert peak_memory(spec) == 4 * 16 * (16 + 32 + 16)
    spec = SmallSpec(resolution=8, in_channels=1, channels=2, widths=(1,), num_classes=3)
    assert peak_memory(spec) == 4 * (64 + 2 * 16), "the image beside what the stem makes of it"


def test_the_peak_of_random_subnets_is_that_of_the_simulated_networks(make_net: MakeNet) -> None:
    net = make_net(resolutions=(8, 12))
    rng = derived_rng("memory")
    archs = [net.space.smallest(), net.space.largest(), *(net.space.sample(rng) for _ in range(3))]
    peaks = [peak_memory(net.describe(arch), bytes_per_value=1) for arch in archs]
    assert peaks == [simulated_peak(net.describe(arch)) for arch in archs]
    assert len(set(peaks)) > 2


def one_block(**fields: Any) -> NetworkSpec:
    block = BlockSpec(
        **{
            "in_channels": 4,
            "mid_channels": 16,
            "out_channels": 4,
            "kernel_size": 3,
            "stride": 1,
            "se_channels": 0,
            "activation": "relu",
            "expand": True,
            **fields,
        }
    )
    return NetworkSpec(
        resolution=10,
        in_channels=3,
        stem_channels=4,
        stem_stride=1,
        blocks=(block,),
        final_channels=5,
        feature_channels=6,
        num_classes=2,
        dropout=0.0,
    )


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({}, 400 + 1600 + 1600),  # the residual's input waits beside the depthwise convolution
        ({"out_channels": 5}, 1600 + 1600),  # no residual: its input is gone
        ({"stride": 2}, 400 + 1600),  # the depthwise output has a quarter of the pixels: 1600 + 400 too
        ({"stride": 2, "mid_channels": 8, "out_channels": 60}, 8 * 25 + 60 * 25),  # what it projects onto
        ({"expand": False, "mid_channels": 4}, 400 + 400 + 400),  # source, filtered, and the projection
        ({"se_channels": 2000}, 400 + 1600 + 16 + 2000),  # the map waits for its gate
    ],
)
def test_peaks_by_hand(fields: dict[str, Any], values: int) -> None:
    assert peak_memory(one_block(**fields)) == 4 * values
    assert peak_memory(one_block(**fields), bytes_per_value=1) == values


def test_the_size_is_the_files(make_net: MakeNet, tmp_path: Path) -> None:
    net = make_net()
    rng, digits = derived_rng("size"), load_dataset("digits")
    for arch in (net.space.smallest(), net.space.largest(), *(net.space.sample(rng) for _ in range(4))):
        write_subnet(tmp_path / arch.id, net.extract(arch), describe_subnet(net, arch, digits))
        assert model_size(net.describe(arch)) == (tmp_path / arch.id / "model.safetensors").stat().st_size
