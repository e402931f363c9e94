"""A kind of network of a person's own that cannot be run on no images."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class FlatSpec:
    """Every size of the network."""

    resolution: int
    in_channels: int
    num_classes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "FlatSpec":
        return cls(**values)

    def build(self) -> "FlatNetwork":
        return FlatNetwork(self)


class FlatNetwork(nn.Module):
    """Images [B, C, H, W] to logits [B, classes], by one linear layer."""

    def __init__(self, spec: FlatSpec) -> None:
        super().__init__()
        self.spec = spec
        self.classifier = nn.Linear(spec.in_channels * spec.resolution**2, spec.num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x_BCHW.reshape(len(x_BCHW), -1))  # torch refuses this of no images
        return logits
