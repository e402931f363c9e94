"""Whether cost grows in proportion to work: images in a batch, images scored, subnets of a population, blocks.

    python benchmarks/linear.py [--rounds 5] [--threads 2]

Each is measured at three sizes side by side. Printed are the time at each size, the time of one unit more (the slope of
the line of least squares through the medians), what the line says of no units at all, and the line's largest relative
error.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping
from functools import partial

import torch

from common import (
    CLASSES,
    Trainer,
    calibrated_segments,
    fitted_line,
    machine,
    middle,
    paper_network,
    random_images,
    run_segments,
    side_by_side,
)
from trainonce.evaluation.chain import Chain
from trainonce.models import MobileNetV3
from trainonce.sampling import MacsSampler
from trainonce.space import Architecture, derived_rng

BATCHES = (64, 128, 256)
IMAGES = (2000, 4000, 8000)
POPULATIONS = (4, 8, 16)
DEPTHS = (2, 3, 4)
POPULATION_IMAGES = 1000
SCORE_BATCH = 200
TYPICAL_MACS = 8e6


def of_depth(net: MobileNetV3, depth: int) -> Architecture:
    """The subnet with as many blocks in every stage, each of kernel 5 and expansion 4."""
    return net.space.restrict({"depth": [depth], "kernel_size": [5], "expand_ratio": [4]}).largest()


def training(net: MobileNetV3, trainer: Trainer, arch: Architecture, batch: int) -> Callable[[], object]:
    """A training step."""
    (x_BCHW,) = random_images(batch, batch=batch, seed=0)
    y_B = torch.randint(CLASSES, (batch,), generator=torch.Generator().manual_seed(0))
    return partial(trainer.step, lambda x: net(x, arch), x_BCHW, y_B)


def populations(net: MobileNetV3) -> dict[float, Callable[[], object]]:
    """Evaluations of populations of subnets that cost about the same; each holds the smaller ones."""
    sampler, rng = MacsSampler(net.cost), derived_rng(0, "linear")
    archs = [sampler.sample(rng, 0.99 * TYPICAL_MACS, 1.01 * TYPICAL_MACS) for _ in range(max(POPULATIONS))]
    batches = random_images(POPULATION_IMAGES, batch=SCORE_BATCH, seed=1)

    def evaluate(count: int) -> None:
        chain = Chain(lambda: batches, lambda: batches)
        for arch in archs[:count]:
            for _ in chain.logits(net.extract(arch)):
                pass

    return {count: partial(evaluate, count) for count in POPULATIONS}


def measure(title: str, unit: str, works: Mapping[float, Callable[[], object]], rounds: int) -> None:
    """Measure three sizes and print a table."""
    seconds = side_by_side(works, rounds)
    medians = [statistics.median(took) for took in seconds.values()]
    at_none, slope, error = fitted_line(list(works), medians)
    print(f"\n{title}\n{unit:>10} {'ms':>28} {'ms for each':>12}")
    for size, took in seconds.items():
        each = 1e3 * statistics.median(took) / size
        print(f"{size:>10g} {middle([1e3 * second for second in took], 1):>28} {each:>12.3f}")
    print(
        f"one more {1e3 * slope:.3f} ms; at none {1e3 * at_none:.1f} ms; the line is off by at most {100 * error:.1f}%"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine())

    net = paper_network().train()
    trainer = Trainer(net, drop=True)
    archs = {depth: of_depth(net, depth) for depth in DEPTHS}
    typical = archs[DEPTHS[1]]
    measure(
        f"training steps of a subnet of {net.cost_of(typical).macs / 1e6:.1f} M MACs",
        "images",
        {batch: training(net, trainer, typical, batch) for batch in BATCHES},
        options.rounds,
    )
    measure(
        f"training steps of {BATCHES[0]} images",
        "blocks",
        {len(net.active_blocks(arch)): training(net, trainer, arch, BATCHES[0]) for arch in archs.values()},
        options.rounds,
    )
    net.eval()
    batches = random_images(max(IMAGES), batch=SCORE_BATCH, seed=1)
    segments = calibrated_segments(net.extract(typical), batches[0])
    measure(
        "scoring of the same subnet, calibrated",
        "images",
        {count: partial(run_segments, segments, batches[: count // SCORE_BATCH]) for count in IMAGES},
        options.rounds,
    )
    measure(
        f"populations, each subnet calibrated on {POPULATION_IMAGES} images and run over as many",
        "subnets",
        populations(net),
        options.rounds,
    )


if __name__ == "__main__":
    main()
