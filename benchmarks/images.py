"""What varying and shrinking images takes by the native kernels, beside torch's operators, and of a training step.

    python benchmarks/images.py [SET …] [--rounds 5] [--steps 150] [--threads 1]

A SET is a name that `load_dataset` knows, or a folder of images; default: digits. Of each: ms of a batch of 32 as
`quick` varies it, and of the same made smaller to half and three quarters of the side; then ms a step of a training by
`quick` (`light`; `tiny` up to 16 pixels) whose images are made either way, as CPU time of the process: what the longer
of two trainings takes more. The rest of a step is by the native kernels in both.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch

from common import machine, side_by_side
from trainonce.data import DataSet, load_dataset
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.nn import native
from trainonce.nn.plain import resize
from trainonce.recipes import load_recipe
from trainonce.run.directory import RunDirectory
from trainonce.training.loop import train_supernet
from trainonce.training.settings import TrainSettings

BATCH = 32
REPEATED = 20
"""Batches of one timing."""
LEAST_STEPS = 20


def images_by_torch() -> AbstractContextManager[object]:
    """Inside, images are varied and made smaller by torch's operators."""
    return mock.patch.multiple(native, varies=lambda _images: False, resize=resize)


def batches(data: DataSet, rounds: int) -> list[str]:
    """Rows of a table: what is done, and ms by the kernels and by torch."""
    images_BCHW = data.train.batch(torch.arange(BATCH)).images_BCHW
    generator = torch.Generator().manual_seed(0)
    varied_BCHW = data.vary(images_BCHW, generator)
    works = {"varied": lambda: data.vary(images_BCHW, generator)}
    for side in (data.image_size // 2, data.image_size * 3 // 4):
        works[f"at {side} pixels"] = partial(lambda side: native.resize(varied_BCHW, side), side)

    def repeated(name: str, way: AbstractContextManager[object]) -> None:
        with way:
            for _ in range(REPEATED):
                works[name]()

    ways = {"kernels": nullcontext, "torch": images_by_torch}
    rivals = {
        (name, way): partial(lambda name, make: repeated(name, make()), name, ways[way])
        for name in works
        for way in ways
    }
    seconds = side_by_side(rivals, rounds=rounds)
    ms = {key: 1e3 * statistics.median(taken) / REPEATED for key, taken in seconds.items()}
    return [f"| {data.name}, {name} | {ms[name, 'kernels']:.2f} | {ms[name, 'torch']:.2f} |" for name in works]


def step_ms(data: DataSet, steps: int) -> float:
    """ms of CPU a step of a training by `quick`."""
    geometry = "light" if data.image_size > 16 else "tiny"
    settings = MobileNetV3Settings.for_images(
        image_size=data.image_size, in_channels=data.channels, num_classes=data.num_classes, geometry=geometry
    )
    recipe = load_recipe("quick")
    per_epoch = recipe.steps_per_epoch(len(data.train))
    seconds = []
    for length in (LEAST_STEPS, LEAST_STEPS + steps):
        with TemporaryDirectory() as folder:
            began = time.process_time()
            train_supernet(
                MobileNetV3(settings, seed=0),
                recipe.scaled(length / per_epoch / recipe.epochs),
                data,
                RunDirectory(Path(folder) / "run"),
                seed=0,
                settings=TrainSettings(checkpoint_every_s=1e9),
            )
            seconds.append(time.process_time() - began)
    return 1e3 * (seconds[1] - seconds[0]) / steps


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each set and print its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", default=["digits"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    print(machine())
    print("| ms | kernels | torch |\n|---|---|---|")
    for name in asked.sets:
        data = load_dataset(name)
        print("\n".join(batches(data.varied_by(load_recipe("quick")), asked.rounds)), flush=True)
        taken: dict[str, list[float]] = {"kernels": [], "torch": []}
        for _ in range(asked.rounds):
            taken["kernels"].append(step_ms(data, asked.steps))
            with images_by_torch():
                taken["torch"].append(step_ms(data, asked.steps))
        cells = [", ".join(f"{one:.1f}" for one in values) for values in taken.values()]
        print(f"| {data.name}, a step | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
