"""Augmentation of batches against plain references for one image, and the statistics of what is drawn."""

import math
import re
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from trainonce.data import augment as public_augment
from trainonce.data import normalise
from trainonce.data.augment import CROP_TRIES, _box_sizes, _crop, augment
from trainonce.data.table import IMAGENET_MEAN, IMAGENET_STD, TABLE
from trainonce.errors import UserError
from trainonce.parallel.distributed import Ranks
from trainonce.recipes import (
    RECIPES,
    Augmentation,
    AugmentationChange,
    Colour,
    Crop,
    CutMix,
    Erase,
    Flip,
    Mixup,
    Own,
    Recipe,
    TrivialAugment,
    Variation,
)
from trainonce.settings import Settings

ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
PAPER = TABLE["cifar10"].augmentation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator(42))


class TestNormalise:
    def test_against_the_formula(self) -> None:
        images = batch(4)
        expected = (images.double() / 255 - torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1).double()) / torch.tensor(
            IMAGENET_STD
        ).view(1, 3, 1, 1).double()
        found = normalise(images, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), expected, atol=1e-6)

    def test_zero_and_one_reach_the_ends_exactly(self) -> None:
        ends = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
        assert normalise(ends, mean=(0.0,), std=(1.0,)).flatten().tolist() == [0.0, 1.0]

    def test_no_augmentation_is_normalise_exactly(self) -> None:
        images, g = batch(5), generator()
        before = g.get_state()
        expected = normalise(images, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        found = augment(images, (), mean=IMAGENET_MEAN, std=IMAGENET_STD, generator=g)
        assert torch.equal(found, expected)
        assert torch.equal(g.get_state(), before)

    def test_the_images_given_are_not_changed(self) -> None:
        images = batch(5)
        augment(images, PAPER, mean=IMAGENET_MEAN, std=IMAGENET_STD, generator=generator())
        assert torch.equal(images, batch(5))

    def test_public_name(self) -> None:
        assert public_augment is augment


def crop_one(image_CHW: Tensor, top: int, left: int, h: int, w: int) -> Tensor:
    """Cut first, then resize with torch's own bilinear interpolation: the plain reference."""
    _, height, width = image_CHW.shape
    cut = image_CHW[None, :, top : top + h, left : left + w]
    return F.interpolate(cut, (height, width), mode="bilinear", align_corners=False)[0]


class TestCrop:
    @pytest.mark.parametrize(("height", "width"), [(32, 32), (9, 9), (20, 31)])
    def test_against_cropping_one_image_at_a_time(self, height: int, width: int) -> None:
        settings = Crop(scale=(0.08, 1.0))
        x = batch(64, 3, height, width).float()
        u = torch.rand(64, 2 * CROP_TRIES, generator=generator(1))
        place = torch.rand(64, 2, generator=generator(2))
        found = _crop(x, settings, u, place_B2=place)
        h_B, w_B = _box_sizes(height, width, settings, u)
        for i in range(64):
            h, w = int(h_B[i]), int(w_B[i])
            top = min(math.floor(float(place[i, 0]) * (height - h + 1)), height - h)
            left = min(math.floor(float(place[i, 1]) * (width - w + 1)), width - w)
            expected = crop_one(x[i], top, left, h, w)
            assert (found[i] - expected).abs().max() < 0.02, (i, h, w)  # of 255

    def test_against_pillow(self) -> None:
        """The same box resized by Pillow, which works in whole numbers: within one and a half of 255."""
        x = batch(8, 1).float()
        settings = Crop(scale=(0.3, 0.3), aspect=(1.0, 1.0))
        u = torch.full((8, 2 * CROP_TRIES), 0.5)
        found = _crop(x, settings, u, place_B2=torch.full((8, 2), 0.5))
        side = round(math.sqrt(0.3) * 32)
        start = (32 - side + 1) // 2
        for i in range(8):
            image = Image.fromarray(x[i, 0].byte().numpy()).crop((start, start, start + side, start + side))
            expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float32)
            assert np.abs(found[i, 0].numpy() - expected).max() < 1.5

    def test_nothing_outside_the_box_bleeds_in(self) -> None:
        x = torch.full((256, 1, 16, 16), 100.0)
        settings = Crop(scale=(0.2, 0.5))
        u = torch.rand(256, 2 * CROP_TRIES, generator=generator())
        h_B, w_B = _box_sizes(16, 16, settings, u)
        for i in range(256):  # top left corner box is 100, all the rest 0
            x[i, 0, int(h_B[i]) :], x[i, 0, :, int(w_B[i]) :] = 0, 0
        found = _crop(x, settings, u, place_B2=torch.zeros(256, 2))
        assert torch.allclose(found, torch.full_like(found, 100.0))

    def test_the_whole_image_is_itself(self) -> None:
        whole = Crop(scale=(1.0, 1.0), aspect=(1.0, 1.0))
        images = batch(4)
        found = augment(images, (whole,), mean=ZERO, std=ONE, generator=generator())
        assert torch.allclose(found, normalise(images, mean=ZERO, std=ONE), atol=1e-5)

    def test_boxes_follow_the_law_of_random_resized_crop(self) -> None:
        """Against a loop that does what torchvision's documentation says, one image at a time."""
        count, size = 4000, 32
        u = torch.rand(count, 2 * CROP_TRIES, generator=generator(5))
        h_B, w_B = _box_sizes(size, size, Crop(), u)
        assert ((h_B >= 1) & (h_B <= size) & (w_B >= 1) & (w_B <= size)).all()
        rng = np.random.default_rng(6)
        reference = np.array([_reference_box(size, rng) for _ in range(count)])
        area, reference_area = (h_B * w_B).numpy() / size**2, reference.prod(1) / size**2
        aspect, reference_aspect = np.log((w_B / h_B).numpy()), np.log(reference[:, 1] / reference[:, 0])
        for ours, theirs in ((area, reference_area), (aspect, reference_aspect)):
            deciles = np.linspace(0.05, 0.95, 10)
            assert np.abs(np.quantile(ours, deciles) - np.quantile(theirs, deciles)).max() < 0.035
        assert 0.05 < area.min() < 0.1
        assert area.max() > 0.95

    def test_a_box_that_never_fits_becomes_the_largest_permitted(self) -> None:
        wide = Crop(scale=(1.0, 1.0), aspect=(2.0, 2.0))
        h_B, w_B = _box_sizes(32, 32, wide, torch.rand(3, 2 * CROP_TRIES, generator=generator()))
        assert h_B.tolist() == [16.0] * 3
        assert w_B.tolist() == [32.0] * 3


