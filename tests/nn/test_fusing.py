"""Merged convolutions against the sums that they stand for."""

from pathlib import Path

import pytest
import torch
from tests.support.own_networks import Parallel
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.errors import UserError
from trainonce.models.traced import elastic
from trainonce.nn.fusing import fused
from trainonce.nn.plain_graph import NORM, GraphNetwork
from trainonce.pipeline import extract, train
from trainonce.subnets import read_subnet


def plain(network: nn.Module, channels: int = 3) -> GraphNetwork:
    """The network as its operations, with statistics as after some training."""
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.bias)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            layer.running_mean, layer.running_var = (
                torch.randn(layer.num_features),
                0.5 + torch.rand(layer.num_features),
            )
    net = elastic(network.eval(), torch.zeros(1, channels, 8, 8), stages=True)
    found = net.extract(net.space.largest()).eval()
    assert isinstance(found, GraphNetwork)
    return found


def convolutions(network: GraphNetwork) -> int:
    return sum(line.op == "conv2d.default" for line in network.spec.lines)


def same(one: nn.Module, other: nn.Module, channels: int = 3) -> bool:
    x_BCHW = torch.randn(4, channels, 8, 8)
    with torch.no_grad():
        return torch.allclose(one(x_BCHW), other(x_BCHW), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 4, 16], ids=["dense", "grouped", "depthwise"])
def test_parallel_branches_are_one_convolution(groups: int) -> None:
    network = plain(Parallel(channels=1, groups=groups), channels=1)
    merged = fused(network)
    assert same(network, merged, channels=1)
    assert (convolutions(network), convolutions(merged)) == (5, 3), "a stem without branches, and two blocks"
    assert sum(line.op == NORM for line in merged.spec.lines) == 1, "the stem's"
    kernels = {name: tensor.shape for name, tensor in merged.state_dict().items() if tensor.dim() == 4}
    assert sorted(kernels.values()) == sorted([(16, 1, 3, 3), (16, 16 // groups, 3, 3), (16, 16 // groups, 5, 5)])


class Unlike(nn.Module):
    """Sums that are no single convolution: two maps, two dilations, a term used twice, a term that is scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.one, self.other = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.near, self.far = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.off = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.one(x) + self.other(F.relu(x - 1)))  # two maps
        x = F.relu(self.near(x) + self.far(x))  # two dilations
        twice = self.off(x)
        x = F.relu(torch.add(twice, x, alpha=2.0)) + F.relu(twice)  # scaled, and used twice
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def test_other_sums_stay() -> None:
    network = plain(Unlike())
    assert fused(network) is network


def test_a_subnet_is_taken_out_merged(tmp_path: Path) -> None:
    run = tmp_path / "run"
    own = "tests.support.own_networks:Parallel"
    train("digits", model=own, stages=True, recipe="spos", epochs=1, train_images=200, out=run, probes=0)
    whole, merged = (extract(run, "smallest", fuse=fuse, out=tmp_path / str(fuse)) for fuse in (False, True))
    assert merged.scores["validate"].loss == pytest.approx(whole.scores["validate"].loss, rel=1e-4)
    assert merged.cost.macs < whole.cost.macs
    network, description = read_subnet(merged.path)
    assert (description.macs, description.params) == (merged.cost.macs, sum(p.numel() for p in network.parameters()))
    assert description.fused
    assert whole.description.fused is None
    assert "fused" not in whole.description.to_json()
    assert same(network, read_subnet(whole.path)[0], channels=1)
    other = tmp_path / "other"
    train("digits", geometry="tiny", width=0.25, recipe="spos", epochs=1, train_images=200, out=other, probes=0)
    with pytest.raises(UserError, match="has no parallel convolutions to merge: leave out --fuse"):
        extract(other, "smallest", fuse=True)
    assert not (other / "subnets").exists()
