"""What every family of supernets can do, whatever it is made of."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from trainonce.cost.macs import Cost, CostModel
from trainonce.nn.ops import Slices
from trainonce.nn.plain import NetworkSpec, PlainNetwork
from trainonce.settings import Settings
from trainonce.space import Architecture, SearchSpace


class Supernet(nn.Module, ABC):
    """A network whose weights are shared by every architecture of `space`.

    It is called with the architecture: `net(x, arch)`. There is no current subnet.
    """

    family: str
    """Names the family in a run directory."""
    settings: Settings
    """What the network is built from."""
    space: SearchSpace
    """Its architectures."""
    cost: CostModel
    """Their MACs and parameters."""

    @abstractmethod
    def forward(self, x_BCHW: Tensor, arch: Architecture) -> Tensor:
        """Images [B, C, H, W] to logits [B, classes], through the subnet `arch`."""

    @abstractmethod
    def describe(self, arch: Architecture) -> NetworkSpec:
        """The plain network that `arch` is. Raises `UserError` if it is not in the space."""

    @abstractmethod
    def slices(self, arch: Architecture) -> Slices:
        """The state dict of the plain network of `arch`, cut from the shared weights."""

    @abstractmethod
    def sort_channels(self, kept: SearchSpace) -> None:
        """Order the channels by importance so that every subnet of `kept` computes the same as before."""

    @abstractmethod
    def zero_init_residual(self) -> None:
        """Set the last batch-norm scale of every residual block to zero (BigNAS, arXiv 2003.11142)."""

    @abstractmethod
    def reset_parameters(self, seed: int) -> None:
        """Initialise all weights and statistics, from `seed` alone."""

    def cost_of(self, arch: Architecture) -> Cost:
        """MACs and parameters of the extracted network."""
        return self.cost(self.space.check(arch))

    def bind(self, arch: Architecture) -> "BoundSubnet":
        """A module called `model(x)` that shares this network's weights."""
        return BoundSubnet(self, arch)

    def extract(self, arch: Architecture) -> PlainNetwork:
        """A plain network of its own with copies of the weights, in the supernet's mode and device.

        In evaluation mode it computes what `net(x, arch)` does, bit for bit on the CPU in float32.
        """
        with torch.device("meta"):  # initialising would draw from the global generator
            plain = PlainNetwork(self.describe(arch))
        device = next(self.parameters()).device
        state = {
            name: torch.zeros((), dtype=torch.long, device=device)
            for name in plain.state_dict()
            if name.endswith("num_batches_tracked")
        }
        for name, tensor in self.slices(arch).items():
            state[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        plain.load_state_dict(state, assign=True)
        return plain.train(self.training)


class BoundSubnet(nn.Module):
    """A supernet with its architecture filled in; the weights are the supernet's own."""

    def __init__(self, supernet: Supernet, arch: Architecture) -> None:
        super().__init__()
        self.supernet = supernet
        self.arch = supernet.space.check(arch)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, classes]."""
        logits: Tensor = self.supernet(x_BCHW, self.arch)
        return logits
