"""OFA's networks, written plainly from their public definition and apart from the package, to compare with.

A state dict under OFA's names with every number drawn at random, and a function that runs the subnet of a choice of
kernel sizes, expand ratios and depths on it as OFA's dynamic layers do: `ks` and `e` have an entry for each elastic
block of the largest network, also those that a shallower stage leaves out, and `d` one for each stage.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Act = Callable[[Tensor], Tensor]


def h_swish(x: Tensor) -> Tensor:
    return x * F.relu6(x + 3) / 6


def divisible(value: float) -> int:
    new = max(8, int(value + 4) // 8 * 8)
    return new + 8 if new < 0.9 * value else new


@dataclass(frozen=True)
class Reference:
    """One of the three published networks. Stages are (width, stride, activation, squeeze-excite, most blocks)."""

    width: float
    stem: int
    first: int
    stages: tuple[tuple[int, int, Act, bool, int], ...]
    head: tuple[int, ...]
    act: Act
    first_act: Act
    eps: float
    classes: int

    @property
    def proxyless(self) -> bool:
        return len(self.head) == 1

    def channels(self, base: float) -> int:
        return divisible(base * self.width)

    def blocks(self) -> list[tuple[int, int, int, Act, bool]]:
        """(in, out, stride, activation, squeeze-excite) of each elastic block."""
        found, before = [], self.channels(self.first)
        for base, stride, act, se, most in self.stages:
            for i in range(most):
                found.append((before, self.channels(base), stride if i == 0 else 1, act, se))
                before = self.channels(base)
        return found


def mbv3(width: float, classes: int) -> Reference:
    stages = (
        (24, 2, F.relu, False, 4),
        (40, 2, F.relu, True, 4),
        (80, 2, h_swish, False, 4),
        (112, 1, h_swish, True, 4),
        (160, 2, h_swish, True, 4),
    )
    return Reference(width, 16, 16, stages, (960, 1280), h_swish, F.relu, 1e-5, classes)


def proxyless(width: float, classes: int) -> Reference:
    widths, strides = (24, 40, 80, 96, 192, 320), (2, 2, 2, 1, 2, 1)
    stages = tuple((w, s, F.relu6, False, 1 if w == 320 else 4) for w, s in zip(widths, strides, strict=True))
    return Reference(width, 32, 16, stages, (1280,), F.relu6, F.relu6, 1e-3, classes)


REFERENCES: dict[str, Callable[[int], Reference]] = {
    "ofa_mbv3_d234_e346_k357_w1.0": lambda classes: mbv3(1.0, classes),
    "ofa_mbv3_d234_e346_k357_w1.2": lambda classes: mbv3(1.2, classes),
    "ofa_proxyless_d234_e346_k357_w1.3": lambda classes: proxyless(1.3, classes),
}


class Drawn:
    """A state dict in the making: weights of the size that keeps a signal alive, statistics far from 0 and 1."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.state: dict[str, Tensor] = {}

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def conv(self, name: str, out: int, into: int, kernel: int = 1, *, bias: bool = False) -> None:
        self.state[f"{name}.weight"] = self.normal(out, into, kernel, kernel) * (2 / (into * kernel**2)) ** 0.5
        if bias:
            self.state[f"{name}.bias"] = self.normal(out)

    def norm(self, name: str, channels: int) -> None:
        self.state[f"{name}.weight"] = 1 + 0.3 * self.normal(channels)
        self.state[f"{name}.bias"] = 0.3 * self.normal(channels)
        self.state[f"{name}.running_mean"] = 0.3 * self.normal(channels)
        self.state[f"{name}.running_var"] = 0.5 + self.normal(channels).abs()
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def state_dict(net: Reference, *, seed: int = 0, old_names: bool = False) -> dict[str, Tensor]:
    """Random weights under the names of OFA's code: as it is now, or as it was when the files were published."""
    drawn, conv = Drawn(seed), "mobile_inverted_conv" if old_names else "conv"
    stem, first = net.channels(net.stem), net.channels(net.first)
    drawn.conv("first_conv.conv", stem, 3, 3)
    drawn.norm("first_conv.bn", stem)
    drawn.conv(f"blocks.0.{conv}.depth_conv.conv", stem, 1, 3)
    drawn.norm(f"blocks.0.{conv}.depth_conv.bn", stem)
    drawn.conv(f"blocks.0.{conv}.point_linear.conv", first, stem)
    drawn.norm(f"blocks.0.{conv}.point_linear.bn", first)
    for number, (into, out, _, _, se) in enumerate(net.blocks(), start=1):
        at, mid = f"blocks.{number}.{conv}", divisible(into * 6)
        drawn.conv(f"{at}.inverted_bottleneck.conv.conv", mid, into)
        drawn.norm(f"{at}.inverted_bottleneck.bn.bn", mid)
        drawn.conv(f"{at}.depth_conv.conv.conv", mid, 1, 7)
        drawn.state[f"{at}.depth_conv.conv.5to3_matrix"] = torch.eye(9) + 0.2 * drawn.normal(9, 9)
        drawn.state[f"{at}.depth_conv.conv.7to5_matrix"] = torch.eye(25) + 0.2 * drawn.normal(25, 25)
        drawn.norm(f"{at}.depth_conv.bn.bn", mid)
        if se:
            drawn.conv(f"{at}.depth_conv.se.fc.reduce", divisible(mid // 4), mid, bias=True)
            drawn.conv(f"{at}.depth_conv.se.fc.expand", mid, divisible(mid // 4), bias=True)
        drawn.conv(f"{at}.point_linear.conv.conv", out, mid)
        drawn.norm(f"{at}.point_linear.bn.bn", out)
    last, final = net.channels(net.stages[-1][0]), net.channels(net.head[0])
    widen = "feature_mix_layer" if net.proxyless else "final_expand_layer"
    drawn.conv(f"{widen}.conv", final, last)
    drawn.norm(f"{widen}.bn", final)
    features = net.channels(net.head[-1])
    if not net.proxyless:
        drawn.conv("feature_mix_layer.conv", features, final)
    drawn.state["classifier.linear.weight"] = drawn.normal(net.classes, features) * features**-0.5
    drawn.state["classifier.linear.bias"] = drawn.normal(net.classes)
    return drawn.state


def kernel_of(state: dict[str, Tensor], at: str, channels: int, size: int) -> Tensor:
    """The depthwise kernel: centres of centres, each through the matrix of its step."""
    weight = state[f"{at}.conv.weight"][:channels]
    if size < 7:
        weight = torch.einsum("cj,ij->ci", weight[:, 0, 1:6, 1:6].reshape(channels, 25), state[f"{at}.7to5_matrix"])
        weight = weight.reshape(channels, 1, 5, 5)
    if size < 5:
        weight = torch.einsum("cj,ij->ci", weight[:, 0, 1:4, 1:4].reshape(channels, 9), state[f"{at}.5to3_matrix"])
        weight = weight.reshape(channels, 1, 3, 3)
    return weight


def forward(
    net: Reference, state: dict[str, Tensor], x: Tensor, ks: Sequence[int], e: Sequence[int], d: Sequence[int]
) -> Tensor:
    """Logits [B, classes] of images [B, 3, H, W], by the running statistics. `state` has the new names."""

    def norm(y: Tensor, name: str) -> Tensor:
        cut = [state[f"{name}.{part}"][: y.shape[1]] for part in ("running_mean", "running_var", "weight", "bias")]
        mean, var, weight, bias = (tensor[None, :, None, None] for tensor in cut)
        return (y - mean) / (var + net.eps).sqrt() * weight + bias

    def pointwise(y: Tensor, name: str, out: int) -> Tensor:
        return torch.einsum("bchw,oc->bohw", y, state[f"{name}.weight"][:out, : y.shape[1], 0, 0])

    def block(y: Tensor, number: int, kernel: int, ratio: int) -> Tensor:
        into, out, stride, act, se = net.blocks()[number - 1]
        at, mid, before = f"blocks.{number}.conv", divisible(into * ratio), y
        y = act(norm(pointwise(y, f"{at}.inverted_bottleneck.conv.conv", mid), f"{at}.inverted_bottleneck.bn.bn"))
        weight = kernel_of(state, f"{at}.depth_conv.conv", mid, kernel)
        y = F.conv2d(y, weight, None, stride, kernel // 2, groups=mid)
        y = act(norm(y, f"{at}.depth_conv.bn.bn"))
        if se:
            squeezed, fc = divisible(mid // 4), f"{at}.depth_conv.se.fc"
            gate = y.mean(3, keepdim=True).mean(2, keepdim=True)
            gate = pointwise(gate, f"{fc}.reduce", squeezed) + state[f"{fc}.reduce.bias"][None, :squeezed, None, None]
            gate = pointwise(gate.relu(), f"{fc}.expand", mid) + state[f"{fc}.expand.bias"][None, :mid, None, None]
            y = y * F.relu6(gate + 3) / 6
        y = norm(pointwise(y, f"{at}.point_linear.conv.conv", out), f"{at}.point_linear.bn.bn")
        return before + y if stride == 1 and into == out else y

    stem, first = net.channels(net.stem), net.channels(net.first)
    x = net.act(norm(F.conv2d(x, state["first_conv.conv.weight"], None, 2, 1), "first_conv.bn"))
    y = F.conv2d(x, state["blocks.0.conv.depth_conv.conv.weight"], None, 1, 1, groups=stem)
    y = net.first_act(norm(y, "blocks.0.conv.depth_conv.bn"))
    y = norm(pointwise(y, "blocks.0.conv.point_linear.conv", first), "blocks.0.conv.point_linear.bn")
    x = y if net.proxyless else x + y
    number = 0
    for depth, (_, _, _, _, most) in zip(d, net.stages, strict=True):
        for i in range(most):
            number += 1
            if i < min(depth, most):
                x = block(x, number, ks[number - 1], e[number - 1])
    widen = "feature_mix_layer" if net.proxyless else "final_expand_layer"
    x = net.act(norm(pointwise(x, f"{widen}.conv", net.channels(net.head[0])), f"{widen}.bn"))
    x = x.mean(3, keepdim=True).mean(2, keepdim=True)
    if not net.proxyless:
        x = net.act(pointwise(x, "feature_mix_layer.conv", net.channels(net.head[1])))
    return x.flatten(1) @ state["classifier.linear.weight"].t() + state["classifier.linear.bias"]
