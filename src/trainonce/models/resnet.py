"""Elastic ResNets: basic or bottleneck blocks with elastic inner width, stages with elastic depth.

Elastic is what is so in OFA's ResNet-50 (its code) but for the widths of stem and stages.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.cost.macs import Cost, CostModel, CostTerm, bn_cost, cached_term, conv_cost
from trainonce.models.layout import make_divisible
from trainonce.models.registry import register
from trainonce.models.supernet import FamilySettings, Supernet, Weigh
from trainonce.nn.ops import Slices, prefixed
from trainonce.nn.plain_resnet import ResidualSpec, ResNetSpec
from trainonce.nn.residual import ElasticConvNorm, ElasticResidual
from trainonce.nn.sizes import out_size
from trainonce.space import Architecture, Choice, SearchSpace

LAST_MAP = 8
"""The least side in pixels of the last map in geometries that follow the image size."""


class ResNetSettings(FamilySettings):
    """The geometry of an elastic ResNet."""

    channels: tuple[int, ...] = (16, 32, 64)
    """Channels that leave each stage at width 1; the stem has those of the first."""
    width_mult: float = Field(1.0, gt=0, le=4)
    """Factor on them, rounded to multiples of 8."""
    depths: tuple[int, ...] = (1, 2)
    """Numbers of blocks of a stage: rising, at least 1."""
    widths: tuple[int, ...] = (25, 50, 75, 100)
    """Inner channels of a block, in percent of the most: rising, the last is 100."""
    bottleneck: bool = False
    """Whether blocks are bottlenecks, whose inner channels are a quarter of the outer ones at most."""
    kernel_size: int = Field(3, ge=3, le=7)
    """Of the dense convolutions inside blocks; odd."""
    stem_stride: int = Field(1, ge=1, le=2)
    """Stride of the first convolution."""
    strides: tuple[int, ...] = (1, 2, 2)
    """Stride of the first block of each stage."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping a feature before the classifier."""

    geometries: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "light": {},
        "wide": {"channels": (32, 64, 128)},
        "deep": {"channels": (32, 64, 128, 256), "depths": (1, 2, 3)},
    }
    """Strides follow the image size in all of them (`strides_for`). `light` is for trainings of minutes."""

    @classmethod
    def geometry(cls, name: str, image_size: int) -> Mapping[str, object]:
        """The fields of a named geometry for images of a size."""
        fields = cls.geometries[name]
        channels = fields.get("channels", cls.model_fields["channels"].default)
        assert isinstance(channels, tuple)
        return {**strides_for(image_size, len(channels)), **fields}

    @property
    def outer(self) -> tuple[int, ...]:
        """Channels that leave each stage."""
        return tuple(make_divisible(count * self.width_mult) for count in self.channels)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("resolutions", "depths", "widths"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)) or values[0] < 1:
                raise ValueError(f"{name} must be distinct, rising and at least 1, not {values}")
        if self.widths[-1] != 100:
            raise ValueError(f"the last of the widths must be 100, not {self.widths[-1]}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, not {self.kernel_size}")
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels must be one positive number for each stage, not {self.channels}")
        if len(self.strides) != len(self.channels) or not all(stride in (1, 2) for stride in self.strides):
            raise ValueError(f"strides must be 1 or 2, one for each of {len(self.channels)} stages, not {self.strides}")
        return self


def strides_for(image_size: int, stages: int) -> dict[str, object]:
    """`stem_stride` and `strides` that halve maps as often as leaves the last one `LAST_MAP` pixels or more.

    All stages but the first halve them, the last of them first; then the stem, then the first stage.
    """
    halvings = 0
    while halvings < stages + 1 and math.ceil(image_size / 2 ** (halvings + 1)) >= LAST_MAP:
        halvings += 1
    order = [*range(stages - 1, 0, -1), -1, 0]
    halved = order[:halvings]
    return {"stem_stride": 2 if -1 in halved else 1, "strides": tuple(2 if s in halved else 1 for s in range(stages))}


