"""What networks of MBConv blocks cost, in closed form: multiply-accumulates, parameters, activations at their peak."""

from dataclasses import replace
from functools import cache

import torch

from trainonce.cost.macs import Cost, bn_cost, conv_cost
from trainonce.cost.memory import TensorShape, peak_values, shapes_in, tensors_of
from trainonce.nn.plain import BlockSpec, MBConv, NetworkSpec
from trainonce.nn.sizes import out_size


def block_cost(spec: BlockSpec, size: int) -> Cost:
    """One MBConv block on an input map of `size` x `size`."""
    mid, after = spec.mid_channels, out_size(size, spec.stride)
    total = conv_cost(after, mid, mid, spec.kernel_size, groups=mid) + bn_cost(mid)
    if spec.expand:
        total += conv_cost(size, spec.in_channels, mid, 1) + bn_cost(mid)
    if spec.se_channels:
        total += conv_cost(1, mid, spec.se_channels, 1) + conv_cost(1, spec.se_channels, mid, 1)
        total += Cost(0, spec.se_channels + mid)
    return total + conv_cost(after, mid, spec.out_channels, 1) + bn_cost(spec.out_channels)


def fixed_cost(spec: NetworkSpec) -> Cost:
    """Everything but the blocks: stem, final convolution, feature layer if there is one, classifier."""
    size = out_size(spec.resolution, spec.stem_stride)
    total = conv_cost(size, spec.in_channels, spec.stem_channels, 3) + bn_cost(spec.stem_channels)
    for block in spec.blocks:
        size = out_size(size, block.stride)
    total += conv_cost(size, spec.blocks[-1].out_channels, spec.final_channels, 1) + bn_cost(spec.final_channels)
    features = spec.feature_channels or spec.final_channels
    if spec.feature_channels:
        total += conv_cost(1, spec.final_channels, features, 1)
    return total + conv_cost(1, features, spec.num_classes, 1) + Cost(0, spec.num_classes)


def network_cost(spec: NetworkSpec) -> Cost:
    """The whole network."""
    total, size = fixed_cost(spec), out_size(spec.resolution, spec.stem_stride)
    for block in spec.blocks:
        total += block_cost(block, size)
        size = out_size(size, block.stride)
    return total


@tensors_of.register
def _(spec: NetworkSpec) -> list[TensorShape]:
    """Each kind of block, and what lies around the last of them, is built once: building takes ten times as long."""
    found = list(_around(replace(spec, blocks=spec.blocks[-1:])))
    for number, block in enumerate(spec.blocks):
        found += [TensorShape(f"blocks.{number}.{name}", shape, dtype) for name, shape, dtype in _inside(block)]
    return found


@cache
def _inside(spec: BlockSpec) -> tuple[TensorShape, ...]:
    with torch.device("meta"):
        return tuple(shapes_in(MBConv(spec)))


@cache
def _around(spec: NetworkSpec) -> tuple[TensorShape, ...]:
    with torch.device("meta"):
        return tuple(one for one in shapes_in(spec.build()) if not one.name.startswith("blocks."))


@peak_values.register
def _(spec: NetworkSpec) -> int:
    size = out_size(spec.resolution, spec.stem_stride)
    peak = spec.in_channels * spec.resolution**2 + spec.stem_channels * size**2
    for block in spec.blocks:
        peak = max(peak, _block_peak(block, size))
        size = out_size(size, block.stride)
    last, final = spec.blocks[-1].out_channels * size**2, spec.final_channels * size**2
    features = spec.feature_channels or spec.final_channels
    ends = (last + final, final + spec.final_channels, spec.final_channels + spec.feature_channels)
    return max(peak, *ends, features + spec.num_classes)


def _block_peak(spec: BlockSpec, size: int) -> int:
    """The most values that are live at once while a block runs on a map of `size` x `size`, its input included."""
    before, after = size**2, out_size(size, spec.stride) ** 2
    source, out = spec.in_channels * before, spec.out_channels * after
    expanded, filtered = spec.mid_channels * before, spec.mid_channels * after
    kept = source if spec.residual else 0
    peaks = [source + expanded, kept + expanded + filtered] if spec.expand else [source + filtered]
    if spec.se_channels:  # the map waits while its means become a gate
        peaks.append(kept + filtered + spec.mid_channels + spec.se_channels)
    return max(*peaks, kept + filtered + out)
