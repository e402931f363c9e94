"""Each elastic layer against the plain torch layer that holds its slices, bit for bit, for every choice."""

import itertools
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from trainonce.nn.ops import ElasticBatchNorm2d, ElasticConv2d, ElasticDepthwiseConv2d, ElasticSqueezeExcite, prefixed
from trainonce.nn.plain import BN_EPS, BN_MOMENTUM, SqueezeExcite

M = TypeVar("M", bound=nn.Module)
SIZES = (3, 5, 7)


def randomise(module: M, seed: int = 0) -> M:
    """Fill every parameter and buffer with random numbers; variances positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
            if name.endswith("running_var"):
                tensor.abs_().add_(0.1)
    return module


def images(channels: int, size: int = 6, *, seed: int = 1) -> Tensor:
    return torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [False, True])
def test_conv_is_the_plain_one(bias: bool) -> None:
    elastic = randomise(ElasticConv2d(6, 8, bias=bias))
    for inputs, outputs in itertools.product(range(1, 7), range(1, 9)):
        plain = nn.Conv2d(inputs, outputs, 1, bias=bias)
        plain.load_state_dict(elastic.slices(inputs, outputs))
        assert torch.equal(plain.weight, elastic.weight[:outputs, :inputs])
        x = images(inputs)
        assert torch.equal(elastic(x, outputs), plain(x))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sizes", [SIZES, (3, 7), (5,)])
def test_depthwise_conv_is_the_plain_one(stride: int, sizes: tuple[int, ...]) -> None:
    elastic = randomise(ElasticDepthwiseConv2d(6, sizes, stride)).eval()
    for channels, kernel_size, side in itertools.product((1, 4, 6), sizes, (1, 2, 6)):
        plain = nn.Conv2d(channels, channels, kernel_size, stride, kernel_size // 2, groups=channels, bias=False)
        plain.load_state_dict(elastic.slices(channels, kernel_size))
        x = images(channels, side)
        assert torch.equal(elastic(x, kernel_size), plain(x))


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_conv_in_training_mode_is_the_plain_one_within_rounding(stride: int) -> None:
    elastic = randomise(ElasticDepthwiseConv2d(6, SIZES, stride)).train()
    for kernel_size, side in itertools.product(SIZES, (1, 2, 3, 6)):
        plain = nn.Conv2d(6, 6, kernel_size, stride, kernel_size // 2, groups=6, bias=False)
        plain.load_state_dict(elastic.slices(6, kernel_size))
        x = images(6, side)
        assert torch.allclose(elastic(x, kernel_size), plain(x), rtol=1e-5, atol=1e-4)


def centre_times(matrix: Tensor, kernel: Tensor, size: int) -> Tensor:
    """The centre of a square kernel, row by row as a vector, times a matrix; by loops in float64."""
    rim = (len(kernel) - size) // 2
    made = torch.zeros(size, size, dtype=torch.float64)
    for out_row, out_column, row, column in itertools.product(range(size), repeat=4):
        factor = matrix[out_row * size + out_column, row * size + column].double()
        made[out_row, out_column] += factor * kernel[rim + row, rim + column].double()
    return made


def test_kernel_transform_is_the_loop() -> None:
    elastic = randomise(ElasticDepthwiseConv2d(3, SIZES, 1))
    for channel in range(3):
        w7 = elastic.weight[channel, 0].detach()
        w5 = centre_times(elastic.transforms["to_5"].detach(), w7, 5)
        w3 = centre_times(elastic.transforms["to_3"].detach(), w5, 3)
        for size, expected in ((7, w7.double()), (5, w5), (3, w3)):
            found = elastic.slices(3, size)["weight"][channel, 0].double()
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_kernels_start_as_nested_centres() -> None:
    elastic = ElasticDepthwiseConv2d(4, SIZES, 1)
    nn.init.normal_(elastic.weight, generator=torch.Generator().manual_seed(0))
    for size in SIZES:
        rim = (7 - size) // 2
        assert torch.equal(elastic.slices(4, size)["weight"], elastic.weight[:, :, rim : rim + size, rim : rim + size])


def test_gradient_reaches_the_centre_and_the_transforms_used() -> None:
    elastic = randomise(ElasticDepthwiseConv2d(4, SIZES, 1))
    elastic(images(3), 5).square().sum().backward()
    grad = elastic.weight.grad
    assert grad is not None
    expected = torch.zeros(4, 1, 7, 7, dtype=torch.bool)
    expected[:3, :, 1:6, 1:6] = True
    assert torch.equal(grad != 0, expected)
    assert elastic.transforms["to_5"].grad is not None
    assert elastic.transforms["to_3"].grad is None


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_is_the_plain_one(training: bool) -> None:
    for channels in range(1, 7):
        elastic = randomise(ElasticBatchNorm2d(6)).train(training)
        before = {name: tensor.clone() for name, tensor in elastic.state_dict().items()}
        plain = nn.BatchNorm2d(channels, eps=BN_EPS, momentum=BN_MOMENTUM).train(training)
        plain.load_state_dict(elastic.slices(channels), strict=False)
        x = images(channels)
        assert torch.equal(elastic(x), plain(x))
        for name in ("running_mean", "running_var"):
            after = elastic.state_dict()[name]
            assert torch.equal(after[:channels], plain.state_dict()[name])
            assert torch.equal(after[channels:], before[name][channels:])
            assert torch.equal(after, before[name]) != training


def test_batch_norm_is_the_formula() -> None:
    elastic, x = randomise(ElasticBatchNorm2d(4)).eval(), images(3)
    mean, var = elastic.running_mean[:3].view(3, 1, 1), elastic.running_var[:3].view(3, 1, 1)
    weight, bias = elastic.weight[:3].view(3, 1, 1), elastic.bias[:3].view(3, 1, 1)
    assert torch.allclose(elastic(x), (x - mean) / (var + 1e-5).sqrt() * weight + bias, atol=1e-5)


def test_squeeze_excite_is_the_plain_one() -> None:
    elastic = randomise(ElasticSqueezeExcite(8, 4))
    for channels, squeezed in itertools.product(range(1, 9), range(1, 5)):
        plain = SqueezeExcite(channels, squeezed)
        plain.load_state_dict(elastic.slices(channels, squeezed))
        x = images(channels)
        assert torch.equal(elastic(x, squeezed), plain(x))


def test_squeeze_excite_is_the_formula() -> None:
    """The gate is relu6(z + 3) / 6, as in PAPER.md."""
    elastic, x = randomise(ElasticSqueezeExcite(5, 3)), images(5)
    assert elastic.reduce.bias is not None
    assert elastic.expand.bias is not None
    hidden = (x.mean((2, 3)) @ elastic.reduce.weight[:, :, 0, 0].T + elastic.reduce.bias).clamp(min=0)
    z = hidden @ elastic.expand.weight[:, :, 0, 0].T + elastic.expand.bias
    gate = (z + 3).clamp(0, 6) / 6
    assert torch.allclose(elastic(x, 3), x * gate[:, :, None, None], atol=1e-5)


def test_prefixed() -> None:
    tensor = torch.ones(1)
    assert prefixed("a.0", {"weight": tensor}) == {"a.0.weight": tensor}