def _reference_box(size: int, rng: np.random.Generator) -> tuple[int, int]:
    for _ in range(10):
        area = size * size * rng.uniform(0.08, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= size and 0 < h <= size:
            return h, w
    return size, size


class TestFlipAndColour:
    def test_half_are_mirrored_and_none_otherwise_changed(self) -> None:
        images = batch(2000, 3, 4, 4)
        found = augment(images, (Flip(),), mean=ZERO, std=ONE, generator=generator())
        plain = normalise(images, mean=ZERO, std=ONE)
        mirrored = (found == plain.flip(3)).flatten(1).all(1)
        same = (found == plain).flatten(1).all(1)
        assert (mirrored ^ same).all()
        assert 0.46 < mirrored.float().mean() < 0.54

    def test_brightness_is_one_factor_for_each_image(self) -> None:
        images = torch.full((2000, 3, 2, 2), 100, dtype=torch.uint8)
        found = augment(images, (Colour(brightness=0.25),), mean=ZERO, std=ONE, generator=generator())
        factor_B = found.flatten(1) * 255 / 100
        assert torch.allclose(factor_B, factor_B[:, :1].expand_as(factor_B))
        assert 0.75 <= factor_B.min() < 0.76
        assert 1.24 < factor_B.max() <= 1.2501
        assert abs(float(factor_B.mean()) - 1) < 0.01
        assert abs(float(factor_B.std()) - 0.5 / math.sqrt(12)) < 0.005

    def test_brightness_stops_at_white(self) -> None:
        white = torch.full((50, 3, 2, 2), 255, dtype=torch.uint8)
        found = augment(white, (Colour(brightness=1.0),), mean=ZERO, std=ONE, generator=generator())
        assert found.max() == 1.0

    def test_saturation_against_pillow(self) -> None:
        """Find each image's factor from one pixel, then let Pillow's own Color enhancer do the rest."""
        images = (batch(40, 3, 8, 8).float() * 0.4 + 76).byte()  # away from the ends, where nothing is cut off
        images[:, :, 0, 0] = torch.tensor([200, 60, 60])
        found = augment(images, (Colour(saturation=0.5),), mean=ZERO, std=ONE, generator=generator()) * 255
        grey = 0.299 * 200 + 0.587 * 60 + 0.114 * 60
        factors = (found[:, 1, 0, 0] - grey) / (60 - grey)
        assert 0.5 <= factors.min() < 0.6
        assert 1.4 < factors.max() <= 1.5001
        for image, result, factor in zip(images, found, factors, strict=True):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            expected = np.asarray(ImageEnhance.Color(picture).enhance(float(factor)), dtype=np.float32)
            assert np.abs(result.permute(1, 2, 0).numpy() - expected).max() < 1.6

    def test_saturation_leaves_one_channel_alone(self) -> None:
        images = batch(4, 1)
        found = augment(images, (Colour(saturation=0.5),), mean=(0.0,), std=(1.0,), generator=generator())
        assert torch.equal(found, normalise(images, mean=(0.0,), std=(1.0,)))

    def test_the_result_stays_in_the_range_of_pixels(self) -> None:
        wild = (Crop(), Flip(), Colour(brightness=1.0, saturation=1.0))
        found = augment(batch(200), wild, mean=ZERO, std=ONE, generator=generator())
        assert found.min() >= 0
        assert found.max() <= 1
        assert found.dtype == torch.float32
        assert found.shape == (200, 3, 32, 32)


class TestErasing:
    def erased(self, count: int, share: float, *before: Crop | Flip) -> tuple[Tensor, Tensor]:
        """Images with erasing and without, normalised so that no pixel is 0 by itself."""
        images = batch(count).clamp_min(1)
        return tuple(  # type: ignore[return-value]
            augment(images, variant, mean=ZERO, std=ONE, generator=generator())
            for variant in ((*before, Erase(share=share)), before)
        )

    def test_a_box_of_a_third_at_most_becomes_zero_and_the_rest_stays(self) -> None:
        found, plain = self.erased(400, 1.0, Crop(scale=(0.5, 1.0)), Flip())
        gone = found == 0
        assert torch.equal(gone.any(1), gone.all(1)), "in all channels alike"
        for box in gone[:, 0]:
            rows, columns = box.any(1).nonzero()[:, 0], box.any(0).nonzero()[:, 0]
            height, width = (int(t[-1] - t[0]) + 1 for t in (rows, columns))
            assert int(box.sum()) == height * width, "one whole rectangle"
        assert torch.equal(found[~gone], plain[~gone])
        areas = gone[:, 0].float().mean((1, 2))
        assert areas.min() > 0.01
        assert areas.max() < 1 / 3 + 0.03
        assert float(areas.mean()) == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)

    def test_so_many_images_and_none_at_zero(self) -> None:
        found, _ = self.erased(2000, 0.25)
        assert float((found == 0).flatten(1).any(1).float().mean()) == pytest.approx(0.25, abs=0.04)
        found, plain = self.erased(20, 0.0)
        assert torch.equal(found, plain)

    def test_images_that_are_all_pixel(self) -> None:
        images = torch.full((3, 1, 1, 1), 255, dtype=torch.uint8)
        found = augment(images, (Erase(share=1.0),), mean=(0.0,), std=(1.0,), generator=generator())
        assert found.flatten().tolist() == [0.0, 0.0, 0.0]


