"""How images are varied, as values that are composed in order. The pixels are `trainonce.data.augment`'s work.

An `Augmentation` is a tuple of them: `(Crop(scale=(0.5, 1)), Flip(), Colour(brightness=0.1))`. Each image of a batch is
varied on its own, but for `Mixup` and `CutMix`, which make one of two, images and labels.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, final

from pydantic import AfterValidator, Field, field_validator

from trainonce.names import is_import_name
from trainonce.settings import Settings

Fraction = Annotated[float, Field(ge=0, le=1)]
SMALL_SIDE = 48
"""Images of fewer pixels a side are small: a crop of half of their area leaves too little to see (docs/levers.md)."""


@final
class Crop(Settings):
    """A random box of the image, resized to its whole size (torchvision's RandomResizedCrop)."""

    kind: Literal["crop"] = "crop"
    scale: tuple[float, float] = (0.08, 1.0)
    """The range of the box's area as a fraction of the image's, each in (0, 1]."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """The range of its width over its height, drawn log-uniformly."""

    @field_validator("scale")
    @classmethod
    def _check_scale(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("must be two rising numbers over 0 and at most 1")
        return value

    @field_validator("aspect")
    @classmethod
    def _check_aspect(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("must be two rising numbers over 0")
        return value

    def __str__(self) -> str:
        return f"crops from {self.scale[0]:.0%} of the area"


@final
class Flip(Settings):
    """Half of the images are mirrored left to right."""

    kind: Literal["flip"] = "flip"

    def __str__(self) -> str:
        return "half mirrored"


@final
class Colour(Settings):
    """Brightness, then saturation, each times a factor of the image's own (torchvision's ColorJitter)."""

    kind: Literal["colour"] = "colour"
    brightness: Fraction = 0.0
    """The factor is uniform in 1 - brightness to 1 + brightness."""
    saturation: Fraction = 0.0
    """The factor is uniform in 1 - saturation to 1 + saturation. Grey images have none."""

    def __str__(self) -> str:
        return f"brightness by {self.brightness:.0%}, saturation by {self.saturation:.0%}"


@final
class Erase(Settings):
    """A random box becomes the mean of the data set (Zhong 2020, arXiv 1708.04896; torchvision's RandomErasing)."""

    kind: Literal["erase"] = "erase"
    share: Fraction = 0.25
    """The share of images in which one is erased."""

    def __str__(self) -> str:
        return f"a box erased in {self.share:.0%}"


@final
class TrivialAugment(Settings):
    """One operation at a random strength for each image, both drawn uniformly (Müller 2021, arXiv 2103.10158).

    Its wide ranges, without sharpness and equalisation: nothing, shear, translate and rotate (also far: not for digits
    and letters), brightness, saturation, contrast, posterise, solarise, stretch of the contrast.
    """

    kind: Literal["trivial"] = "trivial"

    def __str__(self) -> str:
        return "TrivialAugment"


class _Mix(Settings):
    """What makes one image of two in a share of the batches."""

    share: Fraction = 1.0
    """The share of batches that are mixed; at most, with `once_known`."""
    once_known: float | None = Field(None, ge=0, lt=1)
    """The share of the images of batches that were not mixed which networks must classify correctly before any batch
    is; from there on the share of batches grows in proportion, towards all where all are. None mixes from the
    beginning. That variation follows what is known is of Karras 2020 (arXiv 2006.06676), for networks that generate
    images. With a `share` below 1 some batches always say what is known."""

    def share_at(self, known: float) -> float:
        """The share (0 to 1) of batches that are mixed where networks know the share `known` of the others' images."""
        if self.once_known is None:
            return self.share
        return min(self.share, max(0.0, (known - self.once_known) / (1 - self.once_known)))

    def _when(self) -> str:
        if self.once_known is None:
            return "" if self.share == 1 else f" in {self.share:.0%} of the batches"
        over = f"{100 * self.once_known:g}%"
        return f" in up to {self.share:.0%} of the batches, as more than {over} of the images are known"


@final
class Mixup(_Mix):
    """Each image and its label become a mean with another's of the batch (Zhang 2018, arXiv 1710.09412).

    The weight is drawn for the batch from Beta(alpha, alpha). In training alone.
    """

    kind: Literal["mixup"] = "mixup"
    alpha: float = Field(0.2, gt=0, le=100)

    def __str__(self) -> str:
        return f"mixup {self.alpha:g}{self._when()}"


@final
class CutMix(_Mix):
    """A box of each image is another's of the batch, and its label by its area (Yun 2019, arXiv 1905.04899).

    The share of the image that stays is drawn for the batch from Beta(alpha, alpha). In training alone.
    """

    kind: Literal["cutmix"] = "cutmix"
    alpha: float = Field(1.0, gt=0, le=100)

    def __str__(self) -> str:
        return f"cutmix {self.alpha:g}{self._when()}"


def _is_own(name: str) -> str:
    if not is_import_name(name):
        raise ValueError("must be your own function as package.module:name")
    return name


@final
class Own(Settings):
    """A person's own function: `function(images_BCHW, draw, **settings)` gives images of the same shape.

    Images are float32 in 0 to 255 and may be changed in place. All chance is to come from `draw(n)`, which gives
    [B, n] numbers uniform in 0 to 1, so that a stopped run goes on as if it had not been, by any number of processes.
    """

    kind: Literal["own"] = "own"
    function: Annotated[str, AfterValidator(_is_own)]
    """`package.module:name`, imported where it is used."""
    settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """What it is called with, recorded in the run."""

    def __str__(self) -> str:
        return self.function


Variation = Annotated[Crop | Flip | Colour | Erase | TrivialAugment | Mixup | CutMix | Own, Field(discriminator="kind")]
Augmentation = tuple[Variation, ...]
"""What is done to a batch of training images, in order; empty for nothing."""
VARIATIONS: tuple[type[Settings], ...] = (Crop, Flip, Colour, Erase, TrivialAugment, Mixup, CutMix, Own)
MIXES = (Mixup, CutMix)
"""Those that make one image of two."""


def mixes(augmentation: Augmentation) -> bool:
    """Whether it makes images of two."""
    return any(isinstance(one, MIXES) for one in augmentation)


def follows_known(augmentation: Augmentation) -> bool:
    """Whether how much it does hangs on what is known."""
    return any(isinstance(one, MIXES) and one.once_known is not None for one in augmentation)


def hides_known(augmentation: Augmentation) -> bool:
    """Whether it makes every image one of two, so that training images are no measure of what is known."""
    ways = [one for one in augmentation if isinstance(one, MIXES)]
    return bool(ways) and all(way.share == 1 and way.once_known is None for way in ways)


@final
class AugmentationChange(Settings):
    """What a recipe varies otherwise than its data set does, in training and recalibrating; None leaves it as it is."""

    crop_from: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] | None = None
    """The smallest share of an image's area that a random crop may have; 1 does not crop. "auto" is half, and four
    fifths where images have fewer than `SMALL_SIDE` pixels a side."""
    flip: bool | Literal["auto"] | None = None
    """Whether half of the images are mirrored left to right. "auto" leaves it to the data set, but never mirrors where
    every class is named by a single letter or a number: a mirrored one is another, or none."""
    erase: Fraction | None = None
    """The share of the images in which a random box is erased."""
    alone: bool = False
    """Whether the data set's own augmentation is left out: what this says is then all."""
    also: Augmentation = ()
    """What is done after that, in order."""

    def of(self, own: Augmentation, class_names: Sequence[str], image_size: int) -> Augmentation:
        """`own` of images of these classes and this side in pixels, changed so. Twice changes it no further."""
        for added in range(min(len(own), len(self.also)) + 1):  # is it changed so already, with `also` at its end?
            varied = own[: len(own) - added]
            if self._changed(varied, class_names, image_size) == varied and self._with_also(varied) == own:
                return own
        return self._with_also(self._changed(own, class_names, image_size))

    def _with_also(self, varied: Augmentation) -> Augmentation:
        return varied + tuple(one for one in self.also if one not in varied)

    def _changed(self, own: Augmentation, class_names: Sequence[str], image_size: int) -> Augmentation:
        """`own` with what is to be cropped, mirrored and erased; without `also`."""
        varied = () if self.alone else own
        flips = any(isinstance(one, Flip) for one in varied)
        if self.crop_from is not None:
            least = (0.8 if image_size < SMALL_SIDE else 0.5) if self.crop_from == "auto" else self.crop_from
            crop = Crop(scale=(least, 1.0)) if least < 1 else None
            varied = _with(varied, Crop, crop, first=True)
        if self.flip == "auto":
            flips = flips and not all(map(_is_written, class_names))
        elif self.flip is not None:
            flips = self.flip
        varied = _with(varied, Flip, Flip() if flips else None)
        if self.erase is not None:
            varied = _with(varied, Erase, Erase(share=self.erase) if self.erase else None)
        return varied


def _with(varied: Augmentation, kind: type[Settings], one: Variation | None, *, first: bool = False) -> Augmentation:
    """`varied` with `one` in the place of the first of its kind, or at an end where it has none; None takes it out."""
    at = next((i for i, other in enumerate(varied) if isinstance(other, kind)), None)
    new = () if one is None else (one,)
    if at is None:
        return new + varied if first else varied + new
    return varied[:at] + new + tuple(other for other in varied[at + 1 :] if not isinstance(other, kind))


def _is_written(class_name: str) -> bool:
    """Whether a class is named by a single letter or by a number, as classes of characters are."""
    return class_name.isdecimal() or (len(class_name) == 1 and class_name.isalpha())
