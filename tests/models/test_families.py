"""Every family holds what it owes, and a person's own is found by where it is defined."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.small_resnet import SmallResNet

from trainonce.models import MobileNetV3, ProxylessNAS, ResNet, Supernet
from trainonce.testing import check_family

SMALL_MBCONV = {"depths": (1, 2), "kernel_sizes": (3, 5), "expand_ratios": (1, 2), "width_mult": 0.25}
FAMILIES: dict[str, tuple[type[Supernet], dict[str, Any]]] = {
    "mobilenet_v3": (MobileNetV3, SMALL_MBCONV),
    "proxyless_nas": (ProxylessNAS, SMALL_MBCONV),
    "resnet": (ResNet, {"channels": (8, 16), "strides": (1, 2)}),
    "bottlenecks": (ResNet, {"channels": (32, 64), "strides": (1, 2), "bottleneck": True, "resolutions": (8, 12)}),
    "one's own": (SmallResNet, {"channels": 8}),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] if name in ("proxyless_nas", "bottlenecks") else [])
        for name in FAMILIES
    ],
)
def test_a_family_holds_what_it_owes(name: str, tmp_path: Path) -> None:
    family, fields = FAMILIES[name]
    check_family(family, tmp_path, **fields)
