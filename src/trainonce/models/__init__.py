"""Supernets, by family: what the library asks of one (`supernet`), how they are found (`registry`), and those built in.

Their layers and plain networks are in `trainonce.nn`.
"""

from trainonce.models.mobilenet_v3 import GEOMETRIES, MobileNetV3, MobileNetV3Settings
from trainonce.models.proxyless_nas import ProxylessNAS, ProxylessNASSettings
from trainonce.models.registry import FAMILIES, build, family_named, register
from trainonce.models.resnet import ResNet, ResNetSettings
from trainonce.models.supernet import BoundSubnet, FamilySettings, Supernet

__all__ = [
    "FAMILIES",
    "GEOMETRIES",
    "BoundSubnet",
    "FamilySettings",
    "MobileNetV3",
    "MobileNetV3Settings",
    "ProxylessNAS",
    "ProxylessNASSettings",
    "ResNet",
    "ResNetSettings",
    "Supernet",
    "build",
    "family_named",
    "register",
]
