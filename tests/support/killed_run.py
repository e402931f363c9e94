"""Run by training/test_resume.py: a training run killed at random moments, and one dying before every file operation.

This process imports torch once and forks a child for every life of a run; it never computes anything itself.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from tests.support.lines import timeless

from trainonce.data import DataSet, Split
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.recipes import RECIPES, Crop, Flip
from trainonce.run.directory import RunDirectory
from trainonce.training.loop import train_supernet
from trainonce.training.settings import TrainSettings

KILLS = 20
LONGEST_DELAY_S = 0.3
DIED = 77
FILE_EVENTS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate")


def data_set() -> DataSet:
    images = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(32) % 3)
    return DataSet(
        name="tiny",
        class_names=("a", "b", "c"),
        mean=(0.5,),
        std=(0.3,),
        augmentation=(Crop(scale=(0.5, 1.0)), Flip()),
        train=split,
        calibrate=split,
        validate=split,
        test=split,
    )


def live(path: Path, epochs: float, pipe: int | None = None, die_at: int | None = None) -> None:
    """Train or go on training, in a child of its own, with a checkpoint after every step."""
    geometry = MobileNetV3Settings.for_images(
        image_size=8, in_channels=1, num_classes=3, geometry="tiny", width_mult=0.25, kernel_sizes=(3, 5)
    )
    run = RunDirectory(path)
    told = pipe is None

    def tell() -> bool:
        nonlocal told
        if not told:
            assert pipe is not None
            os.write(pipe, b"!")
            told = True
        return False

    if die_at is not None:
        left = die_at

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if event in FILE_EVENTS and str(path) in str(arguments[0]):
                left -= 1
                if left == 0:
                    os._exit(DIED)

        sys.addaudithook(count)
    train_supernet(
        MobileNetV3(geometry),
        RECIPES["ps"].with_batch_size(8).scaled(epochs / 590),
        data_set(),
        run,
        resume=True,
        settings=TrainSettings(checkpoint_every_s=0, log_every=3),
        should_stop=tell,
    )


def fork(path: Path, epochs: float, pipe: int | None = None, die_at: int | None = None) -> int:
    child = os.fork()
    if child == 0:
        try:
            live(path, epochs, pipe, die_at)
            os._exit(0)
        finally:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    return child


def wait(child: int) -> int:
    """The child's exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def newest_step(path: Path) -> int:
    return max((int(p.name[5:]) for p in (path / "checkpoints").glob("step-*")), default=0)


def outcome(path: Path) -> dict[str, bytes]:
    """Every byte that must be the same: weights, momentum, teacher, exposure, and the metrics but for the seconds."""
    newest = path / "checkpoints" / f"step-{newest_step(path):06d}"
    files = {p.name: p.read_bytes() for p in newest.glob("*.safetensors")}
    lines = timeless(RunDirectory(path).metrics())
    return files | {"exposure.npz": (path / "exposure.npz").read_bytes(), "metrics": json.dumps(lines).encode()}


def kill_at_random(folder: Path, epochs: float) -> dict[str, object]:
    straight = folder / "straight"
    assert wait(fork(straight, epochs)) == 0
    rng = random.Random(20)
    kills = advanced = half_written = 0
    runs = [folder / "run-0"]
    while kills < KILLS:
        before = newest_step(runs[-1])
        reader, writer = os.pipe()
        child = fork(runs[-1], epochs, writer)
        os.close(writer)
        os.read(reader, 1)  # it has done a step, or is finished
        os.close(reader)
        time.sleep(rng.uniform(0, LONGEST_DELAY_S))
        os.kill(child, signal.SIGKILL)
        code = wait(child)
        if code == 0:
            runs.append(folder / f"run-{len(runs)}")
            continue
        assert code == -signal.SIGKILL, code
        kills += 1
        advanced += newest_step(runs[-1]) > before
        half_written += any((runs[-1] / "checkpoints").glob(".*.partial"))
    for run in runs:
        assert wait(fork(run, epochs)) == 0
    return {
        "kills": kills,
        "advanced": advanced,
        "half_written": half_written,
        "files": sorted(outcome(straight)),
        "equal": [outcome(run) == outcome(straight) for run in runs],
    }


def die_at_every_file_operation(folder: Path, epochs: float) -> dict[str, object]:
    """Life n ends before its n-th file operation in the run; the next one goes on from what it left."""
    straight, run = folder / "straight", folder / "run"
    assert wait(fork(straight, epochs)) == 0
    deaths = 0
    for n in range(1, 200):
        code = wait(fork(run, epochs, die_at=n))
        if code == 0:
            break
        assert code == DIED, code
        deaths += 1
    return {"deaths": deaths, "equal": outcome(run) == outcome(straight)}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found = {
        "random": kill_at_random(folder / "random", epochs=10),
        "every": die_at_every_file_operation(folder / "every", epochs=4),
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