class TestChanged:
    LETTERS = ("a", "é", "7", "12")
    WORDS = ("ant", "b", "7")

    def test_nothing_asked_is_what_it_was(self) -> None:
        assert AugmentationChange().of(PAPER, self.WORDS, 32) == PAPER

    def test_each_alone(self) -> None:
        expected = {
            "crop_from": (0.5, (Crop(scale=(0.5, 1.0)), *PAPER[1:])),
            "flip": (False, (PAPER[0], PAPER[2])),
            "erase": (0.25, (*PAPER, Erase(share=0.25))),
            "alone": (True, ()),
            "also": ((CutMix(),), (*PAPER, CutMix())),
        }
        for key, (value, result) in expected.items():
            change = AugmentationChange.model_validate({key: value})
            assert change.of(PAPER, self.WORDS, 32) == result
            assert change.of(result, self.WORDS, 32) == result
        assert AugmentationChange(crop_from=1).of(PAPER, self.WORDS, 32) == PAPER[1:]
        assert AugmentationChange(crop_from=0.5).of((Flip(),), self.WORDS, 32) == (Crop(scale=(0.5, 1.0)), Flip())

    @pytest.mark.parametrize(("side", "least"), [(8, 0.8), (47, 0.8), (48, 0.5), (224, 0.5)])
    def test_small_images_keep_more_of_themselves(self, side: int, least: float) -> None:
        assert AugmentationChange(crop_from="auto").of((), self.WORDS, side) == (Crop(scale=(least, 1.0)),)
        quick = RECIPES["quick"].augmentation
        assert quick is not None
        assert quick.of(PAPER, self.WORDS, side)[0] == Crop(scale=(least, 1.0))

    def test_a_whole_list_of_ones_own(self) -> None:
        text = {
            "name": "own",
            "about": "Ours.",
            "phases": [{"name": "all", "epochs": 1}],
            "augmentation": {
                "alone": True,
                "also": [{"kind": "crop", "scale": [0.7, 1]}, {"kind": "mixup", "alpha": 0.4}],
            },
        }
        recipe = Recipe.parse(text, where="here")
        assert recipe.augmentation is not None
        assert recipe.augmentation.of(PAPER, self.WORDS, 32) == (Crop(scale=(0.7, 1.0)), Mixup(alpha=0.4))
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
        for wrong, said in (
            ([{"kind": "hop"}], "augmentation.also.0: "),
            ([{"kind": "crop", "scale": [0.7, 2]}], "augmentation.also.0.crop.scale: must be two rising numbers"),
            ([{"kind": "own", "function": "nothing"}], "must be your own function as package.module:name"),
        ):
            with pytest.raises(UserError, match=re.escape(said)):
                Recipe.parse(text | {"augmentation": {"also": wrong}}, where="here")

    @pytest.mark.parametrize("own", [True, False])
    def test_letters_and_digits_are_mirrored_only_where_that_is_said(self, own: bool) -> None:
        before: Augmentation = (Flip(),) if own else ()

        def flips(flip: Literal["auto"] | bool | None, names: tuple[str, ...]) -> bool:
            return AugmentationChange(flip=flip).of(before, names, 32) == (Flip(),)

        assert not flips("auto", self.LETTERS)
        assert flips("auto", self.WORDS) == own
        assert flips(True, self.LETTERS)
        assert flips(None, self.LETTERS) == own

    @pytest.mark.parametrize(
        ("name", "mirrored"), [("digits", False), ("mnist", False), ("fashion-mnist", True), ("cifar10", True)]
    )
    def test_known_data_sets_as_the_built_in_recipe_has_them(self, name: str, mirrored: bool) -> None:
        change = RECIPES["quick"].augmentation
        assert change is not None
        entry = TABLE[name]
        assert (Flip() in change.of(entry.augmentation, entry.class_names, 32)) == mirrored


