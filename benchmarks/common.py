"""What the benchmarks share: the network and its images, timing rivals side by side, and the line that says where."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar
from unittest import mock

import torch
from torch import Tensor, nn

from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.nn import native
from trainonce.nn.plain import PlainNetwork
from trainonce.nn.segments import Segment, segments_of
from trainonce.space import Architecture, derived_rng

SIDE, CLASSES = 32, 100
TELLING_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "asimd", "sve")

T = TypeVar("T")
K = TypeVar("K")

# The network and its images


def paper_network() -> MobileNetV3:
    """The supernet in the paper's geometry: 32 x 32 images in colour, 100 classes. In training mode."""
    settings = MobileNetV3Settings.for_images(image_size=SIDE, in_channels=3, num_classes=CLASSES, geometry="paper")
    return MobileNetV3(settings, seed=0)


def random_subnets(net: MobileNetV3, count: int) -> list[Architecture]:
    """Some random subnets, always the same ones; the first n of more are those of n."""
    rng = derived_rng(0, "benchmark")
    return [net.space.sample(rng) for _ in range(count)]


def random_images(count: int, *, batch: int, seed: int) -> list[Tensor]:
    """Batches [batch, 3, 32, 32] of random images, channels_last; the last may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(batch, count - done) for done in range(0, count, batch)]
    return [channels_last(torch.randn(size, 3, SIDE, SIDE, generator=generator)) for size in sizes]


def channels_last(x_BCHW: Tensor) -> Tensor:
    """The same images, channels innermost in memory."""
    return x_BCHW.contiguous(memory_format=torch.channels_last)


def without_native() -> AbstractContextManager[object]:
    """Inside, everything runs by torch's operators."""
    return mock.patch.object(native, "usable", return_value=False)


# The work that is timed


class Trainer:
    """A network with an optimizer of its own, which trains one batch at a time.

    With `drop`, gradients are dropped before a step, weights that the step left idle get zeros after it, and SGD is
    torch's fused one, as in `trainonce.training.loop`; else all gradients are zeroed and SGD is the default.
    """

    def __init__(self, net: nn.Module, *, drop: bool) -> None:
        self.drop = drop
        self.parameters = list(net.parameters())
        self.zeros = [torch.zeros_like(parameter) for parameter in self.parameters]
        for parameter, zero in zip(self.parameters, self.zeros, strict=True):
            parameter.grad = zero if drop else zero.clone()
        self.optimizer = torch.optim.SGD(
            self.parameters, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=3e-5, fused=drop or None
        )
        self.optimizer.step()  # all momenta are there, as they are but for the first steps of a run

    def step(self, forward: Callable[[Tensor], Tensor], x_BCHW: Tensor, y_B: Tensor) -> None:
        """One training step of what `forward` makes of the images."""
        self.optimizer.zero_grad(set_to_none=self.drop)
        torch.autograd.backward(nn.functional.cross_entropy(forward(x_BCHW), y_B))
        for parameter, zero in zip(self.parameters, self.zeros, strict=True):
            if parameter.grad is None:
                parameter.grad = zero
        self.optimizer.step()


def calibrated_segments(plain: PlainNetwork, x_BCHW: Tensor) -> list[Segment]:
    """The segments of a plain network, which they take apart, calibrated on one batch."""
    segments = segments_of(plain)
    with torch.no_grad():
        for segment in segments:
            x_BCHW = segment.calibrate(x_BCHW, 0)
    return segments


@torch.no_grad()
def run_segments(segments: Sequence[Segment], batches: Iterable[Tensor]) -> None:
    """Run calibrated segments over batches of images."""
    for x_BCHW in batches:
        for segment in segments:
            x_BCHW = segment(x_BCHW)


# Timing


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """The seconds that some work took, and what it gave."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def side_by_side(rivals: Mapping[K, Callable[[], object]], rounds: int, *, warm_up: int = 1) -> dict[K, list[float]]:
    """Seconds of each rival in each round. Rivals run one after the other; each round begins with another one."""
    names = list(rivals)
    seconds: dict[K, list[float]] = {name: [] for name in names}
    for turn in range(-warm_up, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            took, _ = timed(rivals[name])
            if turn >= 0:
                seconds[name].append(took)
    return seconds


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """How many times as long the one took as the other, pair by pair."""
    return [a / b for a, b in zip(slow, fast, strict=True)]


def middle(values: Sequence[float], digits: int = 2) -> str:
    """Median and range in words: 3.10 (2.95 to 3.40)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def fitted_line(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """The line at + slope * size of least squares: at, slope, and its largest relative error."""
    slope, at = statistics.linear_regression(sizes, values)
    errors = [abs(at + slope * size - value) / value for size, value in zip(sizes, values, strict=True)]
    return at, slope, max(errors)


def machine() -> str:
    """Versions, processor, threads, load, and whether the native kernels are on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    have = set(said.get("flags", said.get("Features", "")).split())
    flags = " ".join(flag for flag in TELLING_FLAGS if flag in have)
    kernels = "off" if native.why_not() else "on"
    return (
        f"torch {torch.__version__}, Python {platform.python_version()}, {said.get('model name', platform.machine())} "
        f"({flags or 'no known flags'}), {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}; native kernels {kernels}"
        + (f" ({native.why_not()})" if kernels == "off" else "")
    )