@register
class ResNet(Supernet):
    """The elastic ResNet supernet (He 2016, arXiv 1512.03385). Weights are initialised from `seed` alone."""

    family = "resnet"
    settings_type = ResNetSettings
    settings: ResNetSettings

    @torch.random.fork_rng(devices=[])
    def __init__(self, settings: ResNetSettings, *, seed: int = 0) -> None:
        super().__init__(settings, seed=seed)
        self.space = _space(settings)
        self.stem = ElasticConvNorm(settings.in_channels, settings.outer[0], 3, settings.stem_stride)
        self.blocks = nn.ModuleDict(
            {name.replace(".", "_"): ElasticResidual(_block(settings, name, 100)) for name in _block_names(settings)}
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.classifier = nn.Linear(settings.outer[-1], settings.num_classes)
        self.cost = CostModel(self.space, tuple(_cost_terms(settings)))
        self._describe = lru_cache(maxsize=4096)(self._checked_description)
        self.reset_parameters(seed)

    def describe(self, arch: Architecture) -> ResNetSpec:
        return self._describe(arch)

    def _checked_description(self, arch: Architecture) -> ResNetSpec:
        settings, arch = self.settings, self.space.check(arch)
        return ResNetSpec(
            resolution=arch.get("resolution", settings.resolutions[-1]),
            in_channels=settings.in_channels,
            stem_channels=settings.outer[0],
            stem_stride=settings.stem_stride,
            blocks=tuple(_block(settings, name, arch[f"{name}.width"]) for name in _blocks_of(arch)),
            num_classes=settings.num_classes,
            dropout=settings.dropout,
        )

    def active_blocks(self, arch: Architecture) -> list[ElasticResidual]:
        """The blocks that `arch` uses, in order: those of `describe(arch).blocks`."""
        return [self.blocks[name.replace(".", "_")] for name in _blocks_of(arch)]  # type: ignore[misc]

    def forward(self, x_BCHW: Tensor, arch: Architecture) -> Tensor:
        spec = self.describe(arch)
        x = F.relu(self.stem(self.sized(x_BCHW, spec.resolution), spec.stem_channels))
        for block, block_spec in zip(self.active_blocks(arch), spec.blocks, strict=True):
            x = block(x, block_spec)
        logits: Tensor = self.classifier(self.dropout(x.mean((2, 3))))
        return logits

    def slices(self, arch: Architecture) -> Slices:
        spec = self.describe(arch)
        cut = prefixed("stem", self.stem.slices(spec.in_channels, spec.stem_channels))
        for i, (block, block_spec) in enumerate(zip(self.active_blocks(arch), spec.blocks, strict=True)):
            cut |= prefixed(f"blocks.{i}", block.slices(block_spec))
        return cut | prefixed("classifier", self.classifier.state_dict())

    def sort_channels(self, kept: SearchSpace, weigh: Weigh = torch.abs) -> None:
        arch = self.space.largest()
        for name, block in zip(_blocks_of(arch), self.active_blocks(arch), strict=True):
            widths = sorted({*kept[f"{name}.width"].values, 100})
            bands = dict.fromkeys(_block(self.settings, name, w).mid_channels for w in widths)
            block.sort_channels(tuple(bands), weigh)

    def zero_init_residual(self) -> None:
        for block in self.blocks.values():
            assert isinstance(block, ElasticResidual)
            block.zero_last_norm()


def _block_names(settings: ResNetSettings) -> list[str]:
    stages = range(1, len(settings.channels) + 1)
    return [f"stage{stage}.block{block}" for stage in stages for block in range(1, settings.depths[-1] + 1)]


def _blocks_of(arch: Architecture) -> list[str]:
    """The blocks that exist in an architecture, in order."""
    return [name.removesuffix(".width") for name in arch if name.endswith(".width")]


def _position(name: str) -> tuple[int, int]:
    stage, block = name.split(".")
    return int(stage.removeprefix("stage")), int(block.removeprefix("block"))


def _space(settings: ResNetSettings) -> SearchSpace:
    """Perhaps the resolution, then stage by stage its depth and its blocks' widths."""
    choices = []
    if len(settings.resolutions) > 1:
        choices.append(Choice(name="resolution", values=settings.resolutions))
    for stage in range(1, len(settings.channels) + 1):
        depth = f"stage{stage}.depth"
        choices.append(Choice(name=depth, values=settings.depths))
        for block in range(1, settings.depths[-1] + 1):
            allowed = {d: settings.widths for d in settings.depths if d >= block}
            name = f"stage{stage}.block{block}.width"
            choices.append(Choice(name=name, values=settings.widths, parent=depth, allowed=allowed))
    return SearchSpace(tuple(choices))


def _block(settings: ResNetSettings, name: str, width: int) -> ResidualSpec:
    """The block `stageS.blockB` with so many percent of its inner channels."""
    stage, block = _position(name)
    out = settings.outer[stage - 1]
    most = make_divisible(out / 4) if settings.bottleneck else out
    return ResidualSpec(
        in_channels=settings.outer[max(0, stage - 2)] if block == 1 else out,
        mid_channels=make_divisible(most * width / 100),
        out_channels=out,
        kernel_size=settings.kernel_size,
        stride=settings.strides[stage - 1] if block == 1 else 1,
        bottleneck=settings.bottleneck,
    )


def _cost_terms(settings: ResNetSettings) -> Iterator[CostTerm]:
    """One term for stem and classifier, and one for each block."""
    elastic = len(settings.resolutions) > 1
    above = ("resolution",) if elastic else ()

    def ends(resolution: int = settings.resolutions[-1]) -> Cost:
        size, first = out_size(resolution, settings.stem_stride), settings.outer[0]
        stem = conv_cost(size, settings.in_channels, first, 3) + bn_cost(first)
        classifier = conv_cost(1, settings.outer[-1], settings.num_classes, 1) + Cost(0, settings.num_classes)
        return stem + classifier

    yield cached_term(above, ends)
    for name in _block_names(settings):
        yield cached_term((*above, f"{name}.width"), _cost_of_block(settings, name))


def _cost_of_block(settings: ResNetSettings, name: str) -> Callable[..., Cost]:
    stage, block = _position(name)
    before = (settings.stem_stride, *settings.strides[: stage - (block == 1)])

    def cost(*values: int | None) -> Cost:
        *resolution, width = values
        if width is None:
            return Cost(0, 0)
        spec = _block(settings, name, width)
        size = resolution[0] if resolution and resolution[0] else settings.resolutions[-1]
        for stride in before:
            size = out_size(size, stride)
        total = Cost(0, 0)
        if spec.projects:
            total += conv_cost(out_size(size, spec.stride), spec.in_channels, spec.out_channels, 1)
            total += bn_cost(spec.out_channels)
        for inside, out, kernel_size, stride in spec.convs:
            size = out_size(size, stride)
            total += conv_cost(size, inside, out, kernel_size) + bn_cost(out)
        return total

    return cost
