"""Run by run/test_checkpoint.py: saving and training in a process whose files may not grow past a limit."""

import json
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tests.support.lines import a_stretch

from trainonce.data import DataSet, Split
from trainonce.errors import RunError
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.recipes import RECIPES
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.training.loop import train_supernet
from trainonce.training.settings import TrainSettings

FREE = resource.RLIM_INFINITY


@contextmanager
def limit(size: int) -> Iterator[list[str]]:
    """Let no file grow past `size` bytes; gives the `RunError`'s text."""
    said: list[str] = []
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, FREE))
    try:
        yield said
    except RunError as error:
        said.append(str(error))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FREE, FREE))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    found: dict[str, object] = {}

    checkpoint.save(folder / "saved", 1, {"weights": {"big": torch.zeros(1000)}}, {"step": 1})
    with limit(2000) as said:
        checkpoint.save(folder / "saved", 2, {"weights": {"big": torch.ones(1000)}}, {"step": 2})
    found["save"], found["saved"] = said[0], names(folder / "saved")

    geometry = MobileNetV3Settings.for_images(
        image_size=8, in_channels=1, num_classes=2, geometry="tiny", width_mult=0.25, kernel_sizes=(3, 5)
    )
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(16) % 2)
    data = DataSet(
        name="tiny",
        class_names=("a", "b"),
        mean=(0.5,),
        std=(0.3,),
        augmentation=(),
        train=split,
        calibrate=split,
        validate=split,
        test=split,
    )
    recipe = RECIPES["spos"].with_batch_size(8).scaled(4 / 590)
    settings = TrainSettings(checkpoint_every_s=0, log_every=1)
    run, steps = RunDirectory(folder / "run"), 0

    def fill_the_disk() -> bool:
        nonlocal steps
        steps += 1
        if steps == 6:  # asked after the step's line of metrics and before its checkpoint
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, FREE))
        return False

    with limit(FREE) as said:
        train_supernet(MobileNetV3(geometry), recipe, data, run, settings=settings, should_stop=fill_the_disk)
    found["train"], found["checkpoints"] = said[0], names(run.checkpoints)
    found["metrics"] = [line.step for line in run.metrics()]

    with limit(run.metrics_file.stat().st_size + 10) as said:
        run.append_metrics(a_stretch(7, arch="x" * 100))
    found["metrics refused"] = said[0]

    resumed, straight = MobileNetV3(geometry, seed=5), MobileNetV3(geometry)
    assert train_supernet(resumed, recipe, data, run, settings=settings, resume=True)
    assert train_supernet(straight, recipe, data, RunDirectory(folder / "straight"))
    pairs = zip(resumed.state_dict().values(), straight.state_dict().values(), strict=True)
    found["equal"] = all(torch.equal(a, b) for a, b in pairs)
    found["metrics afterwards"] = [line.step for line in run.metrics()]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
