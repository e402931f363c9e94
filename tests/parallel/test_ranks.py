"""Ranks by themselves: their shards, their environment, and one alone."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainonce.errors import RunError, UserError
from trainonce.parallel.distributed import BatchShard, Ranks, process_group, ranks_in, sum_gradients


class TestRanks:
    @given(st.integers(1, 500), st.integers(1, 16))
    def test_shards_are_even_and_whole(self, total: int, size: int) -> None:
        ranks = [Ranks(rank=rank, size=size) for rank in range(size)]
        if size > 1 and total // size < 2:
            with pytest.raises(UserError, match="use fewer processes or a larger batch"):
                ranks[0].shard(total)
            return
        shards = [r.shard(total) for r in ranks]
        assert [row for shard in shards for row in range(total)[shard.rows]] == list(range(total))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1
        assert sum(shard.fraction for shard in shards) == pytest.approx(1)
        assert Ranks().shard(total).fraction == 1

    def test_alone_nothing_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        with process_group("cpu") as ranks:
            assert ranks == Ranks()
            assert ranks.first
            assert ranks.alone
            x = torch.arange(3.0)
            assert ranks.sum(x) is x
            assert torch.equal(ranks.collect(x), x[None])
            assert ranks.collect_json({"a": 1}) == [{"a": 1}]
            ranks.copy_from_first([x])
            parameter = torch.nn.Parameter(torch.zeros(2))
            assert sum_gradients([parameter], x, ranks) is x
            assert parameter.grad is None
            error = RunError("the disk is full")
            with pytest.raises(RunError) as caught, ranks.together():
                raise error
            assert caught.value is error
        assert not torch.distributed.is_initialized()

    @pytest.mark.parametrize(
        ("environment", "device", "says"),
        [
            ({"WORLD_SIZE": "two"}, "cpu", "WORLD_SIZE is 'two', not a number"),
            ({"WORLD_SIZE": "2"}, "cpu", "RANK is None, not a number: start several processes with torchrun"),
            ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, "cpu", "RANK is 2, which is not one of"),
            ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}, "cuda:1", "ask for the device cuda, not cuda:1"),
            ({"WORLD_SIZE": "99", "RANK": "98", "LOCAL_RANK": "98"}, "cuda", "process 98 of this host has no GPU"),
        ],
    )
    def test_environments_that_do_not_fit(self, environment: dict[str, str], device: str, says: str) -> None:
        with pytest.raises(UserError, match=re.escape(says)):
            ranks_in(environment, device)

    def test_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        of_one = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
        assert ranks_in(of_one, "cuda:1") == Ranks(device="cuda:1")
        of_many = {"WORLD_SIZE": "16", "RANK": "11", "LOCAL_RANK": "3"}
        assert ranks_in(of_many, "cpu") == Ranks(rank=11, size=16)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
        assert ranks_in(of_many, "cuda") == Ranks(rank=11, size=16, device="cuda:3")

    def test_nobody_comes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("MASTER_ADDR", raising=False)
        says = r"process 1 of 2 could not join the others: .*MASTER_ADDR"
        with pytest.raises(RunError, match=says), process_group("cpu"):
            pass


def test_a_shard_is_a_slice() -> None:
    shard = BatchShard(2, 5, 9)
    assert len(shard) == 3
    assert list(range(9))[shard.rows] == [2, 3, 4]
    assert shard.fraction == 1 / 3
