"""The batches of a training: every image once an epoch, the same from any place on, each rank its shard of them."""

from collections.abc import Callable

import pytest
import torch

from trainonce.data import DataSet
from trainonce.parallel.distributed import BatchShard
from trainonce.recipes import Augmentation, Crop, CutMix, Flip, Phase, Recipe, timetable
from trainonce.training.batches import Batches, TrainBatch

MakeData = Callable[..., DataSet]
TOTAL = 10
RECIPE = Recipe(name="r", about="", phases=(Phase(name="a", epochs=2), Phase(name="b", epochs=1)), batch_size=TOTAL)


def taken(data: DataSet, shard: BatchShard, *, first: int = 0) -> list[TrainBatch]:
    """All batches from `first` on, of images of which half are known."""
    per_epoch = RECIPE.steps_per_epoch(len(data.train))
    table = timetable(RECIPE, per_epoch)
    batches = Batches(data, table, shard, steps_per_epoch=per_epoch, seed=7, device=torch.device("cpu"))
    places = [(entry.index, in_phase) for entry in table for in_phase in range(entry.steps)]
    with batches.loading(first):
        return [batches.take(*place, known=0.5) for place in places[first:]]


@pytest.fixture(params=[(Crop(scale=(0.5, 1.0)), Flip()), (Flip(), CutMix(share=0.5))], ids=["varied", "mixed"])
def data(request: pytest.FixtureRequest, make_data: MakeData) -> DataSet:
    augmentation: Augmentation = request.param
    return make_data(augmentation=augmentation)


def test_every_image_is_seen_once_an_epoch_but_for_a_ragged_end(data: DataSet) -> None:
    assert len(data.train) == 32
    found = taken(data, BatchShard(0, TOTAL, TOTAL))
    assert len(found) == 9
    epochs = [torch.cat([one.rows_B for one in found[i : i + 3]]).tolist() for i in (0, 3, 6)]
    assert all(len(set(rows)) == len(rows) == 30 for rows in epochs)
    assert len(set(map(tuple, epochs))) == 3, "each in an order of its own"
    for one in found:
        if not one.mixed:
            labels_B = one.y_B if one.y_B.dim() == 1 else one.y_B.argmax(1)
            assert torch.equal(labels_B, data.train.labels[one.rows_B])
    assert any(one.mixed for one in found) == (one.y_B.dim() == 2)


@pytest.mark.parametrize("first", [1, 3, 5, 8])
def test_from_any_place_on_they_are_the_same(data: DataSet, first: int) -> None:
    whole = BatchShard(0, TOTAL, TOTAL)
    same(taken(data, whole, first=first), taken(data, whole)[first:])


def test_ranks_have_the_shards_of_one_batch(data: DataSet) -> None:
    shards = [taken(data, BatchShard(*part, TOTAL)) for part in ((0, 4), (4, TOTAL))]
    joined = [
        TrainBatch(torch.cat([a.x_BCHW, b.x_BCHW]), torch.cat([a.y_B, b.y_B]), a.rows_B, a.mixed)
        for a, b in zip(*shards, strict=True)
    ]
    same(joined, taken(data, BatchShard(0, TOTAL, TOTAL)))


def same(found: list[TrainBatch], expected: list[TrainBatch]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.mixed == other.mixed
        assert all(map(torch.equal, one[:3], other[:3]))
