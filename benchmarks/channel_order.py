"""What ordering channels is worth without any training of subnets: accuracy at 90, 75 and 50% of a network's MACs.

    python benchmarks/channel_order.py SET --model timm:NAME --from FILE [--epochs 8] [--subnets 8] [--image-size 96]

The network learns the set's classes for `--epochs` (the recipe `transfer` without its subnets). Then its channels are
ordered, by nothing, l1, l2 and taylor (see a phase's `sort_by`), and the same random subnets of full depth, within 5%
of the MACs, are recalibrated and scored on validate. Printed are the means over subnets, and Student's interval of the
difference to l1 over pairs of subnets: it says nothing of other networks, sets or seeds.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from common import machine
from trainonce.data import DataSet, load_dataset
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.lab.statistics import student
from trainonce.models.traced import Traced, elastic, network_named
from trainonce.recipes import RECIPES
from trainonce.run.directory import RunDirectory
from trainonce.sampling import MacsSampler
from trainonce.space import Architecture, derived_rng
from trainonce.training.importance import loss_gradients
from trainonce.training.loop import train_supernet

SHARES = (0.9, 0.75, 0.5)


def adapted(net: Traced, data: DataSet, epochs: float) -> None:
    """Let the largest subnet learn the classes."""
    transfer = RECIPES["transfer"]
    recipe = transfer.model_copy(update={"phases": transfer.phases[:2]})
    with TemporaryDirectory() as folder:
        train_supernet(net, recipe.scaled(epochs / recipe.epochs), data, RunDirectory(Path(folder) / "run"))


def orders(net: Traced, data: DataSet) -> dict[str, Callable[[Tensor], Tensor]]:
    """What a weight counts, by the name of the order; of "none" all count alike, so that nothing moves."""
    gradients = loss_gradients(net, data)
    return {
        "none": torch.ones_like,
        "l1": torch.abs,
        "l2": torch.square,
        "taylor": lambda parameter: (parameter * gradients[parameter]).abs(),
    }


def subnets(net: Traced, share: float, count: int) -> list[Architecture]:
    """Random subnets of full depth, with up to that share of the MACs."""
    sampler = MacsSampler(net.cost.within(net.space.keep_largest({"depth": 1})))
    window = sampler.below(share * net.cost_of(net.space.largest()).macs, share=0.95)
    rng = derived_rng(0, "channel order")
    return [sampler.sample(rng, *window) for _ in range(count)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", metavar="SET")
    parser.add_argument("--model", required=True)
    parser.add_argument("--from", dest="weights")
    parser.add_argument("--epochs", type=float, default=8.0)
    parser.add_argument("--subnets", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=96)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(machine())
    given = network_named(asked.model, asked.weights)
    data = load_dataset(asked.set, image_size=asked.image_size, mean=given.mean, std=given.std)
    example_BCHW = torch.zeros(1, data.channels, data.image_size, data.image_size)
    net = elastic(given.network, example_BCHW, num_classes=data.num_classes)
    adapted(net, data, asked.epochs)
    data = data.varied_by(RECIPES["transfer"])
    evaluator = Evaluator(data, "validate", EvaluateSettings(calibration_images=400))
    print(f"the whole network: {evaluator(net, net.space.largest()).top1:.1f}% on {len(data.validate)} validate images")
    scored: dict[tuple[str, float], list[float]] = {}
    for name, weigh in orders(net, data).items():
        net.sort_channels(net.space.keep_largest({"width": 1}), weigh)
        for share in SHARES:
            scored[name, share] = [evaluator(net, arch).top1 for arch in subnets(net, share, asked.subnets)]
    print(f"\n| order | {' | '.join(f'{share:.0%} of MACs' for share in SHARES)} |\n|---|{'---|' * len(SHARES)}")
    for name in dict.fromkeys(name for name, _ in scored):
        print(f"| {name} | {' | '.join(_cell(scored, name, share) for share in SHARES)} |", flush=True)


def _cell(scored: dict[tuple[str, float], list[float]], name: str, share: float) -> str:
    mean = f"{statistics.fmean(scored[name, share]):.1f}"
    if name == "l1":
        return mean
    difference = student([a - b for a, b in zip(scored[name, share], scored["l1", share], strict=True)])
    return mean if difference is None else f"{mean} ({difference.low:+.1f} to {difference.high:+.1f})"


if __name__ == "__main__":
    main()
