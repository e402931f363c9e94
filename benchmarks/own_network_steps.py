"""What elasticity costs in a training step of a network of timm, which must be installed: seconds and memory.

    python benchmarks/own_network_steps.py resnet18 efficientnet_lite0

For each network the ratio of CPU seconds (process time, the least of six each, by turns) of a step, forward and
backward, of the supernet at an architecture to one of the network extracted for it; and of the largest subnet to the
network's own classes. All get images with their channels innermost, as training gives them. Channels of the supernet
are as they come, then ordered. Then the peak of memory of twelve steps by SGD with
momentum (resident, beyond what the process had before the first, and the weights): in a process of its own the network
in its own classes, and in another the supernet, at its largest subnet and at random ones by turns.
"""

import multiprocessing
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from common import channels_last
from own_networks import built
from trainonce.models.traced import elastic

IMAGES, SIDE, SUBNETS, TURNS = 16, 64, 9, 6


def step_seconds(call: Callable[[], Tensor], network: nn.Module) -> float:
    """CPU seconds of one forward and backward pass."""
    began = time.process_time()
    call().square().mean().backward()  # type: ignore[no-untyped-call]
    seconds = time.process_time() - began
    network.zero_grad(set_to_none=True)
    return seconds


def ratio(ours: Callable[[], Tensor], net: nn.Module, other: nn.Module, x_BCHW: Tensor) -> float:
    """Our seconds in parts of another network's, by turns."""
    mine, its = [], []
    for _ in range(TURNS):
        mine.append(step_seconds(ours, net))
        its.append(step_seconds(lambda: other(x_BCHW), other))
    return min(mine) / min(its)


def resident_mb(*, peak: bool) -> float:
    """Memory of this process now, or the most that it has had, in MB."""
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() / 1e6


def memory_mb(name: str, *, elastically: bool) -> float:
    """What twelve steps of a network take at their peak, weights included."""
    model, rng = built(name, "timm").train(), random.Random(0)
    x_BCHW = channels_last(torch.randn(4 * IMAGES, 3, 2 * SIDE, 2 * SIDE))
    weights: float = sum(tensor.numel() * 4 for tensor in model.state_dict().values()) / 1e6
    net = elastic(model, x_BCHW[:2]).train() if elastically else None
    before = resident_mb(peak=False)
    network = net or model
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for step in range(12):
        optimizer.zero_grad()
        arch = None if net is None else net.space.sample(rng) if step % 2 else net.space.largest()
        (model(x_BCHW) if net is None else net(x_BCHW, arch)).square().mean().backward()
        optimizer.step()
    return resident_mb(peak=True) - before + weights


def main() -> None:
    print(f"{IMAGES} images of {SIDE} x {SIDE}, {torch.get_num_threads()} thread(s)")
    for name in sys.argv[1:]:
        model = built(name, "timm").train()
        x_BCHW, rng = channels_last(torch.randn(IMAGES, 3, SIDE, SIDE)), random.Random(0)
        net = elastic(model, x_BCHW).train()
        largest = net.space.largest()
        own = ratio(lambda: net(x_BCHW, largest), net, model, x_BCHW)  # noqa: B023
        print(f"{name}: largest subnet to own classes {own:.3f}")
        for order in ("as they come", "ordered"):
            if order == "ordered":
                net.sort_channels(net.space.keep_largest({"width": 1, "depth": 1}))
            found = []
            for arch in (largest, *(net.space.sample(rng) for _ in range(SUBNETS))):
                found.append(ratio(lambda: net(x_BCHW, arch), net, net.extract(arch).train(), x_BCHW))  # noqa: B023
            mean = statistics.mean(found)
            print(f"  channels {order}: mean {mean:.3f}, {min(found):.3f} to {max(found):.3f}", flush=True)
        took = {}
        for elastically in (False, True):
            with multiprocessing.get_context("spawn").Pool(1) as alone:
                took[elastically] = alone.apply(memory_mb, (name,), {"elastically": elastically})
        print(f"  memory: own classes {took[False]:.0f} MB, supernet {took[True]:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
