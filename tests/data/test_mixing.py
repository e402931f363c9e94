"""Images made of two: what a mix is, and how often it is made."""

import random

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from trainonce.data.augment import drawn_mix, mix
from trainonce.recipes import Crop, CutMix, Flip, Mixup, Variation, follows_known, hides_known, mixes


class TestMixing:
    def mixed(self, *varied: Variation, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.rand(8, 3, 10, 10, generator=torch.Generator().manual_seed(1))
        rng = random.Random(seed)
        way = drawn_mix(varied, known=0.0, rng=rng)
        found, labels = mix(x, torch.arange(8), way, classes=8, rng=rng)
        return x, found, labels

    def test_mixup_is_a_mean_of_images_and_of_labels_by_one_weight(self) -> None:
        for seed in range(5):
            x, found, labels = self.mixed(Mixup(alpha=1.0), seed=seed)
            weight = float(labels[0, 0])
            assert 0 <= weight <= 1
            assert torch.allclose(found, weight * x + (1 - weight) * x.flip(0), atol=1e-6)
            assert torch.allclose(labels, weight * torch.eye(8) + (1 - weight) * torch.eye(8).flip(0))

    def test_cutmix_counts_the_pixels_of_each(self) -> None:
        for seed in range(20):
            x, found, labels = self.mixed(CutMix(), seed=seed)
            other = (found != x).all(1)
            assert torch.equal(other, other[:1].expand_as(other)), "one box in all images"
            assert torch.equal(found[:, :, other[0]], x.flip(0)[:, :, other[0]])
            rows, columns = other[0].any(1), other[0].any(0)
            assert int(other[0].sum()) == int(rows.sum()) * int(columns.sum())
            assert float(labels[0, 0]) == pytest.approx(1 - float(other[0].float().mean()), abs=1e-6)

    def test_weights_are_of_the_beta_distribution(self) -> None:
        weights = np.array([float(self.mixed(Mixup(alpha=0.4), seed=seed)[2][0, 0]) for seed in range(2000)])
        assert stats.kstest(weights, stats.beta(0.4, 0.4).cdf).pvalue > 1e-3

    def test_without_a_way_images_are_what_they_were(self) -> None:
        x, found, labels = self.mixed(Crop(), Flip())
        assert torch.equal(x, found)
        assert torch.equal(labels, torch.eye(8))

    def test_a_share_of_the_batches_is_mixed(self) -> None:
        """The others have the same images, and labels of zeros and ones; by default all are mixed."""
        for way in (Mixup(alpha=1.0), CutMix()):
            some = way.model_copy(update={"share": 0.25})
            plain = 0
            for seed in range(400):
                x, found, labels = self.mixed(some, seed=seed)
                if torch.equal(found, x):
                    plain += 1
                    assert torch.equal(labels, torch.eye(8))
            assert 270 <= plain <= 330, "300 on average, of standard deviation 8.7"

    @pytest.mark.parametrize(
        ("known", "share"), [(0.0, 0.0), (0.7, 0.0), (0.85, 0.5), (0.94, 0.8), (1.0, 1.0)], ids=str
    )
    def test_the_share_grows_with_what_is_known(self, known: float, share: float) -> None:
        way = CutMix(once_known=0.7)
        assert way.share_at(known) == pytest.approx(share)
        assert CutMix(once_known=0.7, share=0.6).share_at(known) == pytest.approx(min(share, 0.6))
        assert CutMix(share=0.3).share_at(known) == 0.3
        assert CutMix(once_known=0.0).share_at(known) == known
        mixed = sum(drawn_mix((Crop(), way), known=known, rng=random.Random(seed)) is way for seed in range(400))
        assert stats.binomtest(mixed, 400, way.share_at(known)).pvalue > 1e-3

    def test_one_of_two_ways_is_drawn(self) -> None:
        boxes = [bool((found == x).any()) for x, found, _ in (self.mixed(Mixup(), CutMix(), seed=s) for s in range(40))]
        assert 8 < sum(boxes) < 32


def test_what_is_known_shows_where_some_batches_are_not_mixed() -> None:
    for plain in ((), (Crop(), Flip())):
        assert not mixes(plain)
        assert not hides_known(plain)
        for way in (CutMix(), Mixup()):
            assert hides_known((*plain, way))
            assert mixes((*plain, way))
        assert not follows_known((*plain, CutMix()))
        assert follows_known((*plain, Mixup(once_known=0.5)))
        for way in (CutMix(share=0.9), Mixup(once_known=0.5)):
            assert not hides_known((*plain, way))
            assert mixes((*plain, way))
