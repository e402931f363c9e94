"""The layers around the blocks over the native kernels: pointwise convolution, and batch norm with activation."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainonce.nn.native import kernels
from trainonce.nn.native.kernels import Norm


def rows(x_BCHW: Tensor) -> Tensor:
    """Maps as rows [B * H * W, C]; without a copy where they are channels_last."""
    return x_BCHW.permute(0, 2, 3, 1).reshape(-1, x_BCHW.shape[1]).contiguous()  # reshape may give a strided view


def maps(y_MC: Tensor, images: int, height: int, width: int) -> Tensor:
    """Rows as maps [B, C, H, W], channels_last."""
    return y_MC.view(images, height, width, -1).permute(0, 3, 1, 2)


def pointwise(x_BCHW: Tensor, weight_OI11: Tensor) -> Tensor:
    """A 1 x 1 convolution as one matrix product."""
    images, _, height, width = x_BCHW.shape
    return maps(rows(x_BCHW) @ weight_OI11.flatten(1).t(), images, height, width)


def norm_act(x_BCHW: Tensor, norm: Norm, kind: str, momentum: float) -> Tensor:
    """Batch norm in training mode and an activation, differentiable in x and the norm's weight and bias."""
    out: Tensor = _NormAct.apply(x_BCHW, norm.weight, norm.bias, norm, kind, momentum)  # type: ignore[no-untyped-call]
    return out


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, weight: Tensor, bias: Tensor, norm: Norm, kind: str, momentum: float
    ) -> Tensor:
        images, _, height, width = x_BCHW.shape
        x_MC = rows(x_BCHW)
        stats = kernels.norm_statistics(x_MC, norm, momentum)
        ctx.save_for_backward(x_MC, stats)
        ctx.kind, ctx.map = kind, (images, height, width)
        return maps(kernels.affine(x_MC, images, stats, kind), *ctx.map)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        x_MC, stats = ctx.saved_tensors
        du_MC = rows(grad_BCHW).clone(memory_format=torch.contiguous_format)
        sums = kernels.act_backward(du_MC, x_MC, ctx.map[0], stats, ctx.kind)
        dweight_C, dbias_C, coefficients = kernels.norm_coefficients(sums, len(x_MC), stats, stats.shape[1])
        return maps(kernels.norm_backward(du_MC, x_MC, coefficients), *ctx.map), dweight_C, dbias_C, None, None, None
