"""A subnet of MBConv blocks as a plain network: torch, nothing else.

This file stands alone. A copy of it travels as `model.py` in every directory that `trainonce extract` writes of such a
network, so that the network there loads without trainonce:

    from model import load
    network = load(".")           # in evaluation mode, on the CPU
    logits = network(images)      # float32 [B, C, H, W], normalised as config.json says
"""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

BN_EPS = 1e-5
BN_MOMENTUM = 0.1
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6, "h_swish": nn.Hardswish}


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """One MBConv block with every size fixed. Channels are counts; `se_channels` 0 means no SE."""

    in_channels: int
    mid_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    se_channels: int
    activation: str
    expand: bool
    bn_eps: float = BN_EPS

    @property
    def residual(self) -> bool:
        """Whether the block adds its input to its output."""
        return self.stride == 1 and self.in_channels == self.out_channels


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A whole subnet with every size fixed. `resolution` is the side of its square input in pixels.

    Without a feature layer, where `feature_channels` is 0, the classifier reads the final convolution's means.
    `activation` and `bn_eps` are of what lies around the blocks.
    """

    resolution: int
    in_channels: int
    stem_channels: int
    stem_stride: int
    blocks: tuple[BlockSpec, ...]
    final_channels: int
    feature_channels: int
    num_classes: int
    dropout: float
    activation: str = "h_swish"
    bn_eps: float = BN_EPS

    @property
    def map_sizes(self) -> tuple[int, ...]:
        """The sides of the maps that enter each block, and of the one that leaves the last."""
        sizes = [-(-self.resolution // self.stem_stride)]
        for block in self.blocks:
            sizes.append(-(-sizes[-1] // block.stride))
        return tuple(sizes)

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "NetworkSpec":
        """The spec that `to_json` wrote. Raises `TypeError` or `KeyError` on other keys."""
        blocks = tuple(BlockSpec(**block) for block in values["blocks"])
        return cls(**{**values, "blocks": blocks})

    def build(self) -> "PlainNetwork":
        """The network, freshly initialised."""
        return PlainNetwork(self)


def resize(x_BCHW: Tensor, resolution: int) -> Tensor:
    """Images at `resolution` pixels a side: bilinear with antialiasing, nothing where they are already."""
    if x_BCHW.shape[-2:] == (resolution, resolution):
        return x_BCHW
    return F.interpolate(x_BCHW, size=(resolution, resolution), mode="bilinear", antialias=True)


def conv_bn(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1, *, eps: float = BN_EPS
) -> nn.Sequential:
    """A convolution without bias that keeps the map's size at stride 1, and its batch norm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels, eps=eps, momentum=BN_MOMENTUM))


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the channels' means (MobileNetV3, section 5.3)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        gate_BC11 = self.expand(F.relu(self.reduce(x_BCHW.mean((2, 3), keepdim=True))))
        return x_BCHW * F.hardsigmoid(gate_BC11)


class MBConv(nn.Module):
    """Expand, depthwise convolution, squeeze-excite, project; plus the input where the shapes agree."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        mid, eps = spec.mid_channels, spec.bn_eps
        self.residual = spec.residual
        self.expand = conv_bn(spec.in_channels, mid, 1, eps=eps) if spec.expand else None
        self.depthwise = conv_bn(mid, mid, spec.kernel_size, spec.stride, groups=mid, eps=eps)
        self.se = SqueezeExcite(mid, spec.se_channels) if spec.se_channels else None
        self.project = conv_bn(mid, spec.out_channels, 1, eps=eps)
        self.act = ACTIVATIONS[spec.activation]()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = x_BCHW if self.expand is None else self.act(self.expand(x_BCHW))
        y = self.act(self.depthwise(y))
        if self.se is not None:
            y = self.se(y)
        y = self.project(y)
        out: Tensor = x_BCHW + y if self.residual else y
        return out


class PlainNetwork(nn.Module):
    """The network of a `NetworkSpec`: images [B, C, H, W] to logits [B, classes]."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.stem = conv_bn(spec.in_channels, spec.stem_channels, 3, spec.stem_stride, eps=spec.bn_eps)
        self.blocks = nn.ModuleList(MBConv(block) for block in spec.blocks)
        self.final = conv_bn(spec.blocks[-1].out_channels, spec.final_channels, 1, eps=spec.bn_eps)
        features = spec.feature_channels
        self.feature = nn.Conv2d(spec.final_channels, features, 1, bias=False) if features else None
        self.act = ACTIVATIONS[spec.activation]()
        self.dropout = nn.Dropout(spec.dropout)
        self.classifier = nn.Linear(features or spec.final_channels, spec.num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.act(self.stem(resize(x_BCHW, self.spec.resolution)))
        for block in self.blocks:
            x = block(x)
        x = self.act(self.final(x)).mean((2, 3), keepdim=True)
        if self.feature is not None:
            x = self.act(self.feature(x))
        logits: Tensor = self.classifier(self.dropout(x.flatten(1)))
        return logits
