"""Elastic blocks. The plain twin of `ElasticMBConv` is `trainonce.nn.plain.MBConv`."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainonce.nn import native
from trainonce.nn.ops import (
    ElasticBatchNorm2d,
    ElasticConv2d,
    ElasticDepthwiseConv2d,
    ElasticSqueezeExcite,
    Slices,
    prefixed,
)
from trainonce.nn.plain import ACTIVATIONS, BN_MOMENTUM, BlockSpec


class ElasticBlock(nn.Module, ABC):
    """A block that is called with what is wanted of it: the spec of its plain twin.

    In training mode its passes can be replayed: see `trainonce.training.block_graphs`.
    """

    replayed: Callable[[Tensor, Any], Tensor] | None = None
    """What does a forward pass in training mode instead, by replaying it."""

    def forward(self, x_BCHW: Tensor, spec: Any) -> Tensor:
        """Map [B, in, H, W] to [B, out, H / stride, W / stride] as the plain block of `spec` does."""
        if self.training and self.replayed is not None:
            return self.replayed(x_BCHW, spec)
        return self.compute(x_BCHW, spec)

    @abstractmethod
    def compute(self, x_BCHW: Tensor, spec: Any) -> Tensor:
        """The forward pass itself."""


class ElasticMBConv(ElasticBlock):
    """An MBConv block with elastic kernel size and elastic expand ratio.

    `largest` is the spec with the widest expansion; a forward pass takes the spec of the block wanted,
    whose `mid_channels`, `se_channels` and `kernel_size` say what to cut.
    """

    def __init__(self, largest: BlockSpec, kernel_sizes: tuple[int, ...]) -> None:
        super().__init__()
        mid, eps = largest.mid_channels, largest.bn_eps
        self.expand = ElasticConv2d(largest.in_channels, mid) if largest.expand else None
        self.expand_bn = ElasticBatchNorm2d(mid, eps=eps) if largest.expand else None
        self.depthwise = ElasticDepthwiseConv2d(mid, kernel_sizes, largest.stride)
        self.depthwise_bn = ElasticBatchNorm2d(mid, eps=eps)
        self.se = ElasticSqueezeExcite(mid, largest.se_channels) if largest.se_channels else None
        self.project = ElasticConv2d(mid, largest.out_channels)
        self.project_bn = ElasticBatchNorm2d(largest.out_channels, eps=eps)
        self.act = ACTIVATIONS[largest.activation]()
        layers = {"expand.0": self.expand, "expand.1": self.expand_bn, "depthwise.1": self.depthwise_bn}
        if self.se is not None:
            layers |= {"se.reduce": self.se.reduce, "se.expand": self.se.expand}
        layers |= {"project.0": self.project, "project.1": self.project_bn}
        self._wholes = [  # by the plain block's names: the weights of which it takes the first entries
            (f"{name}.{part}", layer, part)
            for name, layer in layers.items()
            if layer is not None
            for part, _ in layer.named_parameters(recurse=False)
        ]
        self._norms = [(name, layer) for name, layer in layers.items() if isinstance(layer, ElasticBatchNorm2d)]

    def compute(self, x_BCHW: Tensor, spec: BlockSpec) -> Tensor:
        """The forward pass itself."""
        if self.training and not self.project_bn.synchronised and native.usable(x_BCHW):
            return self._native(x_BCHW, spec)
        y = x_BCHW
        if self.expand is not None and self.expand_bn is not None:
            y = self.act(self.expand_bn(self.expand(y, spec.mid_channels)))
        y = self.act(self.depthwise_bn(self.depthwise(y, spec.kernel_size)))
        if self.se is not None:
            y = self.se(y, spec.se_channels)
        y = self.project_bn(self.project(y, spec.out_channels))
        out: Tensor = x_BCHW + y if spec.residual else y
        return out

    def _native(self, x_BCHW: Tensor, spec: BlockSpec) -> Tensor:
        kernel_C1kk = self.depthwise.slices(spec.mid_channels, spec.kernel_size)["weight"]
        whole = {name: getattr(layer, part) for name, layer, part in self._wholes}
        statistics = {f"{name}.running_mean": norm.running_mean for name, norm in self._norms}
        statistics |= {f"{name}.running_var": norm.running_var for name, norm in self._norms}
        return native.mbconv(x_BCHW, spec, kernel_C1kk, whole, statistics, BN_MOMENTUM)

    def slices(self, spec: BlockSpec) -> Slices:
        """The state dict of the plain block of `spec`, cut from the elastic weights."""
        mid = spec.mid_channels
        cut: Slices = {}
        if self.expand is not None and self.expand_bn is not None:
            cut |= prefixed("expand.0", self.expand.slices(spec.in_channels, mid))
            cut |= prefixed("expand.1", self.expand_bn.slices(mid))
        cut |= prefixed("depthwise.0", self.depthwise.slices(mid, spec.kernel_size))
        cut |= prefixed("depthwise.1", self.depthwise_bn.slices(mid))
        if self.se is not None:
            cut |= prefixed("se", self.se.slices(mid, spec.se_channels))
        cut |= prefixed("project.0", self.project.slices(mid, spec.out_channels))
        return cut | prefixed("project.1", self.project_bn.slices(spec.out_channels))

    @torch.no_grad()
    def sort_channels(
        self, mid_bands: tuple[int, ...], se_bands: tuple[int, ...], weigh: Callable[[Tensor], Tensor] = torch.abs
    ) -> None:
        """Order the middle channels by importance, the most important first, within each width band.

        Importance is what a channel's weights count in the second pointwise convolution; that of a squeezed
        channel what its weights count in the SE expansion: by default their L1 norm (OFA, section 3.3 and code).
        A band reaches from the previous number in `mid_bands` (or 0) to this one; the last is the full
        width. A subnet whose width is in `mid_bands` computes the same function afterwards. A block without
        expansion stays as it is: its middle channels are its input's.
        """
        if self.expand is None or self.expand_bn is None:
            return
        order = order_in_bands(weigh(self.project.weight).sum((0, 2, 3)), mid_bands)
        squeezing = None if self.se is None else weigh(self.se.expand.weight).sum((0, 2, 3))
        self.project.weight.copy_(self.project.weight[:, order])
        self.depthwise.weight.copy_(self.depthwise.weight[order])
        reorder_norm(self.depthwise_bn, order)
        self.expand.weight.copy_(self.expand.weight[order])
        reorder_norm(self.expand_bn, order)
        if self.se is not None:
            reduce, expand = self.se.reduce, self.se.expand
            assert reduce.bias is not None
            assert expand.bias is not None
            expand.weight.copy_(expand.weight[order])
            expand.bias.copy_(expand.bias[order])
            reduce.weight.copy_(reduce.weight[:, order])
            assert squeezing is not None
            squeezed = order_in_bands(squeezing, se_bands)
            expand.weight.copy_(expand.weight[:, squeezed])
            reduce.weight.copy_(reduce.weight[squeezed])
            reduce.bias.copy_(reduce.bias[squeezed])


def order_in_bands(importance_C: Tensor, bands: tuple[int, ...]) -> Tensor:
    """The channels, the most important first within each band: from the previous number (or 0) to this one."""
    starts = (0, *bands[:-1])
    return torch.cat(
        [
            start + importance_C[start:end].argsort(descending=True, stable=True)
            for start, end in zip(starts, bands, strict=True)
        ]
    )


def reorder_norm(bn: ElasticBatchNorm2d, order: Tensor) -> None:
    """Put the channels of a batch norm into this order, in place."""
    for tensor in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
        tensor.copy_(tensor[order])
