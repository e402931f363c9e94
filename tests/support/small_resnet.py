"""A family of your own: a small ResNet whose blocks have an elastic width."""

import torch
from tests.support.small_resnet_plain import SmallSpec
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.cost.macs import Cost, CostModel, CostTerm, bn_cost, conv_cost
from trainonce.models import FamilySettings, Supernet
from trainonce.models.supernet import Weigh
from trainonce.nn.ops import ElasticBatchNorm2d, ElasticConv2d, Slices, prefixed
from trainonce.space import Architecture, Choice, SearchSpace


class SmallSettings(FamilySettings):
    """What a small ResNet is built from."""

    channels: int = 16
    """Channels between blocks."""
    widths: tuple[int, ...] = (8, 16, 32)
    """Channels inside a block: rising."""
    blocks: int = 2
    """Residual blocks."""


class ElasticConv(nn.Module):
    """A convolution, its batch norm and ReLU, of which the first channels are used."""

    def __init__(self, inside: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = ElasticConv2d(inside, out, 3, stride=stride), ElasticBatchNorm2d(out)

    def forward(self, x_BCHW: Tensor, out: int) -> Tensor:
        return F.relu(self.norm(self.conv(x_BCHW, out)))

    def slices(self, inside: int, out: int) -> Slices:
        return prefixed("0", self.conv.slices(inside, out)) | prefixed("1", self.norm.slices(out))


class SmallResNet(Supernet):
    """The supernet: `block1.width`, `block2.width`, … are its choices."""

    settings_type = SmallSettings
    settings: SmallSettings

    @torch.random.fork_rng(devices=[])
    def __init__(self, settings: SmallSettings, *, seed: int = 0) -> None:
        super().__init__(settings, seed=seed)
        widest, numbers = settings.widths[-1], range(1, settings.blocks + 1)
        self.names = [f"block{number}.width" for number in numbers]
        self.space = SearchSpace(tuple(Choice(name=name, values=settings.widths) for name in self.names))
        self.stem = ElasticConv(settings.in_channels, settings.channels, 2)
        self.inner = nn.ModuleList(ElasticConv(settings.channels, widest) for _ in numbers)
        self.outer = nn.ModuleList(ElasticConv(widest, settings.channels) for _ in numbers)
        self.classifier = nn.Linear(settings.channels, settings.num_classes)
        self.cost = CostModel(self.space, (CostTerm((), self.ends), *(CostTerm((n,), self.block) for n in self.names)))
        self.reset_parameters(seed)

    def ends(self) -> Cost:
        of, side = self.settings, -(-self.settings.resolutions[-1] // 2)
        stem = conv_cost(side, of.in_channels, of.channels, 3) + bn_cost(of.channels)
        return stem + conv_cost(1, of.channels, of.num_classes, 1) + Cost(0, of.num_classes)

    def block(self, width: int) -> Cost:
        of, side = self.settings, -(-self.settings.resolutions[-1] // 2)
        into, back = conv_cost(side, of.channels, width, 3), conv_cost(side, width, of.channels, 3)
        return into + bn_cost(width) + back + bn_cost(of.channels)

    def describe(self, arch: Architecture) -> SmallSpec:
        of, widths = self.settings, tuple(self.space.check(arch).values())
        common = {"channels": of.channels, "widths": widths, "num_classes": of.num_classes}
        return SmallSpec(resolution=of.resolutions[-1], in_channels=of.in_channels, **common)  # type: ignore[arg-type]

    def forward(self, x_BCHW: Tensor, arch: Architecture) -> Tensor:
        x = self.stem(x_BCHW, self.settings.channels)
        for inner, outer, width in zip(self.inner, self.outer, arch.values(), strict=True):
            x = x + outer(inner(x, width), self.settings.channels)
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits

    def slices(self, arch: Architecture) -> Slices:
        of = self.settings
        cut = prefixed("stem", self.stem.slices(of.in_channels, of.channels))
        for i, (inner, outer, width) in enumerate(zip(self.inner, self.outer, arch.values(), strict=True)):
            cut |= prefixed(f"inner.{i}", inner.slices(of.channels, width))  # type: ignore[operator]
            cut |= prefixed(f"outer.{i}", outer.slices(width, of.channels))  # type: ignore[operator]
        return cut | prefixed("classifier", self.classifier.state_dict())

    def sort_channels(self, kept: SearchSpace, weigh: Weigh = torch.abs) -> None:
        """They are kept in their order, which is allowed: each subnet of `kept` computes what it did."""
