"""A ResNet with every size fixed (He 2016, arXiv 1512.03385): torch, nothing else.

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


@dataclass(frozen=True, kw_only=True)
class ResidualSpec:
    """One residual block: two convolutions, or, in a bottleneck, one between two pointwise ones."""

    in_channels: int
    mid_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    bottleneck: bool

    @property
    def projects(self) -> bool:
        """Whether its input passes through a convolution of its own on its way around."""
        return self.stride != 1 or self.in_channels != self.out_channels

    @property
    def convs(self) -> tuple[tuple[int, int, int, int], ...]:
        """Input and output channels, kernel size and stride of each convolution in a row."""
        if self.bottleneck:
            return (
                (self.in_channels, self.mid_channels, 1, 1),
                (self.mid_channels, self.mid_channels, self.kernel_size, self.stride),
                (self.mid_channels, self.out_channels, 1, 1),
            )
        return (
            (self.in_channels, self.mid_channels, self.kernel_size, self.stride),
            (self.mid_channels, self.out_channels, self.kernel_size, 1),
        )


@dataclass(frozen=True, kw_only=True)
class ResNetSpec:
    """A whole network. `resolution` is the side of its square input in pixels."""

    resolution: int
    in_channels: int
    stem_channels: int
    stem_stride: int
    blocks: tuple[ResidualSpec, ...]
    num_classes: int
    dropout: float

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
    def from_json(cls, values: dict[str, Any]) -> "ResNetSpec":
        """The spec that `to_json` wrote. Raises `TypeError` or `KeyError` on other keys."""
        blocks = tuple(ResidualSpec(**block) for block in values["blocks"])
        return cls(**{**values, "blocks": blocks})

    def build(self) -> "PlainResNet":
        """The network, freshly initialised."""
        return PlainResNet(self)


def resize(x_BCHW: Tensor, resolution: int) -> Tensor:
    """Images at `resolution` pixels a side: bilinear with antialiasing, nothing where they are already."""
    if x_BCHW.shape[-2:] == (resolution, resolution):
        return x_BCHW
    return F.interpolate(x_BCHW, size=(resolution, resolution), mode="bilinear", antialias=True)


def conv_norm(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """A convolution without bias that keeps the map's size at stride 1, and its batch norm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class Residual(nn.Module):
    """ReLU of a row of convolutions plus what goes around them."""

    def __init__(self, spec: ResidualSpec) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv_norm(*sizes) for sizes in spec.convs)
        self.around = conv_norm(spec.in_channels, spec.out_channels, 1, spec.stride) if spec.projects else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = x_BCHW
        for number, layer in enumerate(self.convs):
            y = layer(F.relu(y) if number else y)
        return F.relu(y + (x_BCHW if self.around is None else self.around(x_BCHW)))


class PlainResNet(nn.Module):
    """The network of a `ResNetSpec`: images [B, C, H, W] to logits [B, classes]."""

    def __init__(self, spec: ResNetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.stem = conv_norm(spec.in_channels, spec.stem_channels, 3, spec.stem_stride)
        self.blocks = nn.ModuleList(Residual(block) for block in spec.blocks)
        self.dropout = nn.Dropout(spec.dropout)
        self.classifier = nn.Linear(spec.blocks[-1].out_channels, spec.num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = F.relu(self.stem(resize(x_BCHW, self.spec.resolution)))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.classifier(self.dropout(x.mean((2, 3))))
        return logits
