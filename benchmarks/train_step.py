"""Time of one training step, against the plain elastic network and the extracted static one.

    python benchmarks/train_step.py [--subnets 8] [--rounds 5] [--batch 64] [--threads 2] [--compile]

A step zeroes gradients, runs forward, cross-entropy and backward, and lets SGD with Nesterov momentum move the weights.
For each random subnet of the paper's geometry the rivals run one after the other, in several rounds: the plain
elastic network (`original.py`: NCHW, gradients zeroed), ours by torch's operators, ours with the native kernels, and
the extracted network, which is not elastic, as it is and channels_last. `--compile` adds torch.compile of the
latter, which takes about a minute a subnet to compile.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import original
from common import (
    CLASSES,
    Trainer,
    machine,
    middle,
    paper_network,
    random_images,
    random_subnets,
    ratios,
    side_by_side,
    timed,
    without_native,
)
from trainonce.nn import native
from trainonce.space import Architecture

ORIGINAL, TORCH_OPS, NATIVE = "original, elastic", "ours, torch's operators", "ours, native kernels"
STATIC, STATIC_LAST, COMPILED = "static", "static, channels_last", "static, compiled"


class Rivals:
    """The supernets that train, one for each way, and the batch that all of them get."""

    def __init__(self, batch: int, *, compiled: bool) -> None:
        self.compiled = compiled
        (self.x_last,) = random_images(batch, batch=batch, seed=0)
        self.x_first = self.x_last.contiguous()
        self.y_B = torch.randint(CLASSES, (batch,), generator=torch.Generator().manual_seed(0))
        self.plain, self.ours, self.native = (paper_network().train() for _ in range(3))
        self.train_plain = Trainer(self.plain, drop=False)
        self.train_ours = Trainer(self.ours, drop=True)
        self.train_native = Trainer(self.native, drop=True)

    def of(self, arch: Architecture) -> dict[str, Callable[[], object]]:
        """A training step of the subnet `arch` in each way."""

        def by_torch() -> None:
            with without_native():
                self.train_ours.step(lambda x: self.ours(x, arch), self.x_last, self.y_B)

        steps: dict[str, Callable[[], object]] = {
            ORIGINAL: partial(
                self.train_plain.step, lambda x: original.forward(self.plain, x, arch), self.x_first, self.y_B
            ),
            TORCH_OPS: by_torch,
        }
        if not native.why_not():
            steps[NATIVE] = partial(self.train_native.step, lambda x: self.native(x, arch), self.x_last, self.y_B)
        steps[STATIC] = self._static(arch, self.x_first)
        steps[STATIC_LAST] = self._static(arch, self.x_last)
        if self.compiled:
            steps[COMPILED] = self._static(arch, self.x_last, compiled=True)
        return steps

    def _static(self, arch: Architecture, x_BCHW: Tensor, *, compiled: bool = False) -> Callable[[], object]:
        network = self.plain.extract(arch).train()
        if x_BCHW is self.x_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        trainer = Trainer(network, drop=True)
        forward = torch.compile(network) if compiled else network
        step = partial(trainer.step, forward, x_BCHW, self.y_B)
        if compiled:
            print(f"compiled in {timed(step)[0]:.0f} s", flush=True)
        return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subnets", type=int, default=8, help="random subnets")
    parser.add_argument("--rounds", type=int, default=5, help="of all rivals, for each subnet")
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="also torch.compile of the static network")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine())

    rivals = Rivals(options.batch, compiled=options.compile)
    seconds: dict[str, list[float]] = {}
    medians: dict[str, list[float]] = {}
    for arch in random_subnets(rivals.plain, options.subnets):
        if options.compile:
            torch.compiler.reset()  # else the next subnet would be compiled for any shape
        for name, took in side_by_side(rivals.of(arch), options.rounds).items():
            seconds.setdefault(name, []).extend(took)
            medians.setdefault(name, []).append(statistics.median(took))
    print(
        f"\none training step, batch {options.batch}; {options.subnets} random subnets, {options.rounds} rounds; "
        "median (range) over all\n"
    )
    print(f"{'way':<24} {'ms':>22} {'times as fast as original':>26} {'by subnet':>22}")
    for name, took in seconds.items():
        milliseconds = [1e3 * second for second in took]
        by_subnet = ratios(medians[ORIGINAL], medians[name])
        print(
            f"{name:<24} {middle(milliseconds, 1):>22} {middle(ratios(seconds[ORIGINAL], took)):>26} "
            f"{min(by_subnet):>14.2f} to {max(by_subnet):.2f}"
        )
    best = NATIVE if NATIVE in seconds else TORCH_OPS
    print()
    for name in (STATIC_LAST, COMPILED):
        if name in seconds:
            print(f"{best} against {name}: {middle(ratios(seconds[name], seconds[best]))} times as fast")


if __name__ == "__main__":
    main()
