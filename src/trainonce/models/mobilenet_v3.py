"""Elastic MobileNetV3, as OFA has it (arXiv 1908.09791)."""

import math
from collections.abc import Mapping
from typing import ClassVar

from trainonce.models.layout import Layout, MBConvSettings, StageLayout
from trainonce.models.mbconv import MBConvSupernet
from trainonce.models.registry import register

GEOMETRIES: dict[str, dict[str, object]] = {
    "paper": {"stem_stride": 2, "strides": (2, 2, 2, 1, 2)},
    "cifar": {"stem_stride": 1, "strides": (1, 2, 2, 1, 2)},
    "tiny": {"stem_stride": 1, "strides": (1, 2, 2, 1, 1), "width_mult": 0.5, "depths": (1, 2, 3)},
    "light": {"width_mult": 0.5, "depths": (1, 2)},
}
"""Named geometries. `paper`: maps 16, 8, 4, 2, 2, 1 from 32 pixels; at 224 it is OFA's for ImageNet. `cifar`: 32, 32,
16, 8, 8, 4, from DepS (Khare 2024): eleven times the MACs, much more accurate. `tiny`: half as wide and shallower, for
8 x 8 images. `light`: half as wide, one or two blocks a stage, strides that follow the image size (`strides_for`), and
smaller images to choose from (`sides_up_to`), for trainings of minutes: on images of 64 pixels a step took a third of
the time of one of `paper` (docs/LOG.md)."""

LAST_MAP = 4
"""The least side in pixels of the last map in geometries that follow the image size."""


SMALLEST_SIDE = 16
"""No image is made smaller than so many pixels unless a person asks."""


def sides_up_to(image_size: int) -> tuple[int, ...]:
    """Half, three quarters and the whole of a side in pixels, from `SMALLEST_SIDE` on: sizes to choose images from."""
    return (*(side for side in (image_size // 2, image_size * 3 // 4) if side >= SMALLEST_SIDE), image_size)


def strides_for(image_size: int) -> dict[str, object]:
    """`stem_stride` and `strides` that make maps smaller as often as leaves the last one `LAST_MAP` pixels or more.

    Stages 2, 3 and 1 halve them first, then the stem, then stage 5: early maps stay large where images are small.
    """
    halvings = 0
    while halvings < 5 and math.ceil(image_size / 2 ** (halvings + 1)) >= LAST_MAP:
        halvings += 1
    halved = ("stage 2", "stage 3", "stage 1", "stem", "stage 5")[:halvings]
    strides = tuple(2 if f"stage {number}" in halved else 1 for number in range(1, 6))
    return {"stem_stride": 2 if "stem" in halved else 1, "strides": strides}


class MobileNetV3Settings(MBConvSettings):
    """The geometry of an elastic MobileNetV3. The defaults are the paper's at 32 x 32 (arXiv 2204.09210)."""

    strides: tuple[int, int, int, int, int] = (2, 2, 2, 1, 2)
    """Stride of the first block of each of the five elastic stages."""

    geometries: ClassVar[Mapping[str, Mapping[str, object]]] = GEOMETRIES

    @classmethod
    def default_geometry(cls, image_size: int) -> str:
        """`tiny` up to 16 pixels, else `paper`."""
        return "tiny" if image_size <= 16 else "paper"

    @classmethod
    def geometry(cls, name: str, image_size: int) -> Mapping[str, object]:
        """The fields of a named geometry for images of a size."""
        suiting = {"resolutions": sides_up_to(image_size), **strides_for(image_size)} if name == "light" else {}
        return {**suiting, **GEOMETRIES[name]}


@register
class MobileNetV3(MBConvSupernet):
    """The elastic MobileNetV3 supernet. Weights are initialised from `seed` alone."""

    family = "mobilenet_v3"
    settings_type = MobileNetV3Settings
    layout = Layout(
        stem=16,
        first=16,
        first_activation="relu",
        stages=(
            StageLayout(width=24, activation="relu"),
            StageLayout(width=40, activation="relu", se=True),
            StageLayout(width=80, activation="h_swish"),
            StageLayout(width=112, activation="h_swish", se=True),
            StageLayout(width=160, activation="h_swish", se=True),
        ),
        final=960,
        features=1280,
        activation="h_swish",
        bn_eps=1e-5,
    )
