"""Several processes that train one network: who they are, and the little they say to each other.

`torchrun` starts the processes, each with its rank in the environment. What a step draws follows from the seed,
so ranks agree on it without talking; what they have to exchange goes through a `Ranks`, whose every method does
nothing where there is one process alone.
"""

import json
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainonce.errors import RunError, UserError

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for another: longer than writing a checkpoint takes, shorter than a night."""

LOOK_FOR_LAUNCHER_S = 1.0
"""How often a rank looks whether what launched it is still there."""
STOP_WITHIN_S = 7.0
"""How long a rank whose launcher is gone may take to stop and save, as at SIGTERM, before it is ended."""


@dataclass(frozen=True)
class BatchShard:
    """The rows `start` up to, not including, `stop` of a batch of `total` images: what one rank holds of it."""

    start: int
    stop: int
    total: int

    @property
    def rows(self) -> slice:
        """These rows of a tensor that has the whole batch's."""
        return slice(self.start, self.stop)

    @property
    def fraction(self) -> float:
        """Their part of the batch; exactly 1 where they are all of it."""
        return (self.stop - self.start) / self.total

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that train together. The defaults are a process alone.

    Every rank must call the methods in the same order. They raise `RunError` where another process has ended or
    does not answer within `TIMEOUT`.
    """

    rank: int = 0
    """This process's number, from 0."""
    size: int = 1
    """How many processes there are, on all hosts."""
    device: str = "cpu"
    """The torch device that this process computes on, as the process group was made for it."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def shard(self, total: int) -> BatchShard:
        """The rows of a batch of `total` images that are this rank's; ranks differ by one row at most.

        Raises `UserError` where a rank would have fewer than the two that batch norm needs.
        """
        if not self.alone and total // self.size < 2:
            raise UserError(
                f"a batch of {total} images leaves one of {self.size} processes with {total // self.size}, and batch "
                "norm needs 2 or more: use fewer processes or a larger batch"
            )
        return BatchShard(total * self.rank // self.size, total * (self.rank + 1) // self.size, total)

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace a tensor, in place, by its sum over all ranks; the result has the same bits on each."""
        if not self.alone:
            with _others_answering():
                dist.all_reduce(tensor)
        return tensor

    def collect(self, tensor: Tensor) -> Tensor:
        """The tensors [...] of all ranks as one [size, ...]. They must have the same shape."""
        if self.alone:
            return tensor[None]
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        with _others_answering():
            dist.all_gather(found, tensor.contiguous())
        return torch.stack(found)

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors, in place, by those of rank 0."""
        if self.alone:
            return
        for tensor in tensors:
            with _others_answering():
                dist.broadcast(tensor, src=0)

    def collect_json(self, value: Any) -> list[Any]:
        """The JSON values of all ranks, in their order. Waits for the device: not for use in a step."""
        if self.alone:
            return [value]
        text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=self.device)
        lengths = self.collect(torch.tensor(len(text), device=self.device)).tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8, device=self.device)
        padded[: len(text)] = text
        rows = self.collect(padded).cpu()
        return [json.loads(bytes(row[:length].tolist())) for row, length in zip(rows, lengths, strict=True)]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A stretch that every rank comes out of alike: where one refuses, all raise what it raised.

        Of several refusals that of the lowest rank is raised. No rank may talk to others inside.
        """
        if self.alone:
            yield
            return
        refusal: UserError | RunError | None = None
        try:
            yield
        except (UserError, RunError) as error:
            refusal = error
        said = self.collect_json(None if refusal is None else [isinstance(refusal, UserError), str(refusal)])
        for rank, words in enumerate(said):
            if words is not None:
                users, sentence = words
                kind = UserError if users else RunError
                raise everywhere(kind(sentence if rank == 0 else f"process {rank}: {sentence}")) from refusal


