"""Masks drawn for a whole batch, of which each rank uses its rows."""

import pytest
import torch
from torch import nn

from trainonce.nn.dropout import BatchDropout, DrawnMasks, HeldMasks, batch_dropouts, drawing
from trainonce.parallel.distributed import BatchShard, Ranks


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shares_put_together_are_the_whole() -> None:
    layer, x = BatchDropout(0.4), torch.rand(11, 30) + 1
    with drawing([layer], DrawnMasks(generator(), BatchShard(0, 11, 11))):
        whole = layer(x)
    parts = []
    for rank in range(3):
        shard = Ranks(rank=rank, size=3).shard(11)
        with drawing([layer], DrawnMasks(generator(), shard)):
            parts.append(layer(x[shard.rows]))
    assert torch.equal(torch.cat(parts), whole)
    kept = whole != 0
    torch.testing.assert_close(whole[kept], x[kept] / 0.6)
    assert 0.5 < kept.float().mean() < 0.7


def test_one_process_has_torchs_own_dropout_of_that_seed() -> None:
    layer, x = BatchDropout(0.1), torch.randn(8, 40)
    with drawing([layer], DrawnMasks(generator(), BatchShard(0, 8, 8))):
        found = layer(x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        assert torch.equal(found, nn.Dropout(0.1)(x))
        torch.manual_seed(3)
        assert torch.equal(found, layer(x)), "elsewhere it draws from the global generator"


def test_masks_follow_one_another_and_pass_gradients() -> None:
    layer, x = BatchDropout(0.5), torch.ones(4, 20, requires_grad=True)
    state = torch.get_rng_state()
    with drawing([layer], DrawnMasks(generator(), BatchShard(0, 4, 4))):
        first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    assert torch.equal(torch.autograd.grad(first.sum(), x)[0], first.detach())
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.masks is None


def test_masks_held_in_place_are_those_drawn() -> None:
    """Two layers of other widths and probabilities, a shard of a batch, several steps of one generator each."""
    layers, shard = [BatchDropout(0.3), BatchDropout(0.6)], BatchShard(2, 5, 7)
    x, held = [torch.ones(3, 9), torch.ones(3, 4)], HeldMasks(shard)
    with drawing(layers, held):
        for layer, y in zip(layers, x, strict=True):
            layer(y)
    places = [mask.data_ptr() for mask, _ in held.held]
    for seed in range(3):
        with drawing(layers, DrawnMasks(generator(seed), shard)):
            expected = [layer(y) for layer, y in zip(layers, x, strict=True)]
        held.draw(generator(seed))
        with drawing(layers, held):
            assert all(torch.equal(layer(y), e) for layer, y, e in zip(layers, x, expected, strict=True))
    assert [mask.data_ptr() for mask, _ in held.held] == places


@pytest.mark.parametrize("layer", [BatchDropout(0.5).eval(), BatchDropout(0.0)])
def test_nothing_is_drawn_where_nothing_is_dropped(layer: BatchDropout) -> None:
    draws, x = generator(), torch.randn(4, 5)
    with drawing([layer], DrawnMasks(draws, BatchShard(0, 4, 4))):
        assert layer(x) is x
    assert torch.equal(draws.get_state(), generator().get_state())


def test_plain_dropout_becomes_ours_and_stays_the_same_object() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.3), nn.Dropout(0.2).eval()))
    before, names = list(net.modules()), list(net.state_dict())
    found = batch_dropouts(net)
    assert [(layer.p, layer.training) for layer in found] == [(0.3, True), (0.2, False)]
    assert all(one is other for one, other in zip(net.modules(), before, strict=True))
    assert found == before[-2:] == batch_dropouts(net)
    assert list(net.state_dict()) == names
