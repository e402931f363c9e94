"""Plain networks, faster: blocks that run by the native kernels where they can, for teachers, scoring, fine-tuning."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trainonce.nn import native
from trainonce.nn.batch_norm import Synchronisable
from trainonce.nn.fast_graph import FastProgram
from trainonce.nn.plain import BlockSpec, MBConv, PlainNetwork
from trainonce.nn.plain_graph import GraphNetwork
from trainonce.nn.plain_resnet import PlainResNet

N = TypeVar("N", bound=nn.Module)


class FastMBConv(MBConv):
    """A plain block that shares another's parts and, without autograd, runs natively where it can.

    Its batch norms use the batch or fixed statistics, as their mode says. The state dict has the names of `MBConv`'s.
    Tensors may change in place, but are not to be exchanged for others.
    """

    def __init__(self, block: MBConv, spec: BlockSpec) -> None:
        nn.Module.__init__(self)  # the parts are there already
        self.spec, self.residual = spec, block.residual
        self.expand, self.depthwise, self.se = block.expand, block.depthwise, block.se
        self.project, self.act = block.project, block.act
        self.tensors = dict(self.state_dict())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map [B, in, H, W] to [B, out, H / stride, W / stride]."""
        norm = self.project[1]
        assert isinstance(norm, nn.BatchNorm2d)
        of_all_ranks = isinstance(norm, Synchronisable)
        if torch.is_grad_enabled() or of_all_ranks or not native.usable(x_BCHW):
            return super().forward(x_BCHW)
        if not norm.training:
            return native.infer(x_BCHW, self.spec, self.tensors)
        assert norm.momentum is not None
        return native.calibrate(x_BCHW, self.spec, self.tensors, norm.momentum)


class TrainedMBConv(FastMBConv):
    """A fast block that runs natively with autograd too, in training mode."""

    def __init__(self, block: MBConv, spec: BlockSpec) -> None:
        super().__init__(block, spec)
        self.whole = {name: parameter for name, parameter in self.named_parameters() if name != native.DEPTHWISE}

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map [B, in, H, W] to [B, out, H / stride, W / stride]."""
        norm, conv = self.project[1], self.depthwise[0]
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(conv, nn.Conv2d)
        of_all_ranks = isinstance(norm, Synchronisable)
        if not (torch.is_grad_enabled() and norm.training and native.usable(x_BCHW)) or of_all_ranks:
            return super().forward(x_BCHW)
        assert norm.momentum is not None
        return native.mbconv(x_BCHW, self.spec, conv.weight, self.whole, self.tensors, norm.momentum)


def with_fast_blocks(network: N, *, trained: bool = False) -> N:
    """The network, its MBConv blocks exchanged in place for fast ones that share their parts.

    `trained` ones are fast with autograd too; what is a list of operations always is. Other kinds stay as they are.
    """
    if isinstance(network, GraphNetwork) and not any(isinstance(layer, Synchronisable) for layer in network.modules()):
        network.faster = FastProgram(network.spec)
    if not isinstance(network, PlainNetwork):
        return network
    for i, (block, spec) in enumerate(zip(network.blocks, network.spec.blocks, strict=True)):
        assert isinstance(block, MBConv)
        network.blocks[i] = TrainedMBConv(block, spec) if trained else FastMBConv(block, spec)
    return network


def fastest_layout(network: nn.Module) -> torch.memory_format:
    """In what order torch takes many images of a network fastest on a CPU: of the built-in kinds channels innermost.

    Others may want to see a map as rows of numbers, which it is not then; they get images as usual.
    """
    return torch.channels_last if isinstance(network, PlainNetwork | PlainResNet) else torch.contiguous_format


def in_fastest_layout(network: N) -> N:
    """A copy of a network whose weights lie in that order too: then wide depthwise kernels take a third of the time.

    Its logits differ by rounding.
    """
    copied: Any = copy.deepcopy(network)  # `Module.to` has no overload that says this
    laid: N = copied.to(memory_format=fastest_layout(network))
    return laid
