"""Leaving out the part of a depthwise kernel that can only meet padding.

On a map of n x n pixels an offset of n or more always falls outside, so of a k x k kernel padded by k // 2 only
the central 2n - 1 matter. Cropping to them computes the same sums without the zeros, and on the paper's geometry,
where eleven of twenty blocks see maps of 2 x 2 or 1 x 1, it makes scoring much faster (docs/LOG.md has a measurement).
"""

from typing import TypeVar

from torch import Tensor, nn

from trainonce.nn.plain import PlainNetwork

N = TypeVar("N", bound=nn.Module)


def crop_kernel(weight_CIkk: Tensor, map_size: int) -> Tensor:
    """The centre of a kernel that an input map of that side can meet; still odd in size."""
    size = weight_CIkk.shape[-1]
    rim = max(0, size // 2 - (map_size - 1))
    return weight_CIkk[..., rim : size - rim, rim : size - rim] if rim else weight_CIkk


def crop_kernels(network: N) -> N:
    """Crop every depthwise kernel of MBConv blocks, in place, to what the network's input resolution can meet.

    Networks of other kinds stay as they are.
    """
    if not isinstance(network, PlainNetwork):
        return network
    for block, size in zip(network.blocks, network.spec.map_sizes, strict=False):
        conv = block.depthwise[0]  # type: ignore[index]
        assert isinstance(conv, nn.Conv2d)
        conv.weight = nn.Parameter(crop_kernel(conv.weight.detach(), size).contiguous())
        side = conv.weight.shape[-1]
        conv.kernel_size, conv.padding = (side, side), (side // 2, side // 2)
    return network
