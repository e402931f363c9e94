"""The rival that the ratios are taken against: the same elastic network, written plainly as the field wrote it.

Weights are cut and made contiguous at every use, maps are NCHW, kernels are never cropped, h-swish is
x * relu6(x + 3) / 6 and the gate relu6(x + 3) / 6, composed of separate operations (OFA's released code, 2020).
"""

from torch import Tensor
from torch.nn import functional as F

from trainonce.models import MobileNetV3
from trainonce.nn.blocks import ElasticMBConv
from trainonce.nn.plain import BN_EPS, BN_MOMENTUM, BlockSpec
from trainonce.space import Architecture


def forward(net: MobileNetV3, x_BCHW: Tensor, arch: Architecture) -> Tensor:
    """Images [B, C, H, W] to logits, through the subnet `arch` of `net`, by torch's operators alone."""
    spec = net.describe(arch)
    x = _h_swish(net.stem(x_BCHW))
    for block, block_spec in zip(net.active_blocks(arch), spec.blocks, strict=True):
        x = _mbconv(block, x, block_spec)
    x = _h_swish(net.final(x)).mean(3, keepdim=True).mean(2, keepdim=True)
    assert net.feature is not None
    logits: Tensor = net.classifier(net.dropout(_h_swish(net.feature(x)).flatten(1)))
    return logits


def _h_swish(x: Tensor) -> Tensor:
    return x * F.relu6(x + 3) / 6


def _mbconv(block: ElasticMBConv, x: Tensor, spec: BlockSpec) -> Tensor:
    act = _h_swish if spec.activation == "h_swish" else F.relu
    cut = {name: tensor.contiguous() if tensor.ndim == 4 else tensor for name, tensor in block.slices(spec).items()}

    def norm(y: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (cut[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(y, mean, var, weight, bias, block.training, BN_MOMENTUM, BN_EPS)

    y = x
    if spec.expand:
        y = act(norm(F.conv2d(y, cut["expand.0.weight"]), "expand.1"))
    side, channels = spec.kernel_size, spec.mid_channels
    y = F.conv2d(y, cut["depthwise.0.weight"], None, spec.stride, side // 2, groups=channels)
    y = act(norm(y, "depthwise.1"))
    if spec.se_channels:
        gate = y.mean(3, keepdim=True).mean(2, keepdim=True)
        gate = F.relu(F.conv2d(gate, cut["se.reduce.weight"], cut["se.reduce.bias"]))
        y = y * (F.relu6(F.conv2d(gate, cut["se.expand.weight"], cut["se.expand.bias"]) + 3) / 6)
    y = norm(F.conv2d(y, cut["project.0.weight"]), "project.1")
    return x + y if spec.residual else y
