"""The native kernels as functions of tensors.

Activations are rows, float32 [images * pixels, C] and contiguous. `stats` are [4, C]: a batch norm's mean, one
over its standard deviation, that times its weight, and its bias.
`kind` names an activation: none, relu or h_swish.
"""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from trainonce.nn.native.library import Shape, load_kernels
from trainonce.nn.plain import BN_EPS

KINDS = {"none": 0, "relu": 1, "h_swish": 2}
MEAN, RSTD, SCALE, BIAS = range(4)
SMALLEST_SHARE = 8192  # elements that make a second thread worth starting


class Norm(NamedTuple):
    """A batch norm's tensors, [C] each."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def fixed(self) -> Tensor:
        """The stats of evaluation mode."""
        rstd_C = (self.running_var + BN_EPS).rsqrt()
        return torch.stack((self.running_mean, rstd_C, self.weight * rstd_C, self.bias))


def norm_statistics(y_MC: Tensor, norm: Norm, momentum: float) -> Tensor:
    """The batch's stats; the running statistics move towards it by `momentum`."""
    rows, channels = y_MC.shape
    if rows < 2:
        raise ValueError(f"batch norm needs more than one value for each channel, not an input of {rows} x {channels}")
    stats = y_MC.new_empty(4, channels)
    _lib().norm_statistics(
        *(y_MC.data_ptr(), rows, channels, *(tensor.data_ptr() for tensor in norm)),
        *(momentum, BN_EPS, stats.data_ptr(), _threads(y_MC)),
    )
    return stats


