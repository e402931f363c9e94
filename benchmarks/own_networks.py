"""What is elastic in networks of timm and torchvision, which must be installed: docs/own_network.md's table.

    python benchmarks/own_networks.py --out own_networks.json

For each network: seconds to trace it, elastic axes and stages, axes that stay, operations without a rule, and the ends
of MACs and parameters. Over random subnets, before and after channels are ordered, it is checked that the extracted
network computes the same to the last bit, and that its costs are what torch counts.
"""

import argparse
import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from trainonce.cost.macs import counted_cost
from trainonce.models.traced import Traced, elastic

TIMM = (
    *("resnet18", "resnet50", "mobilenetv3_small_100", "efficientnet_lite0", "mobilenetv4_conv_small"),
    *("convnext_femto", "convnextv2_femto", "repvgg_a0", "mobileone_s0", "regnety_002", "vit_tiny_patch16_224"),
    "efficientvit_b0",
)
TORCHVISION = ("mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0", "densenet121", "squeezenet1_0", "googlenet")


@dataclass(frozen=True)
class Found:
    """A network's line of the table. Costs in single MACs and parameters, of the smallest and largest subnet."""

    network: str
    stages: bool
    seconds: float
    widths: int
    depths: int
    rigid: int
    unknown: tuple[str, ...]
    macs: tuple[int, int]
    params: tuple[int, int]
    subnets_checked: int


def built(name: str, library: str) -> nn.Module:
    """The network with random weights, in evaluation mode."""
    torch.manual_seed(0)
    for operator in ("nms", "qnms"):  # a CPU build of torch does not load torchvision's own
        if not torch._C._jit_get_schemas_for_operator(f"torchvision::{operator}"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
    module: ModuleType = __import__(library)
    network: nn.Module = module.create_model(name) if library == "timm" else module.models.get_model(name, weights=None)
    return network.eval()


@torch.no_grad()
def checked(model: nn.Module, net: Traced, count: int) -> int:
    """How many subnets were checked; raises `AssertionError` where one is not what it should be."""
    x_BCHW, rng = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)), random.Random(0)
    largest = net.space.largest()
    for ordered in (False, True):
        if ordered:
            net.sort_channels(net.space.keep_largest({"width": 1, "depth": 1}))
        assert torch.equal(net(x_BCHW, largest), model(x_BCHW)), "the largest subnet is not the network"
        for arch in (net.space.smallest(), largest, *(net.space.sample(rng) for _ in range(count // 2))):
            assert torch.equal(net(x_BCHW, arch), net.extract(arch)(x_BCHW)), f"{arch} is not what is extracted"
            assert net.cost_of(arch) == counted_cost(net.describe(arch)), f"{arch} costs something else"
    return 2 * (2 + count // 2)


def found(name: str, library: str, *, stages: bool, count: int) -> Found:
    """Trace a network and check its subnets."""
    model = built(name, library)
    began = time.perf_counter()
    net = elastic(model, torch.zeros(2, 3, 224, 224), stages=stages).eval()
    seconds = time.perf_counter() - began
    subnets = checked(model, net, count)
    small, large = net.cost_of(net.space.smallest()), net.cost_of(net.space.largest())
    return Found(
        network=name,
        stages=stages,
        seconds=round(seconds, 1),
        widths=len(net.layout.widths),
        depths=len(net.layout.depths),
        rigid=len(net.layout.rigid),
        unknown=tuple(sorted(set(net.layout.found.unknown.values()))),
        macs=(small.macs, large.macs),
        params=(small.params, large.params),
        subnets_checked=subnets,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subnets", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    rows = []
    print("| network | stages | s | widths | depths | rigid | M MACs | M parameters |")
    print("|---|---|---|---|---|---|---|---|")
    for library, names in (("timm", TIMM), ("torchvision", TORCHVISION)):
        for name in names:
            for stages in (False, True):
                if options.only and name not in options.only:
                    continue
                if not stages and name in ("repvgg_a0", "mobileone_s0"):  # they have no others
                    continue
                row = found(name, library, stages=stages, count=options.subnets)
                rows.append(asdict(row))
                macs, params = (
                    "/".join(f"{n / 1e6:.{d}f}" for n in pair) for pair, d in ((row.macs, 0), (row.params, 2))
                )
                shown = (name, "yes" if stages else "no", row.seconds, row.widths, row.depths, row.rigid, macs, params)
                print("|", " | ".join(map(str, shown)), "|", flush=True)
                options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
