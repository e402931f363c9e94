"""The layers around the blocks over the native kernels: pointwise convolution, and batch norm with activation."""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainonce.nn.native.calls import KINDS, Norm, kernels, maps, refuse_single_values, rows, threads_for, usable


def pointwise(x_BCHW: Tensor, weight_OI11: Tensor) -> Tensor:
    """A 1 x 1 convolution as one matrix product, differentiable in both; by torch's where kernels are not usable."""
    images, _, height, width = x_BCHW.shape
    x_MI, weight_OI = rows(x_BCHW), weight_OI11.flatten(1)
    if not usable(x_BCHW):
        return maps(x_MI @ weight_OI.t(), images, height, width)
    out: Tensor = _Linear.apply(x_MI, weight_OI)  # type: ignore[no-untyped-call]
    return maps(out, images, height, width)


def norm_act(x_BCHW: Tensor, norm: Norm, kind: str, *, momentum: float, eps: float) -> Tensor:
    """Batch norm in training mode and an activation, differentiable in x and the norm's weight and bias."""
    out: Tensor = _NormAct.apply(  # type: ignore[no-untyped-call]
        x_BCHW, norm.weight, norm.bias, norm, kind, momentum, eps
    )
    return out


def product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product of [m, k] and [k, n], either of which may be a transposed view, as a new matrix."""
    (m, k), n = left.shape, right.shape[1]
    out = left.new_empty(m, n)
    ways = [(matrix.stride(1) != 1, matrix if matrix.stride(1) == 1 else matrix.t()) for matrix in (left, right)]
    kernels().matrix_product(
        *(argument for way, stored in ways for argument in (way, stored.data_ptr(), stored.stride(0))),
        *(out.data_ptr(), n, m, n, k, threads_for(m * n, m)),
    )
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_MI, weight_OI)
        return product(x_MI, weight_OI.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MO: Tensor) -> tuple[Tensor | None, ...]:
        x_MI, weight_OI = ctx.saved_tensors
        grad_MO = grad_MO.contiguous()
        return product(grad_MO, weight_OI), product(grad_MO.t(), x_MI)


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, weight: Tensor, bias: Tensor, norm: Norm, kind: str, momentum: float, eps: float
    ) -> Tensor:
        images, channels, height, width = x_BCHW.shape
        x_MC = rows(x_BCHW)
        refuse_single_values(*x_MC.shape)
        stats, out_MC = x_MC.new_empty(4, channels), torch.empty_like(x_MC)
        kernels().norm_act_forward(
            *(x_MC.data_ptr(), images, height * width, channels, ctypes.byref(norm.pointers()), KINDS[kind]),
            *(momentum, eps, stats.data_ptr(), out_MC.data_ptr(), threads_for(x_MC.numel(), images)),
        )
        ctx.save_for_backward(x_MC, stats)
        ctx.kind, ctx.map = kind, (images, height, width)
        return maps(out_MC, *ctx.map)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        x_MC, stats = ctx.saved_tensors
        images, height, width = ctx.map
        channels = stats.shape[1]
        grad_MC, dx_MC = rows(grad_BCHW), torch.empty_like(x_MC)
        dweight_C, dbias_C = stats.new_empty(2, channels)
        kernels().norm_act_backward(
            *(grad_MC.data_ptr(), x_MC.data_ptr(), images, height * width, channels, stats.data_ptr(), KINDS[ctx.kind]),
            *(dweight_C.data_ptr(), dbias_C.data_ptr(), dx_MC.data_ptr(), threads_for(x_MC.numel(), images)),
        )
        return maps(dx_MC, *ctx.map), dweight_C, dbias_C, None, None, None, None
