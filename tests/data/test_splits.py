"""Splits: disjoint, stratified, complete, the same from the same seed, and nothing global touched."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from trainonce.data.splits import Published, Sizes, Split, Splits, carve, default_sizes, fewer
from trainonce.errors import UserError


def numbered(labels: list[int]) -> Split:
    """Make a split whose image i says i in its four pixels."""
    numbers = torch.arange(len(labels))
    images = torch.stack([(numbers >> shift) & 255 for shift in (0, 8, 16, 24)], 1).to(torch.uint8)
    return Split(images.view(-1, 1, 2, 2), torch.tensor(labels))


def numbers(split: Split) -> list[int]:
    flat = split.images.flatten(1).long()
    return [int(n) for n in (flat * torch.tensor([1, 1 << 8, 1 << 16, 1 << 24])).sum(1)]


def published(labels: list[int], classes: int) -> Published:
    return Published(class_names=tuple("abcdefghijklmnop"[:classes]), train=numbered(labels))


def check_partition(splits: Splits, labels: list[int]) -> None:
    everything = [n for split in splits for n in numbers(split)]
    assert sorted(everything) == list(range(len(labels)))
    for split in splits:
        assert split.labels.tolist() == [labels[n] for n in numbers(split)]


class TestSplit:
    def test_length_and_device(self) -> None:
        split = numbered([0, 1, 0])
        assert len(split) == 3
        moved = split.to("meta")
        assert moved.images.device.type == moved.labels.device.type == "meta"

    def test_refuses_what_is_not_ours(self) -> None:
        labels, images = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
        with pytest.raises(UserError, match="images must be uint8 from 0 to 255, not float32"):
            Split(images.float(), labels)
        with pytest.raises(UserError, match=r"images must have the shape \[N, C, H, W\], not \[2, 3, 3\]"):
            Split(images[:, 0], labels)
        with pytest.raises(UserError, match="labels must be int64, not int32"):
            Split(images, labels.int())
        with pytest.raises(UserError, match=r"2 images need labels of the shape \[2\], not \[3\]"):
            Split(images, torch.zeros(3, dtype=torch.int64))


class TestCarve:
    def test_sizes_are_exact_and_shares_kept_to_within_one(self) -> None:
        labels = np.random.default_rng(1).choice(7, p=[0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05], size=3000).tolist()
        splits = carve(published(labels, 7), sizes=Sizes(101, 299, 450), seed=3, where="x")
        check_partition(splits, labels)
        assert [len(split) for split in splits] == [2150, 101, 299, 450]
        share = np.bincount(labels) / len(labels)
        for split in splits:
            found = np.bincount(split.labels.numpy(), minlength=7)
            assert np.abs(found - share * len(split)).max() <= 2

    def test_equal_classes_are_split_equally(self) -> None:
        splits = carve(published(list(range(10)) * 50, 10), sizes=Sizes(20, 80, 100), seed=0, where="x")
        for split, each in zip(splits, (30, 2, 8, 10), strict=True):
            assert torch.bincount(split.labels).tolist() == [each] * 10

    def test_given_splits_are_left_as_they_are(self) -> None:
        test, labels = numbered([0, 1, 2]), [0, 1, 2] * 20
        source = Published(class_names=("a", "b", "c"), train=numbered(labels), test=test)
        splits = carve(source, sizes=default_sizes(source), seed=0, where="x")
        assert splits.test is test
        assert sorted(n for split in splits[:3] for n in numbers(split)) == list(range(60))

    def test_follows_from_the_seed_alone(self) -> None:
        source = published([0, 1] * 100, 2)
        drawn = [
            [numbers(split) for split in carve(source, sizes=Sizes(10, 20, 30), seed=seed, where="x")]
            for seed in (5, 5, 6)
        ]
        assert drawn[0] == drawn[1]
        assert drawn[0] != drawn[2]

    def test_the_seed_means_the_same_on_every_machine(self) -> None:
        """Pin the draw: a change here would silently mix test images into old runs."""
        splits = carve(published([0, 1] * 10, 2), sizes=Sizes(2, 2, 4), seed=0, where="x")
        assert [numbers(split) for split in splits[1:]] == [[13, 14], [4, 7], [5, 8, 12, 19]]

    def test_global_generators_are_left_alone(self) -> None:
        torch.manual_seed(0)
        before, np_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
        carve(published([0, 1] * 20, 2), sizes=Sizes(2, 4, 4), seed=9, where="x")
        assert torch.equal(torch.get_rng_state(), before)
        assert (np.random.get_state()[1] == np_before).all()  # type: ignore[index]

    def test_too_few_of_a_class(self) -> None:
        source = published([0] * 50 + [1] * 2, 2)
        wrong = "x: class 'b' has 2 training images, but at least 3 are needed to put one in each of train, val"
        with pytest.raises(UserError, match=wrong):
            carve(source, sizes=default_sizes(source), seed=0, where="x")

    def test_too_few_in_all(self) -> None:
        source = published([0, 1] * 3, 2)
        with pytest.raises(UserError, match="x has 6 training images, but at least 7 are needed"):
            carve(source, sizes=default_sizes(source), seed=0, where="x")

    def test_negative_seed(self) -> None:
        source = published([0, 1] * 30, 2)
        with pytest.raises(UserError, match="split seed must be 0 or more, not -1"):
            carve(source, sizes=default_sizes(source), seed=-1, where="x")

    @settings(deadline=None, max_examples=80)
    @given(
        counts=st.lists(st.integers(1, 60), min_size=2, max_size=12),
        has_test=st.booleans(),
        has_validate=st.booleans(),
        seed=st.integers(0, 99),
    )
    def test_any_counts(self, counts: list[int], has_test: bool, has_validate: bool, seed: int) -> None:
        labels = [c for c, count in enumerate(counts) for _ in range(count)]
        source = Published(
            class_names=tuple(str(c) for c in range(len(counts))),
            train=numbered(labels),
            validate=numbered([0]) if has_validate else None,
            test=numbered([0]) if has_test else None,
        )
        sizes = default_sizes(source)
        try:
            splits = carve(source, sizes=sizes, seed=seed, where="x")
        except UserError:
            needed = 3 - has_test - has_validate
            assert min(counts) < needed or sum(counts) < needed * len(counts) + sizes.calibrate
            return
        own = [splits.train, splits.calibrate]
        own += [splits.validate] * (not has_validate) + [splits.test] * (not has_test)
        assert sorted(n for split in own for n in numbers(split)) == list(range(len(labels)))
        assert len(splits.calibrate) >= 1
        for split in (splits.train, *own[2:]):
            assert torch.bincount(split.labels, minlength=len(counts)).all()


class TestFewer:
    def test_shares_are_kept_and_more_hold_fewer(self) -> None:
        labels = np.random.default_rng(1).choice(5, p=[0.4, 0.3, 0.1, 0.1, 0.1], size=2000).tolist()
        split, before = numbered(labels), set[int]()
        for count in (100, 500, 2000):
            found = fewer(split, count, seed=3, where="x")
            assert len(found) == count
            assert found.labels.tolist() == [labels[n] for n in numbers(found)]
            share = np.bincount(labels) * count / len(labels)
            assert np.abs(np.bincount(found.labels.numpy()) - share).max() < 1
            assert before <= set(numbers(found))
            before = set(numbers(found))
        assert numbers(fewer(split, 100, seed=3, where="x")) == numbers(fewer(split, 100, seed=3, where="y"))
        assert numbers(fewer(split, 100, seed=3, where="x")) != numbers(fewer(split, 100, seed=4, where="x"))

    def test_a_rare_class_stays(self) -> None:
        found = fewer(numbered([0] * 98 + [1, 2]), 4, seed=0, where="x")
        assert sorted(found.labels.tolist()) == [0, 0, 1, 2]

    @pytest.mark.parametrize("count", [0, 2, 101])
    def test_what_cannot_be(self, count: int) -> None:
        with pytest.raises(UserError, match=f"x has 100 training images of 3 classes: .* and {count} does not"):
            fewer(numbered([0] * 98 + [1, 2]), count, seed=0, where="x")


class TestDefaultSizes:
    def test_fractions_and_the_most_for_calibrating(self) -> None:
        labels = [0, 1] * 500
        assert default_sizes(published(labels, 2)) == Sizes(calibrate=50, validate=100, test=150)
        many = Published(
            class_names=("a", "b"),
            train=Split(torch.zeros(50_000, 1, 1, 1, dtype=torch.uint8), torch.zeros(50_000, dtype=torch.int64)),
        )
        assert default_sizes(many).calibrate == 2000


class TestFolds:
    @given(data=st.data(), classes=st.integers(2, 5), folds=st.integers(2, 6), seed=st.integers(0, 999))
    @settings(max_examples=30, deadline=None)
    def test_every_image_is_tested_once(self, data: st.DataObject, classes: int, folds: int, seed: int) -> None:
        """In shares of the classes that are as even as scikit-learn's."""
        counts = [data.draw(st.integers(max(folds, 4), 40)) for _ in range(classes)]
        labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), counts)).tolist()
        sizes, tested = Sizes(0, classes, 1), list[int]()
        theirs = StratifiedKFold(folds, shuffle=True, random_state=0).split(np.zeros(len(labels)), labels)
        sums = []
        for number, (_, their_test) in zip(range(1, folds + 1), theirs, strict=True):
            splits = carve(published(labels, classes), sizes=sizes, seed=seed, where="x", fold=(number, folds))
            check_partition(splits, labels)
            tested += numbers(splits.test)
            sums.append(len(splits.test))
            ours = np.bincount(splits.test.labels, minlength=classes)
            assert abs(ours - np.bincount(np.array(labels)[their_test], minlength=classes)).max() <= 1
            assert ours.min() >= 1
        assert sorted(tested) == list(range(len(labels)))
        assert max(sums) - min(sums) <= 1

    def test_a_seed_divides_otherwise(self) -> None:
        labels = [0, 1] * 50
        tests = [
            numbers(carve(published(labels, 2), sizes=Sizes(2, 4, 9), seed=seed, where="x", fold=(2, 5)).test)
            for seed in (0, 0, 1)
        ]
        assert tests[0] == tests[1] != tests[2]

    def test_what_cannot_be_is_refused(self) -> None:
        few = published([0] * 20 + [1] * 3, 2)
        with pytest.raises(UserError, match="pets: class 'b' has 3 images, which is enough for so many folds at most"):
            carve(few, sizes=Sizes(1, 2, 3), seed=0, where="pets", fold=(1, 4))
        for fold in ((0, 2), (3, 2), (1, 1)):
            with pytest.raises(UserError, match="2 folds or more, numbered from 1"):
                carve(few, sizes=Sizes(1, 2, 3), seed=0, where="pets", fold=fold)
        divided = Published(class_names=("a", "b"), train=few.train, test=numbered([0, 1]))
        with pytest.raises(UserError, match="pets has a test split of its own"):
            carve(divided, sizes=Sizes(1, 2, 0), seed=0, where="pets", fold=(1, 2))
