"""Elastic layers: each holds the weights of its largest form and cuts from them what a choice needs.

Every layer has one `slices` method that cuts its weights for a choice, under the names that the plain
layer of that size has in its state dict. The forward pass uses the slices; so does extraction. That is
why an extracted layer computes what the elastic one does, to the last bit.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.nn.batch_norm import Synchronisable, synchronised_batch_norm
from trainonce.nn.cropping import crop_kernel
from trainonce.nn.plain import BN_EPS, BN_MOMENTUM

Slices = dict[str, Tensor]


class ElasticConv2d(nn.Module):
    """A convolution, pointwise and without bias unless asked, that uses its first input and output channels.

    `weight` is [max_out, max_in, k, k], for the odd kernel size k.
    """

    def __init__(self, max_in: int, max_out: int, kernel_size: int = 1, *, stride: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(max_out, max_in, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(max_out)) if bias else None

    def slices(self, in_channels: int, out_channels: int) -> Slices:
        """`weight` [out, in, k, k], and `bias` [out] where the layer has one."""
        cut = {"weight": self.weight[:out_channels, :in_channels]}
        if self.bias is not None:
            cut["bias"] = self.bias[:out_channels]
        return cut

    def forward(self, x_BCHW: Tensor, out_channels: int) -> Tensor:
        """Map [B, in, H, W] to [B, out_channels, H / stride, W / stride]; the input channels are those that x has."""
        cut = self.slices(x_BCHW.shape[1], out_channels)
        return F.conv2d(x_BCHW, cut["weight"].contiguous(), cut.get("bias"), self.stride, self.weight.shape[-1] // 2)


class ElasticDepthwiseConv2d(nn.Module):
    """A depthwise convolution whose smaller kernels are made from the centre of the next larger one.

    `weight` is [max_channels, 1, K, K] for the largest kernel size K. Going from a kernel size to the
    next smaller, k, the centre k x k is multiplied, as a vector of k² numbers, by a learned k² x k² matrix that
    the channels share and that starts as the identity (OFA, arXiv 1908.09791, section 3.3).
    """

    def __init__(self, max_channels: int, kernel_sizes: tuple[int, ...], stride: int) -> None:
        super().__init__()
        self.kernel_sizes = tuple(sorted(kernel_sizes))
        self.stride = stride
        largest = self.kernel_sizes[-1]
        self.weight = nn.Parameter(torch.empty(max_channels, 1, largest, largest))
        self.transforms = nn.ParameterDict({f"to_{k}": nn.Parameter(torch.eye(k * k)) for k in self.kernel_sizes[:-1]})

    def slices(self, channels: int, kernel_size: int) -> Slices:
        """`weight` [channels, 1, kernel_size, kernel_size]."""
        weight = self.weight[:channels]
        for k in reversed([k for k in self.kernel_sizes[:-1] if k >= kernel_size]):
            rim = (weight.shape[-1] - k) // 2
            centre = weight[:, 0, rim : rim + k, rim : rim + k].flatten(1)
            weight = F.linear(centre, self.transforms[f"to_{k}"]).view(channels, 1, k, k)
        return {"weight": weight.contiguous()}

    def forward(self, x_BCHW: Tensor, kernel_size: int) -> Tensor:
        """Map [B, C, H, W] to [B, C, H / stride, W / stride], rounded up.

        In training the kernel is cropped to what the map can meet: the same sums with fewer zeros. In evaluation
        it is not, so that the output is the plain layer's to the last bit.
        """
        channels = x_BCHW.shape[1]
        weight = self.slices(channels, kernel_size)["weight"]
        if self.training:
            weight = crop_kernel(weight, max(x_BCHW.shape[-2:]))
        return F.conv2d(x_BCHW, weight, None, self.stride, weight.shape[-1] // 2, groups=channels)


class ElasticBatchNorm2d(Synchronisable):
    """Batch norm over the first channels; weights and running statistics are shared between widths.

    The statistics of a subnet are therefore a mixture and want recalibrating: see `trainonce.evaluation.evaluator`.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, max_channels: int, *, eps: float = BN_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(max_channels))
        self.bias = nn.Parameter(torch.zeros(max_channels))
        self.register_buffer("running_mean", torch.zeros(max_channels))
        self.register_buffer("running_var", torch.ones(max_channels))

    def slices(self, channels: int) -> Slices:
        """`weight`, `bias`, `running_mean` and `running_var`, each [channels] and sharing memory."""
        return {
            "weight": self.weight[:channels],
            "bias": self.bias[:channels],
            "running_mean": self.running_mean[:channels],
            "running_var": self.running_var[:channels],
        }

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalise [B, C, H, W]; in training mode by the batch, moving the running statistics."""
        cut = self.slices(x_BCHW.shape[1])
        if self.training and self.ranks is not None:
            return synchronised_batch_norm(
                x_BCHW,
                cut["running_mean"],
                cut["running_var"],
                cut["weight"],
                cut["bias"],
                momentum=BN_MOMENTUM,
                eps=self.eps,
                ranks=self.ranks,
            )
        return F.batch_norm(
            x_BCHW,
            cut["running_mean"],
            cut["running_var"],
            cut["weight"],
            cut["bias"],
            self.training,
            BN_MOMENTUM,
            self.eps,
        )


class ElasticSqueezeExcite(nn.Module):
    """Squeeze-excite over the first channels, through the first squeezed channels."""

    def __init__(self, max_channels: int, max_squeezed: int) -> None:
        super().__init__()
        self.reduce = ElasticConv2d(max_channels, max_squeezed, bias=True)
        self.expand = ElasticConv2d(max_squeezed, max_channels, bias=True)

    def slices(self, channels: int, squeezed: int) -> Slices:
        """The slices of `reduce` and `expand`, under those prefixes."""
        return prefixed("reduce", self.reduce.slices(channels, squeezed)) | prefixed(
            "expand", self.expand.slices(squeezed, channels)
        )

    def forward(self, x_BCHW: Tensor, squeezed: int) -> Tensor:
        """Scale each channel of [B, C, H, W] by its gate."""
        pooled = x_BCHW.mean((2, 3), keepdim=True)
        gate_BC11 = self.expand(F.relu(self.reduce(pooled, squeezed)), x_BCHW.shape[1])
        return x_BCHW * F.hardsigmoid(gate_BC11)


def prefixed(prefix: str, slices: Slices) -> Slices:
    """The slices with `prefix.` before each name."""
    return {f"{prefix}.{name}": tensor for name, tensor in slices.items()}
