"""Elastic ProxylessNAS, as OFA has it (arXiv 1908.09791; the widths are of arXiv 1812.00332)."""

from collections.abc import Mapping
from typing import ClassVar

from trainonce.models.layout import Layout, MBConvSettings, StageLayout
from trainonce.models.mbconv import MBConvSupernet
from trainonce.models.registry import register


class ProxylessNASSettings(MBConvSettings):
    """The geometry of an elastic ProxylessNAS."""

    strides: tuple[int, int, int, int, int, int] = (2, 2, 2, 1, 2, 1)
    """Stride of the first block of each of the six elastic stages."""

    geometries: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "paper": {"stem_stride": 2, "strides": (2, 2, 2, 1, 2, 1)},
        "tiny": {"stem_stride": 1, "strides": (1, 2, 2, 1, 1, 1), "width_mult": 0.5, "depths": (1, 2, 3)},
    }
    """`paper` is OFA's at 224 pixels; `tiny` is half as wide and shallower, for 8 x 8 images."""

    @classmethod
    def default_geometry(cls, image_size: int) -> str:
        """`tiny` up to 16 pixels, else `paper`."""
        return "tiny" if image_size <= 16 else "paper"


@register
class ProxylessNAS(MBConvSupernet):
    """The elastic ProxylessNAS supernet: ReLU6 throughout, no squeeze-excite, a sixth stage of one block.

    Weights are initialised from `seed` alone.
    """

    family = "proxyless_nas"
    settings_type = ProxylessNASSettings
    layout = Layout(
        stem=32,
        first=16,
        first_activation="relu6",
        stages=(
            *(StageLayout(width=width, activation="relu6") for width in (24, 40, 80, 96, 192)),
            StageLayout(width=320, activation="relu6", depth=1),
        ),
        final=1280,
        features=0,
        activation="relu6",
        bn_eps=1e-3,
    )
