"""Damage, read, compare, again and again: in worker processes that are watched, so that a hang or a crash is counted.

What each damage is follows from the seed and its number alone.
"""

import os
import random
import resource
import select
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tests.fuzzing.damage import Damage, draw, restore
from tests.fuzzing.kinds import KINDS, Kind, difference, seen
from tests.fuzzing.material import know_ofa

from trainonce.errors import RunError, UserError

OUTCOMES = {
    "refused": "a sentence named the file",
    "fell back": "a warning said so, whatever was then read",
    "no change": "what was read is what had been written",
    "taken": "a person's own file (text, images) now says something else, and was read as it is",
    "not made yet": "the file is deleted, which is as if nobody had made it: it is made again or left out",
    "silent": "another value was believed",
    "traceback": "an error without a sentence",
    "hang": "no answer within ten seconds",
    "crash": "the process died",
}
"""What can come of a damage, and what that means."""
FAULTS = ("silent", "traceback", "hang", "crash")
HANG_S = 10.0
READY = b"ready\n"
START_S = 300.0
"""How long a worker may take until it has read everything whole."""
ROOM = 3 << 30
"""Bytes that a reader may ask for beyond what the process has: more is a `MemoryError`."""


@dataclass(frozen=True)
class Case:
    """One damage, and what came of it."""

    number: int
    kind: str
    how: str
    file: str
    outcome: str
    said: str


def drawn(
    seed: int, number: int, files: Mapping[str, Mapping[str, bytes]], kinds: Mapping[str, Kind]
) -> tuple[str, Damage]:
    """The kind and the damage of that number; `files` are each kind's, by name."""
    rng = random.Random(f"{seed} {number}")
    name = rng.choices(list(kinds), [kind.weight for kind in kinds.values()])[0]
    file = rng.choice(sorted(files[name]))
    return name, draw(rng, file, files[name][file])


def files_of(kind: Kind, folder: Path) -> dict[str, bytes]:
    """The files of a kind, by name, but for empty ones, which cannot be damaged."""
    paths = {path for pattern in kind.files for path in folder.glob(pattern) if path.is_file()}
    return {str(path.relative_to(folder)): content for path in sorted(paths) if (content := path.read_bytes())}


def outcome(kind: Kind, damage: Damage, folder: Path, expected: object) -> tuple[str, str]:
    """What comes of reading what is there, and what was said."""
    try:
        value, said = _read(kind, folder)
    except (UserError, RunError) as error:
        return "refused", str(error)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 whatever it is, it is no sentence
        return "traceback", f"{type(error).__name__}: {error}"
    if said:
        return "fell back", said[0]
    if value == expected:
        return "no change", ""
    if kind.users:
        return "taken", ""
    if kind.optional and damage.content is None and not damage.loop:
        return "not made yet", ""
    if kind.made_again and isinstance(value, tuple) and isinstance(expected, tuple) and value == expected[: len(value)]:
        return "not made yet", ""
    return "silent", difference(expected, value)


def _read(kind: Kind, folder: Path) -> tuple[object, list[str]]:
    """What is read, and what was warned of meanwhile."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = seen(kind.read(folder))
    return value, [str(warning.message) for warning in caught]


class Bench:
    """The material in a folder of its own, with what is read of it while it is whole."""

    def __init__(self, folder: Path, kinds: Mapping[str, Kind]) -> None:
        self.folder, self.kinds = folder, kinds
        self.files = {name: files_of(kind, folder) for name, kind in kinds.items()}
        self.expected = {name: self._whole(name) for name in kinds}

    def _whole(self, name: str) -> object:
        value, said = _read(self.kinds[name], self.folder)
        assert not said, (name, said)
        return value

    def do(self, seed: int, number: int) -> Case:
        """One damage: done, read and undone."""
        name, damage = drawn(seed, number, self.files, self.kinds)
        kind = self.kinds[name]
        damage.put(self.folder)
        try:
            found, said = outcome(kind, damage, self.folder, self.expected[name])
        finally:
            self._undo(name, damage)
        return Case(number, name, damage.how, damage.name, found, said.replace(str(self.folder), "…"))

    def _undo(self, name: str, damage: Damage) -> None:
        path, files = self.folder / damage.name, self.files[name]
        if self.kinds[name].tidied:
            restore(path.parent, {Path(file).name: content for file, content in files.items()})
            return
        path.unlink(missing_ok=True)
        path.write_bytes(files[damage.name])


def fuzz(
    material: Path, *, seed: int, numbers: range, workers: int = 1, kinds: Mapping[str, Kind] = KINDS
) -> Iterator[Case]:
    """Do the damages of these numbers; gives what came of each, in no order."""
    with TemporaryDirectory() as scratch:
        places = [
            _Worker(material, Path(scratch, str(i)), seed, list(numbers[i::workers]), kinds) for i in range(workers)
        ]
        try:
            while any(place.left for place in places):
                ready, _, _ = select.select([place.reader for place in places if place.left], [], [], 0.5)
                for place in places:
                    if place.left:
                        yield from place.cases(place.reader in ready)
        finally:
            for place in places:
                place.end()


class _Worker:
    """A process that does damages, and what it owes."""

    def __init__(self, material: Path, folder: Path, seed: int, numbers: list[int], kinds: Mapping[str, Kind]) -> None:
        self.material, self.folder, self.seed, self.left, self.kinds = material, folder, seed, numbers, kinds
        self.start()

    def start(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.material, self.folder, symlinks=True)
        self.started = False
        self.reader, writer = os.pipe()
        sys.stdout.flush()
        self.child: int | None = os.fork()
        if self.child == 0:
            try:
                os.close(self.reader)
                self.live(writer)
                os._exit(0)
            finally:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        os.close(writer)
        self.rest, self.heard = b"", time.monotonic() + START_S

    def live(self, writer: int) -> None:
        """The child's life."""
        torch.set_num_threads(1)
        know_ofa()
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
        bench = Bench(self.folder, self.kinds)
        os.write(writer, READY)
        for number in self.left:
            case = bench.do(self.seed, number)
            line = "\0".join(map(str, (number, case.kind, case.how, case.file, case.outcome, case.said)))
            os.write(writer, line.replace("\n", " ").encode(errors="replace")[:3000] + b"\n")

    def cases(self, ready: bool) -> Iterator[Case]:
        """What it has told; and if it hangs or has died, that, and a new one is started."""
        told = os.read(self.reader, 1 << 16) if ready else b""
        *lines, self.rest = (self.rest + told).split(b"\n")
        for line in lines:
            self.heard = time.monotonic()
            if line == READY.strip():
                self.started = True
                continue
            number, kind, how, file, found, said = line.decode(errors="replace").split("\0", 5)
            assert int(number) == self.left.pop(0)
            yield Case(int(number), kind, how, file, found, said)
        if not self.left or (told and ready) or (not ready and time.monotonic() - self.heard < HANG_S):
            return
        how = "crash" if ready else "hang"
        status = self.end()
        assert self.started, f"a worker ended with {status} before it had read everything whole"
        lost = self.left.pop(0)
        files = {name: files_of(kind, self.material) for name, kind in self.kinds.items()}
        name, damage = drawn(self.seed, lost, files, self.kinds)
        yield Case(lost, name, damage.how, damage.name, how, f"the process was ended with {status}")
        if self.left:
            self.start()

    def end(self) -> int | None:
        """End the process, if there is one; gives its exit code."""
        if self.child is None:
            return None
        os.kill(self.child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
        os.close(self.reader)
        self.child = None
        return status
