"""The frozen teacher."""

from torch import nn

from trainonce.nn.cropping import crop_kernels
from trainonce.nn.fast import with_fast_blocks


def frozen(network: nn.Module) -> nn.Module:
    """A plain network as a teacher, in place: its kernels cropped, its blocks fast, its weights without gradients."""
    return with_fast_blocks(crop_kernels(network)).requires_grad_(requires_grad=False)
