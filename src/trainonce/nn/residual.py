"""The elastic residual block. Its plain twin is `trainonce.nn.plain_resnet.Residual`."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.nn.blocks import ElasticBlock, order_in_bands, reorder_norm
from trainonce.nn.ops import ElasticBatchNorm2d, ElasticConv2d, Slices, prefixed
from trainonce.nn.plain_resnet import ResidualSpec


class ElasticConvNorm(nn.Module):
    """A convolution and its batch norm, of which the first channels are used."""

    def __init__(self, max_in: int, max_out: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = ElasticConv2d(max_in, max_out, kernel_size, stride=stride)
        self.norm = ElasticBatchNorm2d(max_out)

    def forward(self, x_BCHW: Tensor, out_channels: int) -> Tensor:
        """Map [B, in, H, W] to [B, out_channels, H / stride, W / stride]."""
        out: Tensor = self.norm(self.conv(x_BCHW, out_channels))
        return out

    def slices(self, in_channels: int, out_channels: int) -> Slices:
        """The state dict of the plain pair of these sizes."""
        return prefixed("0", self.conv.slices(in_channels, out_channels)) | prefixed(
            "1", self.norm.slices(out_channels)
        )


class ElasticResidual(ElasticBlock):
    """A residual block, basic or bottleneck, with elastic inner channels. `largest` has the most of them."""

    def __init__(self, largest: ResidualSpec) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ElasticConvNorm(*sizes) for sizes in largest.convs)
        ends = largest.in_channels, largest.out_channels
        self.around = ElasticConvNorm(*ends, 1, largest.stride) if largest.projects else None

    def compute(self, x_BCHW: Tensor, spec: ResidualSpec) -> Tensor:
        """The forward pass itself: [B, in, H, W] to [B, out, H / stride, W / stride]."""
        y = x_BCHW
        for number, (layer, (_, out_channels, _, _)) in enumerate(zip(self.convs, spec.convs, strict=True)):
            y = layer(F.relu(y) if number else y, out_channels)
        return F.relu(y + (x_BCHW if self.around is None else self.around(x_BCHW, spec.out_channels)))

    def slices(self, spec: ResidualSpec) -> Slices:
        """The state dict of the plain block of `spec`."""
        cut: Slices = {}
        for number, (layer, (inside, out, _, _)) in enumerate(zip(self.convs, spec.convs, strict=True)):
            assert isinstance(layer, ElasticConvNorm)
            cut |= prefixed(f"convs.{number}", layer.slices(inside, out))
        if self.around is not None:
            cut |= prefixed("around", self.around.slices(spec.in_channels, spec.out_channels))
        return cut

    @torch.no_grad()
    def sort_channels(self, bands: tuple[int, ...], weigh: Callable[[Tensor], Tensor] = torch.abs) -> None:
        """Order the inner channels by what the weights that read them count, the most first, within each band.

        A band reaches from the previous number in `bands` (or 0) to this one. A subnet whose width is in `bands`
        computes the same function afterwards.
        """
        layers = [layer for layer in self.convs if isinstance(layer, ElasticConvNorm)]
        for writer, reader in pairwise(layers):
            order = order_in_bands(weigh(reader.conv.weight).sum((0, 2, 3)), bands)
            reader.conv.weight.copy_(reader.conv.weight[:, order])
            writer.conv.weight.copy_(writer.conv.weight[order])
            reorder_norm(writer.norm, order)

    @torch.no_grad()
    def zero_last_norm(self) -> None:
        """Let the block begin as what goes around it."""
        last = self.convs[-1]
        assert isinstance(last, ElasticConvNorm)
        last.norm.weight.zero_()
