"""What tells families of MBConv supernets apart, as a value, and what follows from it: space, specs, costs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from trainonce.cost.macs import Cost, CostTerm, cached_term
from trainonce.models.mbconv_cost import block_cost, fixed_cost
from trainonce.models.supernet import FamilySettings
from trainonce.nn.plain import BlockSpec, NetworkSpec
from trainonce.nn.sizes import out_size
from trainonce.space import Architecture, Choice, SearchSpace


class MBConvSettings(FamilySettings):
    """The geometry of an elastic network of MBConv blocks. The defaults are those of arXiv 2204.09210 at 32 x 32."""

    kernel_sizes: tuple[int, ...] = (3, 5, 7)
    """Kernel sizes of the depthwise convolutions: odd, rising."""
    expand_ratios: tuple[int, ...] = (3, 4, 6)
    """How many times wider a block is inside than at its input: rising."""
    depths: tuple[int, ...] = (2, 3, 4)
    """Numbers of blocks of a stage: rising, at least 1."""
    stem_stride: int = Field(2, ge=1, le=2)
    """Stride of the first convolution."""
    strides: tuple[int, ...]
    """Stride of the first block of each elastic stage."""
    width_mult: float = Field(1.0, gt=0, le=4)
    """Factor on all channel counts, rounded as OFA rounds them."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability of dropping a feature before the classifier."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("resolutions", "kernel_sizes", "expand_ratios", "depths"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)) or values[0] < 1:
                raise ValueError(f"{name} must be distinct, rising and at least 1, not {values}")
        if any(size % 2 == 0 for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd, not {self.kernel_sizes}")
        if not all(stride in (1, 2) for stride in self.strides):
            raise ValueError(f"strides must be 1 or 2, not {self.strides}")
        return self


@dataclass(frozen=True, kw_only=True)
class StageLayout:
    """What an elastic stage is: its channels at width 1, and what its blocks are made of."""

    width: int
    activation: str
    se: bool = False
    depth: int | None = None
    """Its number of blocks where that is not elastic."""

    def depths(self, settings: MBConvSettings) -> tuple[int, ...]:
        """The numbers of blocks it may have, rising."""
        return settings.depths if self.depth is None else (self.depth,)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What all networks of a family have in common; channels are counts at width 1.

    A stem of stride `stem_stride`, a first block that does not expand and is not elastic, elastic stages, a pointwise
    convolution, pooling, perhaps a feature layer, a classifier.
    """

    stem: int
    first: int
    """Channels that leave the first block."""
    first_activation: str
    stages: tuple[StageLayout, ...]
    final: int
    features: int
    """Channels of the feature layer, 0 for none."""
    activation: str
    """Of the stem and of what follows the stages."""
    bn_eps: float
    """What every batch norm adds to variances."""

    def space(self, settings: MBConvSettings) -> SearchSpace:
        """The search space: perhaps the resolution, then stage by stage its depth and its blocks' choices."""
        choices = []
        if len(settings.resolutions) > 1:
            choices.append(Choice(name="resolution", values=settings.resolutions))
        for number, stage in enumerate(self.stages, start=1):
            depth, depths = f"stage{number}.depth", stage.depths(settings)
            choices.append(Choice(name=depth, values=depths))
            for block in range(1, depths[-1] + 1):
                for name, values in (
                    ("kernel_size", settings.kernel_sizes),
                    ("expand_ratio", settings.expand_ratios),
                ):
                    allowed = {d: values for d in depths if d >= block}
                    full_name = f"stage{number}.block{block}.{name}"
                    choices.append(Choice(name=full_name, values=values, parent=depth, allowed=allowed))
        return SearchSpace(tuple(choices))

    def block(
        self, settings: MBConvSettings, name: str, *, expand_ratio: int, kernel_size: int | None = None
    ) -> BlockSpec:
        """The block `stageS.blockB`; without a kernel size, at its largest."""
        number, block = _position(name)
        stage = self.stages[number - 1]
        width = [make_divisible(w * settings.width_mult) for w in (self.first, *(s.width for s in self.stages))]
        in_channels = width[number] if block > 1 else width[number - 1]
        mid = make_divisible(in_channels * expand_ratio)
        return BlockSpec(
            in_channels=in_channels,
            mid_channels=mid,
            out_channels=width[number],
            kernel_size=kernel_size or settings.kernel_sizes[-1],
            stride=settings.strides[number - 1] if block == 1 else 1,
            se_channels=make_divisible(mid // 4) if stage.se else 0,
            activation=stage.activation,
            expand=True,
            bn_eps=self.bn_eps,
        )

    def describe(self, settings: MBConvSettings, arch: Architecture) -> NetworkSpec:
        """The plain network that an architecture of the space is."""
        stem = make_divisible(self.stem * settings.width_mult)
        first = BlockSpec(
            in_channels=stem,
            mid_channels=stem,
            out_channels=make_divisible(self.first * settings.width_mult),
            kernel_size=3,
            stride=1,
            se_channels=0,
            activation=self.first_activation,
            expand=False,
            bn_eps=self.bn_eps,
        )
        elastic = (
            self.block(
                settings, name, expand_ratio=arch[f"{name}.expand_ratio"], kernel_size=arch[f"{name}.kernel_size"]
            )
            for name in block_names(arch)
        )
        return NetworkSpec(
            resolution=arch.get("resolution", settings.resolutions[-1]),
            in_channels=settings.in_channels,
            stem_channels=stem,
            stem_stride=settings.stem_stride,
            blocks=(first, *elastic),
            final_channels=make_divisible(self.final * settings.width_mult),
            feature_channels=make_divisible(self.features * settings.width_mult) if self.features else 0,
            num_classes=settings.num_classes,
            dropout=settings.dropout,
            activation=self.activation,
            bn_eps=self.bn_eps,
        )

    def cost_terms(self, settings: MBConvSettings, space: SearchSpace) -> Iterator[CostTerm]:
        """One term for what is fixed and one for each elastic block."""
        elastic_resolution = len(settings.resolutions) > 1
        above = ("resolution",) if elastic_resolution else ()

        def fixed(resolution: int = settings.resolutions[-1]) -> Cost:
            at = dict(space.smallest()) | ({"resolution": resolution} if elastic_resolution else {})
            spec = self.describe(settings, space.check(at))
            return fixed_cost(spec) + block_cost(spec.blocks[0], out_size(resolution, settings.stem_stride))

        yield cached_term(above, fixed)
        for name in block_names(space.largest()):
            yield cached_term(
                (*above, f"{name}.kernel_size", f"{name}.expand_ratio"), self._cost_of_block(settings, name)
            )

    def _cost_of_block(self, settings: MBConvSettings, name: str) -> Callable[..., Cost]:
        number, block = _position(name)
        before = (settings.stem_stride, *settings.strides[: number - (block == 1)])

        def cost(*values: int | None) -> Cost:
            *resolution, kernel_size, expand_ratio = values
            if kernel_size is None or expand_ratio is None:
                return Cost(0, 0)
            spec = self.block(settings, name, expand_ratio=expand_ratio, kernel_size=kernel_size)
            size = resolution[0] if resolution and resolution[0] else settings.resolutions[-1]
            for stride in before:
                size = out_size(size, stride)
            return block_cost(spec, size)

        return cost


def make_divisible(channels: float) -> int:
    """The multiple of 8 nearest to `channels`, at least 8 and never below 90% of it (MobileNetV2 code)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def block_names(arch: Architecture) -> list[str]:
    """The elastic blocks that exist in an architecture, in order: `stage1.block1`, …"""
    return [name.removesuffix(".kernel_size") for name in arch if name.endswith(".kernel_size")]


def _position(name: str) -> tuple[int, int]:
    """The stage and block numbers, from 1, of a block's name `stage2.block3`."""
    stage, block = name.split(".")
    return int(stage.removeprefix("stage")), int(block.removeprefix("block"))
