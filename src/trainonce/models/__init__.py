"""Supernets, by family."""

from collections.abc import Mapping
from typing import Any

from trainonce.errors import UserError
from trainonce.models.mobilenet_v3 import GEOMETRIES, MobileNetV3, MobileNetV3Settings
from trainonce.models.supernet import BoundSubnet, Supernet

__all__ = [
    "FAMILIES",
    "GEOMETRIES",
    "BoundSubnet",
    "MobileNetV3",
    "MobileNetV3Settings",
    "Supernet",
    "build",
]

FAMILIES: dict[str, type[MobileNetV3]] = {MobileNetV3.family: MobileNetV3}
"""The families that a run directory can name."""


def build(family: str, settings: Mapping[str, Any], *, seed: int = 0, where: str = "the settings") -> Supernet:
    """The supernet of a family with these settings, initialised from `seed`.

    Raises `UserError` that names the valid families, or the key of the settings that is wrong.
    """
    if family not in FAMILIES:
        raise UserError(f"unknown family {family!r}; the families are {', '.join(FAMILIES)}")
    return FAMILIES[family](MobileNetV3Settings.parse(settings, where=where), seed=seed)
