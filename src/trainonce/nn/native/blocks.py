"""An MBConv block over the native kernels: in training as one autograd function, and with fixed statistics.

Weights come under the names of the plain block's state dict, which extraction gives too. Pointwise weights and batch
norms come whole, and a cut takes their first entries; the depthwise kernel comes as the choice makes it.
"""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainonce.nn.native.calls import KINDS, Norm, kernels, maps, refuse_single_values, rows, threads_for
from trainonce.nn.native.library import Block, Gradients, NormTensors
from trainonce.nn.plain import BlockSpec
from trainonce.nn.sizes import out_size

Tensors = Mapping[str, Tensor]
DEPTHWISE = "depthwise.0.weight"
NORMS = ("expand.1", "depthwise.1", "project.1")
POINTWISE = {
    "expand.0.weight": "expand_weight",
    "se.reduce.weight": "reduce_weight",
    "se.reduce.bias": "reduce_bias",
    "se.expand.weight": "grow_weight",
    "se.expand.bias": "grow_bias",
    "project.0.weight": "project_weight",
}
"""The names of a plain block's pointwise tensors, and of block.c's."""


@dataclass(frozen=True, kw_only=True)
class BlockSizes:
    """What the kernels have to know of a block, beside its tensors and its input."""

    mid_channels: int
    out_channels: int
    se_channels: int
    stride: int
    activation: str
    bn_eps: float
    residual: bool
    uneven: bool = False
    """Whether the depthwise convolution pads one row and column less before the map than half its kernel: with stride
    2, what other libraries call "same" does so on maps of even size."""


AnyBlock = BlockSpec | BlockSizes


def mbconv(
    x_BCHW: Tensor,
    spec: AnyBlock,
    kernel_C1kk: Tensor,
    whole: Tensors,
    statistics: Tensors,
    momentum: float,
) -> Tensor:
    """The block of `spec` in training mode, differentiable in x, in the depthwise kernel and in the `whole` weights.

    A whole weight's gradient is zero beyond the first entries, which the spec says how many are used of. The
    running `statistics`, whole too, move by `momentum`.
    """
    out: Tensor = _MBConv.apply(  # type: ignore[no-untyped-call]
        x_BCHW, spec, tuple(whole), statistics, momentum, kernel_C1kk, *whole.values()
    )
    return out


def infer(x_BCHW: Tensor, spec: AnyBlock, tensors: Tensors) -> Tensor:
    """The plain block of that state dict by its running statistics, without autograd."""
    block = _block(x_BCHW, spec, tensors[DEPTHWISE], tensors, tensors)
    x_MC, out_MC = rows(x_BCHW), _out_rows(x_BCHW, spec)
    kernels().block_infer(ctypes.byref(block), x_MC.data_ptr(), out_MC.data_ptr())
    return maps(out_MC, len(x_BCHW), *_out_size(x_BCHW, spec))


def calibrate(x_BCHW: Tensor, spec: AnyBlock, tensors: Tensors, momentum: float) -> Tensor:
    """The plain block of that state dict by the batch's statistics, without autograd; the running ones move."""
    return _forward(x_BCHW, spec, tensors[DEPTHWISE], tensors, tensors, momentum)[0]


def _block(
    x_BCHW: Tensor,
    spec: AnyBlock,
    kernel_C1kk: Tensor,
    whole: Tensors,
    statistics: Tensors,
    momentum: float = 0.0,
) -> Block:
    images, channels, height, width = x_BCHW.shape
    uneven = isinstance(spec, BlockSizes) and spec.uneven
    side = kernel_C1kk.shape[-1]
    crop = side if uneven else min(side, 2 * max(height, width) - 1)  # see trainonce.nn.cropping
    reduce, project = whole.get("se.reduce.weight"), whole["project.0.weight"]
    return Block(
        images=images,
        height=height,
        width=width,
        in_channels=channels,
        mid=spec.mid_channels,
        out=spec.out_channels,
        squeezed=spec.se_channels,
        whole_mid=project.shape[1],
        whole_squeezed=0 if reduce is None else len(reduce),
        kernel=side,
        crop=crop,
        stride=spec.stride,
        lead=crop // 2 - uneven,
        kind=KINDS[spec.activation],
        residual=spec.residual,
        threads=threads_for(images * height * width * spec.mid_channels, images),
        momentum=momentum,
        eps=spec.bn_eps,
        kernel_weight=kernel_C1kk.data_ptr(),
        norms=tuple(_norm(whole, statistics, name) for name in NORMS),
        **{field: whole[name].data_ptr() for name, field in POINTWISE.items() if name in whole},
    )


