"""The elastic ResNet: known sizes, geometry that follows the images, and widths that are what they say."""

import pytest

from trainonce.errors import UserError
from trainonce.models import ResNet, ResNetSettings
from trainonce.models.resnet import strides_for


def test_known_costs() -> None:
    """Two stages of one block by hand: stem 3 -> 8, 8 -> 8, 8 -> 16 with stride 2 and a way around."""
    net = ResNet(ResNetSettings(num_classes=5, channels=(8, 16), depths=(1,), strides=(1, 2), resolutions=(16,)))
    stem, first = 27 * 8, 2 * 9 * 8 * 8
    second, around = 9 * 8 * 16 + 9 * 16 * 16, 8 * 16
    norms = 2 * (8 + 2 * 8 + 2 * 16 + 16)
    cost = net.cost_of(net.space.largest())
    assert cost.params == stem + first + second + around + norms + 16 * 5 + 5
    assert cost.macs == 256 * (stem + first) + 64 * (second + around) + 16 * 5


def test_widths_are_percent_of_inner_channels() -> None:
    net = ResNet(ResNetSettings(num_classes=5, channels=(32, 64), depths=(1,), strides=(1, 2)))
    arch = net.space.check({"stage1.depth": 1, "stage1.block1.width": 25, "stage2.depth": 1, "stage2.block1.width": 50})
    assert [block.mid_channels for block in net.describe(arch).blocks] == [8, 32]
    assert str(arch) == "d1.w25_d1.w50"


@pytest.mark.parametrize(
    ("size", "stem", "strides", "last"),
    [
        (8, 1, (1, 1, 1), 8),
        (28, 1, (1, 1, 2), 14),
        (32, 1, (1, 2, 2), 8),
        (64, 2, (1, 2, 2), 8),
        (224, 2, (2, 2, 2), 14),
    ],
)
def test_maps_stay_large_enough(size: int, stem: int, strides: tuple[int, ...], last: int) -> None:
    settings = ResNetSettings.for_images(image_size=size, in_channels=3, num_classes=5)
    assert (settings.stem_stride, settings.strides) == (stem, strides)
    assert strides_for(size, 3) == {"stem_stride": stem, "strides": strides}
    net = ResNet(settings)
    assert net.describe(net.space.largest()).map_sizes[-1] == last


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"widths": (50, 25)}, "widths must be distinct, rising"),
        ({"widths": (25, 50)}, "the last of the widths must be 100"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"channels": ()}, "channels must be one positive number"),
        ({"strides": (1, 2)}, "strides must be 1 or 2, one for each of 3 stages"),
        ({"strides": (1, 2, 3)}, "strides must be 1 or 2"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ResNetSettings.parse({"num_classes": 5, **fields}, where="here")
