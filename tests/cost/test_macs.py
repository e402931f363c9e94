"""Counted costs against the paper's numbers and against torch's own counter on the extracted network."""

import random
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainonce.cost.macs import Cost, conv_cost
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.models.mbconv_cost import network_cost
from trainonce.nn import ops
from trainonce.nn.plain import BN_MOMENTUM
from trainonce.nn.sizes import out_size
from trainonce.space import Architecture

GEOMETRIES: dict[str, MobileNetV3Settings] = {
    "paper": MobileNetV3Settings(num_classes=100),
    "grey 28": MobileNetV3Settings(num_classes=10, in_channels=1, resolutions=(28,)),
    "cifar": MobileNetV3Settings.for_images(image_size=32, in_channels=3, num_classes=10, geometry="cifar"),
    "tiny": MobileNetV3Settings.for_images(image_size=8, in_channels=1, num_classes=10),
    "elastic resolution": MobileNetV3Settings(num_classes=7, resolutions=(20, 27, 32), width_mult=0.75),
    "wide and odd": MobileNetV3Settings(
        num_classes=3,
        resolutions=(19,),
        width_mult=1.3,
        kernel_sizes=(1, 5),
        expand_ratios=(1, 2, 5),
        depths=(1, 3),
        stem_stride=1,
        strides=(2, 1, 2, 2, 1),
    ),
}


def network(name: str) -> MobileNetV3:
    """A supernet in evaluation mode, with random weights, statistics and kernel transforms."""
    net, generator = MobileNetV3(GEOMETRIES[name]), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, tensor in net.state_dict().items():
            if "transforms" in key or tensor.ndim == 1:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
        # Statistics that fit, else the images' signal dies out on the way.
        side = net.describe(net.space.largest()).resolution
        x = torch.randn(8, GEOMETRIES[name].in_channels, side, side, generator=generator)
        plain_norms = [module for module in net.train().modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in plain_norms:
            norm.momentum = 1.0
        with patch.object(ops, "BN_MOMENTUM", 1.0):
            for arch in (net.space.largest(), net.space.smallest()):
                net(x, arch)
        for norm in plain_norms:
            norm.momentum = BN_MOMENTUM
    return net.eval()


class TestThePaper:
    def test_hundred_classes(self) -> None:
        net = MobileNetV3(GEOMETRIES["paper"])
        smallest, largest = net.cost_of(net.space.smallest()), net.cost_of(net.space.largest())
        assert (round(smallest.macs / 1e6, 2), round(largest.macs / 1e6, 2)) == (4.05, 15.31)
        assert (round(smallest.params / 1e6, 2), round(largest.params / 1e6, 2)) == (2.26, 6.51)

    def test_grey(self) -> None:
        net = MobileNetV3(GEOMETRIES["grey 28"])
        ends = net.cost_of(net.space.smallest()).macs, net.cost_of(net.space.largest()).macs
        assert [round(macs / 1e6, 2) for macs in ends] == [3.67, 14.21]

    def test_subnets(self) -> None:
        count = MobileNetV3(GEOMETRIES["paper"]).space.count()
        assert count == (9**2 + 9**3 + 9**4) ** 5
        assert f"{count:.0e}" == "2e+19"

    def test_cifar_geometry(self) -> None:
        net = MobileNetV3(GEOMETRIES["cifar"])
        ends = net.cost_of(net.space.smallest()).macs, net.cost_of(net.space.largest()).macs
        assert [round(macs / 1e6) for macs in ends] == [35, 180]


@pytest.mark.parametrize("seed", [7, pytest.param(8, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_random_architectures(name: str, seed: int) -> None:
    """Of 204 in all: bound and extracted networks agree to the bit, and the counts are exact."""
    net, rng = network(name), random.Random(seed)
    settings = GEOMETRIES[name]
    drawn = [net.space.largest(), net.space.smallest(), *(net.space.sample(rng) for _ in range(15))]
    side = settings.resolutions[-1]
    x = torch.randn(2, settings.in_channels, side, side, generator=torch.Generator().manual_seed(8))
    outputs: list[torch.Tensor] = []
    for arch in drawn:
        plain = net.extract(arch)
        with torch.no_grad():
            bound = net.bind(arch)(x)
            assert torch.equal(bound, net(x, arch))
            with FlopCounterMode(display=False) as counter:
                assert torch.equal(plain(x), bound)
        assert bound.shape == (2, settings.num_classes)
        cost = net.cost_of(arch)
        assert cost.macs * 2 * len(x) == counter.get_total_flops()
        assert cost.params == sum(parameter.numel() for parameter in plain.parameters())
        assert cost == network_cost(net.describe(arch))
        outputs.append(bound)
    assert all(not torch.equal(outputs[0], other) for other in outputs[1:])


def test_a_convolution_by_hand() -> None:
    """3 x 3 over 4 channels onto 6, on 5 x 5 places: 9 * 4 * 6 weights, each used 25 times."""
    assert conv_cost(5, 4, 6, 3) == Cost(9 * 4 * 6 * 25, 9 * 4 * 6)
    assert conv_cost(5, 6, 6, 3, groups=6) == Cost(9 * 6 * 25, 9 * 6)


def test_map_sizes() -> None:
    for side in range(1, 12):
        for stride in (1, 2):
            for kernel_size in (1, 3, 5, 7):
                weight = torch.zeros(1, 1, kernel_size, kernel_size)
                out = torch.conv2d(torch.zeros(1, 1, side, side), weight, None, stride, kernel_size // 2)
                assert out.shape[-1] == out_size(side, stride)


def test_within_a_part_of_the_space_costs_are_the_same() -> None:
    net = MobileNetV3(GEOMETRIES["tiny"])
    part = net.space.keep_largest({"depth": 1})
    arch = part.sample(random.Random(0))
    assert net.cost.within(part)(arch) == net.cost(arch)
    assert net.cost.within(part).space == part


def test_an_architecture_of_another_space_is_refused() -> None:
    net = MobileNetV3(GEOMETRIES["tiny"])
    with pytest.raises(ValueError, match=r"the architecture lacks stage1\.depth"):
        net.cost_of(Architecture(()))
