"""How far apart the batch-norm statistics are that subnets want: it tells wrong statistics from wrong weights."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from trainonce.models import Supernet
from trainonce.space import Architecture

Floats = NDArray[np.float64]
Statistics = Mapping[str, tuple[Tensor, Tensor]]
"""Mean and variance [C] of each batch norm, by a name that is the same for the same shared layer."""


def batch_norm_shift(statistics: Sequence[Statistics]) -> dict[str, Floats]:
    """For each layer and each pair of P subnets the mean over channels of (mu_a - mu_b)² / (var_a + var_b): [P, P].

    Over the first channels, which both have; NaN where one of the two does not have the layer.
    """
    names = dict.fromkeys(name for one in statistics for name in one)
    return {name: np.array([[_shift(a, b, name) for b in statistics] for a in statistics]) for name in names}


def mean_shift(layers: Mapping[str, Floats]) -> Floats:
    """[P, P] the mean over the layers that both have."""
    stacked = np.stack(list(layers.values()))
    there = ~np.isnan(stacked)
    mean: Floats = np.where(there, stacked, 0).sum(0) / np.where(there.any(0), there.sum(0), np.nan)
    return mean


def _shift(one: Statistics, other: Statistics, name: str) -> float:
    if name not in one or name not in other:
        return float("nan")
    (mean_a, var_a), (mean_b, var_b) = one[name], other[name]
    shared = min(len(mean_a), len(mean_b))
    apart = (mean_a[:shared].double() - mean_b[:shared].double()).square()
    spread = var_a[:shared].double() + var_b[:shared].double()
    constant = spread == 0  # channels that are the same number on every image: apart or not, there is no scale
    return float((apart / spread.masked_fill(constant, 1)).masked_fill(constant, 0).mean())


def statistics_of(net: Supernet, plain: nn.Module, arch: Architecture) -> dict[str, tuple[Tensor, Tensor]]:
    """The statistics of a subnet's plain network, by names that all subnets share."""
    found = {}
    for name, module in plain.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            found[net.shared_name(arch, name)] = (module.running_mean, module.running_var)
    return found
