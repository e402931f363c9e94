"""How fast the native matrix products are beside torch's, on shapes of the paper's network.

    python benchmarks/products.py [--rounds 5] [--threads 1]

Left times right, [m, k] and [k, n]: as they are, with the right one transposed (forward), and with the left one
transposed (gradients of weights). GFLOPS are 2 m k n over the median second.
"""

import argparse
import statistics
from functools import partial

import torch
from torch import Tensor

from common import machine, side_by_side
from trainonce.nn.native.layers import product

SHAPES = (
    *((16384, 24, 96), (16384, 96, 24), (4096, 40, 160), (4096, 160, 40), (1024, 80, 480), (1024, 480, 80)),
    *((256, 160, 960), (256, 960, 160), (64, 960, 1280), (64, 1280, 100), (96, 16384, 24), (480, 1024, 80)),
)
WORK = 2e8
"""Multiplications of one timing: so many products of a shape follow each other."""


def repeated(left: Tensor, right: Tensor, *, times: int, native: bool) -> None:
    """So many products of two matrices."""
    for _ in range(times):
        product(left, right) if native else torch.mm(left, right)


def main() -> None:
    """Time every shape and print a row for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(machine())
    print("| m, k, n | as they are: native, torch | right transposed | left transposed |\n|---|---|---|---|")
    for m, k, n in SHAPES:
        left, right = torch.randn(m, k), torch.randn(k, n)
        ways = {
            "as they are": (left, right),
            "right transposed": (left, torch.randn(n, k).t()),
            "left transposed": (torch.randn(k, m).t(), right),
        }
        times = max(1, round(WORK / (m * k * n)))
        rivals = {
            (way, native): partial(repeated, *pair, times=times, native=native)
            for way, pair in ways.items()
            for native in (True, False)
        }
        seconds = side_by_side(rivals, rounds=asked.rounds)
        speed = {key: 2e-9 * m * k * n * times / statistics.median(taken) for key, taken in seconds.items()}
        cells = [f"{speed[way, True]:.0f}, {speed[way, False]:.0f}" for way in ways]
        print(f"| {m}, {k}, {n} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
