"""What calls of the native kernels have in common: rows, activations, threads.

Activations are rows, float32 [images * pixels, C] and contiguous: channels_last maps without a copy.
"""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from trainonce.nn.native.library import NormTensors, load_kernels

KINDS = {"none": 0, "relu": 1, "h_swish": 2, "relu6": 3}  # every activation of trainonce.nn.plain
SMALLEST_SHARE = 8192  # elements that make a second thread worth starting


class Norm(NamedTuple):
    """A batch norm's tensors, [C] each."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def pointers(self) -> NormTensors:
        """Where they are."""
        return NormTensors(*(tensor.data_ptr() for tensor in self))


def usable(x: Tensor) -> bool:
    """Whether the native kernels can take this input: float32 on a CPU, outside autocast, and they could be built."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    return load_kernels() is not None


def kernels() -> ctypes.CDLL:
    """The compiled kernels, which must be usable."""
    loaded = load_kernels()
    assert loaded is not None
    return loaded


def threads_for(elements: int, images: int) -> int:
    """How many threads share work on that many elements of images."""
    return max(1, min(torch.get_num_threads(), images, elements // SMALLEST_SHARE))


def rows(x_BCHW: Tensor) -> Tensor:
    """Maps as rows [B * H * W, C]; without a copy where they are channels_last."""
    return x_BCHW.permute(0, 2, 3, 1).reshape(-1, x_BCHW.shape[1]).contiguous()  # reshape may give a strided view


def maps(y_MC: Tensor, images: int, height: int, width: int) -> Tensor:
    """Rows as maps [B, C, H, W], channels_last."""
    return y_MC.view(images, height, width, -1).permute(0, 3, 1, 2)


def refuse_single_values(rows: int, channels: int) -> None:
    """Raise `ValueError`, as torch does, where a batch has no variance."""
    if rows < 2:
        raise ValueError(f"batch norm needs more than one value for each channel, not an input of {rows} x {channels}")
