"""Supernets, by family."""

from collections.abc import Mapping
from typing import Any

from trainonce.errors import UserError
from trainonce.models.mbconv import MBConvSupernet
from trainonce.models.mobilenet_v3 import GEOMETRIES, MobileNetV3, MobileNetV3Settings
from trainonce.models.proxyless_nas import ProxylessNAS, ProxylessNASSettings
from trainonce.models.supernet import BoundSubnet, Supernet

__all__ = [
    "FAMILIES",
    "GEOMETRIES",
    "BoundSubnet",
    "MobileNetV3",
    "MobileNetV3Settings",
    "ProxylessNAS",
    "ProxylessNASSettings",
    "Supernet",
    "build",
]

FAMILIES: dict[str, type[MBConvSupernet]] = {family.family: family for family in (MobileNetV3, ProxylessNAS)}
"""The families that a run directory can name."""


def build(family: str, settings: Mapping[str, Any], *, seed: int = 0, where: str = "the settings") -> Supernet:
    """The supernet of a family with these settings, initialised from `seed`.

    Raises `UserError` that names the valid families, or the key of the settings that is wrong.
    """
    if family not in FAMILIES:
        raise UserError(f"unknown family {family!r}; the families are {', '.join(FAMILIES)}")
    chosen = FAMILIES[family]
    return chosen(chosen.settings_type.parse(settings, where=where), seed=seed)
