"""Elastic MobileNetV3: kernel size, expand ratio, depth and input resolution (OFA, arXiv 1908.09791)."""

from functools import lru_cache
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.cost import Cost, CostModel, CostTerm, block_cost, cached_term, fixed_cost, out_size
from trainonce.errors import UserError
from trainonce.models.supernet import Supernet
from trainonce.nn import native
from trainonce.nn.blocks import ElasticMBConv
from trainonce.nn.ops import Slices, prefixed
from trainonce.nn.plain import BlockSpec, NetworkSpec, conv_bn, resize
from trainonce.settings import Settings
from trainonce.space import Architecture, Choice, SearchSpace

STEM, WIDTHS, FINAL, FEATURES = 16, (24, 40, 80, 112, 160), 960, 1280
USES_SE = (False, True, False, True, True)
ACTIVATIONS = ("relu", "relu", "h_swish", "h_swish", "h_swish")


class MobileNetV3Settings(Settings):
    """The geometry of an elastic MobileNetV3. The defaults are the paper's at 32 x 32 (arXiv 2204.09210)."""

    resolutions: tuple[int, ...] = (32,)
    """Sides of the square input in pixels, rising; more than one makes the resolution elastic."""
    in_channels: int = Field(3, ge=1)
    """Channels of the images: 3 for colour, 1 for grey."""
    num_classes: int = Field(ge=2)
    """Number of classes."""
    kernel_sizes: tuple[int, ...] = (3, 5, 7)
    """Kernel sizes of the depthwise convolutions: odd, rising."""
    expand_ratios: tuple[int, ...] = (3, 4, 6)
    """How many times wider a block is inside than at its input: rising."""
    depths: tuple[int, ...] = (2, 3, 4)
    """Numbers of blocks of a stage: rising, at least 1."""
    stem_stride: int = Field(2, ge=1, le=2)
    """Stride of the first convolution."""
    strides: tuple[int, int, int, int, int] = (2, 2, 2, 1, 2)
    """Stride of the first block of each of the five elastic stages."""
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

    @classmethod
    def for_images(
        cls,
        *,
        image_size: int,
        in_channels: int,
        num_classes: int,
        geometry: str | None = None,
        **fields: Any,
    ) -> Self:
        """Settings for images of a size, in a named geometry: by default `tiny` up to 16 pixels, else `paper`.

        Further fields override the geometry's. Raises `UserError` that names the valid geometries or fields.
        """
        name = geometry or ("tiny" if image_size <= 16 else "paper")
        if name not in GEOMETRIES:
            raise UserError(f"unknown geometry {name!r}; the geometries are {', '.join(GEOMETRIES)}")
        given = {"resolutions": (image_size,), "in_channels": in_channels, "num_classes": num_classes}
        return cls.parse({**given, **GEOMETRIES[name], **fields}, where=f"geometry {name!r}")


GEOMETRIES: dict[str, dict[str, object]] = {
    "paper": {"stem_stride": 2, "strides": (2, 2, 2, 1, 2)},
    "cifar": {"stem_stride": 1, "strides": (1, 2, 2, 1, 2)},
    "tiny": {"stem_stride": 1, "strides": (1, 2, 2, 1, 1), "width_mult": 0.5, "depths": (1, 2, 3)},
}
"""Named geometries. `paper`: maps 16, 8, 4, 2, 2, 1 from 32 pixels. `cifar`: 32, 32, 16, 8, 8, 4, from DepS
(Khare 2024): eleven times the MACs, much more accurate. `tiny`: half as wide and shallower, for 8 x 8 images."""