def sum_gradients(parameters: Iterable[nn.Parameter], beside: Tensor, ranks: Ranks) -> Tensor:
    """Sum the gradients over all ranks, and `beside`, a vector, with them in one exchange; gives its sum.

    Parameters without a gradient stay without: the ranks train the same subnets and so leave out the same ones.
    """
    if ranks.alone:
        return beside
    used = [(p, p.grad) for p in parameters if p.grad is not None]
    sums = ranks.sum(torch.cat([*(gradient.flatten() for _, gradient in used), beside]))
    *pieces, beside = torch.split(sums, [*(p.numel() for p, _ in used), len(beside)])
    for (parameter, _), piece in zip(used, pieces, strict=True):
        parameter.grad = piece.view_as(parameter)
    return beside


def everywhere(error: UserError | RunError) -> UserError | RunError:
    """Mark an error as one that every rank raises, so that one need say it."""
    error.everywhere = True
    return error


@contextmanager
def process_group(device: str, *, timeout: timedelta = TIMEOUT) -> Iterator[Ranks]:
    """Join the other processes that `torchrun` started, and leave them at the end; alone where there are none.

    Where torchrun dies meanwhile, this process gets SIGTERM, and ends at the latest `STOP_WITHIN_S` later.
    `device` is cpu (the ranks then talk through gloo) or cuda (nccl, each process on the GPU of its local rank).
    Raises `UserError` where the environment or the device do not fit, `RunError` where the others do not come.
    """
    ranks = ranks_in(os.environ, device)
    if ranks.alone:
        yield ranks
        return
    on_gpu = ranks.device != "cpu"
    if on_gpu:
        torch.cuda.set_device(ranks.device)
    with _ending_with_launcher():
        try:
            dist.init_process_group(
                "nccl" if on_gpu else "gloo", timeout=timeout, device_id=torch.device(ranks.device) if on_gpu else None
            )
        except (RuntimeError, ValueError) as error:
            raise RunError(f"process {ranks.rank} of {ranks.size} could not join the others: {_gist(error)}") from error
        try:
            yield ranks
        finally:
            dist.destroy_process_group()


@contextmanager
def _ending_with_launcher() -> Iterator[None]:
    """Inside, a thread ends this process soon after the one that launched it has ended, however that did."""
    launcher, left = os.getppid(), threading.Event()

    def watch() -> None:
        while os.getppid() == launcher:
            if left.wait(LOOK_FOR_LAUNCHER_S):
                return
        os.kill(os.getpid(), signal.SIGTERM)
        if not left.wait(STOP_WITHIN_S):  # it waits for a rank that is gone, or takes too long
            os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        left.set()


def is_first_process() -> bool:
    """Whether this is rank 0 of those that `torchrun` started, or a process alone."""
    return os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """Which process of this host this is, from 0: the number of its GPU."""
    return _whole_number(os.environ, "LOCAL_RANK", default=0)


def ranks_in(environment: Mapping[str, str], device: str) -> Ranks:
    """This process's place, from the variables that `torchrun` sets. Raises `UserError` where they do not fit."""
    size = _whole_number(environment, "WORLD_SIZE", default=1)
    if size == 1:
        return Ranks(device=device)
    rank, local_rank = (_whole_number(environment, name) for name in ("RANK", "LOCAL_RANK"))
    if not 0 <= rank < size:
        raise UserError(f"the environment's RANK is {rank}, which is not one of WORLD_SIZE={size} processes")
    if device == "cpu":
        return Ranks(rank=rank, size=size)
    if device != "cuda":
        raise UserError(f"with several processes each takes its own GPU: ask for the device cuda, not {device}")
    if local_rank >= torch.cuda.device_count():
        raise UserError(f"process {local_rank} of this host has no GPU: there are {torch.cuda.device_count()}")
    return Ranks(rank=rank, size=size, device=f"cuda:{local_rank}")


def _whole_number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, default)
    try:
        return int(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UserError(
            f"the environment's {name} is {text!r}, not a number: start several processes with torchrun"
        ) from None


@contextmanager
def _others_answering() -> Iterator[None]:
    """Turn what the process group raises into a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            f"another process of this run has ended or does not answer ({_gist(error)}); "
            "what is saved is whole: start all of them again with --resume"
        ) from error


def _gist(error: Exception) -> str:
    """The first sentence of what torch says, which is followed by advice and stack traces."""
    return str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
