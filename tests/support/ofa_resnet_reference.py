"""OFA's ResNet-50, written plainly from its public definition and apart from the package, to compare with.

A choice is OFA's: `d` an entry for the stem (2: its block is there) and each stage (0 to 2 blocks more than the
fewest), `e` an expand ratio for each of the 18 blocks of the largest network, `w` the number of a width (0 to 2) for
the stem's inner layers, its last one and each stage.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTHS = (0.65, 0.8, 1.0)
RATIOS = (0.2, 0.25, 0.35)
FEWEST = (2, 2, 4, 2)
FULL = (256, 512, 1024, 2048)


def divisible(value: float) -> int:
    new = max(8, int(value + 4) // 8 * 8)
    return new + 8 if new < 0.9 * value else new


def stem(w: int) -> int:
    return divisible(64 * WIDTHS[w])


def blocks() -> list[tuple[int, int]]:
    """The stage and the place in it of each block."""
    return [(stage, block) for stage, fewest in enumerate(FEWEST) for block in range(fewest + 2)]


def state_dict(classes: int, *, old_names: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """Random weights and statistics, under the names of the supernet or, older, of a plain network."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    conv, bn, linear = ("conv", "bn", "linear") if old_names else ("conv.conv", "bn.bn", "linear.linear")

    def layer(name: str, inside: int, out: int, size: int = 1) -> None:
        state[f"{name}.{conv}.weight"] = torch.randn(out, inside, size, size, generator=generator) / (
            (inside * size**2) ** 0.5
        )
        for part, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            state[f"{name}.{bn}.{part}"] = low + torch.rand(out, generator=generator)
        state[f"{name}.{bn}.num_batches_tracked"] = torch.tensor(7)

    layer("input_stem.0", 3, 32, 3)
    layer("input_stem.1.conv", 32, 32, 3)
    layer("input_stem.2", 32, 64, 3)
    before = 64
    for number, (stage, block) in enumerate(blocks()):
        out, middle = FULL[stage], divisible(round(FULL[stage] * 0.35))
        layer(f"blocks.{number}.conv1", before, middle)
        layer(f"blocks.{number}.conv2", middle, middle, 3)
        layer(f"blocks.{number}.conv3", middle, out)
        if block == 0:
            layer(f"blocks.{number}.downsample", before, out)
        before = out
    state[f"classifier.{linear}.weight"] = torch.randn(classes, before, generator=generator) / before**0.5
    state[f"classifier.{linear}.bias"] = torch.rand(classes, generator=generator)
    return state


def forward(state: dict[str, Tensor], x: Tensor, d: Sequence[int], e: Sequence[float], w: Sequence[int]) -> Tensor:
    """The logits of a subnet, as OFA's dynamic layers compute them; `state` has the supernet's names."""

    def layer(name: str, x: Tensor, out: int, stride: int = 1) -> Tensor:
        weight = state[f"{name}.conv.conv.weight"][:out, : x.shape[1]]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, var, scale, shift = (
            state[f"{name}.bn.bn.{part}"][:out] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, scale, shift, eps=1e-5)

    half = divisible(stem(w[0]) // 2)
    x = F.relu(layer("input_stem.0", x, half, 2))
    if d[0] == 2:
        x = F.relu(layer("input_stem.1.conv", x, half)) + x
    x = F.max_pool2d(F.relu(layer("input_stem.2", x, stem(w[1]))), 3, 2, 1)
    for number, (stage, block) in enumerate(blocks()):
        if block >= FEWEST[stage] + d[1 + stage]:
            continue
        out = divisible(FULL[stage] * WIDTHS[w[2 + stage]])
        middle = divisible(round(out * e[number]))
        stride = 2 if stage > 0 and block == 0 else 1
        y = F.relu(layer(f"blocks.{number}.conv1", x, middle))
        y = layer(f"blocks.{number}.conv3", F.relu(layer(f"blocks.{number}.conv2", y, middle, stride)), out)
        if block == 0:
            x = layer(f"blocks.{number}.downsample", F.avg_pool2d(x, stride, stride, 0, ceil_mode=True), out)
        x = F.relu(y + x)
    features = x.mean(3).mean(2)
    weight = state["classifier.linear.linear.weight"][:, : features.shape[1]]
    return F.linear(features, weight, state["classifier.linear.linear.bias"])