class MobileNetV3(Supernet):
    """The elastic MobileNetV3 supernet. Weights are initialised from `seed` alone."""

    family = "mobilenet_v3"
    settings: MobileNetV3Settings

    @torch.random.fork_rng(devices=[])
    def __init__(self, settings: MobileNetV3Settings, *, seed: int = 0) -> None:
        super().__init__()
        self.settings = settings
        self.space = _space(settings)
        largest = _describe(settings, self.space.largest())
        self.stem = conv_bn(settings.in_channels, largest.stem_channels, 3, settings.stem_stride)
        self.first = ElasticMBConv(largest.blocks[0], (largest.blocks[0].kernel_size,))
        self.blocks = nn.ModuleDict()
        for name, spec in zip(_block_names(self.space.largest()), largest.blocks[1:], strict=True):
            self.blocks[name.replace(".", "_")] = ElasticMBConv(spec, settings.kernel_sizes)
        self.final = conv_bn(largest.blocks[-1].out_channels, largest.final_channels, 1)
        self.feature = nn.Conv2d(largest.final_channels, largest.feature_channels, 1, bias=False)
        self.dropout = nn.Dropout(settings.dropout)
        self.classifier = nn.Linear(largest.feature_channels, settings.num_classes)
        self.cost = CostModel(self.space, _cost_terms(settings, self.space))
        self._describe = lru_cache(maxsize=4096)(self._checked_description)
        self.reset_parameters(seed)

    def _checked_description(self, arch: Architecture) -> NetworkSpec:
        return _describe(self.settings, self.space.check(arch))

    def describe(self, arch: Architecture) -> NetworkSpec:
        return self._describe(arch)

    def active_blocks(self, arch: Architecture) -> list[ElasticMBConv]:
        """The blocks that `arch` uses, in order: those of `describe(arch).blocks`."""
        return [self.first, *(self.blocks[name.replace(".", "_")] for name in _block_names(arch))]  # type: ignore[list-item]

    def forward(self, x_BCHW: Tensor, arch: Architecture) -> Tensor:
        spec = self.describe(arch)
        x = self._conv_norm_act(self.stem, resize(x_BCHW, spec.resolution))
        for block, block_spec in zip(self.active_blocks(arch), spec.blocks, strict=True):
            x = block(x, block_spec)
        x = self._conv_norm_act(self.final, x).mean((2, 3), keepdim=True)
        x = F.hardswish(self._feature(x)).flatten(1)
        logits: Tensor = self.classifier(self.dropout(x))
        return logits

    def _conv_norm_act(self, layer: nn.Sequential, x_BCHW: Tensor) -> Tensor:
        conv, norm = layer
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        if not (self.training and type(norm) is nn.BatchNorm2d and native.usable(x_BCHW)):  # else of all ranks
            return F.hardswish(layer(x_BCHW))
        y = native.pointwise(x_BCHW, conv.weight) if conv.kernel_size == (1, 1) else conv(x_BCHW)
        mean, var, momentum = norm.running_mean, norm.running_var, norm.momentum
        assert mean is not None
        assert var is not None
        assert momentum is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        return native.norm_act(y, native.Norm(norm.weight, norm.bias, mean, var), "h_swish", momentum)

    def _feature(self, x_BC11: Tensor) -> Tensor:
        if self.training and native.usable(x_BC11):
            return native.pointwise(x_BC11, self.feature.weight)
        out: Tensor = self.feature(x_BC11)
        return out

    def slices(self, arch: Architecture) -> Slices:
        fixed = ("stem", "final", "feature", "classifier")
        cut = {f"{part}.{k}": v for part in fixed for k, v in getattr(self, part).state_dict().items()}
        specs = self.describe(arch).blocks
        for i, (block, spec) in enumerate(zip(self.active_blocks(arch), specs, strict=True)):
            cut |= prefixed(f"blocks.{i}", block.slices(spec))
        return cut

    def sort_channels(self, kept: SearchSpace) -> None:
        arch = self.space.largest()
        for name, block in zip(_block_names(arch), self.active_blocks(arch)[1:], strict=True):
            ratios = {*kept[f"{name}.expand_ratio"].values, self.settings.expand_ratios[-1]}
            specs = [_block_spec(self.settings, name, expand_ratio=ratio) for ratio in sorted(ratios)]
            block.sort_channels(tuple(s.mid_channels for s in specs), tuple(s.se_channels for s in specs))

    @torch.no_grad()
    def zero_init_residual(self) -> None:
        arch = self.space.largest()
        for block, spec in zip(self.active_blocks(arch), self.describe(arch).blocks, strict=True):
            if spec.residual and spec.expand:
                block.project_bn.weight.zero_()

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in self.state_dict(keep_vars=True).items():
            fresh = torch.empty(tensor.shape, dtype=tensor.dtype)
            if "transforms" in name:
                nn.init.eye_(fresh)
            elif tensor.ndim == 4:
                nn.init.kaiming_normal_(fresh, mode="fan_out", generator=generator)
            elif tensor.ndim == 2:
                bound = tensor.shape[1] ** -0.5
                nn.init.uniform_(fresh, -bound, bound, generator=generator)
            else:
                ones = name.endswith(("running_var", "1.weight", "bn.weight"))
                fresh.fill_(1 if ones else 0)
            tensor.copy_(fresh)


