"""Batch norm whose statistics are those of the images of all ranks.

Torch's own `SyncBatchNorm` does not run on the CPU and knows neither elastic layers nor unequal shares.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from trainonce.parallel.distributed import Ranks


class Synchronisable(nn.Module):
    """A batch norm that can take its statistics from all ranks; `synchronise` says from which."""

    ranks: Ranks | None = None

    @property
    def synchronised(self) -> bool:
        """Whether, in training mode, it normalises by the images of other ranks too."""
        return self.ranks is not None and not self.ranks.alone


class SynchronisedBatchNorm2d(Synchronisable, nn.BatchNorm2d):
    """The plain batch norm, over all ranks."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalise [B, C, H, W] as `nn.BatchNorm2d` does, in training mode by all ranks' images."""
        if not self.training or self.ranks is None:
            return super().forward(x_BCHW)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        return synchronised_batch_norm(
            x_BCHW,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            momentum=self.momentum,
            eps=self.eps,
            ranks=self.ranks,
        )


@contextmanager
def synchronised(network: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Inside, every batch norm of `network` that is in training mode normalises by the images of all ranks."""
    synchronise(network, ranks)
    try:
        yield
    finally:
        synchronise(network, None)


def synchronise(network: nn.Module, ranks: Ranks | None) -> None:
    """Let every batch norm of `network` take its statistics from all `ranks`; None undoes it.

    Plain batch norms, the same objects, become `SynchronisedBatchNorm2d` meanwhile.
    """
    for module in network.modules():
        if ranks is not None and type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronisedBatchNorm2d
        if isinstance(module, Synchronisable):
            if ranks is not None:
                module.ranks = ranks
            elif "ranks" in vars(module):
                del module.ranks
    if ranks is None:
        for layer in network.modules():
            if type(layer) is SynchronisedBatchNorm2d:
                layer.__class__ = nn.BatchNorm2d  # type: ignore[assignment]


def synchronised_batch_norm(
    x_BCHW: Tensor,
    running_mean_C: Tensor,
    running_var_C: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    *,
    momentum: float,
    eps: float,
    ranks: Ranks,
) -> Tensor:
    """`F.batch_norm` in training mode over the images of all ranks, which may hold unequal numbers of them.

    Moves the running statistics alike on all ranks. Differentiable by x, weight and bias: the gradients are those
    of the sum of all ranks' losses, in which weight's and bias's are this rank's part. One exchange forward, one
    backward. Computes in the numbers of weight, and gives those of x.
    """
    dtype, x_BCHW = x_BCHW.dtype, x_BCHW.to(weight_C.dtype)
    mean_C, var_C, count = _statistics(x_BCHW.detach(), ranks)
    with torch.no_grad():
        running_mean_C.lerp_(mean_C, momentum)
        running_var_C.lerp_(var_C * (count / (count - 1)), momentum)
    out: Tensor = _Normalise.apply(x_BCHW, weight_C, bias_C, mean_C, var_C, count, eps, ranks)  # type: ignore[no-untyped-call]
    return out.to(dtype)


def _statistics(x_BCHW: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel over all ranks, and of how many numbers they are, a scalar tensor.

    Variances of ranks are put together with the distances of their means, so that nothing cancels (Chan 1979).
    """
    var_C, mean_C = torch.var_mean(x_BCHW, (0, 2, 3), correction=0)
    count = var_C.new_full((1,), x_BCHW.numel() // x_BCHW.shape[1])
    found = ranks.collect(torch.cat([mean_C, var_C, count]))
    channels = len(mean_C)
    mean_RC, var_RC, count_R1 = torch.split(found, [channels, channels, 1], dim=1)
    total = count_R1.sum()
    share_R1 = count_R1 / total
    mean_C = (share_R1 * mean_RC).sum(0)
    return mean_C, (share_R1 * (var_RC + (mean_RC - mean_C).square())).sum(0), total


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, with the gradient through mean and var over all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BCHW: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        mean_C: Tensor,
        var_C: Tensor,
        count: Tensor,
        eps: float,
        ranks: Ranks,
    ) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight_C, mean_C, (var_C + eps).rsqrt(), count)
        ctx.ranks = ranks
        return F.batch_norm(x_BCHW, mean_C, var_C, weight_C, bias_C, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight_C, mean_C, invstd_C, count = ctx.saved_tensors
        normal_BCHW = (x_BCHW - mean_C[:, None, None]).mul_(invstd_C[:, None, None])
        of_bias_C = gradient_BCHW.sum((0, 2, 3))
        of_weight_C = (gradient_BCHW * normal_BCHW).sum((0, 2, 3))
        sums = ctx.ranks.sum(torch.cat([of_bias_C, of_weight_C])) / count
        mean_gradient_C, mean_product_C = sums.chunk(2)
        inner_BCHW = gradient_BCHW - mean_gradient_C[:, None, None]
        inner_BCHW.sub_(normal_BCHW.mul_(mean_product_C[:, None, None])).mul_((weight_C * invstd_C)[:, None, None])
        return inner_BCHW, of_weight_C, of_bias_C, None, None, None, None, None
