"""Native CPU kernels for the elastic blocks: the same function as the plain path, several times as fast."""

import torch
from torch import Tensor

from trainonce.nn.native.blocks import PlainMBConv, mbconv
from trainonce.nn.native.calls import Norm
from trainonce.nn.native.layers import norm_act, pointwise
from trainonce.nn.native.library import load_kernels, why_not

__all__ = ["Norm", "PlainMBConv", "mbconv", "norm_act", "pointwise", "usable", "why_not"]


def usable(x: Tensor) -> bool:
    """Whether the native kernels can take this input: float32 on a CPU, outside autocast, and they could be built."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    return load_kernels() is not None
