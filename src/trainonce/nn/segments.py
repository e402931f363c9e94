"""A plain network as a chain of segments (the stem, the blocks, the head), each calibrated and run by itself.

Subnets that begin alike can then share what they have in common: see `trainonce.evaluation.chain`.
"""

from collections.abc import Callable
from functools import singledispatch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.nn import native
from trainonce.nn.cropping import crop_kernels
from trainonce.nn.fast import with_fast_blocks
from trainonce.nn.kinds import spec_of
from trainonce.nn.plain import PlainNetwork
from trainonce.nn.plain_resnet import PlainResNet


class Segment(nn.Module):
    """A part of a plain network. `specs` and the weights together say which function it is."""

    def __init__(self, specs: tuple[object, ...], forward: Callable[[Tensor], Tensor], parts: list[nn.Module]) -> None:
        super().__init__()
        self.specs = specs
        self.parts = nn.ModuleList(parts)
        self.run = forward
        self.norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in self.norms:
            norm.reset_running_stats()

    def same_as(self, other: "Segment") -> bool:
        """Whether both are the same function of their input, once calibrated alike."""
        return self.specs == other.specs and all(map(torch.equal, self.parameters(), other.parameters()))

    def calibrate(self, x_BCHW: Tensor, number: int) -> Tensor:
        """Run on batch `number`, from 0, normalising by the batch; the statistics are the mean over the batches."""
        for norm in self.norms:
            norm.train()
            norm.momentum = 1 / (number + 1)
        return self.run(x_BCHW)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Run with the statistics that calibrating left."""
        if self.norms and self.norms[0].training:
            self.eval()
        return self.run(x_BCHW)


@singledispatch
def segments_of(plain: nn.Module) -> list[Segment]:
    """The segments of a plain network, which they take apart.

    A network of a kind that is not registered here is one segment: it shares nothing.
    """
    return [Segment((spec_of(plain),), with_fast_blocks(plain).eval(), [plain])]


@segments_of.register
def _of_mbconv(plain: PlainNetwork) -> list[Segment]:
    """Stem, blocks, head."""
    spec = with_fast_blocks(crop_kernels(plain)).spec
    conv, norm = plain.final
    assert isinstance(conv, nn.Conv2d)

    def stem(x_BCHW: Tensor) -> Tensor:
        x: Tensor = plain.act(plain.stem(native.resize(x_BCHW, spec.resolution)))
        return x

    def head(x_BCHW: Tensor) -> Tensor:
        x = plain.act(norm(native.pointwise(x_BCHW, conv.weight))).mean((2, 3), keepdim=True)
        if plain.feature is not None:
            x = plain.act(native.pointwise(x, plain.feature.weight))
        logits: Tensor = plain.classifier(x.flatten(1))
        return logits

    after = (plain.final, plain.feature, plain.classifier)
    blocks = (
        Segment((block_spec,), block, [block]) for block, block_spec in zip(plain.blocks, spec.blocks, strict=True)
    )
    return [
        Segment((spec.resolution, spec.stem_stride, spec.activation, spec.bn_eps), stem, [plain.stem]),
        *blocks,
        Segment((spec.activation, spec.bn_eps), head, [part for part in after if part is not None]),
    ]


@segments_of.register
def _of_resnet(plain: PlainResNet) -> list[Segment]:
    """Stem, blocks, head."""
    spec = plain.eval().spec

    def stem(x_BCHW: Tensor) -> Tensor:
        return F.relu(plain.stem(native.resize(x_BCHW, spec.resolution)))

    def head(x_BCHW: Tensor) -> Tensor:
        logits: Tensor = plain.classifier(x_BCHW.mean((2, 3)))
        return logits

    blocks = (
        Segment((block_spec,), block, [block]) for block, block_spec in zip(plain.blocks, spec.blocks, strict=True)
    )
    ends = (spec.resolution, spec.stem_stride)
    return [Segment(ends, stem, [plain.stem]), *blocks, Segment((), head, [plain.classifier])]
