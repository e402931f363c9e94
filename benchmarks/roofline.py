"""How far a training step and scoring are from what this machine could do.

    python benchmarks/roofline.py [--subnets 8] [--rounds 5] [--threads 2]

Two ceilings are measured: float32 matrix products (1024 x 1024 x 1024) and copying of memory. From the specs of the
subnets are counted the operations, 2 for a multiply-accumulate, and the bytes that the native path reads and writes.
The bound is the operations at the rate of matrix products plus the bytes at that of copying, because products and
passes over memory come one after the other. It is no law: what stays in a cache moves faster than a copy, and a
depthwise convolution never reaches the rate of a matrix product.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from common import (
    CLASSES,
    Trainer,
    calibrated_segments,
    machine,
    paper_network,
    random_images,
    random_subnets,
    run_segments,
    side_by_side,
)
from trainonce.models import MobileNetV3
from trainonce.models.mbconv_cost import network_cost
from trainonce.nn.plain import BlockSpec, NetworkSpec
from trainonce.nn.sizes import out_size
from trainonce.space import Architecture

FLOAT = 4  # bytes
MATRIX = 1024
COPIED = 1 << 28  # bytes, more than any cache holds
OPTIMIZER_PASSES = 5  # a weight, its gradient and its momentum are read, weight and momentum written
BATCH, SCORED, SCORE_BATCH = 64, 10_000, 200


def ceilings(rounds: int) -> tuple[float, float]:
    """Operations of matrix products in a second, and bytes read and written by copying."""
    left, right = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
    product = torch.empty(MATRIX, MATRIX)
    source, target = torch.ones(COPIED // FLOAT), torch.zeros(COPIED // FLOAT)
    seconds = side_by_side(
        {"product": lambda: torch.mm(left, right, out=product), "copy": lambda: target.copy_(source)}, 2 * rounds
    )
    return 2 * MATRIX**3 / min(seconds["product"]), 2 * COPIED / min(seconds["copy"])


def sized_blocks(spec: NetworkSpec) -> Iterator[tuple[BlockSpec, int]]:
    """Each block with the side of its input map."""
    size = out_size(spec.resolution, spec.stem_stride)
    for block in spec.blocks:
        yield block, size
        size = out_size(size, block.stride)


def useful_macs(spec: NetworkSpec) -> int:
    """Multiply-accumulates of an image's forward pass, with kernels cropped to what the map can meet."""
    blocks = tuple(
        replace(block, kernel_size=min(block.kernel_size, 2 * size - 1)) for block, size in sized_blocks(spec)
    )
    return network_cost(replace(spec, blocks=blocks)).macs


def passes(block: BlockSpec, *, training: bool) -> tuple[int, int, int, int]:
    """How often the native path reads or writes a block's input, expanded, depthwise and projected maps.

    Forward in training: the expanding product reads the input and writes the expanded map, which its statistics
    and the depthwise convolution read; the depthwise output is written, read by statistics, pooling (SE) and the
    normalising pass, which writes it anew for the projecting product; the projected map is written, read by its
    statistics, read and written normalised, where the input is added. Backward, the same in the other direction:
    seven passes over each map inside, two more with SE. In scoring the depthwise convolution normalises on the way.
    """
    squeeze, add = int(block.se_channels > 0), int(block.residual)
    if not training:
        expanded = 2 if block.expand else 1  # of a block without expansion this is its input
        return int(block.expand) + add, expanded, 2 + 3 * squeeze, 3
    expanded = 3 + 7 if block.expand else 1 + 2
    return (3 if block.expand else 0) + 4 * add, expanded, 5 + 7 + 3 * squeeze, 4 + 7


def map_bytes(spec: NetworkSpec, *, training: bool) -> int:
    """Bytes of one image's maps that are read and written in the blocks; the stem and head are a few percent more."""
    total = 0
    for block, size in sized_blocks(spec):
        before, after = size**2, out_size(size, block.stride) ** 2
        into, expanded, depthwise, projected = passes(block, training=training)
        total += before * (into * block.in_channels + expanded * block.mid_channels)
        total += after * (depthwise * block.mid_channels + projected * block.out_channels)
    return FLOAT * total


def report(
    net: MobileNetV3, archs: Sequence[Architecture], rates: tuple[float, float], measured: float, *, training: bool
) -> None:
    """Print the mean bound of the subnets, its parts, and the mean time measured."""
    specs = [net.describe(arch) for arch in archs]
    images = BATCH if training else SCORED
    operations = 2 * (3 if training else 1) * images * statistics.mean(map(useful_macs, specs))
    maps = images * statistics.mean(map_bytes(spec, training=training) for spec in specs)
    weights = OPTIMIZER_PASSES * FLOAT * sum(p.numel() for p in net.parameters()) if training else 0
    parts = [1e3 * operations / rates[0], 1e3 * maps / rates[1], 1e3 * weights / rates[1]]
    what = f"a training step of {images} images" if training else f"scoring {images:,} images"
    print(
        f"{what}: {operations / 1e9:.2f} GFLOP in {parts[0]:.1f} ms, {maps / 1e6:.0f} MB of maps in {parts[1]:.1f} ms, "
        f"{weights / 1e6:.0f} MB of the optimizer in {parts[2]:.1f} ms\n"
        f"    bound {sum(parts):.1f} ms, measured {1e3 * measured:.1f} ms: {1e3 * measured / sum(parts):.2f} times"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subnets", type=int, default=8, help="random subnets")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, torch.get_num_threads()}))
    options = parser.parse_args()
    print(machine())

    net = paper_network().train()
    archs = random_subnets(net, options.subnets)
    trainer = Trainer(net, drop=True)
    (x_BCHW,) = random_images(BATCH, batch=BATCH, seed=0)
    y_B = torch.randint(CLASSES, (BATCH,), generator=torch.Generator().manual_seed(0))
    scored = random_images(SCORED, batch=SCORE_BATCH, seed=1)
    for threads in options.threads:
        torch.set_num_threads(threads)
        rates = ceilings(options.rounds)
        print(
            f"\n{threads} threads: matrix products {rates[0] / 1e9:.0f} GFLOP/s, copying {rates[1] / 1e9:.1f} GB/s; "
            f"mean of {len(archs)} random subnets, medians of {options.rounds} rounds"
        )
        net.train()
        steps = {arch: partial(trainer.step, partial(net, arch=arch), x_BCHW, y_B) for arch in archs}
        took = side_by_side(steps, options.rounds)
        report(net, archs, rates, statistics.mean(map(statistics.median, took.values())), training=True)
        net.eval()
        scores = {
            arch: partial(run_segments, calibrated_segments(net.extract(arch), scored[0]), scored) for arch in archs
        }
        took = side_by_side(scores, max(1, options.rounds // 2))
        report(net, archs, rates, statistics.mean(map(statistics.median, took.values())), training=False)


if __name__ == "__main__":
    main()