def make_divisible(channels: float) -> int:
    """The multiple of 8 nearest to `channels`, at least 8 and never below 90% of it (MobileNetV2 code)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _space(settings: MobileNetV3Settings) -> SearchSpace:
    choices = []
    if len(settings.resolutions) > 1:
        choices.append(Choice(name="resolution", values=settings.resolutions))
    for stage in range(1, len(WIDTHS) + 1):
        depth = f"stage{stage}.depth"
        choices.append(Choice(name=depth, values=settings.depths))
        for block in range(1, settings.depths[-1] + 1):
            for name, values in (
                ("kernel_size", settings.kernel_sizes),
                ("expand_ratio", settings.expand_ratios),
            ):
                allowed = {d: values for d in settings.depths if d >= block}
                full_name = f"stage{stage}.block{block}.{name}"
                choices.append(Choice(name=full_name, values=values, parent=depth, allowed=allowed))
    return SearchSpace(tuple(choices))


def _block_names(arch: Architecture) -> list[str]:
    return [name.removesuffix(".kernel_size") for name in arch if name.endswith(".kernel_size")]


def _position(name: str) -> tuple[int, int]:
    """The stage and block numbers, from 1, of a block's name `stage2.block3`."""
    stage, block = name.split(".")
    return int(stage.removeprefix("stage")), int(block.removeprefix("block"))


def _block_spec(
    settings: MobileNetV3Settings, name: str, *, expand_ratio: int, kernel_size: int | None = None
) -> BlockSpec:
    """The block `stageS.blockB`; without a kernel size, at its largest."""
    stage, block = _position(name)
    width = [make_divisible(w * settings.width_mult) for w in (STEM, *WIDTHS)]
    in_channels = width[stage] if block > 1 else width[stage - 1]
    mid = make_divisible(in_channels * expand_ratio)
    return BlockSpec(
        in_channels=in_channels,
        mid_channels=mid,
        out_channels=width[stage],
        kernel_size=kernel_size or settings.kernel_sizes[-1],
        stride=settings.strides[stage - 1] if block == 1 else 1,
        se_channels=make_divisible(mid // 4) if USES_SE[stage - 1] else 0,
        activation=ACTIVATIONS[stage - 1],
        expand=True,
    )


def _describe(settings: MobileNetV3Settings, arch: Architecture) -> NetworkSpec:
    stem = make_divisible(STEM * settings.width_mult)
    first = BlockSpec(
        in_channels=stem,
        mid_channels=stem,
        out_channels=stem,
        kernel_size=3,
        stride=1,
        se_channels=0,
        activation="relu",
        expand=False,
    )
    elastic = (
        _block_spec(settings, name, expand_ratio=arch[f"{name}.expand_ratio"], kernel_size=arch[f"{name}.kernel_size"])
        for name in _block_names(arch)
    )
    return NetworkSpec(
        resolution=arch.get("resolution", settings.resolutions[-1]),
        in_channels=settings.in_channels,
        stem_channels=stem,
        stem_stride=settings.stem_stride,
        blocks=(first, *elastic),
        final_channels=make_divisible(FINAL * settings.width_mult),
        feature_channels=make_divisible(FEATURES * settings.width_mult),
        num_classes=settings.num_classes,
        dropout=settings.dropout,
    )


def _cost_terms(settings: MobileNetV3Settings, space: SearchSpace) -> tuple[CostTerm, ...]:
    """One term for what is fixed and one for each elastic block."""
    elastic_resolution = len(settings.resolutions) > 1
    above = ("resolution",) if elastic_resolution else ()

    def size_before(stage: int, block: int, resolution: int) -> int:
        size = out_size(resolution, settings.stem_stride)
        for stride in settings.strides[: stage - 1]:
            size = out_size(size, stride)
        return size if block == 1 else out_size(size, settings.strides[stage - 1])

    smallest = space.smallest()

    def fixed(resolution: int = settings.resolutions[-1]) -> Cost:
        at = dict(smallest) | ({"resolution": resolution} if elastic_resolution else {})
        spec = _describe(settings, space.check(at))
        return fixed_cost(spec) + block_cost(spec.blocks[0], out_size(resolution, settings.stem_stride))

    def block_term(name: str) -> CostTerm:
        stage, block = _position(name)

        def cost(*values: int | None) -> Cost:
            *resolution, kernel_size, expand_ratio = values
            if kernel_size is None or expand_ratio is None:
                return Cost(0, 0)
            spec = _block_spec(settings, name, expand_ratio=expand_ratio, kernel_size=kernel_size)
            side = resolution[0] if resolution and resolution[0] else settings.resolutions[-1]
            return block_cost(spec, size_before(stage, block, side))

        return cached_term((*above, f"{name}.kernel_size", f"{name}.expand_ratio"), cost)

    names = _block_names(space.largest())
    return (cached_term(above, fixed), *(block_term(name) for name in names))
