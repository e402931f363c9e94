"""Elastic kernels of a person's own network: the centre of the next larger one, times a matrix."""

import copy
import random
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.test_traced import EXAMPLE, assert_is_extracted, images, trained_like
from tests.support.own_networks import Inverted
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce import testing
from trainonce.data import load_dataset
from trainonce.models.traced import Traced, elastic, in_own_classes, table


class Large(nn.Module):
    """A depthwise convolution of 7 x 7, beside some whose kernel cannot be smaller in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 5, padding=2)
        self.large = nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.off_centre = nn.Conv2d(16, 16, 5, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 16, 5, padding=2, groups=4)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.off_centre(F.relu(self.large(F.relu(self.stem(x))))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


KINDS = {"Large": Large, "Inverted": Inverted}


@cache
def made(name: str) -> tuple[nn.Module, Traced]:
    """A network and its supernet, whose matrices are not the identity."""
    model = trained_like(KINDS[name]())
    net = elastic(model, EXAMPLE, kernels=True)
    net.eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, matrix in net.named_parameters():
            if name.startswith("matrices."):
                matrix.add_(0.1 * torch.randn(matrix.shape, generator=generator))
    return model, net


def test_depthwise_kernels_that_stay_centred_are_elastic() -> None:
    kernels = {c.name: c.values for c in made("Large")[1].space.choices if c.role == "kernel"}
    assert kernels == {"large.kernel": (3, 5, 7)}
    assert {c.name: c.values for c in made("Inverted")[1].space.choices if c.role == "kernel"} == {
        "depthwise.kernel": (3, 5)
    }
    plain = elastic(made("Large")[0], EXAMPLE)
    assert "kernel" not in {choice.role for choice in plain.space.choices}
    off = elastic(made("Large")[0], EXAMPLE, kernels=True, off=("*.kernel",))
    assert "kernel" not in {choice.role for choice in off.space.choices}
    assert "large.kernel  3 5 7" in table(made("Large")[1])


@pytest.mark.parametrize("name", KINDS)
def test_the_largest_is_the_network(name: str) -> None:
    model, net = made(name)
    with torch.no_grad():
        assert torch.equal(net(images(), net.space.largest()), model(images()))
    assert net.cost_of(net.space.largest()).params == sum(parameter.numel() for parameter in model.parameters())


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(KINDS)), st.integers(0, 10**6))
def test_a_subnet_is_what_is_extracted_and_costs_what_torch_counts(name: str, seed: int) -> None:
    net = copy.deepcopy(made(name)[1])
    net.sort_channels(net.space.keep_largest({"width": 1, "depth": 1}))
    assert_is_extracted(net, net.space.sample(random.Random(seed)))


def test_a_smaller_kernel_begins_as_the_centre() -> None:
    """Then the subnet is the network with zeros around the centre."""
    model = trained_like(Large())
    net = elastic(model, EXAMPLE, kernels=True).eval()
    for size in (3, 5):
        around = (7 - size) // 2
        zeroed = copy.deepcopy(model)
        with torch.no_grad():
            weight = zeroed.get_parameter("large.weight")
            weight.copy_(F.pad(weight[..., around:-around, around:-around], (around,) * 4))
            arch = net.space.check(dict(net.space.largest()) | {"large.kernel": size})
            torch.testing.assert_close(net(images(), arch), zeroed(images()))


def test_each_size_has_a_matrix_which_is_trained() -> None:
    net = copy.deepcopy(made("Large")[1])
    to_5, to_3 = (net.get_parameter(f"matrices.large.kernel.to_{size}") for size in (5, 3))
    weight = net.network.get_parameter("large.weight")
    arch = net.space.check(dict(net.space.largest()) | {"large.kernel": 3})
    for channel in range(16):
        five = (to_5 @ weight[channel, 0, 1:6, 1:6].flatten()).view(5, 5)
        three = (to_3 @ five[1:4, 1:4].flatten()).view(3, 3)
        torch.testing.assert_close(net.slices(arch)["large.weight"][channel, 0], three)
    net.train()(images(), arch).square().sum().backward()
    assert to_5.grad is not None
    assert to_3.grad is not None
    assert weight.grad is not None
    assert all(grad.abs().sum() > 0 for grad in (to_5.grad, to_3.grad, weight.grad))


def test_in_the_persons_own_classes() -> None:
    model, net = made("Large")
    arch = net.space.smallest()
    own = in_own_classes(net, model, arch)
    with torch.no_grad():
        assert torch.equal(own(images()), net(images(), arch))
    layer = own.get_submodule("large")
    assert isinstance(layer, nn.Conv2d)
    assert (layer.kernel_size, layer.padding) == ((3, 3), (1, 1))


def test_it_owes_what_every_family_does(tmp_path: Path) -> None:
    net = elastic(trained_like(Inverted()), EXAMPLE, kernels=True)
    data = load_dataset("digits", image_size=8)
    testing.check_building(Traced(net.settings))
    testing.check_subnets(net)
    testing.check_costs(net)
    testing.check_channels(net)
    testing.check_resume(net, data, tmp_path / "resume")
    testing.check_stages(net, data, tmp_path)
