"""A stranger's network goes through, with every equality exact, or is refused in a sentence."""

import random

import pytest
import torch
from tests.support.unusual_networks import Hourglass, Mixer, TwoStreams
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.cost.macs import counted_cost
from trainonce.errors import UserError
from trainonce.models.traced import elastic, table


class Shared(nn.Module):
    """Residual branches that are scaled by what scales the pooled channels too: they cannot be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, 2, 1), nn.Linear(16, 10)
        self.up, self.down = (nn.ModuleList(nn.Conv2d(*sides, 1) for _ in range(2)) for sides in ((16, 64), (64, 16)))
        self.scale = nn.Parameter(torch.full((16, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + self.scale * down(F.relu(up(x)))
        logits: Tensor = self.head((self.scale * x).mean((2, 3)))
        return logits


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Hourglass, "conv_transpose2d.input has no rule"),
        (Mixer, "a place in the map"),
        (Shared, "scale is needed in one of its branches and elsewhere"),
    ],
)
def test_goes_through(network: type[nn.Module], said: str) -> None:
    torch.manual_seed(0)
    own = network().eval()
    for layer in own.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean, layer.running_var = (
                torch.randn(layer.num_features),
                0.5 + torch.rand(layer.num_features),
            )
    x_BCHW = torch.randn(4, 3, 32, 32)
    net = elastic(own, x_BCHW[:1]).eval()
    rng = random.Random(0)
    archs = [net.space.smallest(), net.space.largest(), *(net.space.sample(rng) for _ in range(8))]
    with torch.no_grad():
        assert torch.equal(net(x_BCHW, net.space.largest()), own(x_BCHW))
        for arch in archs:
            taken = net.extract(arch).eval()
            assert torch.equal(net(x_BCHW, arch), taken(x_BCHW))
            assert net.cost(arch) == counted_cost(net.describe(arch))
    assert net.cost_of(archs[0]).macs < net.cost_of(archs[1]).macs / 3
    assert said in table(net), "what stays is said with its reason"


def test_what_two_branches_of_a_stage_need_is_left_out_with_the_first_of_them() -> None:
    net = elastic(Mixer(), torch.zeros(1, 3, 32, 32))
    assert net.space["layers.depth"].values == (4, 5, 6, 7, 8)
    largest = net.space.largest()
    for depth in (7, 8):  # two branches of a layer, one for places and one for channels, share a scale
        kept = {name: value for name, value in largest.items() if depth == 8 or name != "layers_3.gated.width"}
        arch = net.space.check(kept | {"layers.depth": depth})
        scales = [tensor.name for tensor in net.describe(arch).tensors if tensor.name.endswith("scale")]
        assert len(scales) == 4, "the last branch needs nothing that the one before it does not"
    assert sum(t.name.endswith("scale") for t in net.describe(net.space.smallest()).tensors) == 2


def test_is_refused_in_a_sentence() -> None:
    with pytest.raises(
        UserError, match=r"unusual_networks\.py:\d+: the operation aten\.einsum\.default cannot be follow"
    ):
        elastic(TwoStreams(), torch.zeros(1, 3, 32, 32))


class Volume(nn.Module):
    """Channels convolved as a third dimension, an operation whose cost is not known here."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.out = nn.Conv2d(16, 8, 1)
        self.deep = nn.Conv3d(1, 2, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.out(F.relu(self.norm(self.stem(x)))).unsqueeze(1)).flatten(1, 2)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def test_costs_that_cannot_be_told_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"what subnets of this network cost cannot be told: torch counts .*unknown are .*conv3d"
    ):
        elastic(Volume(), torch.zeros(1, 3, 16, 16))