class TestRandomness:
    def test_the_same_generator_gives_the_same_batch(self) -> None:
        a, b, c = (
            augment(batch(8), PAPER, mean=IMAGENET_MEAN, std=IMAGENET_STD, generator=generator(seed))
            for seed in (1, 1, 2)
        )
        assert torch.equal(a, b)
        assert not torch.equal(a, c)

    def test_global_generator_is_left_alone(self) -> None:
        torch.manual_seed(3)
        before = torch.get_rng_state()
        augment(batch(8), PAPER, mean=IMAGENET_MEAN, std=IMAGENET_STD, generator=generator())
        assert torch.equal(torch.get_rng_state(), before)

    def test_images_do_not_see_each_other(self) -> None:
        images = batch(16)
        others = images.clone()
        others[1:] = 255 - others[1:]
        a, b = (
            augment(x, PAPER, mean=IMAGENET_MEAN, std=IMAGENET_STD, generator=generator()) for x in (images, others)
        )
        assert torch.equal(a[0], b[0])
        assert not torch.equal(a[1], b[1])

    def test_each_image_draws_its_own(self) -> None:
        same = batch(1).expand(64, -1, -1, -1)
        found = augment(same, PAPER, mean=IMAGENET_MEAN, std=IMAGENET_STD, generator=generator())
        assert len({image.numpy().tobytes() for image in found}) == 64


