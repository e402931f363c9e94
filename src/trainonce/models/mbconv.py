"""Supernets of MBConv blocks: elastic kernel size, expand ratio, depth and resolution (OFA, arXiv 1908.09791)."""

from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainonce.cost.macs import CostModel
from trainonce.models.layout import Layout, MBConvSettings, block_names
from trainonce.models.supernet import Supernet, Weigh
from trainonce.nn import native
from trainonce.nn.blocks import ElasticMBConv
from trainonce.nn.ops import Slices, prefixed
from trainonce.nn.plain import ACTIVATIONS, NetworkSpec, PlainNetwork, conv_bn
from trainonce.space import Architecture, SearchSpace


class MBConvSupernet(Supernet):
    """A supernet of the family that its `layout` describes. Weights are initialised from `seed` alone."""

    layout: ClassVar[Layout]
    """What the family's networks have in common."""
    settings: MBConvSettings

    @torch.random.fork_rng(devices=[])
    def __init__(self, settings: MBConvSettings, *, seed: int = 0) -> None:
        super().__init__(settings, seed=seed)
        self.space = self.layout.space(settings)
        largest = self.layout.describe(settings, self.space.largest())
        eps = largest.bn_eps
        self.stem = conv_bn(settings.in_channels, largest.stem_channels, 3, settings.stem_stride, eps=eps)
        self.first = ElasticMBConv(largest.blocks[0], (largest.blocks[0].kernel_size,))
        self.blocks = nn.ModuleDict()
        for name, spec in zip(block_names(self.space.largest()), largest.blocks[1:], strict=True):
            self.blocks[name.replace(".", "_")] = ElasticMBConv(spec, settings.kernel_sizes)
        self.final = conv_bn(largest.blocks[-1].out_channels, largest.final_channels, 1, eps=eps)
        features = largest.feature_channels
        self.feature = nn.Conv2d(largest.final_channels, features, 1, bias=False) if features else None
        self.act = ACTIVATIONS[largest.activation]()
        self.dropout = nn.Dropout(settings.dropout)
        self.classifier = nn.Linear(features or largest.final_channels, settings.num_classes)
        self.cost = CostModel(self.space, tuple(self.layout.cost_terms(settings, self.space)))
        self._describe = lru_cache(maxsize=4096)(self._checked_description)
        self.reset_parameters(seed)

    def _checked_description(self, arch: Architecture) -> NetworkSpec:
        return self.layout.describe(self.settings, self.space.check(arch))

    def describe(self, arch: Architecture) -> NetworkSpec:
        return self._describe(arch)

    def active_blocks(self, arch: Architecture) -> list[ElasticMBConv]:
        """The blocks that `arch` uses, in order: those of `describe(arch).blocks`."""
        return [self.first, *(self.blocks[name.replace(".", "_")] for name in block_names(arch))]  # type: ignore[list-item]

    def forward(self, x_BCHW: Tensor, arch: Architecture) -> Tensor:
        spec = self.describe(arch)
        x = self._conv_norm_act(self.stem, self.sized(x_BCHW, spec.resolution))
        for block, block_spec in zip(self.active_blocks(arch), spec.blocks, strict=True):
            x = block(x, block_spec)
        x = self._conv_norm_act(self.final, x).mean((2, 3), keepdim=True)
        if self.feature is not None:
            x = self.act(self._feature(self.feature, x))
        logits: Tensor = self.classifier(self.dropout(x.flatten(1)))
        return logits

    def _conv_norm_act(self, layer: nn.Sequential, x_BCHW: Tensor) -> Tensor:
        conv, norm = layer
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        if not (self.training and type(norm) is nn.BatchNorm2d and native.usable(x_BCHW)):  # else of all ranks
            out: Tensor = self.act(layer(x_BCHW))
            return out
        y = native.pointwise(x_BCHW, conv.weight) if conv.kernel_size == (1, 1) else conv(x_BCHW)
        mean, var, momentum = norm.running_mean, norm.running_var, norm.momentum
        assert mean is not None
        assert var is not None
        assert momentum is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        tensors = native.Norm(norm.weight, norm.bias, mean, var)
        return native.norm_act(y, tensors, self.layout.activation, momentum=momentum, eps=norm.eps)

    def _feature(self, layer: nn.Conv2d, x_BC11: Tensor) -> Tensor:
        if self.training and native.usable(x_BC11):
            return native.pointwise(x_BC11, layer.weight)
        out: Tensor = layer(x_BC11)
        return out

    def extract(self, arch: Architecture) -> PlainNetwork:
        plain = super().extract(arch)
        assert isinstance(plain, PlainNetwork)
        return plain

    def slices(self, arch: Architecture) -> Slices:
        fixed = ("stem", "final", "feature", "classifier") if self.feature else ("stem", "final", "classifier")
        cut = {f"{part}.{k}": v for part in fixed for k, v in getattr(self, part).state_dict().items()}
        specs = self.describe(arch).blocks
        for i, (block, spec) in enumerate(zip(self.active_blocks(arch), specs, strict=True)):
            cut |= prefixed(f"blocks.{i}", block.slices(spec))
        return cut

    def sort_channels(self, kept: SearchSpace, weigh: Weigh = torch.abs) -> None:
        arch = self.space.largest()
        for name, block in zip(block_names(arch), self.active_blocks(arch)[1:], strict=True):
            ratios = {*kept[f"{name}.expand_ratio"].values, self.settings.expand_ratios[-1]}
            specs = [self.layout.block(self.settings, name, expand_ratio=ratio) for ratio in sorted(ratios)]
            block.sort_channels(tuple(s.mid_channels for s in specs), tuple(s.se_channels for s in specs), weigh)

    @torch.no_grad()
    def zero_init_residual(self) -> None:
        arch = self.space.largest()
        for block, spec in zip(self.active_blocks(arch), self.describe(arch).blocks, strict=True):
            if spec.residual and spec.expand:
                block.project_bn.weight.zero_()

    def shared_name(self, arch: Architecture, name: str) -> str:
        """In the search space's words: `first.…`, `stage1.block1.…`."""
        part, _, rest = name.partition(".")
        if part != "blocks":
            return name
        number, _, layer = rest.partition(".")
        return f"{['first', *block_names(arch)][int(number)]}.{layer}"
