"""Channels innermost: logits are the same up to rounding, and supernet and network equal to the last bit still."""

import random

import pytest
import torch
from torch import nn

from trainonce.models import FAMILIES
from trainonce.nn.fast import fastest_layout, in_fastest_layout


@pytest.mark.parametrize("name", ["mobilenet_v3", "resnet"])
def test_the_fastest_layout_changes_nothing(name: str) -> None:
    family = FAMILIES[name]
    net = family(family.settings_type.for_images(image_size=16, in_channels=3, num_classes=4), seed=0).eval()
    arch = net.space.sample(random.Random(2))
    network = net.extract(arch).eval()
    assert fastest_layout(network) == torch.channels_last
    x_BCHW = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    given_BCHW = x_BCHW.contiguous(memory_format=fastest_layout(network))
    with torch.inference_mode():
        found = network(given_BCHW)
        assert torch.equal(found, net(given_BCHW, arch))
        torch.testing.assert_close(found, network(x_BCHW), atol=1e-5 * float(found.abs().max()), rtol=0)
        same = in_fastest_layout(network)
        torch.testing.assert_close(same(given_BCHW), found, atol=1e-5 * float(found.abs().max()), rtol=0)
        assert torch.equal(found, network(given_BCHW)), "the network itself stays as it is"


def test_networks_of_other_kinds_get_images_as_usual() -> None:
    """They may view a map as rows of numbers, which one with its channels innermost is not."""
    assert fastest_layout(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())) == torch.contiguous_format
