"""Batch norm over all ranks against torch's own; tests/parallel/test_distributed.py has it between processes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.nn.batch_norm import SynchronisedBatchNorm2d, synchronise, synchronised, synchronised_batch_norm
from trainonce.nn.ops import ElasticBatchNorm2d
from trainonce.parallel.distributed import Ranks

RANKS = Ranks(rank=0, size=2)


class Several(Ranks):
    """Ranks that are all in this process: what one says, the others are given as having said."""

    said: list[Tensor]

    def collect(self, tensor: Tensor) -> Tensor:
        return torch.stack([tensor, *self.said])


def images(count: int = 6) -> Tensor:
    x = torch.randn(count, 4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(count)) * 3 + 7
    return x.contiguous(memory_format=torch.channels_last)


def vectors() -> list[Tensor]:
    return [torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (1, 2)]


def test_alone_it_is_torchs() -> None:
    x, (weight, bias) = images().requires_grad_(), [v.requires_grad_() for v in vectors()]
    means, variances = ([torch.full((4,), start, dtype=torch.float64) for _ in range(2)] for start in (0.5, 2.0))
    gradient = images(6).flip(0)
    expected = F.batch_norm(x, means[0], variances[0], weight, bias, True, 0.1, 1e-5)
    found = synchronised_batch_norm(x, means[1], variances[1], weight, bias, momentum=0.1, eps=1e-5, ranks=Ranks())
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, (x, weight, bias), gradient),
        torch.autograd.grad(expected, (x, weight, bias), gradient),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(means[1], means[0])
    torch.testing.assert_close(variances[1], variances[0])


def test_statistics_of_unequal_shares_far_from_zero() -> None:
    """Means of a million times the deviation: nothing cancels."""
    x = images(9) + 1e6
    other = x[3:]
    ranks = Several(size=2)
    var, mean = torch.var_mean(other, (0, 2, 3), correction=0)
    object.__setattr__(ranks, "said", [torch.cat([mean, var, var.new_full((1,), 6 * 15)])])
    running = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    weight, bias = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    out = synchronised_batch_norm(x[:3], *running, weight, bias, momentum=1.0, eps=1e-12, ranks=ranks)
    torch.testing.assert_close(running[0], x.mean((0, 2, 3)))
    torch.testing.assert_close(running[1], x.var((0, 2, 3)), rtol=1e-9, atol=0)
    expected = F.batch_norm(x, None, None, weight, bias, True, 0.1, 1e-12)[:3]
    torch.testing.assert_close(out, expected, rtol=1e-7, atol=1e-7)


def test_layers_are_exchanged_and_come_back() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4, eps=0.1, momentum=0.3), nn.Sequential(nn.BatchNorm2d(4)))
    elastic = ElasticBatchNorm2d(4)
    net.append(elastic)
    before, layers = net.state_dict(), [type(module) for module in net.modules()]
    assert not elastic.synchronised
    with synchronised(net, RANKS):
        assert elastic.synchronised
        assert isinstance(net[1], SynchronisedBatchNorm2d)
        assert isinstance(net[2][0], SynchronisedBatchNorm2d)
        assert net[1].synchronised
        assert (net[1].eps, net[1].momentum) == (0.1, 0.3)
        inside = net.state_dict()
        assert list(inside) == list(before)
        assert all(inside[name].data_ptr() == before[name].data_ptr() for name in before)
        net.eval()(torch.randn(2, 1, 3, 3))  # in evaluation mode nothing is exchanged
    after = net.state_dict()
    assert all(after[name].data_ptr() == before[name].data_ptr() for name in before)
    assert [type(module) for module in net.modules()] == layers
    assert not elastic.synchronised
    assert not net[1].training


def test_a_plain_layer_counts_its_batches() -> None:
    net, plain = nn.Sequential(nn.BatchNorm2d(4)).double(), nn.BatchNorm2d(4).double()
    synchronise(net, Ranks())
    torch.testing.assert_close(net(images()), plain(images()))
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[f"0.{name}"], tensor)


def test_bfloat16_is_normalised_in_float32() -> None:
    x = images().to(torch.bfloat16).requires_grad_()
    weight, bias = (v.float() for v in vectors())
    running = torch.zeros(4), torch.zeros(4)
    out = synchronised_batch_norm(x, *running, weight, bias, momentum=1.0, eps=1e-5, ranks=Ranks())
    expected = F.batch_norm(x.float(), None, None, weight, bias, True, 0.0, 1e-5)
    assert torch.autograd.grad(out.sum(), x)[0].dtype == out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected.to(torch.bfloat16))
    torch.testing.assert_close(running[0], x.detach().float().mean((0, 2, 3)))
