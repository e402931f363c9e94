"""What a step of the optimizer takes: our Muon beside torch's and SGD.

    python benchmarks/muon.py [--pixels 64] [--width 1.0] [--subnets 30]

The supernet is `light` for images of so many pixels and 10 classes. After a forward and backward pass of each random
subnet each optimizer takes its step on a network of its own: median ms, on one thread. torch's Muon moves copies of the
matrices, which the network does not see, by gradients as matrices (that counts); SGD's step for all else is beside it.
"""

import argparse
import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from common import channels_last, machine, random_subnets
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.recipes import RECIPES
from trainonce.training.muon import as_matrix, takes_orthogonal_steps
from trainonce.training.optimizers import optimizer_for, stepper_for

CLASSES, BATCH = 10, 8


def stepper(net: MobileNetV3, optimizer: str) -> Callable[[], object]:
    """What takes a step of one of ours, by the settings of `quick`."""
    recipe = RECIPES["quick"].model_copy(update={"optimizer": optimizer})
    return stepper_for(optimizer_for(net, recipe, recipe.phases[0]))


def by_torch(net: MobileNetV3) -> Callable[[], object]:
    """What takes a step of torch's Muon for the matrices, and of SGD for all else."""
    weights = [weight for weight in net.parameters() if takes_orthogonal_steps(weight)]
    copies = [nn.Parameter(as_matrix(weight.detach()).contiguous()) for weight in weights]
    muon = torch.optim.Muon(copies, lr=0.02, weight_decay=0.1, momentum=0.9)
    rest = stepper(net, "sgd")

    def step() -> None:
        for weight, matrix in zip(weights, copies, strict=True):
            matrix.grad, weight.grad = None if weight.grad is None else as_matrix(weight.grad), None
        muon.step()  # type: ignore[no-untyped-call]
        rest()

    return step


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--subnets", type=int, default=30)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(machine())
    settings = MobileNetV3Settings.for_images(
        image_size=asked.pixels, in_channels=3, num_classes=CLASSES, geometry="light", width_mult=asked.width
    )
    first = MobileNetV3(settings, seed=0).train()
    nets = {name: copy.deepcopy(first) for name in ("sgd", "muon", "torch's Muon")}
    steppers = {name: by_torch(net) if "torch" in name else stepper(net, name) for name, net in nets.items()}
    generator = torch.Generator().manual_seed(0)
    x_BCHW = channels_last(torch.randn(BATCH, 3, asked.pixels, asked.pixels, generator=generator))
    y_B = torch.randint(CLASSES, (BATCH,), generator=generator)
    steps = defaultdict[str, list[float]](list)
    for arch in random_subnets(first, asked.subnets):
        for name, net in nets.items():
            net.zero_grad()
            loss: Tensor = nn.functional.cross_entropy(net(x_BCHW, arch), y_B)
            torch.autograd.backward(loss)
            began = time.perf_counter()
            steppers[name]()
            steps[name].append(time.perf_counter() - began)
    ms = {name: 1e3 * statistics.median(taken) for name, taken in steps.items()}
    for name, one in ms.items():
        print(f"{name}: {one:.2f} ms, {one / ms['muon']:.2f} of ours")


if __name__ == "__main__":
    main()
