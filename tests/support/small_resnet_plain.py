"""The plain network of `small_resnet`: two convolutions around a residual block. It needs torch alone."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class SmallSpec:
    """Every size of the network. `width` is the channels inside its blocks."""

    resolution: int
    in_channels: int
    channels: int
    widths: tuple[int, ...]
    num_classes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "SmallSpec":
        return cls(**{**values, "widths": tuple(values["widths"])})

    def build(self) -> "SmallNetwork":
        return SmallNetwork(self)


def conv(inside: int, out: int, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out), nn.ReLU())


class SmallNetwork(nn.Module):
    """Images [B, C, H, W] to logits [B, classes]."""

    def __init__(self, spec: SmallSpec) -> None:
        super().__init__()
        self.spec = spec
        self.stem = conv(spec.in_channels, spec.channels, 2)
        self.inner = nn.ModuleList(conv(spec.channels, width) for width in spec.widths)
        self.outer = nn.ModuleList(conv(width, spec.channels) for width in spec.widths)
        self.classifier = nn.Linear(spec.channels, spec.num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.stem(x_BCHW)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = x + outer(inner(x))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits
