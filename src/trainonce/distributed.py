"""Ranks: the processes that torchrun starts, and the group in which they talk."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from trainonce.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Which of how many processes this is, as torchrun counts them: alone unless it says otherwise."""

    rank: int = 0
    """0 up to one less than `size`."""
    size: int = 1
    """How many processes there are on all machines."""
    local_rank: int = 0
    """Which process of this machine: the number of its GPU."""


def ranks_from_environment() -> Ranks:
    """What torchrun's RANK, WORLD_SIZE and LOCAL_RANK say. Raises `UserError` where they are not whole numbers."""
    if not {"RANK", "WORLD_SIZE"} <= set(os.environ):
        return Ranks()
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return Ranks(rank=rank, size=size, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    except ValueError as error:
        raise UserError(f"torchrun's RANK, WORLD_SIZE and LOCAL_RANK are to be whole numbers: {error}") from None


@contextmanager
def process_group(ranks: Ranks) -> Iterator[None]:
    """The group in which the ranks talk, by the CPU; each has a GPU of its own where there are any."""
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local_rank % torch.cuda.device_count())
    dist.init_process_group("gloo", rank=ranks.rank, world_size=ranks.size)
    try:
        yield
    finally:
        dist.destroy_process_group()
