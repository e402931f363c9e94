"""Cropped kernels compute what whole kernels do, in the output and in every gradient."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainonce.nn.cropping import crop_kernel, crop_kernels
from trainonce.nn.plain import BlockSpec, NetworkSpec, PlainNetwork

CASES = list(itertools.product(range(1, 10), (1, 2), (3, 5, 7)))
"""Map side, stride, kernel size."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs_and_gradients(weight: Tensor, x: Tensor, stride: int, *, crop: bool) -> tuple[Tensor, Tensor, Tensor]:
    weight, x = weight.clone().requires_grad_(), x.clone().requires_grad_()
    kernel = crop_kernel(weight, x.shape[-1]) if crop else weight
    out = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, groups=x.shape[1])
    torch.autograd.backward((out * normal(*out.shape, seed=2)).sum())
    assert weight.grad is not None
    assert x.grad is not None
    return out.detach(), weight.grad, x.grad


@pytest.mark.parametrize(("side", "stride", "kernel_size"), CASES)
def test_outputs_and_gradients_are_the_uncropped_ones(side: int, stride: int, kernel_size: int) -> None:
    weight, x = normal(4, 1, kernel_size, kernel_size), normal(3, 4, side, side, seed=1)
    cropped = outputs_and_gradients(weight, x, stride, crop=True)
    whole = outputs_and_gradients(weight, x, stride, crop=False)
    for found, expected in zip(cropped, whole, strict=True):
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    # What is cut off has a gradient of exactly zero either way.
    rim = max(0, kernel_size // 2 - (side - 1))
    outside = torch.ones(kernel_size, kernel_size, dtype=torch.bool)
    outside[rim : kernel_size - rim, rim : kernel_size - rim] = False
    for grad in (cropped[1], whole[1]):
        assert (grad[..., outside] == 0).all()


@pytest.mark.parametrize(("side", "stride", "kernel_size"), CASES)
def test_what_is_cut_off_is_what_only_meets_padding(side: int, stride: int, kernel_size: int) -> None:
    """At stride 1 every weight that is left meets some pixel: the crop could not be smaller."""
    kept = crop_kernel(torch.arange(kernel_size**2).view(1, 1, kernel_size, kernel_size), side)
    met = set()
    for at, row in itertools.product(range(0, side, stride), range(kernel_size)):
        if 0 <= at + row - kernel_size // 2 < side:
            met.add(row)
    rows = {int(index) // kernel_size for index in kept.flatten()}
    assert met <= rows
    assert stride == 2 or met == rows
    assert kept.shape[-1] == kept.shape[-2] == len(rows)
    assert len(rows) % 2 == 1


def test_a_whole_network() -> None:
    """Maps of 5, 5, 3, 2 and 1 pixels: kernels of 7 are cropped to 7, 5, 3 and 1."""
    blocks = tuple(
        BlockSpec(
            in_channels=8,
            mid_channels=16,
            out_channels=8,
            kernel_size=7,
            stride=stride,
            se_channels=8,
            activation="relu",
            expand=True,
        )
        for stride in (1, 2, 2, 2, 1)
    )
    spec = NetworkSpec(
        resolution=9,
        in_channels=3,
        stem_channels=8,
        stem_stride=2,
        blocks=blocks,
        final_channels=16,
        feature_channels=16,
        num_classes=4,
        dropout=0.0,
    )
    network = PlainNetwork(spec).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        x = torch.randn(6, 3, 9, 9, generator=generator)
        whole = network(x)
        assert crop_kernels(network) is network
        assert [block.depthwise[0].weight.shape[-1] for block in network.blocks] == [7, 7, 5, 3, 1]  # type: ignore[index, union-attr]
        assert torch.allclose(network(x), whole, rtol=1e-4, atol=1e-5)
        assert whole.std() > 1e-3
