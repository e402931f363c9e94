"""What channels are sorted by: magnitudes, squares, or what the loss says."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import MakeData, MakeNet
from tests.support.own_networks import Residual
from tests.support.training import recipe_of, state_of
from torch.nn import functional as F

from trainonce.data import load_dataset
from trainonce.data.augment import normalise
from trainonce.models import ResNet, ResNetSettings, Supernet
from trainonce.models.traced import elastic
from trainonce.recipes import Phase
from trainonce.run.directory import RunDirectory
from trainonce.training.importance import loss_gradients
from trainonce.training.loop import train_supernet


def test_gradients_are_those_of_the_largest_network_alone(make_net: MakeNet, make_data: MakeData) -> None:
    net, data = make_net(), make_data()
    net.train()
    before = state_of(net)
    found = loss_gradients(net, data)
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in state_of(net).items())
    assert all(parameter.grad is None for parameter in net.parameters())
    plain = net.extract(net.space.largest()).eval()
    x_BCHW = normalise(data.calibrate.images, mean=data.mean, std=data.std)
    torch.autograd.backward(F.cross_entropy(plain(x_BCHW), data.calibrate.labels))
    by_name = {name: found[parameter] for name, parameter in net.named_parameters()}
    assert plain.get_parameter("classifier.weight").grad is not None
    torch.testing.assert_close(by_name["classifier.weight"], plain.get_parameter("classifier.weight").grad)
    stem = next(iter(plain.parameters())).grad
    torch.testing.assert_close(by_name[next(iter(by_name))], stem)
    unused = [name for name in by_name if ".transforms." in name]
    assert unused
    assert not any(by_name[name].any() for name in unused)


def test_channels_that_the_loss_does_not_notice_come_last() -> None:
    """Half of the hidden channels have the largest weights, and the classifier sees nothing of them."""
    model = Residual(hidden=(32,))
    idle = list(range(0, 32, 2))
    weights = model.state_dict()
    with torch.no_grad():
        weights["blocks.0.conv1.weight"][idle] *= 100
        weights["blocks.0.bn1.bias"][idle] = -1e4  # the activation after it is 0 for every image
        weights["blocks.0.conv2.weight"][:, idle] *= 100
    net, data = elastic(model, torch.zeros(2, 1, 8, 8)), load_dataset("digits")
    gradients = loss_gradients(net, data)
    orders = []
    for weigh in (torch.abs, torch.square, lambda p: (p * gradients[p]).abs()):
        net.get_buffer("order.blocks_0.conv1.width").copy_(torch.arange(32))
        net.sort_channels(net.space.keep_largest({"width": 1}), weigh)
        orders.append(set(net.get_buffer("order.blocks_0.conv1.width")[16:].tolist()))
    by_l1, by_l2, by_loss = orders
    assert by_loss == set(idle)
    assert not by_l1 & set(idle)
    assert not by_l2 & set(idle)


def made(family: str, make_net: MakeNet) -> Supernet:
    torch.manual_seed(0)
    if family == "traced":
        return elastic(Residual(), torch.zeros(2, 1, 8, 8), num_classes=3)
    if family == "resnet":
        return ResNet(ResNetSettings.for_images(image_size=8, in_channels=1, num_classes=3))
    return make_net()


@pytest.mark.parametrize("by", ["l2", "taylor"])
@pytest.mark.parametrize("family", ["mobilenet_v3", "resnet", "traced"])
def test_a_phase_sorts_by_it(make_net: MakeNet, make_data: MakeData, tmp_path: Path, family: str, by: Any) -> None:
    """As it begins, on the weights that it begins with; the largest subnet computes what it did."""
    trained, expected, data = made(family, make_net), made(family, make_net), make_data()
    gradients = loss_gradients(expected, data)
    x_BCHW, largest = torch.randn(3, 1, 8, 8), expected.space.largest()
    with torch.no_grad():
        before, plain = expected.eval()(x_BCHW, largest), copy.deepcopy(expected)
        expected.sort_channels(
            expected.space, torch.square if by == "l2" else lambda parameter: (parameter * gradients[parameter]).abs()
        )
        torch.testing.assert_close(expected(x_BCHW, largest), before)
    phase = Phase(name="sorted", epochs=0.25, lr=1e-12, sort_channels=True, sort_by=by)
    train_supernet(trained, recipe_of(phase, momentum=0.0), data, RunDirectory(tmp_path))
    same, unsorted = (
        [torch.allclose(a, b, atol=1e-7) for a, b in zip(trained.parameters(), net.parameters(), strict=True)]
        for net in (expected, plain)
    )
    orders = [name for name in expected.state_dict() if name.startswith("order.")]
    assert all(same)
    assert not all(unsorted) or family == "traced"  # whose channels stay and have an order
    assert all(torch.equal(trained.state_dict()[name], expected.state_dict()[name]) for name in orders)
    assert bool(orders) == (family == "traced")