def _norm(whole: Tensors, statistics: Tensors, name: str) -> NormTensors:
    if f"{name}.weight" not in whole:  # a block without expansion
        return NormTensors()
    running = (statistics[f"{name}.running_mean"], statistics[f"{name}.running_var"])
    return Norm(whole[f"{name}.weight"], whole[f"{name}.bias"], *running).pointers()


def _out_size(x_BCHW: Tensor, spec: AnyBlock) -> tuple[int, int]:
    return out_size(x_BCHW.shape[2], spec.stride), out_size(x_BCHW.shape[3], spec.stride)


def _out_rows(x_BCHW: Tensor, spec: AnyBlock) -> Tensor:
    height, width = _out_size(x_BCHW, spec)
    return x_BCHW.new_empty(len(x_BCHW) * height * width, spec.out_channels)


def _forward(
    x_BCHW: Tensor,
    spec: AnyBlock,
    kernel_C1kk: Tensor,
    whole: Tensors,
    statistics: Tensors,
    momentum: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output maps, the input's rows, and what backward needs."""
    block = _block(x_BCHW, spec, kernel_C1kk, whole, statistics, momentum)
    x_MC, out_MC = rows(x_BCHW), _out_rows(x_BCHW, spec)
    refuse_single_values(*out_MC.shape)
    saved = x_MC.new_empty(kernels().block_saved_floats(ctypes.byref(block)))
    kernels().block_forward(ctypes.byref(block), x_MC.data_ptr(), saved.data_ptr(), out_MC.data_ptr())
    return maps(out_MC, len(x_BCHW), *_out_size(x_BCHW, spec)), x_MC, saved


class _MBConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BCHW: Tensor,
        spec: AnyBlock,
        names: tuple[str, ...],
        statistics: Tensors,
        momentum: float,
        kernel_C1kk: Tensor,
        *whole: Tensor,
    ) -> Tensor:
        named = dict(zip(names, whole, strict=True))
        out_BCHW, x_MC, saved = _forward(x_BCHW, spec, kernel_C1kk, named, statistics, momentum)
        ctx.save_for_backward(x_MC, saved, kernel_C1kk, *whole)
        ctx.spec, ctx.names, ctx.statistics, ctx.map = spec, names, statistics, x_BCHW.shape
        return out_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        x_MC, saved, kernel_C1kk, *tensors = ctx.saved_tensors
        images, _, height, width = ctx.map
        whole = dict(zip(ctx.names, tensors, strict=True))
        x_BCHW = maps(x_MC, images, height, width)
        block = _block(x_BCHW, ctx.spec, kernel_C1kk, whole, ctx.statistics)
        grad_MC, dx_MC, dkernel = rows(grad_BCHW), torch.empty_like(x_MC), torch.empty_like(kernel_C1kk)
        grads = {name: torch.empty_like(tensor) for name, tensor in whole.items()}
        kernels().block_backward(
            *(ctypes.byref(block), x_MC.data_ptr(), saved.data_ptr(), grad_MC.data_ptr()),
            *(ctypes.byref(_gradients(grads, dkernel)), dx_MC.data_ptr()),
        )
        return maps(dx_MC, images, height, width), None, None, None, None, dkernel, *grads.values()


def _gradients(grads: Tensors, dkernel: Tensor) -> Gradients:
    def pointers(part: str) -> tuple[int | None, ...]:
        return tuple(grads[f"{name}.{part}"].data_ptr() if f"{name}.{part}" in grads else None for name in NORMS)

    return Gradients(
        kernel_weight=dkernel.data_ptr(),
        norm_weight=pointers("weight"),
        norm_bias=pointers("bias"),
        **{field: grads[name].data_ptr() for name, field in POINTWISE.items() if name in grads},
    )
