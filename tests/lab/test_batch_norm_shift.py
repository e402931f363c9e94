"""Batch-norm shift with known means and variances."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from trainonce.lab.measures.batch_norm import batch_norm_shift, mean_shift, statistics_of
from trainonce.models import MobileNetV3


def stats(*channels: tuple[float, float]) -> tuple[Tensor, Tensor]:
    mean, var = zip(*channels, strict=True)
    return torch.tensor(mean), torch.tensor(var)


def test_by_hand() -> None:
    one = {"a": stats((0, 1), (2, 3)), "b": stats((1, 1))}
    other = {"a": stats((1, 1), (2, 5), (100, 1)), "b": stats((1, 9))}
    found = batch_norm_shift([one, other])
    assert found["a"].tolist() == [[0, 0.25], [0.25, 0]]  # (1 / 2 + 0 / 8) / 2, over the two channels of both
    assert found["b"].tolist() == [[0, 0], [0, 0]]
    assert mean_shift(found).tolist() == [[0, 0.125], [0.125, 0]]


def test_layers_that_one_lacks() -> None:
    found = batch_norm_shift([{"a": stats((0, 1))}, {"a": stats((4, 1)), "b": stats((0, 1))}])
    assert np.isnan(found["b"]).tolist() == [[True, True], [True, False]]
    assert mean_shift(found).tolist() == [[0, 8], [8, 0]]
    apart = batch_norm_shift([{"a": stats((0, 1))}, {"b": stats((0, 1))}])
    assert np.isnan(mean_shift(apart)).tolist() == [[False, True], [True, False]]


def test_channels_that_never_vary() -> None:
    found = batch_norm_shift([{"a": stats((0, 0), (0, 1))}, {"a": stats((0, 0), (2, 1))}])
    assert found["a"][0, 1] == 1


def test_names_of_a_supernets_layers(make_net: Callable[..., MobileNetV3]) -> None:
    """The same shared layer has the same name in every subnet: statistics cut from the supernet do not differ."""
    net, rng = make_net().eval(), random.Random(0)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape))
    archs = [net.space.smallest(), net.space.largest(), *(net.space.sample(rng) for _ in range(4))]
    found = batch_norm_shift([statistics_of(net, net.extract(arch), arch) for arch in archs])
    assert {name.partition(".")[0] for name in found} >= {"stem", "first", "stage1", "stage5", "final"}
    assert len(found) == sum(name.endswith("running_mean") for name, _ in net.named_buffers())
    for shift in found.values():
        assert np.nanmax(shift) == pytest.approx(0)
    assert np.isnan(found["stage3.block2.project.1"][0, 1])