def affine(
    y_MC: Tensor, images: int, stats: Tensor, kind: str, gate_BC: Tensor | None = None, plus_MC: Tensor | None = None
) -> Tensor:
    """Batch norm and activation, times the image's gate, plus rows."""
    out_MC = torch.empty_like(y_MC)
    _lib().affine(
        *(y_MC.data_ptr(), images, len(y_MC) // images, y_MC.shape[1], stats.data_ptr()),
        *(KINDS[kind], _pointer(gate_BC), _pointer(plus_MC), out_MC.data_ptr(), _threads(y_MC)),
    )
    return out_MC


def pool(y_MC: Tensor, images: int, stats: Tensor, kind: str, grad_MC: Tensor | None = None) -> Tensor:
    """The mean over each image's pixels after batch norm and activation, [images, C].

    With the gradient of `affine`'s output instead the sum of their products: the gradient of its gate.
    """
    out_BC = y_MC.new_empty(images, y_MC.shape[1])
    _lib().pool(
        *(y_MC.data_ptr(), _pointer(grad_MC), images, len(y_MC) // images, y_MC.shape[1], stats.data_ptr()),
        *(KINDS[kind], out_BC.data_ptr(), _threads(y_MC)),
    )
    return out_BC


def act_backward(
    grad_MC: Tensor,
    y_MC: Tensor,
    images: int,
    stats: Tensor,
    kind: str,
    gate_BC: Tensor | None = None,
    spread_BC: Tensor | None = None,
) -> Tensor:
    """Turn the gradient of `affine`'s output, in place, into that before the activation; returns its sums.

    With a gate the gradient is first multiplied by it and `spread_BC` is added. The sums, double [2, C], are what
    `norm_coefficients` takes.
    """
    sums = torch.empty(2, y_MC.shape[1], dtype=torch.float64)
    _lib().act_backward(
        *(grad_MC.data_ptr(), y_MC.data_ptr(), images, len(y_MC) // images, y_MC.shape[1]),
        *(stats.data_ptr(), KINDS[kind], _pointer(gate_BC), _pointer(spread_BC)),
        *(grad_MC.data_ptr() if kind != "none" else None, sums.data_ptr(), _threads(y_MC)),
    )
    return sums


def norm_coefficients(sums: Tensor, rows: int, stats: Tensor, whole: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a batch norm's weight and bias, and the [4, C] numbers that its input's gradient is made of.

    The gradients are [whole], and zero from C on.
    """
    channels = stats.shape[1]
    grads = torch.zeros(2, whole)
    coefficients = torch.empty(4, channels)
    _lib().norm_coefficients(
        *(sums.data_ptr(), rows, channels, stats.data_ptr()),
        *(grads.data_ptr(), grads[1].data_ptr(), coefficients.data_ptr()),
    )
    return grads[0], grads[1], coefficients


def norm_backward(du_MC: Tensor, y_MC: Tensor, coefficients: Tensor, *, keep: bool = False) -> Tensor:
    """The gradient of a batch norm's input, in the place of its output's unless that is to `keep`."""
    out_MC = torch.empty_like(du_MC) if keep else du_MC
    _lib().norm_backward(
        *(du_MC.data_ptr(), y_MC.data_ptr(), *y_MC.shape, coefficients.data_ptr(), out_MC.data_ptr(), _threads(y_MC))
    )
    return out_MC


class DepthwiseShape(NamedTuple):
    """A depthwise convolution's input map and stride."""

    images: int
    height: int
    width: int
    stride: int

    @classmethod
    def of(cls, x_BCHW: Tensor, stride: int) -> "DepthwiseShape":
        """That of a convolution over those maps."""
        return cls(x_BCHW.shape[0], x_BCHW.shape[2], x_BCHW.shape[3], stride)

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of an output map."""
        return -(-self.height // self.stride), -(-self.width // self.stride)

    @property
    def out_pixels(self) -> int:
        """Pixels of an output map."""
        height, width = self.out_size
        return height * width

    def c_shape(self, kernel_C1kk: Tensor) -> Shape:
        """With the kernel cropped to what the map can meet (see `trainonce.nn.cropping`)."""
        channels, _, side, _ = kernel_C1kk.shape
        crop = min(side, 2 * max(self.height, self.width) - 1)
        return Shape(self.images, self.height, self.width, channels, side, crop, self.stride)


def depthwise(
    x_MC: Tensor,
    shape: DepthwiseShape,
    kernel_C1kk: Tensor,
    stats: Tensor,
    kind: str,
    out_stats: Tensor | None = None,
    out_kind: str = "none",
) -> Tensor:
    """Convolve after a batch norm and activation; where `out_stats` are given, normalise and activate the output."""
    out_MC = x_MC.new_empty(shape.images * shape.out_pixels, x_MC.shape[1])
    _lib().depthwise(
        *(x_MC.data_ptr(), ctypes.byref(shape.c_shape(kernel_C1kk)), kernel_C1kk.data_ptr()),
        *(stats.data_ptr(), KINDS[kind]),
        *(_pointer(out_stats), KINDS[out_kind], out_MC.data_ptr(), _threads(x_MC)),
    )
    return out_MC


def depthwise_backward(
    du_MC: Tensor,
    y_MC: Tensor,
    coefficients: Tensor,
    x_MC: Tensor,
    shape: DepthwiseShape,
    kernel_C1kk: Tensor,
    stats: Tensor,
    kind: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward of `depthwise` whose output `y_MC` went into a batch norm of those `coefficients`.

    Returns the gradients of the kernel and of the input before its activation, and the latter's sums.
    """
    dkernel = torch.zeros_like(kernel_C1kk)
    dx_MC = torch.empty_like(x_MC)
    sums = torch.empty(2, x_MC.shape[1], dtype=torch.float64)
    _lib().depthwise_backward(
        *(du_MC.data_ptr(), y_MC.data_ptr(), coefficients.data_ptr(), x_MC.data_ptr()),
        *(ctypes.byref(shape.c_shape(kernel_C1kk)), kernel_C1kk.data_ptr()),
        *(stats.data_ptr(), KINDS[kind]),
        *(dkernel.data_ptr(), dx_MC.data_ptr(), sums.data_ptr(), _threads(x_MC)),
    )
    return dkernel, dx_MC, sums


def _lib() -> ctypes.CDLL:
    kernels = load_kernels()
    assert kernels is not None
    return kernels


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _threads(y_MC: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), y_MC.numel() // SMALLEST_SHARE))
