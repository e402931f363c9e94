"""The elastic MBConv against its plain twin, and the sorting of its channels."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trainonce.nn.blocks import ElasticMBConv
from trainonce.nn.plain import BlockSpec, MBConv

RATIOS, SIZES = (3, 4, 6), (3, 5, 7)


def block_spec(
    *,
    ratio: int = 6,
    kernel_size: int = 7,
    stride: int = 1,
    out_channels: int = 8,
    se: bool = True,
    expand: bool = True,
) -> BlockSpec:
    mid = 8 * ratio if expand else 8
    return BlockSpec(
        in_channels=8,
        mid_channels=mid,
        out_channels=out_channels,
        kernel_size=kernel_size,
        stride=stride,
        se_channels=mid // 4 if se else 0,
        activation="h_swish",
        expand=expand,
    )


def elastic_block(largest: BlockSpec, seed: int = 0) -> ElasticMBConv:
    """A block in evaluation mode with random weights, statistics and transforms."""
    block, generator = ElasticMBConv(largest, SIZES), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in block.state_dict().items():
            tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator))
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return block.eval()


def images(size: int = 8) -> Tensor:
    return torch.randn(4, 8, size, size, generator=torch.Generator().manual_seed(9))


def plain_twin(block: ElasticMBConv, spec: BlockSpec) -> MBConv:
    plain = MBConv(spec).to(block.project.weight.dtype)
    found = plain.load_state_dict(block.slices(spec), strict=False)
    assert not found.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in found.missing_keys)
    return plain.train(block.training)


@pytest.mark.parametrize("se", [False, True])
@pytest.mark.parametrize(("stride", "out_channels"), [(1, 8), (1, 16), (2, 8)])
def test_is_the_plain_block(se: bool, stride: int, out_channels: int) -> None:
    largest = block_spec(stride=stride, out_channels=out_channels, se=se)
    block, x = elastic_block(largest), images()
    for ratio in RATIOS:
        for kernel_size in SIZES:
            spec = block_spec(ratio=ratio, kernel_size=kernel_size, stride=stride, out_channels=out_channels, se=se)
            out = block(x, spec)
            assert out.shape == (4, out_channels, 8 // stride, 8 // stride)
            assert torch.equal(out, plain_twin(block, spec)(x))


def test_without_expansion() -> None:
    spec = block_spec(expand=False, se=False)
    block = elastic_block(spec)
    assert torch.equal(block(images(), spec), plain_twin(block, spec)(images()))
    assert block.expand is None


@pytest.mark.parametrize("size", [2, 8])
def test_in_training_mode_outputs_and_gradients_agree(size: int) -> None:
    block = elastic_block(block_spec()).double().train()
    spec, x = block_spec(ratio=4, kernel_size=5), images(size).double()
    plain = plain_twin(block, spec)
    found, expected = block(x, spec), plain(x)
    assert torch.allclose(found, expected, atol=1e-10)
    found.square().sum().backward()
    expected.square().sum().backward()
    grad = block.project.weight.grad
    twin_grad = plain.project[0].weight.grad
    assert grad is not None
    assert torch.allclose(grad[:, : spec.mid_channels], twin_grad, rtol=1e-8, atol=1e-10)  # type: ignore[arg-type]
    assert (grad[:, spec.mid_channels :] == 0).all()
    assert torch.allclose(block.depthwise_bn.running_var[:32], plain.depthwise[1].running_var, atol=1e-10)  # type: ignore[arg-type]


def test_a_residual_adds_the_input() -> None:
    block, x = elastic_block(block_spec()), images()
    spec = block_spec(ratio=3, kernel_size=3)
    with torch.no_grad():
        block.project_bn.weight.zero_()
        block.project_bn.bias.zero_()
    assert torch.equal(block(x, spec), x)
    assert torch.equal(block(x, replace(spec, stride=1)), x)


class TestSortChannels:
    @pytest.mark.parametrize("kept", [(6,), (4, 6), (3, 6), (3, 4, 6)])
    @pytest.mark.parametrize("se", [False, True])
    def test_subnets_of_the_kept_widths_compute_the_same(self, kept: tuple[int, ...], se: bool) -> None:
        block, x = elastic_block(block_spec(se=se)), images()
        specs = [block_spec(ratio=ratio, se=se) for ratio in kept]
        wanted = [replace(spec, kernel_size=kernel_size) for spec in specs for kernel_size in SIZES]
        before = [block(x, spec) for spec in wanted]
        weights = {name: tensor.clone() for name, tensor in block.state_dict().items()}
        block.sort_channels(tuple(s.mid_channels for s in specs), tuple(s.se_channels for s in specs))
        assert not torch.equal(weights["project.weight"], block.project.weight)
        for spec, expected in zip(wanted, before, strict=True):
            assert torch.allclose(block(x, spec), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("kept", [(6,), (4, 6), (3, 4, 6)])
    def test_the_most_important_come_first_in_each_band(self, kept: tuple[int, ...]) -> None:
        block = elastic_block(block_spec())
        project, squeeze = block.project.weight.detach().clone(), block.se
        assert squeeze is not None
        mid_bands, se_bands = [8 * ratio for ratio in kept], [2 * ratio for ratio in kept]
        block.sort_channels(tuple(mid_bands), tuple(se_bands))
        start = 0
        for end in mid_bands:
            norms = [float(project[:, channel].abs().sum()) for channel in range(start, end)]
            found = [float(block.project.weight.detach()[:, channel].abs().sum()) for channel in range(start, end)]
            assert found == pytest.approx(sorted(norms, reverse=True))
            start = end
        start = 0
        for end in se_bands:
            found = [float(squeeze.expand.weight.detach()[:, channel].abs().sum()) for channel in range(start, end)]
            assert found == sorted(found, reverse=True)
            start = end

    def test_without_its_band_a_narrow_subnet_gets_the_important_channels(self) -> None:
        """The point of sorting: width 3 then holds the half of the channels with the largest norms."""
        block, narrow, x = elastic_block(block_spec()), block_spec(ratio=3), images()
        before, project = block(x, narrow), block.project.weight.detach().clone()
        block.sort_channels((48,), (12,))
        assert not torch.allclose(block(x, narrow), before, atol=1e-3)
        largest = project.abs().sum((0, 2, 3)).topk(24).values.sum()
        assert torch.allclose(block.project.weight[:, :24].abs().sum(), largest, rtol=1e-5)

    def test_without_expansion_nothing_is_sorted(self) -> None:
        """The middle channels are the input's: another order would be another function."""
        spec = block_spec(expand=False)
        block, x = elastic_block(spec), images()
        before = block(x, spec)
        block.sort_channels((8,), (2,))
        assert torch.equal(block(x, spec), before)

    def test_sorting_twice_changes_nothing_more(self) -> None:
        block = elastic_block(block_spec())
        block.sort_channels((32, 48), (8, 12))
        once = {name: tensor.clone() for name, tensor in block.state_dict().items()}
        block.sort_channels((32, 48), (8, 12))
        assert all(torch.equal(tensor, once[name]) for name, tensor in block.state_dict().items())

    def test_equal_se_bands(self) -> None:
        """Two widths may share one squeezed width: the band between them is empty."""
        block, x = elastic_block(replace(block_spec(), se_channels=16)), images()
        specs = [replace(block_spec(ratio=r), se_channels=s) for r, s in ((3, 8), (4, 8), (6, 16))]
        before = [block(x, spec) for spec in specs]
        block.sort_channels((24, 32, 48), (8, 8, 16))
        for spec, expected in zip(specs, before, strict=True):
            assert torch.allclose(block(x, spec), expected, rtol=1e-5, atol=1e-5)
