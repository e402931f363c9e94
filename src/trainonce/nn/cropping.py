"""Leaving out the part of a depthwise kernel that can only meet padding.

On a map of n x n pixels an offset of n or more always falls outside, so of a k x k kernel padded by k // 2 only
the central 2n - 1 matter. Cropping to them computes the same sums without the zeros, and on the paper's geometry,
where eleven of twenty blocks see maps of 2 x 2 or 1 x 1, it makes scoring much faster (docs/LOG.md has a measurement).
"""

from torch import Tensor, nn

from trainonce.nn.plain import PlainNetwork


def crop_kernel(weight_CIkk: Tensor, map_size: int) -> Tensor:
    """The centre of a kernel that an input map of that side can meet; still odd in size."""
    size = weight_CIkk.shape[-1]
    rim = max(0, size // 2 - (map_size - 1))
    return weight_CIkk[..., rim : size - rim, rim : size - rim] if rim else weight_CIkk


def crop_kernels(network: PlainNetwork) -> PlainNetwork:
    """Crop every depthwise kernel of a plain network, in place, to what its input resolution can meet."""
    size = -(-network.spec.resolution // network.spec.stem_stride)
    for block, spec in zip(network.blocks, network.spec.blocks, strict=True):
        conv = block.depthwise[0]  # type: ignore[index]
        assert isinstance(conv, nn.Conv2d)
        conv.weight = nn.Parameter(crop_kernel(conv.weight.detach(), size).contiguous())
        side = conv.weight.shape[-1]
        conv.kernel_size, conv.padding = (side, side), (side // 2, side // 2)
        size = -(-size // spec.stride)
    return network
