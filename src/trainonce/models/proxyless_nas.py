"""Elastic ProxylessNAS, as OFA has it (arXiv 1908.09791; the widths are of arXiv 1812.00332)."""

from trainonce.models.layout import Layout, MBConvSettings, Stage
from trainonce.models.mbconv import MBConvSupernet


class ProxylessNASSettings(MBConvSettings):
    """The geometry of an elastic ProxylessNAS."""

    strides: tuple[int, int, int, int, int, int] = (2, 2, 2, 1, 2, 1)
    """Stride of the first block of each of the six elastic stages."""


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
            *(Stage(width=width, activation="relu6") for width in (24, 40, 80, 96, 192)),
            Stage(width=320, activation="relu6", depth=1),
        ),
        final=1280,
        features=0,
        activation="relu6",
        bn_eps=1e-3,
    )
