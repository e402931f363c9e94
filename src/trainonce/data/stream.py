"""Image files that stay on disk and are decoded when they are asked for, ahead of need by worker processes.

The workers are those of torch's DataLoader. They are told what to decode batch by batch, so they hold no list of
files and their memory does not grow with the folder.
"""

import math
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainonce.data.decode import decode_image
from trainonce.data.picture import Interpolation
from trainonce.errors import RunError, UserError
from trainonce.limits import refuse_beyond_memory

MOST_WORKERS = 16
BATCHES_AHEAD = 2  # of each worker
GRACE_S = 10  # that a worker goes on after SIGTERM
CPU = torch.device("cpu")

# Not plain forking: a forked worker inherits the lock of the run directory and holds it for seconds after a crash of
# its parent, and may inherit locks that other threads hold. macOS's libraries do not survive any forking.
START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"


def default_workers() -> int:
    """How many processes decode: one for each core but one, at least 1 and at most `MOST_WORKERS`."""
    return min(MOST_WORKERS, max(1, (os.cpu_count() or 1) - 1))


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFiles:
    """N files that become uint8 [N, C, image_size, image_size], C 1 if `grey` else 3; decoded for each use.

    `names` are their paths below `root` (absolute), in the file system's bytes: one compact array, for a million
    files are as many Python objects otherwise. Images are given on `device`. `workers` processes decode; where it is
    0, this one does.
    """

    root: Path
    names: npt.NDArray[np.bytes_]
    image_size: int
    grey: bool
    workers: int
    interpolation: Interpolation = "bilinear"
    device: torch.device = CPU

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of all the images together: [N, C, H, W]."""
        return len(self.names), 1 if self.grey else 3, self.image_size, self.image_size

    def take(self, indices: npt.NDArray[np.int64]) -> Self:
        """Give the files at `indices`, int64 [M], in that order."""
        return replace(self, names=self.names[indices])

    def to(self, device: torch.device | str) -> Self:
        """Give the same files, whose images will be on `device`."""
        return replace(self, device=torch.device(device))

    def paths(self, rows_B: Tensor) -> list[str]:
        """Give the paths of the files at `rows_B`, int64 [B]."""
        return [str(self.root / os.fsdecode(name)) for name in self.names[rows_B.cpu().numpy()].tolist()]

    def batch(self, rows_B: Tensor) -> Tensor:
        """Decode the files at `rows_B`, int64 [B], now and in this process.

        Raises `UserError` on a broken one, and where all would not fit into memory.
        """
        needed = len(rows_B) * math.prod(self.shape[1:])
        refuse_beyond_memory(needed, f"{len(rows_B)} images of {self.image_size} x {self.image_size} pixels")
        return _checked(self._decoder()[self.paths(rows_B)]).to(self.device)

    def batches(self, rows: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        """Decode batch after batch, each of the files at one of `rows`, int64 [B]; in that order and ahead of need.

        Every worker is given `BATCHES_AHEAD` batches, so `rows` is read ahead by so many and no more. Workers start
        with the first batch and end when the generator does. Raises `UserError` that names a broken file when its
        batch is due, and `RunError` where a worker died.
        """
        several = self.workers > 0
        if several and START_METHOD == "forkserver":  # torch is imported once, not by every worker
            multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
        loader = DataLoader(
            self._decoder(),
            batch_size=None,
            sampler=(self.paths(rows_B) for rows_B in rows),
            num_workers=self.workers,
            prefetch_factor=BATCHES_AHEAD if several else None,
            multiprocessing_context=START_METHOD if several else None,
            worker_init_fn=_begin_worker,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the global one
        )
        try:
            for decoded in loader:
                yield _checked(decoded).to(self.device, non_blocking=True)
        except (RuntimeError, EOFError, OSError) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise RunError(
                f"a process that decodes images died ({reason}); what the run has saved is safe. "
                "A script of your own must be under `if __name__ == '__main__':`"
            ) from error

    def _decoder(self) -> "_Decoder":
        return _Decoder(image_size=self.image_size, grey=self.grey, interpolation=self.interpolation)


@dataclass(frozen=True, kw_only=True)
class _Decoder(Dataset[Tensor | str]):
    """From the paths of a batch to uint8 [B, C, image_size, image_size]; this is what travels to the workers.

    In place of an error it gives its sentence: an error of a worker would arrive with a traceback in its message.
    """

    image_size: int
    grey: bool
    interpolation: Interpolation

    def __getitem__(self, paths: Sequence[str]) -> Tensor | str:
        images = np.empty((len(paths), 1 if self.grey else 3, self.image_size, self.image_size), dtype=np.uint8)
        try:
            for image, path in zip(images, paths, strict=True):
                image[:] = decode_image(
                    path, image_size=self.image_size, grey=self.grey, interpolation=self.interpolation
                )
        except UserError as error:
            return str(error)
        return torch.from_numpy(images)


def _checked(decoded: Tensor | str) -> Tensor:
    if isinstance(decoded, str):
        raise UserError(
            f"{decoded}: repair it and run the command again, with --resume where training had begun; or begin anew "
            "with --skip-broken, which looks at all files first and leaves the broken ones out"
        )
    return decoded


def _begin_worker(_number: int) -> None:
    """Tie a worker's life to its parent's alone, whichever process started it.

    It outlives the signals that a terminal or a scheduler sends to every process of a run, so that the parent can
    finish its step and save: Ctrl-C for good, SIGTERM by `GRACE_S`. It ends when the parent is gone.
    """
    warnings.filterwarnings("ignore", module="PIL")  # which names no file; what matters is an error that does
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    def note(_number: int, _frame: FrameType | None) -> None:
        signal.alarm(GRACE_S)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, note)
    threading.Thread(target=follow, daemon=True).start()
