"""Time of evaluating a population of subnets, against one after the other in the plain way.

    python benchmarks/population.py [--subnets 6] [--rounds 3] [--calibrate 2000] [--images 10000] [--workers 2]

The plain way extracts a subnet, recalibrates its batch norms in batches of 200, and runs it over the images in
batches of 200, NCHW, by torch's operators, as the original code does (the extracted network has torch's own h-swish,
which makes this rival a little faster than the original). Ours is what `Evaluator` does: the same, as a chain of
segments. Both take the subnets in the same order, one after the other at each subnet. Images are random. `--workers`
also measures that many processes, which share the threads, against one process with all of them.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from common import (
    machine,
    middle,
    paper_network,
    random_images,
    random_subnets,
    ratios,
    timed,
)
from trainonce.evaluation.chain import Chain
from trainonce.evaluation.evaluator import recalibrate
from trainonce.evaluation.scoring import chunks_of
from trainonce.models import MobileNetV3
from trainonce.parallel.fan_out import fan_out
from trainonce.space import Architecture

BATCH = 200


class Ours:
    """The chain over random images."""

    def __init__(self, net: MobileNetV3, calibrate: int, images: int) -> None:
        self.net = net
        self.calibration = random_images(calibrate, batch=BATCH, seed=1)
        self.images = random_images(images, batch=BATCH, seed=2)
        self.chain = Chain(lambda: self.calibration, lambda: self.images)

    def logits(self, arch: Architecture) -> Tensor:
        """The logits [images, classes] of a calibrated subnet."""
        return torch.cat(list(self.chain.logits(self.net.extract(arch))))


class Plain:
    """Extract, recalibrate, run, over the same images."""

    def __init__(self, ours: Ours) -> None:
        self.net = ours.net
        self.calibration = [x.contiguous() for x in ours.calibration]
        self.images = [x.contiguous() for x in ours.images]

    @torch.inference_mode()
    def logits(self, arch: Architecture) -> Tensor:
        """The logits [images, classes] of a calibrated subnet."""
        plain = self.net.extract(arch)
        recalibrate(plain, self.calibration)
        return torch.cat([plain(x_BCHW) for x_BCHW in self.images])


class Worker:
    """What a process of several does: it evaluates chunks, and says from when to when."""

    def __init__(self, ours: Ours) -> None:
        self.ours = ours

    def __call__(self, chunk: Sequence[Architecture]) -> tuple[float, float]:
        began = time.monotonic()
        for arch in chunk:
            self.ours.logits(arch)
        return began, time.monotonic()


def make_worker(calibrate: int, images: int) -> Worker:
    """A worker with a chain of its own over the same network, which does not pickle."""
    return Worker(Ours(paper_network().eval(), calibrate, images))


def shared_among(workers: int, archs: list[Architecture], calibrate: int, images: int) -> float:
    """Seconds in which some processes evaluate the subnets, from the first beginning to the last end."""
    times: list[tuple[float, float]] = []
    fan_out(
        partial(make_worker, calibrate, images),
        chunks_of(archs, workers),
        on_result=lambda _chunk, took: times.append(took),
        workers=workers,
    )
    return max(end for _, end in times) - min(began for began, _ in times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subnets", type=int, default=6, help="random subnets")
    parser.add_argument("--rounds", type=int, default=3, help="over the whole population")
    parser.add_argument("--calibrate", type=int, default=2000, help="images to calibrate on")
    parser.add_argument("--images", type=int, default=10_000, help="images to score")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=0, help="processes to compare with one")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine())

    net = paper_network().eval()
    archs = sorted(random_subnets(net, options.subnets), key=str)
    plain = Plain(Ours(net, options.calibrate, options.images))
    slow: dict[Architecture, list[float]] = {arch: [] for arch in archs}
    fast: dict[Architecture, list[float]] = {arch: [] for arch in archs}
    changed, difference, largest = 0.0, 0.0, 0.0
    for _ in range(options.rounds):
        ours = Ours(net, options.calibrate, options.images)  # which has nothing kept yet
        for arch in archs:
            seconds, wanted = timed(partial(plain.logits, arch))
            slow[arch].append(seconds)
            seconds, found = timed(partial(ours.logits, arch))
            fast[arch].append(seconds)
            changed = max(changed, 100 * (wanted.argmax(1) != found.argmax(1)).double().mean().item())
            difference = max(difference, (wanted - found).abs().max().item())
            largest = max(largest, wanted.abs().max().item())

    print(
        f"\n{options.subnets} random subnets, calibrated on {options.calibrate} images and run over {options.images}; "
        f"{options.rounds} rounds; median (range)\n"
    )
    print(f"{'M MACs':>7} {'plain s':>22} {'ours s':>22} {'times as fast':>22}")
    for arch in archs:
        print(
            f"{net.cost_of(arch).macs / 1e6:>7.2f} {middle(slow[arch]):>22} {middle(fast[arch]):>22} "
            f"{middle(ratios(slow[arch], fast[arch])):>22}"
        )
    slow_rounds = [sum(took) for took in zip(*slow.values(), strict=True)]
    fast_rounds = [sum(took) for took in zip(*fast.values(), strict=True)]
    print(f"\nsubnets a minute: plain {middle([60 * len(archs) / took for took in slow_rounds], 1)}, ", end="")
    print(f"ours {middle([60 * len(archs) / took for took in fast_rounds], 1)}")
    print(f"the population: {middle(ratios(slow_rounds, fast_rounds))} times as fast")
    print(f"largest share of images with another top-1: {changed:.3f}% of a subnet's")
    print(f"largest difference of logits: {difference:.1e}, where the largest is {largest:.1f}")
    if options.workers:
        alone, shared = [], []
        for _ in range(options.rounds):
            worker = make_worker(options.calibrate, options.images)
            alone.append(timed(partial(worker, archs))[0])
            shared.append(shared_among(options.workers, archs, options.calibrate, options.images))
        faster = middle(ratios(alone, shared))
        print(f"{options.workers} processes: {faster} times as fast as one, from when the first is set up")


if __name__ == "__main__":
    main()