class TestSettings:
    @pytest.mark.parametrize(
        ("kind", "wrong"),
        [
            (Crop, {"scale": (0.0, 1.0)}),
            (Crop, {"scale": (0.5, 0.4)}),
            (Crop, {"scale": (0.5, 1.1)}),
            (Crop, {"aspect": (0.0, 1.0)}),
            (Crop, {"aspect": (2.0, 1.0)}),
            (Colour, {"brightness": -0.1}),
            (Colour, {"saturation": 1.1}),
            (Colour, {"hue": 0.1}),
            (Mixup, {"alpha": 0}),
            (CutMix, {"share": 1.1}),
            (Own, {"function": "numpy"}),
        ],
    )
    def test_refused(self, kind: type[Settings], wrong: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            kind.model_validate(wrong)


def darkened(images_BCHW: Tensor, draw: Callable[[int], Tensor], *, by: float) -> Tensor:
    """An augmentation of a person's own."""
    return images_BCHW * (1 - by * draw(2)[:, 1, None, None, None])


def halved(images_BCHW: Tensor, draw: Callable[[int], Tensor]) -> Tensor:
    """One that gives images of another shape."""
    return images_BCHW[:, :, ::2]


class TestComposed:
    OWN = Own(function=f"{__name__}:darkened", settings={"by": 0.5})

    def one(self, image: Tensor, *varied: Variation) -> Tensor:
        return augment(image, varied, mean=ZERO, std=ONE, generator=generator())

    def test_ones_own_function_is_called_with_its_settings(self) -> None:
        images = torch.full((500, 3, 2, 2), 200, dtype=torch.uint8)
        factor = self.one(images, self.OWN).flatten(1) * 255 / 200
        assert torch.allclose(factor, factor[:, :1].expand_as(factor))
        assert 0.5 <= factor.min() < 0.51
        assert 0.99 < factor.max() <= 1

    def test_what_gives_another_shape_is_refused(self) -> None:
        with pytest.raises(UserError, match="must give float32 images of the shape"):
            self.one(batch(2), Own(function=f"{__name__}:halved"))
        with pytest.raises(UserError, match="cannot be imported"):
            self.one(batch(2), Own(function="no_such_module:f"))

    def test_order_counts_and_each_of_a_kind_draws_anew(self) -> None:
        images = batch(64)
        first, second = Colour(brightness=0.9), Crop(scale=(0.3, 0.5))
        assert not torch.allclose(self.one(images, first, self.OWN), self.one(images, self.OWN, first))
        halves = self.one(torch.arange(64, dtype=torch.uint8).repeat(400, 3, 8, 1), Flip(), Flip())
        mirrored = (halves[:, 0, 0, 0] > halves[:, 0, 0, -1]).float().mean()
        assert 0.4 < mirrored < 0.6, "two flips of one draw would always cancel"
        assert not torch.equal(self.one(images, second), self.one(images, second, second))

    @pytest.mark.parametrize(
        "varied",
        [(Erase(share=0.5), Crop()), (TrivialAugment(), Flip(), OWN), (Crop(), Crop(), Colour(saturation=0.5))],
        ids=str,
    )
    def test_a_share_becomes_what_it_does_in_the_whole_batch(self, varied: Augmentation) -> None:
        images = batch(11)
        whole = self.one(images, *varied)
        shard = Ranks(rank=1, size=3).shard(11)
        own = augment(images[shard.rows], varied, mean=ZERO, std=ONE, generator=generator(), shard=shard)
        assert torch.equal(own, whole[shard.rows])


def test_a_share_becomes_what_it_does_in_the_whole_batch() -> None:
    images = batch(11)
    whole = augment(images, PAPER, mean=IMAGENET_MEAN, std=IMAGENET_STD, generator=generator())
    for rank in range(3):
        shard = Ranks(rank=rank, size=3).shard(11)
        own = augment(
            images[shard.rows], PAPER, mean=IMAGENET_MEAN, std=IMAGENET_STD, generator=generator(), shard=shard
        )
        assert torch.equal(own, whole[shard.rows])
