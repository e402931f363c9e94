"""The head of a supernet, and a network of its own for other classes."""

from typing import Any

import pytest
import torch
from tests.support.own_networks import Residual

from trainonce.models import FAMILIES, Supernet
from trainonce.models.traced import elastic

NAMES = [*FAMILIES, "traced"]


def made(name: str) -> Supernet:
    if name == "traced":
        return elastic(Residual(), torch.zeros(2, 1, 8, 8))
    family = FAMILIES[name]
    small: dict[str, Any] = {"geometry": "tiny"} if "tiny" in family.settings_type.geometries else {}
    return family(family.settings_type.for_images(image_size=16, in_channels=1, num_classes=10, **small), seed=1)


@pytest.mark.parametrize("name", NAMES)
def test_the_head_is_the_last_layer(name: str) -> None:
    net = made(name)
    weights, head = dict(net.named_parameters()), net.head()
    assert sorted(weights[part].shape[0] for part in head) == [10, 10]
    assert {part.rpartition(".")[2] for part in head} == {"weight", "bias"}
    with torch.no_grad():  # without it all images look alike
        for part in head:
            weights[part].zero_()
    x_BCHW = torch.randn(2, 1, net.settings.resolutions[-1], net.settings.resolutions[-1])
    assert not net.eval()(x_BCHW, net.space.largest()).any()


@pytest.mark.parametrize("name", NAMES)
def test_other_classes(name: str) -> None:
    """All but the head is copied, and stays the first network's when the second's changes."""
    net = made(name)
    head = net.head()
    net.sort_channels(net.space.keep_largest({"width": 1, "depth": 1}))
    other = net.with_head(4, seed=5)
    ours, theirs = net.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if key not in head)
    assert {theirs[key].shape[0] for key in head} == {4}
    x_BCHW = torch.randn(2, 1, net.settings.resolutions[-1], net.settings.resolutions[-1])
    for arch in (net.space.smallest(), net.space.largest()):
        assert other.eval()(x_BCHW, arch).shape == (2, 4)
        assert other.cost_of(arch).params < net.cost_of(arch).params
    same, another = net.with_head(4, seed=5), net.with_head(4, seed=6)
    weight = next(key for key in head if key.endswith("weight"))
    assert torch.equal(same.state_dict()[weight], theirs[weight])
    assert not torch.equal(another.state_dict()[weight], theirs[weight])
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(7)
    assert not any((parameter == 7).all() for parameter in net.parameters())
